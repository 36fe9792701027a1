"""Strategies that choose which cubes are annotated next.

"ours" is what `propose` does. "foreground-aware random" and "entropy" follow the methods that Lüth et al. (2025, nnActive, TMLR) compare: two
thirds of the cubes around a voxel of the structure that is drawn at random, which needs labels that nobody has yet; and the highest mean
entropy of a model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_selma.annotation.candidates import Candidate
from nnunet_selma.annotation.choosing import Earlier, beta_of, choose_cubes
from nnunet_selma.annotation.settings import ProposalSettings

Scores = Callable[[Sequence[int]], list[Mapping[str, float]]]
"""Numbers of candidates to the score of each class, as `annotation.uncertainty` defines it."""
_AROUND_FOREGROUND = 2 / 3
"""Share of the cubes that are drawn around a voxel of the structure."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Everything that is known before a choice."""

    candidates: Sequence[Candidate]
    """Candidates of all brains."""
    foreground: Sequence[int]
    """Voxels of the structure in each candidate, which no annotator knows beforehand."""
    taken: Sequence[int]
    """Numbers of the candidates that are annotated."""
    scores: Scores | None
    """Scores by the model that was trained on them; None in the first round."""
    round: int
    """Number of the round, from 1."""
    seed: int

    @property
    def left(self) -> list[int]:
        """Numbers of the candidates that are not annotated."""
        return [number for number in range(len(self.candidates)) if number not in self.taken]

    def chance(self, part: int = 0) -> np.random.Generator:
        """Source of chance of this round."""
        return np.random.default_rng([self.seed, self.round, part])


def ours(situation: Situation, count: int) -> list[int]:
    """Diverse cubes in the first round, uncertain ones by class with fading noise afterwards; none that touch."""
    number = {candidate.place: i for i, candidate in enumerate(situation.candidates)}
    by_brain: dict[str, list[Candidate]] = {}
    for candidate in situation.candidates:
        by_brain.setdefault(candidate.brain.name, []).append(candidate)
    scores = situation.scores
    choices, _ = choose_cubes(
        list(by_brain.values()),
        ProposalSettings(count=count, seed=situation.seed),
        [Earlier(place=c.place, region=c.region) for c in (situation.candidates[i] for i in situation.taken)],
        None if scores is None else lambda pool: scores([number[candidate.place] for candidate in pool]),
        round_number=situation.round,
        beta=beta_of(max(1, situation.round - 1)),
    )
    return [number[choice.candidate.place] for choice in choices]


def foreground_aware(situation: Situation, count: int) -> list[int]:
    """Two of three cubes around a random voxel of the structure, the others anywhere; no cube twice."""
    chance, left = situation.chance(), situation.left
    chosen: list[int] = []
    for _ in range(count):
        free = [number for number in left if number not in chosen]
        weights = np.array([situation.foreground[number] for number in free], float)
        around = chance.random() < _AROUND_FOREGROUND and weights.any()
        chosen.append(int(chance.choice(free, p=weights / weights.sum() if around else None)))
    return chosen


def plain_random(situation: Situation, count: int) -> list[int]:
    """Cubes anywhere."""
    return [int(number) for number in situation.chance().choice(situation.left, count, replace=False)]


def plain_entropy(situation: Situation, count: int) -> list[int]:
    """The cubes with the highest mean entropy of all; in the first round, the same as `plain_random`."""
    if situation.scores is None:
        return plain_random(situation, count)
    left = situation.left
    means = [sum(classes.values()) for classes in situation.scores(left)]
    return [left[i] for i in np.argsort(-np.array(means), kind="stable")[:count]]


STRATEGIES: dict[str, Callable[[Situation, int], list[int]]] = {
    "ours": ours,
    "foreground-aware random": foreground_aware,
    "random": plain_random,
    "entropy": plain_entropy,
}
BASELINE = "foreground-aware random"
"""The strategy that the others are compared with."""
