"""The whole path on a synthetic brain (or a real download), with the commands a user types, ending in a report.

The data are small and so is the plan; everything else is what a real run does.
"""

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.conversion.volume_tree import NothingFoundError, find_volumes
from nnunet_selma.demo.report import Comparison, write_report
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet import commands
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.structures import of_case
from nnunet_selma.volumes import open_volume

ANNOTATED, UNLABELLED = 510, 500
PLANS, SCRATCH_PLANS = "nnUNetSmallPlans", "nnUNetSmallPlans_scratch"
PRETRAINING_PLANS = f"{PLANS}_from{ANNOTATED}"
_MARKER = ".nnunet-selma-demo"
WITH, WITHOUT = "with pretraining", "without pretraining"


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much is drawn and trained; the defaults take about twelve minutes on two cores."""

    patches: int = 3
    """Annotated patches of each structure."""
    patch_edge: int = 64
    """Edge of an annotated patch, voxels."""
    brain_shape: tuple[int, int, int] = (96, 192, 192)
    """Shape of an unannotated brain, (z, y, x)."""
    tile: int = 64
    """Edge of a tile."""
    tiles_per_volume: int = 6
    """Tiles of each brain."""
    test_patches: int = 2
    """Unseen patches of each structure."""
    network_patch: int = 32
    """Edge of what the network sees."""
    batch: int = 2
    """Patches in a batch."""
    features: tuple[int, ...] = (16, 32, 64)
    """Features of the network's stages."""
    pretraining: tuple[int, int] = (48, 16)
    """Epochs, and steps in each."""
    finetuning: tuple[int, int] = (16, 16)
    """Epochs, and steps in each."""


