"""Advice for whoever gave a folder or file that is no complete model."""

import re
from collections.abc import Sequence
from pathlib import Path

from nnunet_selma.errors import SelmaError

_ENTRIES = ("plans.json", "dataset.json")
_MOST_NAMED = 10


def check_model_folder(folder: Path, folds: Sequence[str], checkpoint: str) -> None:
    """Check that a folder is a complete model.

    Args:
        folder: the model's folder.
        folds: folds that are to be predicted with.
        checkpoint: file of the weights in the folder of a fold.

    Raises:
        SelmaError: it is not; the message says what to give instead.
    """
    if not folder.exists():
        raise SelmaError(f"{folder}: there is no such folder; give the one that holds plans.json and the fold folders")
    if folder.is_file():
        raise SelmaError(f"{folder}: {_advice_on_file(folder)}")
    if re.fullmatch(r"fold_\w+", folder.name) and _is_model(folder.parent):
        raise SelmaError(
            f"{folder}: is one fold of a model; give the model's folder, {folder.parent}, and -f {folder.name.removeprefix('fold_')}"
        )
    lacking = [name for name in _ENTRIES if not (folder / name).is_file()]
    if not lacking:
        _check_folds(folder, folds, checkpoint)
        return
    below = sorted(path.parent for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/plans.json"))
    models = [path for path in below if _is_model(path) and any(path.glob("fold_*"))]
    if len(lacking) == len(_ENTRIES) and models:
        more = f" and {len(models) - _MOST_NAMED} more" if len(models) > _MOST_NAMED else ""
        listed = ", ".join(map(str, models[:_MOST_NAMED]))
        raise SelmaError(f"{folder}: holds models and is none; give one of them: {listed}{more}")
    raise SelmaError(
        f"{folder}: is no complete model, {', '.join(lacking)} is missing; give the folder that holds plans.json and the fold folders"
    )


def trained_folds(folder: Path, checkpoint: str) -> tuple[str, ...]:
    """Folds that have the checkpoint: the numbers, or else "all"; "0" where there is none, whose absence `check_model_folder` then names."""
    names = {path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}")}
    numbers = sorted((name for name in names if name.isdecimal()), key=int)
    return tuple(numbers) or (("all",) if "all" in names else ("0",))


def chosen_folds(folder: Path, folds: Sequence[str] | None, checkpoint: str) -> tuple[str, ...]:
    """The folds that were given, as 0 or fold_0, or else those that are trained."""
    return tuple(fold.removeprefix("fold_") for fold in folds or trained_folds(folder, checkpoint))


def _is_model(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _ENTRIES)


def _advice_on_file(file: Path) -> str:
    if file.suffix == ".zip":
        return (
            f"is a zip file, and a model is a folder; unpack it with nnUNetv2_install_pretrained_model_from_zip {file}, then give the folder "
            "below nnUNet_results that holds plans.json"
        )
    if file.suffix in (".pth", ".pt", ".model"):
        fold = file.parent.name
        if re.fullmatch(r"fold_\w+", fold):
            return f"is a checkpoint, and a model is the folder around its folds; give {file.parent.parent}, and -f {fold.removeprefix('fold_')}"
        return "is a checkpoint alone, and its plans.json and dataset.json are needed too; give the folder that holds these and the fold folders"
    return "is a file; give the folder that holds plans.json and the fold folders"


def _check_folds(folder: Path, folds: Sequence[str], checkpoint: str) -> None:
    """Raise `SelmaError`, which names the checkpoints that are there, if a fold lacks its checkpoint."""
    lacking = [fold for fold in folds if not (folder / f"fold_{fold}" / checkpoint).is_file()]
    if not lacking:
        return
    names = ", ".join(f"fold_{fold}/{checkpoint}" for fold in lacking)
    fault = f"{folder}: is no complete model, {names} is missing"
    others = sorted({path.name for fold in lacking for path in (folder / f"fold_{fold}").glob("*.pth")})
    if others:
        chosen = "checkpoint_best.pth" if "checkpoint_best.pth" in others else others[0]
        raise SelmaError(
            f"{fault}, and {', '.join(others)} is there; finish the training", option=f"give -chk {chosen}"
        )
    trained = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    if trained:
        raise SelmaError(f"{fault}; trained are the folds {' '.join(trained)}: give them with -f")
    fault += "; give a model that is trained, and its folds with -f"
    elsewhere = sorted((path.parent.name.removeprefix("fold_"), path.name) for path in folder.glob("fold_*/*.pth"))
    if not elsewhere:
        raise SelmaError(fault)
    fold, name = elsewhere[0]
    raise SelmaError(fault, option=f"give -f {fold} -chk {name}")
