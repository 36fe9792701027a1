"""Prediction of a folder by several models: a router chooses the model of each case (bioAI, SELMA3D paper, 4.2.2).

(1) All cases are routed before the first prediction, so that a case without a model ends the run early. (2) nnU-Net's command runs once for
each model, on a folder of links. (3) Small components are removed, and all results go into one folder. (4) `routes.json` lists the routes.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet import commands
from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.prediction.small_objects import remove_small_in_file
from nnunet_selma.routing.routers import OTHER, Router, class_probabilities, most_probable
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.nifti import is_nifti

ROUTES = "routes.json"


@dataclass(frozen=True, kw_only=True)
class RoutedSettings:
    """Options of nnU-Net's command, and of the removal of small components afterwards."""

    folds: tuple[str, ...] = ("0",)
    """Folds of each model, or all; several are averaged."""
    checkpoint: str = "checkpoint_final.pth"
    """File of the weights in the folder of a fold."""
    step_size: float = 0.5
    """Step of the sliding window, in patches."""
    mirroring: bool = True
    """Average the predictions of each patch over all mirrorings (test time augmentation)."""
    device: str = "cpu"
    workers: int = 1
    """Number of processes that read, and of processes that write."""
    remove_below: int = 5
    """Remove components of fewer voxels than this; 0 removes none."""


@dataclass(frozen=True)
class Route:
    """Case, class and model."""

    case: str
    files: tuple[Path, ...]
    """A file for each channel."""
    most_probable: str
    """The most probable class."""
    probabilities: dict[str, float]
    model: str
    """Name of the model: the class, or `other`."""

    def as_json(self, removed: int) -> dict[str, Any]:
        """The entry of `routes.json`."""
        return {
            "case": self.case,
            "class": self.most_probable,
            "probabilities": self.probabilities,
            "model": self.model,
            "removed_components": removed,
        }


def predict_routed(
    source: Path,
    output: Path,
    router: Router,
    models: Mapping[str, Path],
    settings: RoutedSettings,
    *,
    environment: Mapping[str, str] | None = None,
    progress: Progress[Any] = silent,
) -> list[dict[str, Any]]:
    """Predict a folder of images into another folder; returns the entries of `routes.json`, which is written there.

    Args:
        source: folder of images with nnU-Net's names, `<case>_0000.nii.gz`.
        output: folder for `<case>.nii.gz`; files of that name are replaced.
        router: classifier of the cases.
        models: folder of a trained model (with plans.json and fold folders) for each class or `other`.
        settings: options of the prediction.
        environment: variables for nnU-Net's command, beside those of this process.
        progress: shows routing and collecting.

    Raises:
        SelmaError: no images, a model that is incomplete or of no class, a case without a model, or nnU-Net failed.
    """
    descriptions = _descriptions(models, router, settings)
    ending = _file_ending(descriptions, models, settings)
    routes = []
    for case, files in progress(list(find_case_files(source, ending).items()), "routing"):
        route = choose_model(case, files, router, models)
        _check_channels(route, descriptions[route.model])
        routes.append(route)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".routed_", dir=output) as temporary:
        predicted = _predict(routes, models, settings, ending, temporary, environment)
        (output / ROUTES).unlink(missing_ok=True)  # of an earlier run, whose results are now replaced
        records = [
            route.as_json(_collect(predicted[route.case], output, settings.remove_below))
            for route in progress(routes, "collecting")
        ]
    folders = {name: str(folder) for name, folder in models.items()}
    write_json(output / ROUTES, {"models": folders, "remove_below": settings.remove_below, "cases": records})
    return records


