"""Which candidates are annotated first: diverse ones without a model, uncertain ones with a model.

Without a model, cubes are spread evenly over brains, over strata of structure response and brightness, and over regions, and are random
within these. Strata rich in structure get more cubes: Lüth et al. (2025, nnActive, TMLR) compare query methods for nnU-Net on four 3D data
sets and report that random choice which is aware of foreground is matched by no method of active learning reliably, plain predictive entropy
included.

With a model, the choice follows the parts of ClaSP PE (Lüth et al. 2026, TMLR, arXiv 2601.13677), which its authors report to be the only
method that generally outperforms that baseline on the same benchmark: predictive entropy, stratified by class so that rare structures are
asked for too, with noise on the logarithm of the score (power noise, Kirsch et al. 2023, TMLR) that fades from round to round, so that early
rounds are diverse. The score, the classes' order and the schedule are this package's: the score of a class is the entropy of the voxels that
are predicted as that class, per voxel of the cube; background is a class as well, whose uncertain voxels are structures that may be missed; β
is 1 in the first round with a model and four times as large in each that follows, up to 100.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.annotation.candidates import Candidate, Place, Region, draw_pool, with_responses
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.running.progress import Progress, silent

BACKGROUND = "background"
_LEVELS = ("low", "medium", "high")
_WEIGHTS = (1, 2, 3)
"""Cubes for each third of the structure response, in proportion."""
_LEAST_SCORE = 1e-6
"""Score of a candidate without a voxel of the class, nats: such candidates are drawn by the noise alone, and last."""
_FIRST_BETA, _GROWTH, _MOST_BETA = 1.0, 4.0, 100.0
_AXES = ("z", "y", "x")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A candidate that was chosen, and why."""

    candidate: Candidate
    words: str
    """The reason, as a sentence."""
    numbers: dict[str, Any]
    """The reason, in numbers."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """A cube of an earlier round."""

    place: Place
    region: Region
    """Half of the tissue along each axis."""


def choose_cubes(
    candidates: Sequence[Sequence[Candidate]],
    settings: ProposalSettings,
    earlier: Sequence[Earlier],
    scores: Callable[[Sequence[Candidate]], Sequence[Mapping[str, float]]] | None,
    *,
    round_number: int,
    beta: float,
    progress: Progress[Any] = silent,
) -> tuple[list[Choice], int]:
    """The choices of a round, and the number of candidates that were looked at.

    Args:
        candidates: the candidates of each brain.
        settings: number of cubes, size of the pool and seed.
        earlier: cubes of earlier rounds.
        scores: gives the score of each class for each candidate of the pool, as for `choose_uncertain`; None without a model.
        round_number: number of the round, from 1, by which chance differs.
        beta: inverse of the scale of the noise, with a model.
        progress: shows the candidates that are looked at.
    """
    draw, noise = (np.random.default_rng([settings.seed, round_number, part]) for part in range(2))
    free = [
        [c for c in of_brain if not any(c.place.touches(cube.place) for cube in earlier)] for of_brain in candidates
    ]
    pool = with_responses(draw_pool(free, settings.candidates, draw), progress)
    if scores is None or not pool:
        return choose_diverse(pool, settings.count, earlier, noise), len(pool)
    return choose_uncertain(pool, scores(pool), settings.count, earlier, noise, beta=beta), len(pool)


def choose_diverse(
    pool: Sequence[Candidate], count: int, earlier: Sequence[Earlier], rng: np.random.Generator
) -> list[Choice]:
    """Choose candidates that touch neither each other nor earlier cubes, evenly over brains, strata and regions.

    Returns:
        The choices in order; fewer than `count` where no other candidate is free.
    """
    response, brightness = (
        _ranks_within_brains(pool, [getattr(candidate, name) for candidate in pool])
        for name in ("response", "brightness")
    )
    strata = [(_third(r), _third(b)) for r, b in zip(response, brightness, strict=True)]
    brains = Counter(cube.place.brain for cube in earlier)
    regions = Counter((cube.place.brain, cube.region) for cube in earlier)
    used, choices, chance = Counter[tuple[int, int]](), list[Choice](), rng.random(len(pool))

    def cost(i: int) -> tuple[float, ...]:
        name, stratum = pool[i].place.brain, strata[i]
        return brains[name], (used[stratum] + 0.5) / _WEIGHTS[stratum[0]], regions[name, pool[i].region], chance[i]

    free = _Free(pool, [cube.place for cube in earlier])
    for i in free.picks(cost, count):
        candidate, stratum = pool[i], strata[i]
        name = candidate.place.brain
        brains[name] += 1
        regions[name, candidate.region] += 1
        used[stratum] += 1
        choices.append(
            Choice(
                candidate=candidate,
                words=(
                    f"{_LEVELS[stratum[0]]} structure response (rank {response[i]:.0%}) and {_LEVELS[stratum[1]]} brightness "
                    f"(rank {brightness[i]:.0%}) among the candidates of this brain; {region_words(candidate.region)}; drawn at random among such"
                ),
                numbers={
                    "structure_response": candidate.response,
                    "structure_rank": float(response[i]),
                    "brightness_log": candidate.brightness,
                    "brightness_rank": float(brightness[i]),
                    "tissue_share": candidate.tissue,
                    "stratum": [_LEVELS[level] for level in stratum],
                    "candidates_in_stratum": strata.count(stratum),
                    "region_zyx": list(candidate.region),
                },
            )
        )
    return choices


def beta_of(round_with_model: int) -> float:
    """Inverse of the scale of the noise in the n-th round that has a model, from 1."""
    return min(_MOST_BETA, _FIRST_BETA * _GROWTH ** (round_with_model - 1))


def choose_uncertain(
    pool: Sequence[Candidate],
    scores: Sequence[Mapping[str, float]],
    count: int,
    earlier: Sequence[Earlier],
    rng: np.random.Generator,
    *,
    beta: float,
) -> list[Choice]:
    """Choose candidates with high entropy, class by class in turn, that touch neither each other nor earlier cubes.

    Args:
        pool: the candidates.
        scores: for each candidate, class to its score; all have the same classes, in the order of their turns.
        count: candidates to choose.
        earlier: cubes of earlier rounds.
        rng: source of chance.
        beta: inverse of the scale of the noise.

    Returns:
        The choices in order; fewer than `count` where no other candidate is free.
    """
    classes = list(scores[0])
    table = np.array([[of_candidate[name] for name in classes] for of_candidate in scores])
    noisy = np.log(np.maximum(table, _LEAST_SCORE)) + rng.gumbel(0, 1 / beta, table.shape)
    ranks = (-table).argsort(axis=0, kind="stable").argsort(axis=0, kind="stable") + 1
    free, choices = _Free(pool, [cube.place for cube in earlier]), list[Choice]()
    for turn in range(count):
        k = turn % len(classes)
        picked = next(free.picks(lambda i, k=k: (-noisy[i, k],), 1), None)  # type: ignore[misc]
        if picked is None:
            break
        candidate, score = pool[picked], table[picked, k]
        why = (
            f"the model predicts no {classes[k]} here, and this cube was drawn for it at random"
            if score < _LEAST_SCORE
            else f"uncertain about {classes[k]}: {score:.3g} nats per voxel on what the model takes for {classes[k]}, "
            f"rank {ranks[picked, k]} of {len(pool)} before noise (β = {beta:g})"
        )
        choices.append(
            Choice(
                candidate=candidate,
                words=f"{why}; {region_words(candidate.region)}",
                numbers={
                    "class": classes[k],
                    "entropy_nats_per_voxel": dict(zip(classes, map(float, table[picked]), strict=True)),
                    "rank": int(ranks[picked, k]),
                    "candidates": len(pool),
                    "beta": beta,
                    "structure_response": candidate.response,
                    "brightness_log": candidate.brightness,
                    "tissue_share": candidate.tissue,
                    "region_zyx": list(candidate.region),
                },
            )
        )
    return choices


def region_words(region: Region) -> str:
    """A region as words: `first half of the tissue along z, second along y, first along x`."""
    z, y, x = ("second" if half else "first" for half in region)
    return f"{z} half of the tissue along z, {y} along y, {x} along x"


class _Free:
    """Candidates that touch neither a cube nor each other as they are picked."""

    def __init__(self, pool: Sequence[Candidate], taken: Sequence[Place]) -> None:
        self._pool = pool
        self._left = [i for i, candidate in enumerate(pool) if not any(map(candidate.place.touches, taken))]

    def picks(self, cost: Any, count: int) -> Iterator[int]:
        """Yield up to so many candidates, each the free one of the least cost at that time."""
        for _ in range(count):
            if not self._left:
                return
            picked = min(self._left, key=cost)
            place = self._pool[picked].place
            self._left = [i for i in self._left if not place.touches(self._pool[i].place)]
            yield picked


def _ranks_within_brains(pool: Sequence[Candidate], values: Sequence[float]) -> NDArray[np.float64]:
    """Rank of each candidate among those of its brain, above 0 and up to 1."""
    ranks = np.empty(len(pool))
    names = np.array([candidate.place.brain for candidate in pool])
    for name in dict.fromkeys(names):
        inside = np.flatnonzero(names == name)
        ranks[inside] = (np.argsort(np.argsort(np.array(values)[inside], kind="stable"), kind="stable") + 1) / len(
            inside
        )
    return ranks


def _third(rank: float) -> int:
    """Third of a rank above 0 and up to 1: 0, 1 or 2."""
    return min(2, int(np.ceil(rank * 3 - 1e-9)) - 1)
