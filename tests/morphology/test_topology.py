"""Betti numbers against two other implementations, shapes whose topology is known, and themselves block by block."""

from itertools import product

import gudhi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from benchmarks.official import betti_2024
from nnunet_selma.demo.phantom import draw
from nnunet_selma.morphology.blocks import reader
from nnunet_selma.morphology.topology import betti_numbers, betti_numbers_by_blocks, euler_characteristic
from tests.morphology.masks import edges, masks


def gudhi_betti(mask):
    """Betti numbers of the voxels as closed cubes, by persistent homology."""
    padded = np.pad(mask, 1)
    filtration = gudhi.CubicalComplex(top_dimensional_cells=np.where(padded, 0.0, 1.0))
    filtration.compute_persistence()
    numbers = filtration.persistent_betti_numbers(0.0, 0.0)
    return tuple((*numbers, 0, 0, 0)[:3])


@given(mask=masks())
def test_betti_numbers_are_those_of_gudhi_and_of_the_official_formulation(mask):
    found = betti_numbers(mask)
    assert found == gudhi_betti(mask)
    assert found[:2] == betti_2024(mask.astype(np.uint8))


@given(mask=masks(), edge=edges)
def test_blocks_give_the_betti_numbers_of_the_whole(mask, edge):
    assert betti_numbers_by_blocks(reader(mask), mask.shape, edge) == betti_numbers(mask)


def table_of_configurations():
    """8 χ of each of the 256 windows of 2×2×2 voxels, from the cells around its middle, each shared with other windows."""
    table = np.zeros(256, int)
    corners = list(product((0, 1), repeat=3))
    for configuration in range(256):
        full = {c for bit, c in enumerate(corners) if configuration >> bit & 1}
        # a cell around the middle is given by its side on each axis it spans, and None on the others
        for cell in product((None, 0, 1), repeat=3):
            spans = sum(side is not None for side in cell)
            if any(all(s is None or s == c for s, c in zip(cell, corner, strict=True)) for corner in full):
                table[configuration] += (-1) ** spans * 8 // 2**spans
    return table


def test_euler_characteristic_is_that_of_the_table_of_configurations(rng):
    table, bits = table_of_configurations(), 1 << np.arange(8).reshape(2, 2, 2)
    for density in (0.1, 0.4, 0.6, 0.9):
        padded = np.pad(rng.random((9, 8, 70)) < density, 1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2, 2))
        configurations = (windows * bits).sum(axis=(-1, -2, -3))
        assert 8 * euler_characteristic(padded) == table[configurations].sum()


@given(mask=masks())
def test_cavities_are_what_the_outside_does_not_reach(mask):
    padded = np.pad(mask, 1)
    filled = ndimage.binary_fill_holes(padded)
    assert betti_numbers(mask).b2 == ndimage.label(filled & ~padded)[1]


def test_a_cavity_behind_many_corners_is_outside():
    """A corridor that winds through a block reaches its end only voxel by voxel."""
    solid = np.ones((3, 21, 21), bool)
    for row in range(1, 20, 2):
        solid[1, row, 1:20] = False
        solid[1, row + 1, 19 if row % 4 == 1 else 1] = False
    solid[1, 20] = True
    assert betti_numbers(solid).b2 == 1
    solid[1, 0, 1] = False
    assert betti_numbers(solid).b2 == 0


def ball(shape, centre, radius):
    return radius**2 >= ((np.indices(shape).T - centre) ** 2).sum(-1).T


def ring(shape, centre, radius, axis, thickness=2.0):
    at = np.moveaxis(np.indices(shape), 0, -1) - np.array(centre)
    height = at[..., axis]
    across = np.sqrt((at**2).sum(-1) - height**2)
    return (across - radius) ** 2 + height**2 <= thickness**2


SHAPE = (32, 40, 44)


@pytest.mark.parametrize(
    ("mask", "betti"),
    [
        (np.zeros(SHAPE, bool), (0, 0, 0)),
        (np.ones(SHAPE, bool), (1, 0, 0)),
        (ball(SHAPE, (16, 20, 22), 9), (1, 0, 0)),
        (ball(SHAPE, (16, 20, 22), 12) & ~ball(SHAPE, (16, 20, 22), 8), (1, 0, 1)),
        (ring(SHAPE, (16, 20, 22), 10, axis=0), (1, 1, 0)),
        (ring(SHAPE, (16, 20, 16), 8, 0) | ring(SHAPE, (16, 20, 24), 8, 1), (2, 2, 0)),  # linked
        (
            ball(SHAPE, (16, 20, 22), 14) & ~ball(SHAPE, (16, 20, 22), 11) | ball(SHAPE, (16, 20, 22), 5),
            (2, 0, 1),  # a ball in a hollow ball
        ),
    ],
    ids=["empty", "full", "ball", "hollow ball", "torus", "linked rings", "ball in a hollow ball"],
)
@pytest.mark.parametrize("edge", [None, (7, 40, 13), (16, 16, 16)])
def test_known_shapes(mask, betti, edge):
    found = betti_numbers_by_blocks(reader(mask), SHAPE, edge) if edge else betti_numbers(mask)
    assert found == betti


@pytest.mark.parametrize("structure", ["blood_vessel", "cell_nuclei", "microglia"])
def test_phantoms_have_the_topology_they_were_drawn_with(structure, rng):
    phantom = draw(structure, (48, 56, 64), rng)
    assert sum(phantom.betti) > 0
    assert betti_numbers(phantom.label) == phantom.betti
    assert betti_numbers_by_blocks(reader(phantom.label), (48, 56, 64), (20, 64, 30)) == phantom.betti


@given(mask=masks(), axes=st.permutations((0, 1, 2)), flip=st.integers(0, 2))
def test_turning_a_mask_changes_nothing(mask, axes, flip):
    assert betti_numbers(np.flip(mask.transpose(axes), flip)) == betti_numbers(mask)
