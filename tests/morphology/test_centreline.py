"""Skeletons and clDice against scikit-image and panoptica, corners included; lengths against closed forms."""

from itertools import pairwise
from math import nan, sqrt

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from skimage.morphology import skeletonize

from benchmarks.official import cldice_2024, cldice_2026
from nnunet_selma.demo.phantom import draw
from nnunet_selma.evaluation.metrics.pair import Pair
from nnunet_selma.morphology.blocks import reader
from nnunet_selma.morphology.centreline import (
    branch_points,
    centreline_length,
    skeleton,
    skeletons_by_blocks,
)
from nnunet_selma.morphology.components import label
from tests.morphology.masks import edges, masks, similar_masks


def box(*where, shape=(12, 12, 12)):
    mask = np.zeros(shape, bool)
    mask[where] = True
    return mask


SPACING = (3.0, 2.0, 1.0)
EMPTY = box(0, 0, slice(0))
BAR = box(slice(2, 5), slice(2, 5), slice(1, 11))
FAR_BAR = box(slice(7, 10), slice(7, 10), slice(1, 11))
RIM = box(slice(4, 7), slice(4, 7), slice(1, 11))
EVEN_CUBE = box(slice(2, 6), slice(2, 6), slice(2, 6))


def tubes(rng, shape=(40, 44, 48)):
    """Branching tubes, a blob and specks."""
    mask = rng.random(shape) < 0.001
    for axis in range(3):
        where = [slice(a, a + 5) for a in rng.integers(3, 30, 3)]
        where[axis] = slice(2, shape[axis] - 3)
        mask[tuple(where)] = True
    return mask


def joined(mask, edge):
    """The skeleton of a mask, thinned in blocks of this edge and put together."""
    thin = np.zeros_like(mask)
    for piece in skeletons_by_blocks(reader(mask), mask.shape, edge):
        thin[piece.box][piece.core] |= piece.thin[piece.core]
    return thin


@given(mask=masks(longest=9))
def test_thinning_by_components_is_thinning_of_the_whole(mask):
    np.testing.assert_array_equal(skeleton(label(mask)[0]), skeletonize(mask))


@given(pair=similar_masks(), plane=st.sampled_from([0, 3]))
def test_a_flat_component_is_thinned_as_in_the_whole(pair, plane):
    """scikit-image thins a single slice as a picture, but not a flat component of a volume."""
    mask = np.zeros((6, *pair[1].shape[1:]), bool)
    mask[plane] = pair[1].any(axis=0)
    np.testing.assert_array_equal(skeleton(label(mask)[0]), skeletonize(mask))
    flat = mask[plane : plane + 1]
    np.testing.assert_array_equal(skeleton(label(flat)[0]), skeletonize(flat))
    for whole in (mask, flat):
        np.testing.assert_array_equal(joined(whole, (2, 5, 7)), skeletonize(whole))


def test_thinning_tubes_by_components_is_thinning_of_the_whole(rng):
    mask = tubes(rng)
    thin = skeleton(label(mask)[0])
    assert 0 < thin.sum() < mask.sum() / 5
    np.testing.assert_array_equal(thin, skeletonize(mask))


def same(ours, theirs):
    return ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)


@given(pair=similar_masks())
@example(pair=(EMPTY, BAR))
@example(pair=(BAR, EMPTY))
@example(pair=(EMPTY, EMPTY))
@example(pair=(BAR, FAR_BAR))
@example(pair=(EVEN_CUBE, BAR))
@example(pair=(EVEN_CUBE, EVEN_CUBE))
def test_cldice_is_that_of_both_official_evaluators(pair):
    prediction, reference = (mask.astype(np.uint8) for mask in pair)
    found = Pair(prediction, reference).centrelines
    assert same(found.cldice_2024, cldice_2024(reference, prediction))
    assert same(found.cldice_2026, cldice_2026(reference, prediction))


@pytest.mark.parametrize(
    ("prediction", "reference", "of_2024", "of_2026", "corrected"),
    [
        (EMPTY, EMPTY, 1.0, nan, 1.0),
        (EMPTY, BAR, 1.0, nan, 0.0),
        (BAR, EMPTY, 1.0, nan, 0.0),
        (BAR, FAR_BAR, 1.0, nan, 0.0),
        (BAR, RIM, 1.0, nan, 0.0),
        (BAR, BAR, 1.0, 1.0, 1.0),
        (EVEN_CUBE, EVEN_CUBE, 1.0, nan, 1.0),
        (FAR_BAR, EVEN_CUBE, 1.0, nan, 0.0),
    ],
    ids=[
        "both empty",
        "nothing predicted",
        "nothing there",
        "apart",
        "only their rims meet",
        "equal",
        "no skeleton",
        "no skeleton, apart",
    ],
)
def test_corners_of_cldice(prediction, reference, of_2024, of_2026, corrected):
    pair = Pair(prediction, reference)
    assert same(pair.centrelines.cldice_2024, of_2024)
    assert same(pair.centrelines.cldice_2026, of_2026)
    for official in (pair.centrelines.cldice_2024, pair.centrelines.cldice_2026):
        assert pair.centrelines.corrected(official, pair.overlap) == corrected


