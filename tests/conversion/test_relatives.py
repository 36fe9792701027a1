import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_selma.conversion.relatives import find_relations, signature


@pytest.fixture
def cube(rng):
    """Smooth texture with noise, bright blobs, and shading."""
    texture = gaussian_filter(rng.random((100, 100, 100)), 2)
    shading = np.linspace(1, 2, 100)
    voxels = 2000 * (1 + 20 * (texture - texture.mean())) * shading + rng.normal(0, 20, (100, 100, 100))
    return np.clip(voxels, 0, 65535).astype(np.uint16)


def relations(*boxes):
    return [
        (r.first, r.second, r.reason.split(" (")[0])
        for r in find_relations([signature(str(i), box) for i, box in enumerate(boxes)])
    ]


def test_a_copy(cube):
    assert relations(cube[:50, :50, :50], cube[:50, :50, :50].copy()) == [("0", "1", "identical images")]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_overlap_along_one_axis(cube, axis):
    a, b = (np.moveaxis(np.moveaxis(cube, axis, 0)[s, :50, :50], 0, axis) for s in (slice(0, 50), slice(45, 95)))
    assert relations(a, b) == [("0", "1", "they overlap")]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_that_touch(cube, axis):
    a, b = (np.moveaxis(np.moveaxis(cube, axis, 0)[s, :50, :50], 0, axis) for s in (slice(50, 100), slice(0, 50)))
    assert relations(a, b) == [("0", "1", "they touch")]


def test_strangers_with_the_same_shading(cube):
    assert relations(cube[:50, :50, :50], cube[50:, 50:, 50:], cube[50:, :50, 50:][:, ::-1]) == []


def test_a_padded_border_proves_nothing(rng):
    a, b = np.zeros((48, 48, 48), np.uint16), np.zeros((48, 48, 48), np.uint16)
    a[5:], b[5:] = rng.integers(0, 999, (2, 43, 48, 48))
    assert relations(a, b) == []


def test_small_faces_prove_nothing(rng):
    assert relations(*rng.integers(0, 999, (6, 16, 16, 16), dtype=np.uint16)) == []
