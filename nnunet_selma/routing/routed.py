"""Prediction of a folder by several models: each case by the model of the class that a router sees in it (bioAI, SELMA3D paper, 4.2.2).

Passes: (1) every case is routed, so that nothing is predicted where one has no model; (2) nnU-Net's command runs once for each model,
on a folder of links; (3) results are cleaned of small components and put together; (4) `routes.json` says what went where.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet import commands
from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.prediction.small_objects import remove_small_in_file
from nnunet_selma.routing.routers import OTHER, Router, most_probable, route
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.nifti import is_nifti

ROUTES = "routes.json"


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """Options of nnU-Net's command, and of the removal of small components after it."""

    folds: tuple[str, ...] = ("0",)
    """Folds of each model, or all; several are averaged."""
    checkpoint: str = "checkpoint_final.pth"
    """File of the weights in the folder of a fold."""
    step_size: float = 0.5
    """Step of the sliding window, in patches."""
    mirroring: bool = True
    """Mirror each patch in every way and average (test time augmentation)."""
    device: str = "cpu"
    workers: int = 1
    """Number of processes that read, and of processes that write."""
    remove_below: int = 5
    """Remove components of fewer voxels than this; 0 removes none."""


@dataclass(frozen=True)
class Route:
    """Where a case goes."""

    case: str
    files: tuple[Path, ...]
    """One a channel."""
    seen: str
    """The class that is most probable."""
    probabilities: dict[str, float]
    model: str
    """Name of the model: the class, or `other`."""

    def as_json(self, removed: int) -> dict[str, Any]:
        """As it stands in `routes.json`."""
        return {
            "case": self.case,
            "class": self.seen,
            "probabilities": self.probabilities,
            "model": self.model,
            "removed_components": removed,
        }


def predict_routed(
    source: Path,
    output: Path,
    router: Router,
    models: Mapping[str, Path],
    settings: PredictionSettings,
    *,
    environment: Mapping[str, str] | None = None,
    progress: Progress[Any] = silent,
) -> list[dict[str, Any]]:
    """Predict a folder of images into another; returns a record of each case, which `routes.json` there holds too.

    Args:
        source: images as nnU-Net names them, `<case>_0000.nii.gz`.
        output: folder for `<case>.nii.gz`; files of that name are replaced.
        router: says what a case shows.
        models: class, or `other`, to the folder of a trained model (with plans.json and fold folders).
        settings: of the prediction.
        environment: for nnU-Net's command, beyond the present one.
        progress: shows routing and collecting.

    Raises:
        SelmaError: no images, a model that is incomplete or of no class, a case without a model, or nnU-Net failed.
    """
    descriptions = _descriptions(models, router, settings)
    ending = _file_ending(descriptions, models, settings)
    routes = []
    for case, files in progress(list(find_cases(source, ending).items()), "routing"):
        chosen = choose(case, files, router, models)
        _check_channels(chosen, len(files), descriptions[chosen.model])
        routes.append(chosen)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".routed_", dir=output) as temporary:
        predicted = _predict(routes, models, settings, ending, temporary, environment)
        (output / ROUTES).unlink(missing_ok=True)  # of an earlier run, whose results are now replaced
        records = [
            one.as_json(_collect(predicted[one.case], output, settings.remove_below))
            for one in progress(routes, "collecting")
        ]
    folders = {name: str(folder) for name, folder in models.items()}
    write_json(output / ROUTES, {"models": folders, "remove_below": settings.remove_below, "cases": records})
    return records


def find_cases(source: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    """Case to its files, a channel each, of a folder of images as nnU-Net names them.

    Raises:
        SelmaError: no such folder, no images in it, or one without the number of its channel.
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


def choose(case: str, files: Sequence[Path], router: Router, models: Mapping[str, Path]) -> Route:
    """The route of a case; raises `SelmaError` where neither its class nor `other` has a model, or the router needs more channels."""
    if len(files) < router.channels:
        raise SelmaError(
            f"case {case} has {len(files)} channel(s) and the router looks at {router.channels}; give all channels of the case"
        )
    probabilities = route(router, [open_volume(path) for path in files])
    seen = most_probable(probabilities)
    model = seen if seen in models else OTHER
    if model not in models:
        raise SelmaError(
            f"case {case} shows {seen} (probability {probabilities[seen]:.2f}), for which there is no model; add --model {seen}=FOLDER "
            f"or --model {OTHER}=FOLDER"
        )
    return Route(case, tuple(files), seen, probabilities, model)


def _descriptions(
    models: Mapping[str, Path], router: Router, settings: PredictionSettings
) -> dict[str, dict[str, Any]]:
    """The `dataset.json` of each model; raises `SelmaError` where a model is of no class of the router, incomplete, or lost."""
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
    descriptions: Mapping[str, Mapping[str, Any]], models: Mapping[str, Path], settings: PredictionSettings
) -> str:
    """The ending that all models want of their files."""
    endings = {str(description["file_ending"]): name for name, description in descriptions.items()}
    if len(endings) > 1:
        said = ", ".join(f"{ending} ({models[name]})" for ending, name in endings.items())
        raise SelmaError(f"the models want different files: {said}; predict with models of one kind of file")
    (ending,) = endings
    if settings.remove_below > 1 and not is_nifti(Path(f"case{ending}")):
        raise SelmaError(
            f"the models write {ending}, and small components are removed from NIfTI only; add --remove-below 0"
        )
    return ending


def _check_channels(chosen: Route, channels: int, description: Mapping[str, Any]) -> None:
    names = list((description.get("modality") or description["channel_names"]).values())  # as nnU-Net looks for them
    if channels != len(names):
        raise SelmaError(
            f"case {chosen.case} has {channels} channel(s), and its model ({chosen.model}) was trained on {len(names)}: {', '.join(names)}"
        )


def _predict(
    routes: Sequence[Route],
    models: Mapping[str, Path],
    settings: PredictionSettings,
    ending: str,
    temporary: str,
    environment: Mapping[str, str] | None,
) -> dict[str, Path]:
    """Run each model on its cases; returns case to the file that nnU-Net wrote."""
    predicted: dict[str, Path] = {}
    for folder in dict.fromkeys(models[one.model] for one in routes):
        own = [one for one in routes if models[one.model] == folder]
        images, results = (Path(mkdtemp(dir=temporary)) for _ in range(2))
        for file in (file for one in own for file in one.files):
            _link(file, images / file.name)
        commands.run(_command(images, results, folder, settings), environment)
        predicted |= {one.case: results / f"{one.case}{ending}" for one in own}
    lacking = [case for case, path in predicted.items() if not path.is_file()]
    if lacking:
        raise SelmaError(f"nnU-Net wrote no segmentation of {', '.join(lacking)}; what it printed above says why")
    return predicted


def _command(images: Path, results: Path, model: Path, settings: PredictionSettings) -> list[str]:
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
    except OSError:  # a file system, or a Windows user, without links
        shutil.copyfile(file, link)


def _collect(predicted: Path, output: Path, remove_below: int) -> int:
    """Put a result into the output folder; returns how many small components were removed."""
    if remove_below > 1:
        return remove_small_in_file(predicted, output / predicted.name, remove_below)
    os.replace(predicted, output / predicted.name)
    return 0
