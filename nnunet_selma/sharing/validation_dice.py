"""Dice of validation cases, as nnU-Net's trainers write it beside a checkpoint in validation/summary.json."""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.running.json_files import read_json

Dice = Mapping[str, Sequence[float]]
"""Class to the Dice of each validation case; NaN where a class is in neither segmentation."""


def dice_of_cases(summary: Path, dataset: Mapping[str, Any]) -> dict[str, list[float]]:
    """Class to the Dice of each validation case; NaN where a class is in neither segmentation."""
    name_of = {
        _label_key(value if not isinstance(value, list) else tuple(value)): name
        for name, value in dataset["labels"].items()
    }
    values: dict[str, list[float]] = {}
    for case in read_json(summary).get("metric_per_case", []):
        for label, metrics in case["metrics"].items():
            dice = metrics.get("Dice")
            values.setdefault(name_of.get(_label_key(label), label), []).append(nan if dice is None else float(dice))
    return values


def _label_key(label: Any) -> str:
    """The same text for a label or region of dataset.json and its name in nnU-Net's summary: 1, or 1, 2 for a region."""
    return ", ".join(re.findall(r"\d+", str(label)))


def mean_dice(folds: Iterable[Dice]) -> dict[str, tuple[float, int, int]]:
    """Class to the mean Dice over the validation cases of all folds, their number, and the number of those without a value."""
    pooled: dict[str, list[float]] = {}
    for dice in folds:
        for name, values in dice.items():
            pooled.setdefault(name, []).extend(values)
    return {
        name: (
            float(np.nanmean(values)) if not np.isnan(values).all() else nan,
            len(values),
            int(np.isnan(values).sum()),
        )
        for name, values in pooled.items()
    }
