"""Ranks of the challenge paper's table 5, and two methods case by case."""

from math import isnan, nan

import numpy as np
import pytest
from scipy import stats

from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation.comparison import class_means, compare, rank
from nnunet_selma.evaluation.metrics.editions import EDITIONS
from nnunet_selma.evaluation.scoring import CaseScore

SPOT, TREE = "spot-like", "tree-like"
# arXiv 2501.03880, table 5: Dice, β0 | Dice, clDice, β0, β1
TABLE_5 = {
    "Zoomlin": ((65.37, 157.9), (65.17, 73.77, 125.5, 1.000)),
    "BioAI": ((56.21, 238.8), (51.24, 59.72, 145.3, 5.125)),
    "XunDJ": ((50.67, 549.5), (54.04, 61.40, 184.4, 6.250)),
    "Tonyxu": ((61.55, 204.6), (48.69, 55.73, 226.0, 5.375)),
    "Wu": ((37.22, 743.5), (48.11, 39.80, 692.3, 2.125)),
}


def means_of(table):
    spot, tree = ("dice", "betti_0_error"), ("dice", "cldice", "betti_0_error", "betti_1_error")
    return {
        team: {SPOT: dict(zip(spot, cells[0], strict=True)), TREE: dict(zip(tree, cells[1], strict=True))}
        for team, cells in table.items()
    }


def test_the_ranks_of_the_papers_table_5():
    ranks = rank(means_of(TABLE_5), EDITIONS[2024])
    assert ranks.overall == {"Zoomlin": 1.0, "BioAI": 2.875, "Tonyxu": 3.0, "XunDJ": 3.5, "Wu": 4.625}
    assert list(ranks.overall) == ["Zoomlin", "BioAI", "Tonyxu", "XunDJ", "Wu"]
    assert ranks.classes["Tonyxu"] == {SPOT: 2.0, TREE: 4.0}
    assert ranks.metrics["Wu"][TREE] == {"dice": 5, "cldice": 5, "betti_0_error": 5, "betti_1_error": 2}


def test_equal_means_share_their_places_and_nan_comes_last():
    table = {"a": ((50.0, 3.0), (50.0, nan, 1.0, 1.0)), "b": ((50.0, 2.0), (40.0, 0.1, 1.0, 2.0))}
    ranks = rank(means_of(table), EDITIONS[2024])
    assert ranks.metrics["a"][SPOT] == {"dice": 1.5, "betti_0_error": 2}
    assert ranks.metrics["b"][TREE] == {"dice": 2, "cldice": 1, "betti_0_error": 1.5, "betti_1_error": 2}


def score(method, case, structure, **official):
    return CaseScore(method=method, case=case, structure=structure, official=official, corrected={}, extra={})


def test_the_ranks_of_2026_are_means_over_classes_then_over_kinds():
    rows = [  # structure, PQ or clDice of a and of b
        ("cfos_neuron", 0.9, 0.1),
        ("AD_plaques", 0.9, 0.1),
        ("blood_vessel", 0.1, 0.9),
    ]
    scores = [
        score(
            method, f"{s}_1", s, dice=v, **{"panoptic_quality" if s in ("cfos_neuron", "AD_plaques") else "cldice": v}
        )
        for s, a, b in rows
        for method, v in (("a", a), ("b", b))
    ]
    rules = EDITIONS[2026]
    ranks = rank(class_means(scores, rules), rules)
    assert ranks.classes["a"] == {"dense isolated": 1.0, "sparse isolated": 1.0, "dense contiguous": 2.0}
    assert ranks.overall == {
        "a": 1.5,
        "b": 1.5,
    }  # two classes of isolated structures weigh no more than one of contiguous


def test_structures_without_density_are_a_class_of_their_own():
    scores = [
        score(m, f"{s}_1", s, dice=v, **{k: v})
        for m, v in (("a", 0.9), ("b", 0.1))
        for s, k in (("gutnerve", "cldice"), ("artery", "cldice"), ("chondrocyte", "panoptic_quality"))
    ]
    ranks = rank(class_means(scores, EDITIONS[2026]), EDITIONS[2026])
    assert set(ranks.classes["a"]) == {"sparse contiguous", "other contiguous", "other isolated"}
    assert ranks.overall == {"a": 1.0, "b": 2.0}


def test_means_are_over_the_cases_of_a_class_not_over_structures():
    scores = [score("a", f"c{n}", "cfos_neuron", dice=1.0) for n in range(3)] + [
        score("a", "n", "AD_plaques", dice=0.0)
    ]
    assert class_means(scores, EDITIONS[2024]) == {"a": {SPOT: {"dice": 0.75}}}
    assert class_means(scores, EDITIONS[2026]) == {
        "a": {"dense isolated": {"dice": 1.0}, "sparse isolated": {"dice": 0.0}}
    }


def test_methods_with_different_structures_are_not_ranked():
    means = {"a": {SPOT: {"dice": 1.0}}, "b": {TREE: {"dice": 1.0}}}
    with pytest.raises(SelmaError, match="same structures"):
        rank(means, EDITIONS[2024])


def paired(values, other, metric="dice"):
    scores = [score("new", f"c{n}", "microglia", **{metric: v}) for n, v in enumerate(values)]
    scores += [score("old", f"c{n}", "microglia", **{metric: v}) for n, v in enumerate(other)]
    (row,) = compare(scores, "new", "old", EDITIONS[2024])
    return row


def test_paired_differences(rng):
    old = rng.uniform(0.3, 0.7, 40)
    new = old + rng.normal(0.05, 0.05, 40)
    row = paired(new, old)
    difference = new - old
    assert (row.cases, row.without_value, row.structure, row.metric) == (40, 0, "microglia", "dice")
    assert row.difference == pytest.approx(difference.mean())
    assert (row.mean, row.other_mean) == (pytest.approx(new.mean()), pytest.approx(old.mean()))
    assert (row.better, row.worse) == ((difference > 0).sum(), (difference < 0).sum())
    assert row.p == pytest.approx(stats.wilcoxon(new, old).pvalue)
    # for forty almost normal differences the bootstrap is near the interval of Student's t
    low, high = stats.t.interval(0.95, 39, difference.mean(), stats.sem(difference))
    assert (row.low, row.high) == (pytest.approx(low, abs=0.003), pytest.approx(high, abs=0.003))


def test_fewer_errors_are_better():
    row = paired([1.0, 2.0, 3.0], [2.0, 2.0, 5.0], "betti_0_error")
    assert (row.better, row.worse, row.difference) == (2, 0, -1.0)


def test_nan_is_left_out_and_counted():
    row = paired([0.5, nan, 0.7, 0.9], [0.4, 0.1, nan, 0.8], "cldice")
    assert (row.cases, row.without_value) == (2, 2)
    assert row.difference == pytest.approx(0.1)


def test_equal_methods_and_single_cases():
    row = paired([0.5, 0.6], [0.5, 0.6])
    assert (row.difference, row.low, row.high, row.better, row.worse) == (0, 0, 0, 0, 0)
    assert isnan(row.p)
    lone = paired([0.5], [0.4])
    assert isnan(lone.low)
    assert np.isclose(lone.difference, 0.1)