class Demo:
    """One run: its folders, and the commands in the order of the README."""

    def __init__(
        self,
        output: Path,
        environment: dict[str, str],
        *,
        size: DemoSize,
        device: str,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.output, self.environment, self.size, self.device, self.seed, self.say = (
            output,
            environment,
            size,
            device,
            seed,
            say,
        )
        self.folders = Folders(
            **{name: Path(environment[f"nnUNet_{name}"]) for name in ("raw", "preprocessed", "results")}
        )
        self.commands: list[tuple[str, float]] = []

    def run(self, data: Path | None) -> Path:
        """Everything; returns the report."""
        source, test = (data, None) if data else self.draw()
        self.convert(source)
        self.convert_unlabelled(source)
        self.train()
        images, references = (test / "images", test / "references") if test else self.held_out()
        predictions = self.predict(images)
        self.say("# untrained network and Otsu's threshold, for comparison")
        predictions |= {"Otsu's threshold": self.otsu(images), "untrained network": self.untrained(images)}
        comparison = Comparison(images, references, predictions, self.evaluate(images, references, predictions))
        brain = None if data else self.whole_brain(source)
        return write_report(
            self.output / "report",
            comparison,
            self.run_folder(UNLABELLED, "SelmaSSLTrainer", PRETRAINING_PLANS, "all"),
            {
                name: self.run_folder(ANNOTATED, "SelmaFinetuneTrainer", plans, "0")
                for name, plans in ((WITH, PLANS), (WITHOUT, SCRATCH_PLANS))
            },
            self.commands,
            synthetic=data is None,
            brain=brain,
        )

    def do(self, *command: str, **environment: str) -> None:
        """Print a command, run it, and remember how long it took."""
        line = shlex.join(command)
        self.say(f"\n$ {line}")
        started = time.monotonic()
        commands.run(command, {**self.environment, **environment})
        self.commands.append((line, time.monotonic() - started))

    def draw(self) -> tuple[Path, Path]:
        """Draw a SELMA3D download and, beside it, unseen test patches; returns both folders."""
        from nnunet_selma.demo.phantom.download import UNANNOTATED_FOLDER, write_annotated, write_unannotated

        download, test = self.output / "download", self.output / "test"
        done = download / "drawn.json"
        wanted = {"seed": self.seed, **vars(self.size)}
        if done.is_file() and read_json(done) == json.loads(json.dumps(wanted)):
            return download, test
        for folder in (download, test):
            shutil.rmtree(folder, ignore_errors=True)
        rng = np.random.default_rng(self.seed)
        structures = list(UNANNOTATED_FOLDER)
        shape = (self.size.patch_edge,) * 3
        self.say(f"# drawing a synthetic SELMA3D download into {download}")
        write_annotated(download, dict.fromkeys(structures, self.size.patches), rng, shape_zyx=shape)
        write_unannotated(download, dict.fromkeys(structures, 1), rng, shape_zyx=self.size.brain_shape)
        self.draw_test([*structures, "microglia"], shape, rng, test)
        write_json(done, wanted)
        return download, test

    def draw_test(
        self, structures: Sequence[str], shape: tuple[int, int, int], rng: np.random.Generator, test: Path
    ) -> None:
        """Draw unseen patches, microglia among them, which no training patch shows (as in the challenge)."""
        from nnunet_selma.conversion.raw_dataset import write_nifti
        from nnunet_selma.demo.phantom import draw

        for name in ("images", "references"):
            (test / name).mkdir(parents=True)
        for structure in structures:
            for number in range(self.size.test_patches):
                phantom = draw(structure, shape, rng)
                case = f"{structure}_{900 + number}"
                write_nifti(test / "images" / f"{case}_0000.nii.gz", phantom.image, (1.0, 1.0, 1.0))
                write_nifti(test / "references" / f"{case}.nii.gz", phantom.label, (1.0, 1.0, 1.0))

    def convert(self, source: Path) -> None:
        """Inspect, convert and plan the annotated patches."""
        size, annotated = self.size, str(ANNOTATED)
        self.do("nnunet-selma", "inspect", str(source))
        self.do("nnunet-selma", "convert", "annotated", str(source), "-d", annotated, "--spacing", "voxel")
        # nnU-Net's planner takes its thread count from this variable and fails at 0
        self.do(
            "nnUNetv2_plan_and_preprocess",
            "-d",
            annotated,
            "-c",
            "3d_fullres",
            "--verify_dataset_integrity",
            "-np",
            "1",
            "-npfp",
            "1",
            nnUNet_n_proc_DA="1",
        )
        self.do(
            "nnunet-selma",
            "plan-small",
            "-d",
            annotated,
            "--patch",
            str(size.network_patch),
            "--batch",
            str(size.batch),
            "--features",
            *map(str, size.features),
        )

    def convert_unlabelled(self, source: Path) -> None:
        """Convert the unannotated volumes; of a download that has none, the training images of fold 0, without their labels."""
        size, annotated, unlabelled = self.size, str(ANNOTATED), str(UNLABELLED)
        try:
            find_volumes(source)
        except NothingFoundError:
            source = self.training_images()
        self.do(
            "nnunet-selma",
            "convert",
            "unannotated",
            str(source),
            "-d",
            unlabelled,
            "--spacing",
            "voxel",
            "--tile",
            str(size.tile),
            "--tiles-per-volume",
            str(size.tiles_per_volume),
            "--seed",
            str(self.seed),
        )
        self.do("nnunet-selma", "plan-pretraining", "-s", annotated, "-t", unlabelled, "-p", PLANS, "--workers", "1")

    def training_images(self) -> Path:
        """A folder with links to the training images of fold 0."""
        dataset = self.folders.dataset(ANNOTATED)
        splits: Any = read_json(self.folders.preprocessed / dataset / "splits_final.json")
        target = self.output / "unlabelled"
        shutil.rmtree(target, ignore_errors=True)
        for case in splits[0]["train"]:
            structure = of_case(case)
            folder = target / (structure.prefix if structure else "unknown")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{case}.nii.gz").symlink_to(self.folders.raw / dataset / "imagesTr" / f"{case}_0000.nii.gz")
        return target

    def train(self) -> None:
        """Pretrain, fine-tune, and train the same network from random weights."""
        run = "{0}.epochs={1} {0}.iterations_per_epoch={2} {0}.validation_iterations=4 {0}.seed={3}"
        pretraining = run.format("pretraining", *self.size.pretraining, self.seed).split()
        finetuning = run.format("finetuning", *self.size.finetuning, self.seed).split()
        # what the default keeps is knowledge of what no label shows; here every structure but microglia is labelled, and steps are few (docs/results.md)
        finetuning += ["finetuning.encoder_rate=1", "finetuning.decoder_rate=1"]
        self.do("nnunet-selma", "settings", "-d", str(UNLABELLED), "-p", PRETRAINING_PLANS, *pretraining)
        self.do(
            "nnUNetv2_train",
            str(UNLABELLED),
            "3d_fullres",
            "all",
            "-tr",
            "SelmaSSLTrainer",
            "-p",
            PRETRAINING_PLANS,
            "-device",
            self.device,
        )
        settings = ("nnunet-selma", "settings", "-d", str(ANNOTATED), "-p", PLANS)
        self.do(*settings, *finetuning)
        self.do(*settings, "--save-as", SCRATCH_PLANS, "finetuning.pretrained=none")
        for plans in (PLANS, SCRATCH_PLANS):
            self.do(
                "nnUNetv2_train",
                str(ANNOTATED),
                "3d_fullres",
                "0",
                "-tr",
                "SelmaFinetuneTrainer",
                "-p",
                plans,
                "-device",
                self.device,
            )

    def held_out(self) -> tuple[Path, Path]:
        """Test images of a real download: the validation cases of fold 0, which training has not seen."""
        dataset = self.folders.dataset(ANNOTATED)
        splits: Any = read_json(self.folders.preprocessed / dataset / "splits_final.json")
        test = self.output / "test"
        shutil.rmtree(test, ignore_errors=True)
        for name in ("images", "references"):
            (test / name).mkdir(parents=True)
        raw = self.folders.raw / dataset
        for case in splits[0]["val"]:
            for image in sorted((raw / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9].nii.gz")):
                shutil.copy(image, test / "images")
            shutil.copy(raw / "labelsTr" / f"{case}.nii.gz", test / "references")
        return test / "images", test / "references"

    def predict(self, images: Path) -> dict[str, Path]:
        """Segment unseen patches with both models."""
        shutil.rmtree(self.output / "predictions", ignore_errors=True)  # of an earlier demo, with other cases
        predictions = {}
        for name, plans in ((WITH, PLANS), (WITHOUT, SCRATCH_PLANS)):
            predictions[name] = self.output / "predictions" / name.replace(" ", "_")
            self.do(
                "nnUNetv2_predict",
                "-d",
                str(ANNOTATED),
                "-i",
                str(images),
                "-o",
                str(predictions[name]),
                "-f",
                "0",
                "-tr",
                "SelmaFinetuneTrainer",
                "-c",
                "3d_fullres",
                "-p",
                plans,
                "-device",
                self.device,
                "--disable_tta",
                "-npp",
                "1",
                "-nps",
                "1",
            )
        return predictions

    def evaluate(self, images: Path, references: Path, predictions: dict[str, Path]) -> dict[int, Path]:
        """Judge all predictions by the rules of both editions; returns edition to folder."""
        folders = {}
        for year, pictures in ((2024, ("--images", str(images))), (2026, ("--no-sheets",))):
            folders[year] = self.output / "report" / f"evaluation_{year}"
            shutil.rmtree(folders[year], ignore_errors=True)
            self.do(
                "nnunet-selma",
                "evaluate",
                "--reference",
                str(references),
                "--prediction",
                *(f"{name}={folder}" for name, folder in predictions.items()),
                "--edition",
                str(year),
                "--corrected",
                "-o",
                str(folders[year]),
                *pictures,
            )
        return folders

    def whole_brain(self, download: Path) -> Path | None:
        """Segment a whole brain from its slices, list its cells and draw it; returns the folder, or None without what OME-Zarr needs."""
        from nnunet_selma.demo.phantom.download import UNANNOTATED_FOLDER

        lacking = [name for name in ("zarr", "ome_zarr_models") if find_spec(name) is None]
        if lacking:
            self.say(f"# no whole brain: {', '.join(lacking)} is not installed (pip install 'nnunet-selma[brains]')")
            return None
        folder = self.output / "report" / "brain"
        folder.mkdir(parents=True, exist_ok=True)
        (slices,) = sorted(
            (download / "brain_microscopy_image").glob(f"*/{UNANNOTATED_FOLDER['cfos_neuron']}/sample1/C01")
        )
        brain, table = folder / "brain.ome.zarr", folder / "cells.csv"
        self.do(
            "nnunet-selma",
            "predict-volume",
            str(slices),
            "-o",
            str(brain),
            "-d",
            str(ANNOTATED),
            "-tr",
            "SelmaFinetuneTrainer",
            "-p",
            PLANS,
            "-f",
            "0",
            "--spacing",
            "4,2,2",
            "--device",
            self.device,
            "--overwrite",
        )
        self.do("nnunet-selma", "objects", str(brain), "-o", str(table))
        self.do("nnunet-selma", "overview", str(brain), "-o", str(folder / "overview.png"), "--objects", str(table))
        return folder

    def run_folder(self, dataset_id: int, trainer: str, plans: str, fold: str) -> Path:
        """Where a training wrote its results."""
        return (
            self.folders.results / self.folders.dataset(dataset_id) / f"{trainer}__{plans}__3d_fullres" / f"fold_{fold}"
        )

    def otsu(self, images: Path) -> Path:
        """Threshold every image by Otsu's method, the trivial segmentation."""
        from skimage.filters import threshold_otsu

        from nnunet_selma.conversion.raw_dataset import write_nifti

        target = self.output / "predictions" / "otsu"
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(images.glob("*_0000.nii.gz")):
            image = open_volume(path).read()
            write_nifti(
                target / path.name.replace("_0000", ""),
                (image > threshold_otsu(image)).astype(np.uint8),
                (1.0, 1.0, 1.0),
            )
        return target

    def untrained(self, images: Path) -> Path:
        """Segment with the same network and random weights."""
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        target = self.output / "predictions" / "untrained"
        target.mkdir(parents=True, exist_ok=True)
        predictor = nnUNetPredictor(
            use_mirroring=False, device=torch.device(self.device), perform_everything_on_device=False, allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(
            str(self.run_folder(ANNOTATED, "SelmaFinetuneTrainer", SCRATCH_PLANS, "0").parent),
            (0,),
            "checkpoint_final.pth",
        )
        torch.manual_seed(self.seed)
        for layer in predictor.network.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        predictor.list_of_parameters = [predictor.network.state_dict()]
        predictor.predict_from_files_sequential(str(images), str(target), save_probabilities=False, overwrite=True)
        return target


def demo_environment(workspace: Path, device: str = "cpu") -> dict[str, str]:
    """The variables of a workspace; on a CPU with threads and workers that leave no two compute threads on one core."""
    threads = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    return {**commands.workspace_environment(workspace), **(threads if device == "cpu" else {})}


def run_demo(
    output: Path,
    *,
    data: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    size: DemoSize | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Run the demo into a folder; returns `report.html`.

    Raises:
        SelmaError: a command failed, or the real download cannot be used.
    """
    if data is not None and not data.is_dir():
        raise SelmaError(f"{data}: there is no such folder")
    output = output.expanduser().resolve()
    marker = output / _MARKER
    if output.is_dir() and any(output.iterdir()) and not marker.is_file():
        raise SelmaError(f"{output} is not empty and was not made by a demo; choose another folder with -o")
    output.mkdir(parents=True, exist_ok=True)
    marker.touch()
    workspace = output / "workspace"
    # datasets of an earlier demo would be taken for these
    shutil.rmtree(workspace, ignore_errors=True)
    environment = demo_environment(workspace, device)
    os.environ.update(environment)
    return Demo(output, environment, size=size or DemoSize(), device=device, seed=seed, say=say).run(data)
