"""Validations of the versions of a dataset, and their means with intervals over brains."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan, nan

import numpy as np

_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Score:
    """Dice of one case and class in the validation of a training."""

    case: str
    brain: str
    label: str
    dice: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Validation of all folds of a model that were trained on one version of the dataset."""

    version: int
    model: str
    scores: list[Score]
    seen: bool
    """True if the cases were also trained on, as in fold `all`, or where there is a single brain."""

    def of_cases(self) -> dict[str, float]:
        """Case to the mean Dice of its classes; cases in which no class has a value are left out."""
        values: dict[str, list[float]] = {}
        for score in self.scores:
            if not isnan(score.dice):
                values.setdefault(score.case, []).append(score.dice)
        return {case: float(np.mean(of_case)) for case, of_case in values.items()}


def mean_and_interval(values: Mapping[str, float], brains: Mapping[str, str]) -> tuple[float, float, float]:
    """Mean over cases, and its 95 % interval by resampling brains with all their cases; the interval is NaN for a single brain.

    Args:
        values: case to value.
        brains: case to its brain.
    """
    groups: dict[str, list[float]] = {}
    for case, value in values.items():
        groups.setdefault(brains[case], []).append(value)
    mean = float(np.mean(list(values.values()))) if values else nan
    if len(groups) < 2:
        return mean, nan, nan
    sums, counts = np.array([sum(g) for g in groups.values()]), np.array([len(g) for g in groups.values()])
    drawn = np.random.default_rng(0).integers(len(groups), size=(_RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return mean, float(low), float(high)
