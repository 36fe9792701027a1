"""Means over cubes, and 95 % bootstrap intervals of the difference between two arms of the study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A fine-tuning run, as its result file describes it."""

    stage: str
    arm: str
    seed: int
    labels: int | None
    """Number of annotated patches; None stands for all of them."""
    points: Mapping[int, Mapping[str, Mapping[str, Any]]]
    """Steps of fine-tuning → name of a case → its structure, cube and scores."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, in the unit of the metric (shares are 0 to 1); NaN where nothing was scored."""

    mean: float
    low: float
    high: float
    per_seed: Mapping[int, float]
    """Seed → mean over cubes of this seed alone."""

    @property
    def excludes_zero(self) -> bool:
        """True where zero lies outside the interval."""
        return self.low > 0 or self.high < 0


NOTHING = Interval(nan, nan, nan, {})


def read_runs(folder: Path) -> list[Run]:
    """All runs of a folder, sorted by arm, number of annotated patches and seed; an absent folder has none."""
    contents = [read_json(path) for path in sorted(folder.glob("*.json"))]
    runs = [
        Run(
            stage=content["stage"],
            arm=content["arm"],
            seed=content["seed"],
            labels=content["labels"],
            points={point["steps"]: point["cases"] for point in content["points"]},
        )
        for content in contents
    ]
    return sorted(runs, key=lambda run: (run.arm, run.labels is None, run.labels or 0, run.seed))


def of_arm(runs: Sequence[Run], arm: str) -> list[Run]:
    """The runs of an arm."""
    return [run for run in runs if run.arm == arm]


def last_common_step(runs: Sequence[Run]) -> int:
    """The last step of fine-tuning at which every run was scored.

    Raises:
        SelmaError: no step is common to all runs.
    """
    common = set.intersection(*(set(run.points) for run in runs)) if runs else set()
    if not common:
        raise SelmaError("the runs of the pretraining study share no step at which all were scored")
    return max(common)


def mean_over_cubes(runs: Sequence[Run], steps: int, metric: str, structure: str) -> float:
    """The mean over cubes of the mean over a cube's cases, of the mean over seeds; NaN where nothing was scored.

    Args:
        runs: those of a single arm, each with another seed.
        steps: steps of fine-tuning.
        metric: name of a score, such as "dice"; the result has its unit (shares are 0 to 1).
        structure: only cases of this structure count.
    """
    return mean_interval(runs, steps, metric, structure, draws=0).mean


def mean_interval(
    runs: Sequence[Run], steps: int, metric: str, structure: str, draws: int = 4000, seed: int = 0
) -> Interval:
    """The mean of an arm with its interval; arguments as in `mean_over_cubes` and `difference`."""
    seeds, cubes, values = _scores([runs], steps, metric, structure)
    return _interval(seeds, cubes, values[0], draws, seed)


def difference(
    runs_a: Sequence[Run],
    runs_b: Sequence[Run],
    steps: int,
    metric: str,
    structure: str,
    draws: int = 4000,
    seed: int = 0,
) -> Interval:
    """Arm a minus arm b, paired by seed and case, with a 95 % interval.

    The interval is that of a percentile bootstrap that draws seeds, cubes, and octants within each drawn cube. Cases
    share seeds, so that an octant drawn is drawn for every seed; a single cube leaves the octants to vary.

    Args:
        runs_a: runs of the first arm, each with another seed; seeds that the other arm lacks are left out.
        runs_b: runs of the second arm, likewise.
        steps: steps of fine-tuning.
        metric: name of a score, such as "dice"; the result has its unit (shares are 0 to 1).
        structure: only cases of this structure count; those without a score in any compared run are left out.
        draws: number of bootstrap samples.
        seed: start of the random numbers.
    """
    seeds, cubes, values = _scores([runs_a, runs_b], steps, metric, structure)
    return _interval(seeds, cubes, values[0] - values[1], draws, seed)


def spread(runs: Sequence[Run], steps: int, metric: str, structure: str) -> float:
    """The standard deviation over seeds of the mean over cubes; NaN with fewer than two seeds."""
    per_seed = list(mean_interval(runs, steps, metric, structure, draws=0).per_seed.values())
    return float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else nan


def _scores(
    arms: Sequence[Sequence[Run]], steps: int, metric: str, structure: str
) -> tuple[list[int], list[str], Floats]:
    """Seeds that all arms share, cube of each case that all runs scored, and scores (arm, seed, case)."""
    by_seed = [_by_seed(runs, steps) for runs in arms]
    seeds = sorted(set.intersection(*(set(runs) for runs in by_seed)))
    scores = [[_scored(runs[seed].points[steps], metric, structure) for seed in seeds] for runs in by_seed]
    scored = [set(cases) for arm in scores for cases in arm]
    shared = sorted(set.intersection(*scored)) if scored else []
    values = np.array([[[cases[case] for case in shared] for cases in arm] for arm in scores], dtype=np.float64)
    return seeds, [cube for cube, _ in shared], values.reshape(len(arms), len(seeds), len(shared))


def _by_seed(runs: Sequence[Run], steps: int) -> dict[int, Run]:
    scored = [run for run in runs if steps in run.points]
    by_seed = {run.seed: run for run in scored}
    if len(by_seed) < len(scored):
        raise ValueError("an arm has several runs with the same seed; choose a stage and a number of annotated patches")
    return by_seed


def _scored(cases: Mapping[str, Mapping[str, Any]], metric: str, structure: str) -> dict[tuple[str, str], float]:
    """Cube and name of each case of the structure that has a score → that score."""
    scores = {(case["cube"], name): case.get(metric) for name, case in cases.items() if case["structure"] == structure}
    return {case: float(score) for case, score in scores.items() if score is not None and not isnan(score)}


def _interval(seeds: Sequence[int], cubes: Sequence[str], values: Floats, draws: int, seed: int) -> Interval:
    """Mean and interval of values (seed, case); without draws the interval is the mean alone."""
    if not values.size:
        return NOTHING
    _, members, counts = np.unique(cubes, return_inverse=True, return_counts=True)
    per_seed = values @ (1 / counts[members] / len(counts))
    mean = float(per_seed.mean())
    low = high = mean
    if draws:
        rng = np.random.default_rng(seed)
        seed_weights = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=draws) / len(seeds)
        case_weights = _case_weights(members, counts, draws, rng)
        means = np.einsum("ds,sc,dc->d", seed_weights, values, case_weights)
        low, high = (float(bound) for bound in np.quantile(means, (0.025, 0.975)))
    return Interval(mean, low, high, dict(zip(seeds, per_seed.tolist(), strict=True)))


def _case_weights(members: NDArray[np.intp], counts: NDArray[np.intp], draws: int, rng: np.random.Generator) -> Floats:
    """Weights (draw, case) that sum to 1 in each draw: cubes drawn with replacement, then octants within each.

    Args:
        members: number of each case's cube.
        counts: number of cases of each cube.
        draws: number of bootstrap samples.
        rng: source of the random numbers.
    """
    weights = np.empty((draws, len(members)))
    times = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=draws)
    for cube, count in enumerate(counts):
        octants = rng.multinomial(times[:, cube] * count, np.full(count, 1 / count))
        weights[:, members == cube] = octants / (count * len(counts))
    return weights
