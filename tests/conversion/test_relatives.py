import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_selma.conversion.relatives import find_relations, signature


@pytest.fixture
def cube(rng):
    """Smooth texture with noise, bright blobs, and shading."""
    texture = gaussian_filter(rng.random((60, 60, 60)), 2)
    shading = np.linspace(1, 2, 60)
    voxels = 2000 * (1 + 20 * (texture - texture.mean())) * shading + rng.normal(0, 20, (60, 60, 60))
    return np.clip(voxels, 0, 65535).astype(np.uint16)


def relations(*boxes):
    return [
        (r.first, r.second, r.reason.split(" (")[0])
        for r in find_relations([signature(str(i), box) for i, box in enumerate(boxes)])
    ]


def test_a_copy(cube):
    assert relations(cube[:30, :30, :30], cube[:30, :30, :30].copy()) == [("0", "1", "identical images")]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_overlap_along_one_axis(cube, axis):
    a, b = (np.moveaxis(np.moveaxis(cube, axis, 0)[s, :30, :30], 0, axis) for s in (slice(0, 30), slice(25, 55)))
    assert relations(a, b) == [("0", "1", "they overlap")]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_that_touch(cube, axis):
    a, b = (np.moveaxis(np.moveaxis(cube, axis, 0)[s, :30, :30], 0, axis) for s in (slice(30, 60), slice(0, 30)))
    assert relations(a, b) == [("0", "1", "they touch")]


def test_strangers_with_the_same_shading(cube):
    assert relations(cube[:30, :30, :30], cube[30:, 30:, 30:], cube[30:, :30, 30:][:, ::-1]) == []


def test_empty_planes_prove_nothing():
    a, b = np.zeros((8, 8, 8), np.uint16), np.zeros((8, 8, 8), np.uint16)
    a[4], b[4] = np.arange(64).reshape(8, 8), np.arange(64)[::-1].reshape(8, 8)
    assert relations(a, b) == []
