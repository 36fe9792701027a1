"""Objects: panoptic quality against panoptica, hand-worked matches."""

from math import nan

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import center_of_mass

from benchmarks.official import panoptic_quality_2026
from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation.metrics.matching import (
    Detection,
    MatchingRule,
    detection,
    detection_by_distance,
    instances,
    match,
    panoptic_quality,
)
from nnunet_selma.evaluation.metrics.pair import Pair
from nnunet_selma.morphology.components import label
from tests.morphology.masks import similar_masks

EMPTY, FULL = np.zeros((6, 6, 6), bool), np.ones((6, 6, 6), bool)
CORNERS = EMPTY.copy()
CORNERS[:3, :3, :3] = CORNERS[3:, 3:, 3:] = True  # one object: 26-connected by a corner


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(pair=similar_masks())
@example(pair=(EMPTY, EMPTY))
@example(pair=(EMPTY, CORNERS))
@example(pair=(CORNERS, EMPTY))
@example(pair=(CORNERS, CORNERS))
@example(pair=(FULL, CORNERS))
@settings(max_examples=60)
def test_panoptic_quality_is_that_of_panoptica(pair):
    prediction, reference = pair
    official = panoptic_quality_2026(reference.astype(np.uint8), prediction.astype(np.uint8))
    assert panoptic_quality(Pair(prediction, reference).instances) == pytest.approx(official, abs=1e-12, nan_ok=True)


def row(*runs, length=40):
    mask = np.zeros((1, 1, length), bool)
    for start, stop in runs:
        mask[0, 0, start:stop] = True
    return mask


@pytest.mark.parametrize(
    ("prediction", "reference", "quality"),
    [
        (row((0, 3)), row((0, 10)), 6 / 13),  # IoU is 0.3: a match; its Dice coefficient is 6 / 13
        (row((0, 2)), row((0, 10)), 0.0),
        (row((0, 10), (20, 30)), row((0, 10)), 1 / 1.5),
        (row((0, 4), (5, 10)), row((0, 10)), 10 / 15 / 1.5),  # split: one half matches
        (row(), row(), nan),
    ],
)
def test_hand_worked_quality(prediction, reference, quality):
    assert panoptic_quality(Pair(prediction, reference).instances) == pytest.approx(quality, nan_ok=True)


def test_the_best_pair_is_taken_first_and_each_object_once():
    pairs = np.array([[0, 0], [0, 1], [1, 1], [2, 1], [3, 3]])
    taken = match(pairs, np.array([0.5, 0.8, 0.6, 0.8, 0.1]))
    assert taken.tolist() == [False, True, False, False, True]


@pytest.mark.parametrize(
    ("found", "precision", "recall", "f1", "error"),
    [
        (Detection(4, 8, 2), 0.5, 0.25, 1 / 3, 4),
        (Detection(0, 8, 0), 0.0, 0.0, 0.0, 8),
        (Detection(3, 0, 0), 0.0, 0.0, 0.0, 3),
        (Detection(0, 0, 0), 1.0, 1.0, 1.0, 0),
    ],
)
def test_detection(found, precision, recall, f1, error):
    assert (found.precision, found.recall, found.count_error) == (precision, recall, error)
    assert found.f1 == pytest.approx(f1)


def labelled(*masks):
    return [label(mask)[0] for mask in masks]


def test_matching_by_voxels():
    found = instances(*labelled(row((0, 4), (5, 10), (30, 33)), row((0, 10), (20, 30))))
    assert detection(found) == Detection(3, 2, 1)
    assert detection(found, 0.5) == Detection(3, 2, 1)
    assert detection(found, 0.51) == Detection(3, 2, 0)


def test_matching_by_distance_is_in_micrometres_and_nearest_first():
    prediction, reference = labelled(row((0, 3), (10, 13)), row((4, 7), (12, 15)))  # centres 1, 11 and 5, 13
    assert detection_by_distance(prediction, reference, 1.9, (1, 1, 1)) == Detection(2, 2, 0)
    assert detection_by_distance(prediction, reference, 2.0, (1, 1, 1)) == Detection(2, 2, 1)
    assert detection_by_distance(prediction, reference, 4.0, (1, 1, 1)) == Detection(2, 2, 2)
    assert detection_by_distance(prediction, reference, 4.0, (1, 1, 2)) == Detection(2, 2, 1)
    assert detection_by_distance(prediction, np.zeros_like(reference), 4.0, (1, 1, 1)) == Detection(2, 0, 0)


@given(pair=similar_masks(), distance=st.sampled_from([0.5, 2.0, 9.0]))
def test_matches_by_distance_are_no_more_than_the_objects(pair, distance):
    prediction, reference = (label(mask)[0] for mask in pair)
    found = detection_by_distance(prediction, reference, distance, (2.0, 1.0, 1.0))
    assert found.matched <= min(found.predicted, found.true)
    assert (found.predicted, found.true) == (prediction.max(), reference.max())
    if found.predicted and found.true:
        centres = [
            np.array(center_of_mass(labels > 0, labels, range(1, labels.max() + 1))) * (2, 1, 1)
            for labels in (prediction, reference)
        ]
        nearest = np.linalg.norm(centres[0][:, None] - centres[1], axis=-1).min()
        if not np.isclose(nearest, distance):  # a tie is decided by rounding
            assert (found.matched > 0) == (nearest < distance)


@pytest.mark.parametrize("text", ["iou:0.3", "overlap", "distance:10"])
def test_rules_are_written_as_they_are_read(text):
    assert str(MatchingRule.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["iou", "iou:0", "iou:2", "distance:-1", "distance:inf", "overlap:3", "nearest", "iou:x"]
)
def test_other_rules_are_refused(text):
    with pytest.raises(SelmaError, match="matching rule"):
        MatchingRule.parse(text)
