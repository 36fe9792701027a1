"""The choice of candidates, without files."""

from collections import Counter
from dataclasses import replace
from itertools import combinations, product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.annotation import choosing
from nnunet_selma.annotation.candidates import Candidate, draw_pool, place_of
from nnunet_selma.annotation.choosing import Earlier, beta_of, choose_cubes, choose_diverse, choose_uncertain
from nnunet_selma.annotation.settings import ProposalSettings

EDGE = (10, 12, 14)


def candidate(brain, index, *, response=0.0, brightness=0.0, edge=EDGE, factor=(1.0, 1.0, 1.0)):
    start = tuple(i * e for i, e in zip(index, edge, strict=True))
    return Candidate(
        brain=SimpleNamespace(name=brain),
        start=start,
        shape=edge,
        place=place_of(brain, f"/{brain}.tif", "", start, edge, factor),
        region=tuple(int(i > 1) for i in index),
        tissue=0.5,
        brightness=brightness,
        response=response,
    )


def pool_of(brains, rng, counts=(4, 5, 6)):
    return [
        candidate(brain, index, response=float(rng.random()), brightness=float(rng.random()))
        for brain in brains
        for index in product(*map(range, counts))
    ]


def shares_a_voxel_when_grown(a, b):
    """Independent of `touches`: one of two boxes, grown by a voxel on all sides, shares a voxel with the other."""
    if a.brain.name != b.brain.name:
        return False
    grown = [set(range(s - 1, s + n + 1)) for s, n in zip(a.start, a.shape, strict=True)]
    return all(g & set(range(s, s + n)) for g, s, n in zip(grown, b.start, b.shape, strict=True))


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(0, 4), st.booleans())
def test_no_two_cubes_touch_nor_earlier_ones(seed, count, before, with_model):
    rng = np.random.default_rng(seed)
    pool = pool_of("ab", rng)
    # cubes of an earlier round, of another size and off the grid
    taken = [
        replace(c, start=tuple(s + 3 for s in c.start), shape=(7, 9, 20))
        for c in rng.choice(pool, before, replace=False)
    ]
    earlier = [
        Earlier(place=place_of(c.brain.name, "moved", "", c.start, c.shape, (1.0, 1.0, 1.0)), region=c.region)
        for c in taken
    ]
    if with_model:
        scores = [{"cell": float(rng.random()), "background": float(rng.random())} for _ in pool]
        choices = choose_uncertain(pool, scores, count, earlier, rng, beta=4.0)
    else:
        choices = choose_diverse(pool, count, earlier, rng)
    assert choices
    for a, b in combinations([c.candidate for c in choices], 2):
        assert not shares_a_voxel_when_grown(a, b)
    for choice, cube in product(choices, taken):
        assert not shares_a_voxel_when_grown(choice.candidate, cube)
    if len(choices) < count:  # no candidate was left out that is free
        used = [*(c.candidate for c in choices), *taken]
        assert all(any(shares_a_voxel_when_grown(c, u) for u in used) for c in pool)


@pytest.mark.parametrize(("gap", "touch"), [(0, True), (1, False), (-2, True)])
@pytest.mark.parametrize("axis", range(3))
def test_boxes_touch_by_a_corner_and_not_across_a_voxel(axis, gap, touch):
    first = candidate("a", (1, 1, 1))
    start = [s + n for s, n in zip(first.start, first.shape, strict=True)]
    start[axis] += gap
    other = place_of("a", "elsewhere", "", start, EDGE, (1.0, 1.0, 1.0))
    assert first.place.touches(other) == other.touches(first.place) == touch
    assert not first.place.touches(replace(other, brain="b"))


def test_boxes_of_different_levels_are_compared_in_voxels_of_the_finest():
    fine = place_of("a", "a", "", (40, 40, 40), EDGE, (1.0, 1.0, 1.0))
    coarse = place_of("a", "a", "", (10, 10, 10), EDGE, (4.0, 4.0, 4.0))
    assert fine.touches(coarse)
    assert not fine.touches(replace(coarse, start=(51.0, 53.0, 55.0)))


