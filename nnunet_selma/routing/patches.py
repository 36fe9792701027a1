"""Patches of a volume for a router: their places, how they are read, and their intensities."""

from collections.abc import Sequence
from itertools import groupby, product

import numpy as np
from torch import Tensor

from nnunet_selma.volumes import Volume, to_intensities
from nnunet_selma.volumes.base import Array, ShapeZYX
from nnunet_selma.volumes.moments import Moments

LEAST_DEVIATION = 1e-6
"""Least standard deviation that intensities are divided by."""
_ALONG_AN_AXIS = 3
"""Largest number of patches of the grid along an axis."""
_PLANES = 64
"""Planes that are read together for mean and standard deviation."""


def grid_corners(shape: ShapeZYX, patch_zyx: ShapeZYX) -> list[ShapeZYX]:
    """First corners of a grid of patches from border to border of a volume, at most three along an axis."""
    starts = []
    for length, edge in zip(shape, patch_zyx, strict=True):
        count = min(_ALONG_AN_AXIS, -(-length // edge))
        starts.append([round(start) for start in np.linspace(0, max(0, length - edge), count)])
    return [as_zyx(corner) for corner in product(*starts)]


def read_patches(volume: Volume, patch_zyx: ShapeZYX, corners: Sequence[ShapeZYX]) -> Array:
    """Patches (patch, z, y, x) at these first corners, sorted by z; beyond the border the volume is mirrored.

    Patches with the same planes are read together, because a compressed file is decompressed from its start for every read.

    Raises:
        SelmaError: the file is damaged, or holds NaN or no grey values.
    """
    patches = []
    depth, height, width = patch_zyx
    for z, of_slab in groupby(sorted(corners), key=lambda corner: corner[0]):
        slab = _slab(volume, z, depth)
        for _, y, x in of_slab:
            box = slab[:, y : y + height, x : x + width]
            lacking = [(0, edge - length) for edge, length in zip(patch_zyx, box.shape, strict=True)]
            patches.append(np.pad(box, lacking, mode="symmetric"))
    return np.stack(patches)


def _slab(volume: Volume, z: int, depth: int) -> Array:
    return to_intensities(volume.read(z=slice(z, z + depth)), str(volume.path))


def volume_moments(volume: Volume) -> Moments:
    """Moments of all voxels of a volume, read slab by slab."""
    slabs = (_slab(volume, z, _PLANES) for z in range(0, volume.shape[0], _PLANES))
    return sum(map(Moments.measure, slabs), Moments())


def standardise(patches: Tensor) -> Tensor:
    """Patches (batch, channel, z, y, x) with mean 0 and standard deviation 1 in each channel; 0 where all voxels are equal."""
    axes = (2, 3, 4)
    centred = patches.float() - patches.float().mean(axes, keepdim=True)
    return centred / centred.std(axes, keepdim=True).clamp(min=LEAST_DEVIATION)


def as_zyx(values: Sequence[int]) -> ShapeZYX:
    """Three whole numbers, (z, y, x)."""
    z, y, x = (int(value) for value in values)
    return z, y, x
