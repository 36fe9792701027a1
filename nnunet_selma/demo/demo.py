"""The whole path on a synthetic brain (or a real download), with the commands a user types, ending in a report.

The data are small and so is the plan; everything else is as in a real run.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.volume_tree import NothingFoundError, find_volumes
from nnunet_selma.demo.baselines import otsu, untrained
from nnunet_selma.demo.drawing import Drawing, draw_data
from nnunet_selma.demo.phantom.download import UNANNOTATED_FOLDER
from nnunet_selma.demo.report import Comparison, write_report
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.pipeline import ANNOTATED, UNLABELLED, Pipeline, Training, cpu_environment, quoted
from nnunet_selma.running.json_files import read_json
from nnunet_selma.structures import of_case

PLANS, SCRATCH_PLANS = "nnUNetSmallPlans", "nnUNetSmallPlans_scratch"
PRETRAINING = Training(dataset_id=UNLABELLED, trainer="SelmaSSLTrainer", plans=f"{PLANS}_from{ANNOTATED}", fold="all")
FINETUNINGS = {
    name: Training(dataset_id=ANNOTATED, trainer="SelmaFinetuneTrainer", plans=plans)
    for name, plans in (("with pretraining", PLANS), ("without pretraining", SCRATCH_PLANS))
}
_MARKER = ".nnunet-selma-demo"


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
    """Edge of a patch of the network, voxels."""
    batch: int = 2
    """Patches in a batch."""
    features: tuple[int, ...] = (16, 32, 64)
    """Features of the network's stages."""
    pretraining: tuple[int, int] = (48, 16)
    """Epochs, and steps in each."""
    finetuning: tuple[int, int] = (16, 16)
    """Epochs, and steps in each."""

    @property
    def drawing(self) -> Drawing:
        """The synthetic data; microglia are tested and not in the download, as in the challenge."""
        return Drawing(
            annotated=dict.fromkeys(UNANNOTATED_FOLDER, self.patches),
            tested=[*UNANNOTATED_FOLDER, "microglia"],
            patch_edge=self.patch_edge,
            brain_shape=self.brain_shape,
            test_patches=self.test_patches,
        )


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One run: its folders, and the commands in the order of the README."""

    output: Path
    pipeline: Pipeline
    size: DemoSize
    seed: int

    def run(self, data: Path | None) -> Path:
        """Do everything; returns the report. `data` is a real download, None draws one."""
        source, test = data or self.output / "download", self.output / "test"
        if data is None:
            self.pipeline.say(f"# drawing a synthetic SELMA3D download into {source}")
            draw_data(source, source, test, self.size.drawing, self.seed)
        self.convert(source)
        self.convert_unlabelled(source)
        self.train()
        if data is not None:
            self.hold_out(test)
        predictions = self.predict(test / "images")
        brain = None
        evaluations = self.evaluate(test, predictions)
        if data is None:
            brain = self.whole_brain(source)
        return write_report(
            self.output / "report",
            Comparison(test / "images", test / "references", predictions, evaluations),
            self.pipeline.fold_folder(PRETRAINING),
            {name: self.pipeline.fold_folder(training) for name, training in FINETUNINGS.items()},
            self.pipeline.log,
            synthetic=data is None,
            brain=brain,
        )

    def convert(self, source: Path) -> None:
        """Inspect, convert and plan the annotated patches."""
        size, pipeline = self.size, self.pipeline
        pipeline.run(f"nnunet-selma inspect {quoted(source)}")
        pipeline.convert_annotated(source)
        pipeline.plan("3d_fullres")
        features = " ".join(map(str, size.features))
        pipeline.run(
            f"nnunet-selma plan-small -d {ANNOTATED} --patch {size.network_patch} --batch {size.batch} --features {features}"
        )

    def convert_unlabelled(self, source: Path) -> None:
        """Convert the unannotated volumes; of a download without any, the training images of fold 0 without their labels."""
        size, pipeline = self.size, self.pipeline
        try:
            find_volumes(source)
        except NothingFoundError:
            source = self.training_images()
        pipeline.convert_unannotated(
            source, f"--tile {size.tile} --tiles-per-volume {size.tiles_per_volume} --seed {self.seed}"
        )
        pipeline.run(f"nnunet-selma plan-pretraining -s {ANNOTATED} -t {UNLABELLED} -p {PLANS} --workers 1")

    def training_images(self) -> Path:
        """A folder with links to the training images of fold 0."""
        target = self.output / "unlabelled"
        shutil.rmtree(target, ignore_errors=True)
        for case in self._split()["train"]:
            structure = of_case(case)
            folder = target / (structure.prefix if structure else "unknown")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{case}.nii.gz").symlink_to(self._raw / "imagesTr" / f"{case}_0000.nii.gz")
        return target

    @property
    def _raw(self) -> Path:
        return self.pipeline.folders.raw / self.pipeline.folders.dataset(ANNOTATED)

    def _split(self) -> dict[str, list[str]]:
        """The cases of fold 0: "train" and "val"."""
        folders = self.pipeline.folders
        splits: Any = read_json(folders.preprocessed / folders.dataset(ANNOTATED) / "splits_final.json")
        fold: dict[str, list[str]] = splits[0]
        return fold

    def train(self) -> None:
        """Pretrain, fine-tune, and train the same network from random weights."""
        pipeline = self.pipeline
        run = "{0}.epochs={1} {0}.iterations_per_epoch={2} {0}.validation_iterations=4 {0}.seed={3}"
        pretraining = run.format("pretraining", *self.size.pretraining, self.seed)
        finetuning = run.format("finetuning", *self.size.finetuning, self.seed)
        # the lower default rates keep what pretraining learnt of structures without labels; here all but microglia
        # are labelled, and steps are few (docs/results.md)
        finetuning += " finetuning.encoder_rate=1 finetuning.decoder_rate=1"
        pipeline.settings(UNLABELLED, PRETRAINING.plans, pretraining)
        pipeline.train(PRETRAINING)
        pipeline.settings(ANNOTATED, PLANS, finetuning)
        pipeline.settings(ANNOTATED, PLANS, f"--save-as {SCRATCH_PLANS} finetuning.pretrained=none")
        for training in FINETUNINGS.values():
            pipeline.train(training)

    def hold_out(self, test: Path) -> None:
        """Copy the validation cases of fold 0, which training has not seen, as test patches of a real download."""
        shutil.rmtree(test, ignore_errors=True)
        for name in ("images", "references"):
            (test / name).mkdir(parents=True)
        for case in self._split()["val"]:
            for image in sorted((self._raw / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9].nii.gz")):
                shutil.copy(image, test / "images")
            shutil.copy(self._raw / "labelsTr" / f"{case}.nii.gz", test / "references")

    def predict(self, images: Path) -> dict[str, Path]:
        """Segment unseen patches with both models, by a threshold, and with an untrained network."""
        folder = self.output / "predictions"
        shutil.rmtree(folder, ignore_errors=True)  # an earlier demo may have had other cases
        predictions = {}
        for name, training in FINETUNINGS.items():
            predictions[name] = folder / name.replace(" ", "_")
            self.pipeline.predict(training, images, predictions[name], "--disable_tta -npp 0 -nps 0")
        self.pipeline.say("# untrained network and Otsu's threshold, for comparison")
        predictions["Otsu's threshold"] = otsu(images, folder / "otsu")
        model = self.pipeline.fold_folder(FINETUNINGS["without pretraining"]).parent
        predictions["untrained network"] = untrained(
            model, images, folder / "untrained", device=self.pipeline.device, seed=self.seed
        )
        return predictions

    def evaluate(self, test: Path, predictions: dict[str, Path]) -> dict[int, Path]:
        """Score all predictions by the rules of both editions; returns edition to folder."""
        methods = " ".join(quoted(f"{name}={folder}") for name, folder in predictions.items())
        folders = {}
        for year, pictures in ((2024, f"--images {quoted(test / 'images')}"), (2026, "--no-sheets")):
            folders[year] = self.output / "report" / f"evaluation_{year}"
            shutil.rmtree(folders[year], ignore_errors=True)
            self.pipeline.run(
                f"nnunet-selma evaluate --reference {quoted(test / 'references')} --prediction {methods} "
                f"--edition {year} --corrected -o {quoted(folders[year])} {pictures}"
            )
        return folders

    def whole_brain(self, download: Path) -> Path | None:
        """Segment a whole brain from its slices, list its cells and draw it; returns the folder, or None without the packages for OME-Zarr."""
        pipeline = self.pipeline
        missing = [name for name in ("zarr", "ome_zarr_models") if find_spec(name) is None]
        if missing:
            pipeline.say(
                f"# no whole brain: {', '.join(missing)} is not installed (pip install 'nnunet-selma[brains]')"
            )
            return None
        folder = self.output / "report" / "brain"
        folder.mkdir(parents=True, exist_ok=True)
        (slices,) = (download / "brain_microscopy_image").glob(f"*/{UNANNOTATED_FOLDER['cfos_neuron']}/sample1/C01")
        brain, table = quoted(folder / "brain.ome.zarr"), quoted(folder / "cells.csv")
        pipeline.run(
            f"nnunet-selma predict-volume {quoted(slices)} -o {brain} -d {ANNOTATED} "
            f"{FINETUNINGS['with pretraining'].model} --spacing 4,2,2 --device {pipeline.device} --overwrite"
        )
        pipeline.run(f"nnunet-selma objects {brain} -o {table}")
        pipeline.run(f"nnunet-selma overview {brain} -o {quoted(folder / 'overview.png')} --objects {table}")
        return folder


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
    environment = cpu_environment(workspace, device)
    if device == "cpu":
        environment["nnUNet_def_n_proc"] = "1"  # the validation after a training starts as many processes
    os.environ.update(environment)
    pipeline = Pipeline(
        folders=Folders.from_environment(environment),
        environment=environment,
        device=device,
        say=say,
    )
    return Demo(output=output, pipeline=pipeline, size=size or DemoSize(), seed=seed).run(data)