@pytest.mark.parametrize("brains", ["a", "ab", "abc"])
def test_cubes_are_spread_over_brains_strata_and_regions(brains, rng):
    pool = pool_of(brains, rng, (8, 8, 8))
    choices = choose_diverse(pool, 18, [], rng)
    assert set(Counter(c.candidate.brain.name for c in choices).values()) == {18 // len(brains)}
    levels = Counter(c.numbers["stratum"][0] for c in choices)
    assert levels == {"low": 3, "medium": 6, "high": 9}
    assert set(Counter(tuple(c.numbers["stratum"]) for c in choices).values()) == {1, 2, 3}
    if brains == "a":
        assert len({c.candidate.region for c in choices}) >= 7


def test_strata_are_thirds_within_each_brain(rng):
    """A brain of twice the exposure has as many bright candidates as another."""
    pool = pool_of("ab", rng, (3, 3, 3))
    pool = [replace(c, brightness=c.brightness + 10 * (c.brain.name == "b")) for c in pool]
    for choice in choose_diverse(pool, 6, [], rng):
        values = sorted(c.brightness for c in pool if c.brain.name == choice.candidate.brain.name)
        third = values.index(choice.candidate.brightness) // 9
        assert choice.numbers["stratum"][1] == ("low", "medium", "high")[third]


def test_earlier_cubes_count_for_the_spread(rng):
    pool = pool_of("ab", rng)
    earlier = [Earlier(place=pool[0].place, region=(0, 0, 0)), Earlier(place=pool[30].place, region=(0, 1, 0))]
    choices = choose_diverse(pool, 4, earlier, rng)
    assert Counter(c.candidate.brain.name for c in choices) == {"a": 1, "b": 3}


@pytest.mark.parametrize("with_model", [False, True])
def test_the_seed_decides(with_model):
    pool = pool_of("ab", np.random.default_rng(0))
    scores = [{"cell": c.response, "background": c.brightness} for c in pool]

    def starts(seed):
        rng = np.random.default_rng(seed)
        if with_model:
            chosen = choose_uncertain(pool, scores, 6, [], rng, beta=1.0)
        else:
            chosen = choose_diverse(pool, 6, [], rng)
        return [(c.candidate.brain.name, c.candidate.start) for c in chosen]

    assert starts(1) == starts(1)
    assert starts(1) != starts(2)


def test_without_noise_each_class_in_turn_gets_its_most_uncertain_candidates(rng):
    pool = [candidate("a", (2 * i, 0, 0)) for i in range(8)]
    cell, vessel = rng.permutation(8) + 1.0, rng.permutation(8) + 1.0
    scores = [{"cell": cell[i], "vessel": vessel[i]} for i in range(8)]
    choices = choose_uncertain(pool, scores, 4, [], rng, beta=1e9)
    left, expected = set(range(8)), []
    for values in (cell, vessel, cell, vessel):
        expected.append(max(left, key=lambda i: values[i]))
        left.remove(expected[-1])
    assert [pool.index(c.candidate) for c in choices] == expected
    assert [c.numbers["class"] for c in choices] == ["cell", "vessel"] * 2
    assert "rank 1 of 8" in choices[0].words


def test_noise_is_on_the_logarithm_and_fades():
    """With β, a score that is twice as high is drawn 2^β times as often (Gumbel noise)."""
    pool = [candidate("a", (0, 0, 0)), candidate("a", (4, 0, 0))]
    scores = [{"cell": 0.2}, {"cell": 0.1}]
    rng = np.random.default_rng(0)
    for beta in (1.0, 3.0):
        first = [choose_uncertain(pool, scores, 1, [], rng, beta=beta)[0].candidate is pool[0] for _ in range(3000)]
        assert np.mean(first) == pytest.approx(2**beta / (2**beta + 1), abs=0.03)
    assert [beta_of(n) for n in (1, 2, 3, 9)] == [1, 4, 16, 100]


def test_a_class_that_the_model_predicts_nowhere_is_drawn_at_random_and_says_so(rng):
    pool = [candidate("a", (2 * i, 0, 0)) for i in range(4)]
    choices = choose_uncertain(pool, [{"cell": 0.0, "background": 0.1}] * 4, 2, [], rng, beta=100.0)
    assert "predicts no cell here" in choices[0].words
    assert "uncertain about background" in choices[1].words


def test_the_pool_is_spread_over_brains_and_regions(rng):
    many, few = pool_of("a", rng, (6, 6, 6)), pool_of("b", rng, (2, 2, 2))
    pool = draw_pool([many, few], 32, rng)
    assert Counter(c.brain.name for c in pool) == {"a": 24, "b": 8}
    regions = Counter(c.region for c in pool if c.brain.name == "a")
    assert len(regions) == 8
    assert max(regions.values()) - min(regions.values()) <= 1
    assert len({(c.brain.name, c.start) for c in pool}) == 32


def test_only_free_candidates_are_looked_at_and_chance_differs_by_round(monkeypatch):
    monkeypatch.setattr(choosing, "with_responses", lambda pool, progress: list(pool))
    candidates = [[candidate("a", (0, 0, i)) for i in range(38)]]
    earlier = [Earlier(place=c.place, region=c.region) for c in candidates[0][2:36:3]]  # only 0 and 37 touch none
    settings = ProposalSettings(count=2, pool=2)
    choices, looked_at = choose_cubes(candidates, settings, earlier, None, round_number=2, beta=1.0)
    assert {choice.candidate.start[2] // EDGE[2] for choice in choices} == {0, 37}
    assert looked_at == 2
    rounds = [
        [choice.candidate.start for choice in choose_cubes(candidates, settings, (), None, round_number=n, beta=1.0)[0]]
        for n in (1, 2, 1)
    ]
    assert rounds[0] == rounds[2] != rounds[1]
