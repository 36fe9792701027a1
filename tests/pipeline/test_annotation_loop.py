"""The annotation loop on phantom brains without labels: the commands that are printed lead to a model, and labels come from the phantoms' truth.

Training is cut to a few steps in the plans; everything else is as somebody without a GPU would do it.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from skimage.filters import threshold_otsu

from nnunet_selma.demo.phantom import Phantom, draw
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes import open_volume

pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
pytestmark = pytest.mark.slow

DATASET = "Dataset510_SELMA3D"
SHAPE = (96, 192, 192)
SPACING = "5,0.54,0.54"
EDGE = 32
OPTIONS = {
    "nnUNetv2_plan_and_preprocess": "-np 1 -npfp 1",
    "nnUNetv2_preprocess": "-np 1",
    "nnUNetv2_train": "-device cpu",
}
"""Options that somebody with two cores and no GPU adds to nnU-Net's commands."""
SETTINGS = "nnunet-selma settings -d 510 -p nnUNetSmallPlans"
SMALL = (
    f"nnunet-selma plan-small -d 510 --patch {EDGE} --batch 2 --features 8 16 32",
    f"{SETTINGS} finetuning.pretrained=none finetuning.optimizer=adamw finetuning.learning_rate=0.003 finetuning.seed=0 "
    "finetuning.epochs=1 finetuning.iterations_per_epoch=40 finetuning.validation_iterations=1",
)
"""Commands for a small network and a short training, once the dataset is planned."""
LONGER = f"{SETTINGS} finetuning.epochs=2 finetuning.iterations_per_epoch=120"
"""Command before the training of the last round."""
ENDED = "ended, with code"
SHELL = f"""if True:
    import shlex, sys
    from pathlib import Path
    from nnunet_selma.errors import SelmaError
    from nnunet_selma.nnunet.commands import run_forked
    from nnunet_selma.nnunet.pipeline import cpu_environment
    environment = {{**cpu_environment(Path(sys.argv[1]), "cpu"), "OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}}
    for line in sys.stdin:
        # nnU-Net's planner takes its thread count from this variable and fails at 0
        loading = "1" if line.startswith("nnUNetv2_plan") else "0"
        code = 0
        try:
            run_forked(shlex.split(line), {{**environment, "nnUNet_n_proc_DA": loading}})
        except SelmaError as error:
            print(error)
            code = 1
        print("\\n{ENDED}", code, flush=True)
"""