def find_case_files(source: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    """The files of each case, one for each channel, in a folder of images with nnU-Net's names.

    Raises:
        SelmaError: no such folder, no images in it, or a name without the number of a channel.
    """
    if not source.is_dir():
        raise SelmaError(f"{source}: there is no such folder")
    cases: dict[str, list[Path]] = {}
    for path in sorted(source.glob(f"[!.]*{ending}")):
        match = re.fullmatch(r"(.+)_\d{4}", path.name.removesuffix(ending))
        if match is None:
            raise SelmaError(
                f"{path}: the name lacks the number of its channel; call it {path.name.removesuffix(ending)}_0000{ending}"
            )
        cases.setdefault(match[1], []).append(path)
    if not cases:
        raise SelmaError(f"{source}: holds no images; the models take files named <case>_0000{ending}")
    return {case: tuple(files) for case, files in cases.items()}


def choose_model(case: str, files: Sequence[Path], router: Router, models: Mapping[str, Path]) -> Route:
    """The route of a case; raises `SelmaError` if neither its class nor `other` has a model, or the router needs more channels."""
    if len(files) < router.channels:
        raise SelmaError(
            f"case {case} has {counted(len(files), 'channel')} and the router needs {router.channels}; give all channels of the case"
        )
    probabilities = class_probabilities(router, [open_volume(path) for path in files])
    shows = most_probable(probabilities)
    model = shows if shows in models else OTHER
    if model not in models:
        raise SelmaError(
            f"case {case} shows {shows} (probability {probabilities[shows]:.2f}), for which there is no model; add --model {shows}=FOLDER "
            f"or --model {OTHER}=FOLDER"
        )
    return Route(case, tuple(files), shows, probabilities, model)


def _descriptions(models: Mapping[str, Path], router: Router, settings: RoutedSettings) -> dict[str, dict[str, Any]]:
    """The `dataset.json` of each model; raises `SelmaError` for a model of no class of the router, or one that is incomplete or not finite."""
    for name, folder in models.items():
        if name not in (*router.classes, OTHER):
            raise SelmaError(
                f"--model {name}={folder}: the router knows no {name}; its classes are {', '.join(router.classes)}"
            )
        model = ModelSettings(folder=folder, folds=settings.folds, checkpoint=settings.checkpoint)
        model.check_complete()
        model.check_finite()
    return {name: read_json(folder / "dataset.json") for name, folder in models.items()}


def _file_ending(
    descriptions: Mapping[str, Mapping[str, Any]], models: Mapping[str, Path], settings: RoutedSettings
) -> str:
    """Ending of the image files of all models; raises `SelmaError` if they differ, or small components cannot be removed from such files."""
    endings = {str(description["file_ending"]): name for name, description in descriptions.items()}
    if len(endings) > 1:
        listed = ", ".join(f"{ending} ({models[name]})" for ending, name in endings.items())
        raise SelmaError(f"the models read different files: {listed}; predict with models of one kind of file")
    (ending,) = endings
    if settings.remove_below > 1 and not is_nifti(Path(f"case{ending}")):
        raise SelmaError(
            f"the models write {ending}, and small components are removed from NIfTI only; add --remove-below 0"
        )
    return ending


def _check_channels(route: Route, description: Mapping[str, Any]) -> None:
    """Raise `SelmaError` unless a case has the channels that its model was trained on."""
    names = list((description.get("modality") or description["channel_names"]).values())  # in nnU-Net's order
    if len(route.files) != len(names):
        raise SelmaError(
            f"case {route.case} has {counted(len(route.files), 'channel')}, and its model ({route.model}) was trained on {len(names)}: {', '.join(names)}"
        )


def _predict(
    routes: Sequence[Route],
    models: Mapping[str, Path],
    settings: RoutedSettings,
    ending: str,
    temporary: str,
    environment: Mapping[str, str] | None,
) -> dict[str, Path]:
    """Run each model on its cases; returns the file that nnU-Net wrote for each case."""
    predicted: dict[str, Path] = {}
    for folder in dict.fromkeys(models[route.model] for route in routes):
        of_model = [route for route in routes if models[route.model] == folder]
        images, results = (Path(mkdtemp(dir=temporary)) for _ in range(2))
        for file in (file for route in of_model for file in route.files):
            _link(file, images / file.name)
        commands.run(_command(images, results, folder, settings), environment)
        predicted |= {route.case: results / f"{route.case}{ending}" for route in of_model}
    lacking = [case for case, path in predicted.items() if not path.is_file()]
    if lacking:
        raise SelmaError(f"nnU-Net wrote no segmentation of {', '.join(lacking)}; what it printed above says why")
    return predicted


def _command(images: Path, results: Path, model: Path, settings: RoutedSettings) -> list[str]:
    return [
        "nnUNetv2_predict_from_modelfolder",
        "-i",
        str(images),
        "-o",
        str(results),
        "-m",
        str(model),
        "-f",
        *settings.folds,
        "-chk",
        settings.checkpoint,
        "-step_size",
        str(settings.step_size),
        "-device",
        settings.device,
        "-npp",
        str(settings.workers),
        "-nps",
        str(settings.workers),
        *([] if settings.mirroring else ["--disable_tta"]),
    ]


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file.resolve())
    except OSError:  # on file systems, or for Windows users, without links
        shutil.copyfile(file, link)


def _collect(predicted: Path, output: Path, remove_below: int) -> int:
    """Move a result into the output folder, without its small components; returns their number."""
    if remove_below > 1:
        return remove_small_in_file(predicted, output / predicted.name, remove_below)
    os.replace(predicted, output / predicted.name)
    return 0
