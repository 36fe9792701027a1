"""A model packed for a container: a folder with the models, the router that chooses one of them, and a file of settings.

    prediction.json
    models/NAME/plans.json, dataset.json, fold_N/checkpoint_final.pth
    router.pt, or router/plans.json, dataset.json, fold_N/checkpoint_final.pth

Checkpoints, plans and descriptions are written without what prediction does not need, such as the optimiser's state, which is twice as large
as the weights, and without the folders of the machine.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.pretrained import CHECKPOINT
from nnunet_selma.nnunet.checkpoints import PRETEXT, unpickled
from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.sharing.light import check_model, light_checkpoint, without_folders
from nnunet_selma.structures import SpacingUm

SETTINGS = "prediction.json"
_FORMAT = 1
_CLASSIFIER = ("structure.weight", "structure.bias", "seen")
"""Entries of the state of a pretext that a router reads."""
_DESCRIPTIONS = ("plans.json", "dataset.json")


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """Models and the settings of their prediction."""

    models: Mapping[str, ModelSettings]
    """Class of the router, or `other`, to its model."""
    router: Path | None = None
    """Router that chooses the model of each case: a file of train-router, or the fold folder of a pretraining with SelmaSSLTrainer_MultiTask."""
    remove_below: int = 0
    """Remove components of fewer voxels than this; 0 removes none."""
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size of all cases, µm; None: that of the structure in the name of the case, or else of the header."""


def write_packed_model(packed: PackedModel, folder: Path) -> None:
    """Copy models and router into a new folder, without what only a training needs, and write the settings.

    Raises:
        SelmaError: a checkpoint cannot be read.
    """
    folder.mkdir(parents=True)
    places: dict[Path, Path] = {}
    for name, model in packed.models.items():
        if model.folder not in places:  # two classes may share one
            places[model.folder] = Path("models") / name
            for fold in model.folds:
                _copy_fold(model.checkpoint_of(fold), folder / places[model.folder] / f"fold_{fold}" / model.checkpoint)
    router = None if packed.router is None else _copy_router(packed.router, folder)
    models = {name: _as_json(replace(model, folder=places[model.folder])) for name, model in packed.models.items()}
    write_json(
        folder / SETTINGS,
        {
            "format": _FORMAT,
            "nnunet_selma": __version__,
            "models": models,
            "router": router,
            "remove_below": packed.remove_below,
            "spacing_um_zyx": packed.spacing_um_zyx,
        },
    )


def read_packed_model(folder: Path) -> PackedModel:
    """The models in a folder; raises `SelmaError` if it is no packed model or a file is missing."""
    file = folder / SETTINGS
    if not file.is_file():
        raise SelmaError(
            f"{folder}: holds no packed model, {SETTINGS} is missing; unpack the model.tar.gz that nnunet-selma container wrote there"
        )
    content: Any = read_json(file)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise SelmaError(
            f"{file}: is of another version of nnunet-selma; write image and model anew with nnunet-selma container"
        )
    try:
        packed = _from_json(content, folder)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise SelmaError(
            f"{file}: is damaged ({type(error).__name__}: {error}); write the model anew with nnunet-selma container"
        ) from error
    for model in packed.models.values():
        model.check_complete()
    return packed


def _from_json(content: Mapping[str, Any], folder: Path) -> PackedModel:
    models = {
        str(name): ModelSettings(**{**model, "folder": folder / model["folder"], "folds": tuple(model["folds"])})
        for name, model in content["models"].items()
    }
    router, spacing = content["router"], content["spacing_um_zyx"]
    if not models or (router is None and len(models) > 1):
        raise ValueError(f"{len(models)} models, and {'no' if router is None else 'a'} router")
    return PackedModel(
        models=models,
        router=None if router is None else folder / router,
        remove_below=int(content["remove_below"]),
        spacing_um_zyx=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
    )


def _as_json(model: ModelSettings) -> dict[str, Any]:
    return asdict(model) | {"folder": model.folder.as_posix()}


def _copy_router(router: Path, folder: Path) -> str:
    """Copy a router; returns its path in the folder."""
    if router.is_file():
        shutil.copyfile(router, folder / "router.pt")
        return "router.pt"
    fold = router.resolve().name
    _copy_fold(router / CHECKPOINT, folder / "router" / fold / CHECKPOINT)
    return f"router/{fold}"


def _copy_fold(source: Path, target: Path) -> None:
    """Copy the checkpoint of a fold, and the descriptions of the model around it, unless they are there."""
    target.parent.mkdir(parents=True)
    content = unpickled(source)
    check_model(content, source)
    light = light_checkpoint(content)
    if isinstance(state := content.get(PRETEXT), Mapping):
        light[PRETEXT] = {name: state[name] for name in _CLASSIFIER if name in state}
    try:
        torch.save(light, target)
    except RuntimeError as error:  # of a full disk
        raise SelmaError(f"{target}: could not be written ({error}); make room and run the command again") from error
    for name in _DESCRIPTIONS:
        if not (target.parents[1] / name).is_file():
            write_json(target.parents[1] / name, without_folders(read_json(source.resolve().parents[1] / name)))
