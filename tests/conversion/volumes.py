"""Volumes in memory for the tests of tiles."""

import numpy as np

from nnunet_selma.volumes.base import Volume


class Array(Volume):
    """A volume in memory that counts how often each slice is read."""

    def __init__(self, voxels):
        self.voxels, self.shape, self.dtype, self.spacing_um_zyx = voxels, voxels.shape, voxels.dtype, None
        self.reads = np.zeros(len(voxels), int)

    def _read(self, z, y, x):
        self.reads[z] += 1
        return self.voxels[z, y, x]


def brain(rng, shape=(96, 128, 160)):
    """Camera background with a box of structured tissue in the middle."""
    voxels = rng.normal(100, 5, shape)
    z, y, x = (slice(n // 4, 3 * n // 4) for n in shape)
    voxels[z, y, x] += 400 + 300 * rng.random(voxels[z, y, x].shape)
    return voxels.astype(np.uint16)