class Shell:
    """Runs command lines one after another in a workspace; nnU-Net is imported once for all of them."""

    def __init__(self, workspace: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SHELL, str(workspace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, line: str) -> tuple[int, str]:
        """Run a line; returns 0 if it succeeded, or 1, and its output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        output = ""
        for printed in self._process.stdout:
            if printed.startswith(ENDED):
                return int(printed.split()[-1]), output
            output += printed
        raise AssertionError(f"the shell ended: {output}")

    def close(self) -> None:
        """End the shell."""
        self._process.communicate()


class Loop:
    """An annotation loop in a folder, from slices on.

    Args:
        folder: folder for brains, cubes and nnU-Net's folders.
        names: names of the brains, which are drawn.
        half: annotate one half of the planes of each cube, that which shows more.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, half: bool = False) -> None:
        self.folder, self.cubes, self._half = folder, folder / "cubes", half
        self.brains: dict[str, Phantom] = {}
        for seed, name in enumerate(names):
            brain = draw("cell_nuclei", SHAPE, np.random.default_rng(seed), outside=0.3, whole=True)
            (folder / "brains" / name).mkdir(parents=True)
            for z, plane in enumerate(brain.image):
                tifffile.imwrite(folder / "brains" / name / f"{name}_Z{z}.tif", plane)
            self.brains[name] = brain
        self._shell = Shell(folder / "workspace")
        self._painted: dict[Path, bytes] = {}

    def run(self, line: str) -> str:
        """Run a line, which leaves every label that was painted as it is; returns its output.

        Where labels are asked about that may be unfinished, the answer is that they are right, as they are: they are the truth.
        """
        code, output = self._shell.run(f"{line} {OPTIONS.get(shlex.split(line)[0], '')}")
        if code and "that may be unfinished" in output and "--as-is" not in line:
            return self.run(f"{line} --as-is {' '.join(sorted(set(re.findall('cube_[0-9]{4}', output))))}")
        assert code == 0, f"{line}\n{output[-3000:]}"
        for label, content in self._painted.items():
            assert label.read_bytes() == content, f"{line} changed {label}"
        return output

    def close(self) -> None:
        """End the shell."""
        self._shell.close()

    def annotate(self, round_number: int) -> list[dict[str, Any]]:
        """Paint the truth into the labels of a round; returns the records of its cubes."""
        records = [record for record in self.records() if record["round"] == round_number]
        for record in records:
            file = self.cubes / record["name"] / "label.nii.gz"
            values = self.brains[record["brain"]].label[box_of(record)].copy()
            if self._half:
                values[emptier_half(values)] = 255
            image = nibabel.load(file)
            nibabel.save(nibabel.Nifti1Image(values.T, image.affine, image.header), file)
            self._painted[file] = file.read_bytes()
        return records

    def records(self) -> list[dict[str, Any]]:
        """Content of every `cube.json`."""
        return [read_json(path) for path in sorted(self.cubes.glob("*/cube.json"))]

    def to_the_next_proposal(self) -> str:
        """Type what is printed, from labels that are painted to a trained model; returns the command that is printed for the next round."""
        output = self.run(f"nnunet-selma round {self.cubes} -d 510")
        while not (lines := printed_commands(output))[0].startswith("nnunet-selma propose"):
            for line in lines:
                output = self.run(line)
                if line.startswith("nnUNetv2_plan_and_preprocess"):
                    for smaller in SMALL:
                        self.run(smaller)
                    output = self.run("nnunet-selma round -d 510")
                    break
        assert len(lines) == 1
        return lines[0]

    def read(self, *path: str) -> Any:
        """Content of a JSON file in nnU-Net's folders."""
        return read_json(self.folder.joinpath("workspace", *path))

    def scores(self) -> dict[str, float]:
        """Dice of the model, of Otsu's threshold, and of Otsu's threshold within the tissue, in the voxels of all brains outside all cubes."""
        truth: list[Any] = []
        answers: dict[str, list[Any]] = {"model": [], "Otsu": [], "Otsu within the tissue": []}
        for name, brain in self.brains.items():
            output = self.folder / f"{name}.ome.zarr"
            self.run(
                f"nnunet-selma predict-volume {self.folder / 'brains' / name} -o {output} -d 510 -tr SelmaFinetuneTrainer -p nnUNetSmallPlans "
                f"--spacing {SPACING} -step_size 1"
            )
            predicted = open_volume(output / "labels" / "segmentation").read()
            assert set(np.unique(predicted)) == {0, 1}
            unseen = np.ones(SHAPE, bool)
            for record in self.records():
                if record["brain"] == name:
                    unseen[box_of(record)] = False
            image, tissue = brain.image, brain.tissue
            truth.append(brain.label[unseen] > 0)
            answers["model"].append(predicted[unseen] > 0)
            answers["Otsu"].append((image > threshold_otsu(image))[unseen])
            answers["Otsu within the tissue"].append((tissue & (image > threshold_otsu(image[tissue])))[unseen])
        return {name: dice(np.concatenate(parts), np.concatenate(truth)) for name, parts in answers.items()}


def box_of(record: Mapping[str, Any]) -> tuple[slice, ...]:
    """A cube as slices of its brain."""
    return tuple(slice(s, s + n) for s, n in zip(record["start_zyx"], record["shape_zyx"], strict=True))


def emptier_half(labels: Any) -> slice:
    """The half of the planes of a cube that holds less of the structure."""
    middle = len(labels) // 2
    return slice(middle, None) if labels[:middle].sum() >= labels[middle:].sum() else slice(middle)