@pytest.mark.parametrize("official", [1.0, nan])
def test_voxels_stand_in_for_a_skeleton_that_vanished(official):
    cube, bar = box(slice(2, 6), slice(2, 6), slice(2, 6)), box(slice(3, 6), slice(3, 6), slice(4, 11))
    # the cube has 64 voxels and no skeleton, the bar 63 and one along its middle (y, z = 4); they share 3 × 3 × 2 voxels
    pair = Pair(cube, bar)
    found = pair.centrelines
    assert (found.prediction, found.reference) == (0, skeletonize(bar).sum())
    a, b = (
        found.reference_inside / found.reference,
        18 / 64,
    )  # of the bar's skeleton in the cube; of the cube's voxels in the bar
    assert 0 < a < 1
    assert found.corrected(official, pair.overlap) == pytest.approx(2 * a * b / (a + b))
    swapped = Pair(bar, cube)
    assert swapped.centrelines.corrected(official, swapped.overlap) == pytest.approx(2 * a * b / (a + b))
    other = box(slice(4, 6), slice(4, 6), slice(4, 6))  # 8 voxels, no skeleton, all in the cube
    both = Pair(other, cube)
    assert both.centrelines.corrected(official, both.overlap) == pytest.approx(2 * 1 * (8 / 64) / (1 + 8 / 64))


@given(pair=similar_masks())
def test_corrected_cldice_is_the_official_one_away_from_the_corners(pair):
    pair = Pair(*pair)
    found = pair.centrelines
    corner = not (found.prediction and found.reference and (found.prediction_inside or found.reference_inside))
    for official in (found.cldice_2024, found.cldice_2026):
        corrected = found.corrected(official, pair.overlap)
        assert 0 <= corrected <= 1
        assert corner or corrected == official


@given(mask=masks(longest=9), edge=edges)
def test_blocks_give_the_skeletons_of_the_whole(mask, edge):
    np.testing.assert_array_equal(joined(mask, edge), skeletonize(mask))


def test_blocks_give_the_skeleton_of_tubes(rng):
    mask = tubes(rng)
    np.testing.assert_array_equal(joined(mask, (16, 48, 13)), skeletonize(mask))


def test_lengths_of_components_found_in_blocks_add_up(rng):
    mask = tubes(rng)
    whole = centreline_length(skeletonize(mask), SPACING)
    parts = [
        centreline_length(piece.thin, SPACING) for piece in skeletons_by_blocks(reader(mask), mask.shape, (16, 48, 13))
    ]
    assert whole == pytest.approx(sum(parts)) != 0


