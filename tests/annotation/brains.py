"""Small brains: tissue with cells and vessels in a dark outside."""

import numpy as np
from scipy.ndimage import gaussian_filter

from tests.conftest import write_image

SPACING = (0.006, 0.002, 0.003)
"""mm, (z, y, x)."""
SPACING_UM = (6.0, 2.0, 3.0)


def brain(seed, shape=(66, 100, 132), *, gain=1.0):
    """Voxels (z, y, x): an outside of 40, tissue of 400 to 800 with more cells at high x."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    middle = [(n - 1) / 2 for n in shape]
    inside = sum(((at - m) / (0.56 * n)) ** 2 for at, m, n in zip((z, y, x), middle, shape, strict=True)) < 1
    voxels = np.where(inside, 400 + 400 * y / shape[1], 40) + rng.normal(0, 12, shape)
    cells = (rng.random(shape) < 0.004 * x / shape[2]) & inside
    voxels += 40000 * gaussian_filter(cells.astype(np.float32), 1.2)
    return np.clip(gain * voxels, 0, 65535).astype(np.uint16)


def write_brain(path, seed=0, **more):
    """A brain as NIfTI."""
    return write_image(path, brain(seed, **more), SPACING)