def touch(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """True if two cubes share voxels, a face, an edge or a corner."""
    pairs = zip(box_of(first), box_of(second), strict=True)
    return first["brain"] == second["brain"] and all(a.start <= b.stop and b.start <= a.stop for a, b in pairs)


def printed_commands(output: str) -> list[str]:
    """The lines after `next:`."""
    return [line.strip() for line in output.rsplit("next:", 1)[1].strip().splitlines()]


def dice(first: Any, second: Any) -> float:
    """Dice of two masks."""
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def three_rounds(loop: Loop, *, count: int) -> str:
    """Propose, annotate, convert and train three times; returns what `round` prints at the end."""
    proposal = (
        f"nnunet-selma propose {loop.folder / 'brains'} -n {count} -o {loop.cubes} --size {EDGE} --spacing {SPACING}"
    )
    folds: dict[str, int] = {}
    for number in (1, 2, 3):
        output = loop.run(proposal)
        assert f"round {number}: {count} cubes; picture: " in output
        waiting = loop.run(f"nnunet-selma round {loop.cubes} -d 510")
        records = loop.annotate(number)
        assert len(records) == count
        assert f"# annotate {', '.join(record['name'] for record in records)}, as README.md" in waiting
        assert {record["suggestion"] for record in records} == {"empty" if number == 1 else "model"}
        assert not any(touch(*pair) for pair in combinations(loop.records(), 2))
        if number == 3:
            loop.run(LONGER)
        proposal = loop.to_the_next_proposal()
        assert f" -n {count} " in proposal
        assert " --model " in proposal
        manifest = loop.read("nnUNet_raw", DATASET, "selma_manifest.json")
        assert [version["cases"] for version in manifest["history"]] == [count * n for n in range(1, number + 1)]
        assert folds.items() <= manifest["folds"].items()
        folds = manifest["folds"]
        assert len(folds) == loop.read("nnUNet_raw", DATASET, "dataset.json")["numTraining"] == count * number
    return loop.run("nnunet-selma round -d 510")


def check_better_than_otsu(loop: Loop) -> None:
    """The model is better than a threshold, also than one that knows where tissue is, where nobody annotated."""
    scores = loop.scores()
    assert scores["model"] > max(scores["Otsu"], scores["Otsu within the tissue"]), scores


def test_three_rounds_lead_to_a_model_better_than_otsu(tmp_path):
    """Two brains, a fold each; no brain is parted between training and validation."""
    with closing(Loop(tmp_path, ["mouse_a", "mouse_b"])) as loop:
        state = three_rounds(loop, count=4)
        brains = {record["name"]: record["brain"] for record in loop.records()}
        for split in loop.read("nnUNet_preprocessed", DATASET, "splits_final.json"):
            assert [len({brains[case] for case in split[side]}) for side in ("train", "val")] == [1, 1]
            assert {*split["train"], *split["val"]} == brains.keys()
        for number in (1, 2, 3):
            assert f"round {number}: 4 cubes handed over" in state
            assert f"  version {number}, SelmaFinetuneTrainer__nnUNetSmallPlans__3d_fullres: 0." in state
        assert state.count("4 changed since, 4 in the dataset") == 3
        assert "trained on the same cubes" not in state
        check_better_than_otsu(loop)


def test_half_annotated_cubes_do_too(tmp_path):
    """A single brain; the planes that nobody looked at are 255, and nnU-Net's ignore label in the dataset."""
    with closing(Loop(tmp_path, ["mouse_a"], half=True)) as loop:
        state = three_rounds(loop, count=3)
        assert loop.read("nnUNet_raw", DATASET, "dataset.json")["labels"] == {
            "background": 0,
            "structure": 1,
            "ignore": 2,
        }
        for record in loop.records():
            painted = open_volume(loop.cubes / record["name"] / "label.nii.gz").read()
            assert (painted == 255).mean() == 0.5
            converted = loop.folder / "workspace" / "nnUNet_raw" / DATASET / "labelsTr" / f"{record['name']}.nii.gz"
            np.testing.assert_array_equal(open_volume(converted).read(), np.where(painted == 255, 2, painted))
        assert state.count("3 changed since, 3 in the dataset") == 3
        assert "n 9 cubes of 1 brain; trained on the same cubes, says nothing about others" in state
        check_better_than_otsu(loop)