def path(*voxels, shape=(12, 12, 12)):
    mask = np.zeros(shape, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


@pytest.mark.parametrize(
    ("thin", "length"),
    [
        (path(), 0.0),
        (path((0, 0, 0)), 0.0),
        (path(*[(5, 5, x) for x in range(12)]), 11.0),
        (path(*[(z, 5, 5) for z in range(12)]), 33.0),
        (path(*[(5, i, i) for i in range(12)]), 11 * sqrt(5)),
        (path(*[(i, 11 - i, i) for i in range(12)]), 11 * sqrt(14)),
        (path(*[(5, 5, x) for x in range(6)], *[(5, y, 5) for y in range(6, 9)]), 5 + 6),  # a right angle
        (path(*[(5, 5, x) for x in range(7)], *[(5, y, 3) for y in range(6, 9)]), 6 + 6),  # a junction
        (path((2, 2, 2), (2, 2, 3), (2, 3, 3), (3, 3, 3)), 1 + 2 + 3),  # a staircase
        (path((2, 2, 2), (2, 2, 3), (3, 3, 4)), 1 + sqrt(14)),
        (path(*[(4, y, x) for y in range(2, 7) for x in range(2, 7) if y in (2, 6) or x in (2, 6)]), 2 * 8 + 2 * 4),
    ],
)
def test_length(thin, length):
    assert centreline_length(thin, SPACING) == pytest.approx(length)
    mirrored = np.flip(thin, (0, 2))
    assert centreline_length(mirrored, SPACING) == pytest.approx(length)


def along(*points, shape=(24, 24, 24)):
    """A path of single voxels from point to point."""
    mask = np.zeros(shape, bool)
    for a, b in pairwise(np.array(points)):
        steps = np.abs(b - a).max()
        for i in range(steps + 1):
            mask[tuple(np.rint(a + (b - a) * i / steps).astype(int))] = True
    return mask


TRUNK = along((2, 10, 10), (20, 10, 10))
TREES = [
    (path(), 0),
    (path((5, 5, 5)), 0),
    (TRUNK, 0),
    (along((2, 2, 2), (2, 2, 9), (2, 9, 9)), 0),  # a corner, three voxels of which touch each other
    (along((4, 2, 2), (4, 2, 9), (4, 9, 9), (4, 9, 2), (4, 2, 2)), 0),  # a ring
    (TRUNK | along((10, 10, 10), (10, 20, 10)), 1),  # a T
    (TRUNK | along((10, 10, 10), (18, 18, 10)), 1),
    (TRUNK | along((10, 2, 10), (10, 20, 10)), 1),  # a cross
    (
        along((10, 10, 10), (18, 18, 18)) | along((10, 10, 10), (18, 2, 10)) | along((10, 10, 10), (2, 10, 2)),
        1,
    ),  # a star
    (TRUNK | along((6, 10, 10), (6, 20, 10)) | along((14, 10, 10), (14, 10, 20)), 2),
    (TRUNK | along((6, 10, 10), (6, 20, 10)) | along((7, 10, 10), (7, 10, 20)), 1),  # forks that touch
    (
        along((4, 2, 2), (4, 2, 9), (4, 9, 9), (4, 9, 2), (4, 2, 2)) | along((4, 9, 9), (4, 16, 16)),
        1,
    ),  # a ring on a stalk
]


@pytest.mark.parametrize(("thin", "forks"), TREES)
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_branch_points_of_drawn_trees(thin, forks, axes):
    assert branch_points(thin.transpose(axes)) == forks
    assert branch_points(np.flip(thin.transpose(axes), (0, 2))) == forks


def test_branch_points_of_thick_trees_are_those_of_their_skeletons():
    """A trunk of 5 voxels with three branches: thinned, it forks three times, in blocks as in the whole."""
    tree = np.zeros((60, 40, 40), bool)
    tree[2:58, 18:23, 18:23] = True
    tree[10:15, 18:38, 18:23] = tree[28:33, 2:20, 18:23] = tree[44:49, 18:23, 18:38] = True
    assert branch_points(skeleton(label(tree)[0])) == 3
    for edge in ((60, 40, 40), (16, 16, 16)):
        parts = skeletons_by_blocks(reader(tree), tree.shape, edge)
        assert sum(branch_points(piece.thin) for piece in parts) == 3


@given(pair=similar_masks(), edge=edges)
def test_branch_points_of_components_add_up(pair, edge):
    parts = skeletons_by_blocks(reader(pair[0]), pair[0].shape, edge)
    assert sum(branch_points(piece.thin) for piece in parts) == branch_points(skeletonize(pair[0]))


def measured(pieces):
    """Voxels, length and forks that pieces add up to."""
    return np.sum(
        [
            (
                piece.thin[piece.core].sum(),
                centreline_length(piece.thin, SPACING, piece.core),
                branch_points(piece.thin, piece.core),
            )
            for piece in pieces
        ]
        or [(0, 0, 0)],
        axis=0,
    )


@given(pair=similar_masks(), edge=edges)
def test_pieces_with_a_halo_of_the_whole_are_exact(pair, edge):
    mask = pair[0]
    pieces = list(skeletons_by_blocks(reader(mask), mask.shape, edge, most=0, halo=max(mask.shape)))
    assert sum(piece.whole for piece in pieces) <= label(mask)[1]
    thin = skeletonize(mask)
    np.testing.assert_allclose(measured(pieces), (thin.sum(), centreline_length(thin, SPACING), branch_points(thin)))


@pytest.mark.parametrize(("halo", "error"), [(12, 0.0), (4, 0.03)])
def test_pieces_of_a_vessel_tree_are_exact_where_the_halo_is_wider_than_the_vessels(halo, error):
    """Vessels up to 16 voxels thick, in 27 pieces."""
    tree = draw("blood_vessel", (96, 96, 96), np.random.default_rng(0)).label
    whole = measured(skeletons_by_blocks(reader(tree), tree.shape, tree.shape))
    pieces = list(skeletons_by_blocks(reader(tree), tree.shape, (32, 32, 32), most=10**4, halo=halo))
    assert sum(not piece.whole for piece in pieces) == 27
    np.testing.assert_allclose(measured(pieces), whole, rtol=error)
