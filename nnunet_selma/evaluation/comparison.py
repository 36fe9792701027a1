"""Comparison of methods on the same cases: ranks as in the challenge, and two methods case by case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, rankdata, wilcoxon

from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation.metrics.editions import Edition
from nnunet_selma.evaluation.scoring import CaseScore, Group
from nnunet_selma.structures import STRUCTURES, named

Means = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Method to class of structures to metric to mean."""


@dataclass(frozen=True)
class Ranks:
    """Ranks of methods: 1 is best, equal means share the mean of their places, NaN ranks behind all numbers."""

    metrics: dict[str, dict[str, dict[str, float]]]
    """Method to class to metric to rank."""
    classes: dict[str, dict[str, float]]
    """Method to class to mean rank over the metrics."""
    overall: dict[str, float]
    """Method to mean rank, best first: over the classes of a kind of structure, then over the kinds."""


def class_means(scores: Sequence[CaseScore], rules: Edition) -> dict[str, dict[str, dict[str, float]]]:
    """Method to class to metric to mean over the cases, and over classes of labels that are scored apart; one NaN makes the mean NaN, as in the official evaluators."""
    gathered: dict[tuple[str, str, str], list[float]] = {}
    for score in scores:
        for metric, value in score.official.items():
            gathered.setdefault((score.method, rules.ranked_with(named(score.structure)), metric), []).append(value)
    means: dict[str, dict[str, dict[str, float]]] = {}
    for (method, name, metric), values in gathered.items():
        means.setdefault(method, {}).setdefault(name, {})[metric] = float(np.mean(values))
    return means


def rank(means: Means, rules: Edition) -> Ranks:
    """Rank methods: per metric within a class of structures, then the mean over metrics, over classes of a kind, and over kinds.

    The challenge paper does not print its scheme. This one, applied to the paper's table 5, gives the order of the teams there; a flat mean
    over metrics would tie the third and the fourth.

    Raises:
        SelmaError: the methods were not scored on the same classes of structures.
    """
    methods = list(means)
    classes = {
        method: {name: list(metrics) for name, metrics in of_method.items()} for method, of_method in means.items()
    }
    if any(classes[method] != classes[methods[0]] for method in methods):
        raise SelmaError(f"{', '.join(methods)}: were not scored on the same structures, and cannot be ranked together")
    kinds = {rules.ranked_with(structure): rules.kind(structure) for structure in STRUCTURES}
    metrics: dict[str, dict[str, dict[str, float]]] = {method: {} for method in methods}
    for name, keys in classes[methods[0]].items():
        for metric in rules.metrics[kinds[name]]:
            if metric.key in keys:
                sign = -1 if metric.higher_is_better else 1
                values = [sign * means[method][name][metric.key] for method in methods]
                places = rankdata([np.inf if isnan(value) else value for value in values])
                for method, place in zip(methods, places, strict=True):
                    metrics[method].setdefault(name, {})[metric.key] = float(place)
    by_class = {m: {name: float(np.mean(list(r.values()))) for name, r in metrics[m].items()} for m in methods}
    overall = {}
    for method, ranks in by_class.items():
        by_kind: dict[str, list[float]] = {}
        for name, place in ranks.items():
            by_kind.setdefault(kinds[name], []).append(place)
        overall[method] = float(np.mean([np.mean(places) for places in by_kind.values()]))
    return Ranks(metrics, by_class, dict(sorted(overall.items(), key=lambda item: item[1])))


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """One metric of one structure: a method minus another one, over the cases in which both have a value."""

    structure: str
    metric: str
    cases: int
    without_value: int
    """Number of cases left out because one of the two is NaN."""
    mean: float
    other_mean: float
    difference: float
    low: float
    high: float
    """Bootstrap interval of the mean difference, 95 % (percentiles of 9999 resamples); NaN with fewer than two cases."""
    p: float
    """Wilcoxon signed-rank test, two-sided; NaN where all differences are 0."""
    better: int
    worse: int
    """Numbers of cases in which the method is better, and worse."""
    label: str = ""
    """Name of the class; empty where classes are not scored apart."""

    @property
    def group(self) -> Group:
        """Structure and class."""
        return Group(self.structure, self.label)


def compare(
    scores: Sequence[CaseScore], method: str, other: str, rules: Edition, *, seed: int = 0
) -> list[PairedDifference]:
    """Compare two methods case by case, for each structure, each class where these are scored apart, and each official metric.

    Patches of one brain are more alike than patches of two brains: over patches, intervals are too narrow and p-values too small.
    """
    by_case = {(score.method, score.case, score.label): score for score in scores}
    gathered: dict[tuple[Group, str], list[tuple[float, float]]] = {}
    for score in scores:
        partner = by_case.get((other, score.case, score.label))
        if score.method == method and partner is not None:
            for name, value in score.official.items():
                gathered.setdefault((score.group, name), []).append((value, partner.official[name]))
    rows = []
    for (group, key), values in gathered.items():
        metric = next(m for m in rules.metrics_of(named(group.structure)) if m.key == key)
        pairs = np.array([pair for pair in values if not np.isnan(pair).any()]).reshape(-1, 2)
        difference = pairs[:, 0] - pairs[:, 1]
        gain = difference if metric.higher_is_better else -difference
        low, high = interval_of_mean(difference, seed)
        rows.append(
            PairedDifference(
                structure=group.structure,
                label=group.label,
                metric=key,
                cases=len(pairs),
                without_value=len(values) - len(pairs),
                mean=_mean(pairs[:, 0]),
                other_mean=_mean(pairs[:, 1]),
                difference=_mean(difference),
                low=low,
                high=high,
                p=float(wilcoxon(difference).pvalue) if difference.any() else nan,
                better=int((gain > 0).sum()),
                worse=int((gain < 0).sum()),
            )
        )
    return rows


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else nan


def interval_of_mean(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean, 95 %, percentiles of 9999 resamples; NaN with fewer than two values."""
    if len(values) < 2:
        return nan, nan
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    result = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
