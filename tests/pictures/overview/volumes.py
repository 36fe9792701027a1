"""Segmentations in memory for the tests of overviews."""

import numpy as np

from nnunet_selma.volumes.base import Volume
from nnunet_selma.volumes.segmented import Segmented

SHAPE, SPACING = (9, 14, 11), (6.0, 2.0, 1.5)


class ArrayVolume(Volume):
    """A volume in memory that counts how often it is read."""

    def __init__(self, voxels, spacing=SPACING, plane_wise=False):
        self.path, self.voxels, self.spacing_um_zyx, self.plane_wise = "volume", voxels, spacing, plane_wise
        self.shape, self.dtype, self.reads = voxels.shape, voxels.dtype, 0

    def _read(self, z, y, x):
        self.reads += 1
        return self.voxels[z, y, x]


def segmented(labels, *images, spacing=SPACING, classes=None, **options):
    """A segmentation, and its image at every resolution."""
    channels = (tuple(ArrayVolume(image, spacing) for image in images),) if images else ()
    return Segmented(
        name="brain", labels=(ArrayVolume(labels, spacing, **options),), channels=channels, classes=classes or {}
    )


def spots(rng, shape=(10, 100, 120), count=60):
    """Labels of single voxels."""
    labels = np.zeros(shape, np.uint8)
    labels[tuple(rng.integers(0, n, count) for n in shape)] = 1
    return labels
