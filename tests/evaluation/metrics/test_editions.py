"""Which metrics a structure gets, and that they are the official ones, corners included."""

from math import isnan

import numpy as np
import pytest
from hypothesis import given

from benchmarks import official
from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation.metrics.editions import edition
from nnunet_selma.evaluation.metrics.pair import Pair
from nnunet_selma.structures import named
from tests.morphology.masks import similar_masks

EMPTY, CUBE = np.zeros((8, 8, 8), np.uint8), np.zeros((8, 8, 8), np.uint8)
CUBE[1:4, 1:4, 1:4] = 1


@pytest.mark.parametrize(
    ("year", "structure", "metrics"),
    [
        (2024, "cfos_neuron", ["dice", "betti_0_error"]),
        (2024, "microglia", ["dice", "cldice", "betti_0_error", "betti_1_error"]),
        (2024, "blood_vessel", ["dice", "cldice", "betti_0_error", "betti_1_error"]),
        (2026, "microglia", ["dice", "panoptic_quality"]),
        (2026, "cfos_neuron", ["dice", "panoptic_quality"]),
        (2026, "blood_vessel", ["dice", "cldice"]),
    ],
)
def test_metrics_of_a_structure(year, structure, metrics):
    rules = edition(year)
    assert [metric.key for metric in rules.metrics_of(named(structure))] == metrics
    assert list(rules.score(Pair(CUBE, CUBE), named(structure))) == metrics


@given(pair=similar_masks())
def test_the_rules_of_2024_are_those_of_the_official_formulation(pair):
    prediction, reference = (mask.astype(np.uint8) for mask in pair)
    score = edition(2024).score(Pair(prediction, reference), named("microglia"))
    (p0, p1), (r0, r1) = official.betti_2024(prediction), official.betti_2024(reference)
    assert (score["betti_0_error"], score["betti_1_error"]) == (abs(p0 - r0), abs(p1 - r1))
    assert score["cldice"] == pytest.approx(official.cldice_2024(reference, prediction), abs=1e-12)


def test_masks_of_255_count_as_masks_of_1():
    for year, structure in ((2024, "microglia"), (2026, "cell_nuclei"), (2026, "blood_vessel")):
        rules = edition(year)
        assert rules.score(Pair(CUBE * 255, CUBE), named(structure)) == rules.score(Pair(CUBE, CUBE), named(structure))


def test_two_empty_masks():
    assert edition(2024).score(Pair(EMPTY, EMPTY), named("microglia")) == {
        "dice": 1.0,
        "cldice": 1.0,
        "betti_0_error": 0.0,
        "betti_1_error": 0.0,
    }
    isolated, contiguous = named("cfos_neuron"), named("blood_vessel")
    assert isnan(edition(2026).score(Pair(EMPTY, EMPTY), isolated)["panoptic_quality"])
    assert edition(2026).corrected(Pair(EMPTY, EMPTY), isolated) == {"panoptic_quality": 1.0}
    assert isnan(edition(2026).score(Pair(EMPTY, EMPTY), contiguous)["cldice"])
    assert edition(2026).corrected(Pair(EMPTY, EMPTY), contiguous) == {"cldice": 1.0}


def test_an_empty_prediction():
    pair = Pair(EMPTY, CUBE)
    assert edition(2024).score(pair, named("microglia"))["cldice"] == 1.0
    assert edition(2024).corrected(pair, named("microglia")) == {"cldice": 0.0}
    assert edition(2026).score(pair, named("microglia"))["panoptic_quality"] == 0.0
    assert edition(2026).corrected(pair, named("microglia")) == {"panoptic_quality": 0.0}


def test_2025_says_what_is_known():
    with pytest.raises(SelmaError, match=r"2025 cannot be followed.*isolated and contiguous.*two tasks"):
        edition(2025)
    with pytest.raises(SelmaError, match="no edition 2023: choose 2024 or 2026"):
        edition(2023)
