"""`selma_rounds.json`: the validation of each training, kept there because nnU-Net replaces it when the fold is trained again."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isnan, nan
from pathlib import Path
from typing import Any

from nnunet_selma.annotation.trainings import Training, changed_at
from nnunet_selma.annotation.validations import Score, Validation
from nnunet_selma.running.json_files import read_json, write_json

KEPT = "selma_rounds.json"
"""File in the dataset's folder of results."""


def keep_validations(
    results: Path,
    trainings: Sequence[Training],
    first_version: datetime | None,
    splits: Sequence[Mapping[str, Any]],
    classes: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Add the validations that are new to those that were kept; returns the entry of each training.

    Args:
        results: folder of results of the dataset.
        trainings: its trainings.
        first_version: date of the first version of the dataset; trainings from before are of a dataset that was removed, and are dropped. None:
            there is no dataset.
        splits: the folds that are there.
        classes: value to class.
    """
    path = results / KEPT
    kept: dict[str, Any] = read_json(path) if path.is_file() else {"trainings": []}
    entries = {
        (entry["model"], entry["fold"], entry["begun"]): entry
        for entry in kept["trainings"]
        if first_version is not None and datetime.fromisoformat(entry["begun"]) >= first_version
    }
    for training in trainings:
        summary = results / training.model / f"fold_{training.fold}" / "validation" / "summary.json"
        if summary.is_file() and changed_at(summary) >= training.begun:
            key = model, fold, began = training.model, training.fold, training.begun.isoformat()
            entries[key] = {
                "model": model,
                "fold": fold,
                "begun": began,
                "version": training.version,
                "seen": entries[key]["seen"] if key in entries else _seen(fold, splits),  # the folds may have changed
                "dice": _dice(read_json(summary), classes),
            }
    if list(entries.values()) != kept["trainings"]:
        write_json(path, {"trainings": list(entries.values())})
    return list(entries.values())


def _seen(fold: str, splits: Sequence[Mapping[str, Any]]) -> bool:
    """True if a fold trains on cases that it validates."""
    if not fold.isdigit() or int(fold) >= len(splits):
        return True
    return bool({*splits[int(fold)]["train"]} & {*splits[int(fold)]["val"]})


def _dice(summary: Mapping[str, Any], classes: Mapping[str, str]) -> dict[str, dict[str, float | None]]:
    """Case to class to Dice in nnU-Net's `summary.json`; None where neither side shows the class."""
    return {
        Path(case["reference_file"]).name.split(".")[0]: {
            classes.get(value, value): None if isnan(dice := float(metrics["Dice"])) else dice
            for value, metrics in case["metrics"].items()
        }
        for case in summary["metric_per_case"]
    }


def validations_of(entries: Sequence[Mapping[str, Any]], brains: Mapping[str, str]) -> list[Validation]:
    """The validations of all versions, the oldest first, each of all folds of a model.

    Args:
        entries: kept validation of each training.
        brains: case to its brain.
    """
    scores: dict[tuple[int, str, bool], dict[tuple[str, str], Score]] = {}
    for entry in entries:
        of_version = scores.setdefault((entry["version"], entry["model"], entry["seen"]), {})
        for case, of_case in entry["dice"].items():
            for label, dice in of_case.items():
                value = nan if dice is None else float(dice)
                of_version[case, label] = Score(case=case, brain=brains.get(case, case), label=label, dice=value)
    return [
        Validation(version=version, model=model, seen=seen, scores=list(of_version.values()))
        for (version, model, seen), of_version in sorted(scores.items())
    ]
