"""A volume seen along each of its axes, in pictures of a bounded size, read block by block.

Each block is reduced to bins of a few voxels, and these to a part of three pictures. Memory: a block, or the whole slices that are read
together, and the pictures; nothing grows with the volume.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_selma.morphology.blocks import Read, blocks
from nnunet_selma.objects.reading import block_edge, slices_kept
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume
from nnunet_selma.volumes.base import Array, ShapeZYX
from nnunet_selma.volumes.segmented import Levels

IMAGE_PIXELS = 1000
"""Longest side of the three projections of an image when they are laid side by side."""
VOXEL: SpacingUm = (1.0, 1.0, 1.0)
"""Stands for a voxel size that is not known: lengths are voxels then."""
Pictures = tuple[Array, Array, Array]
"""Projections along z (y, x), along y (z, x) and along x (z, y)."""


@dataclass(frozen=True)
class Reducer:
    """A reduction of voxels: the ufunc, its identity value, and the output type."""

    function: np.ufunc
    identity: float
    dtype: type[np.generic]


HIGHEST = Reducer(np.fmax, -np.inf, np.float32)
ANY_BIT = Reducer(np.bitwise_or, 0, np.uint8)
SUM = Reducer(np.add, 0, np.float64)


class Projections:
    """The projections of a volume, in bins of whole voxels; boxes of voxels are added in any order, each voxel once.

    Args:
        shape: shape of the volume, voxels (z, y, x).
        bin_zyx: voxels of a bin, which becomes a pixel.
        reducer: reduces the voxels of a bin, and the bins on a line.
    """

    def __init__(self, shape: ShapeZYX, bin_zyx: ShapeZYX, reducer: Reducer) -> None:
        self._bin, self._reducer = bin_zyx, reducer
        along_z, along_y, along_x = (np.delete(count_bins(shape, bin_zyx), axis) for axis in range(3))
        self.along: Pictures = (
            np.full(along_z, reducer.identity, reducer.dtype),
            np.full(along_y, reducer.identity, reducer.dtype),
            np.full(along_x, reducer.identity, reducer.dtype),
        )

    def add(self, start: ShapeZYX, voxels: Array) -> None:
        """Add a box of voxels that begins at the voxel `start`."""
        bins = in_bins(voxels, start, self._bin, self._reducer)
        first = [begin // edge for begin, edge in zip(start, self._bin, strict=True)]
        box = [slice(begin, begin + length) for begin, length in zip(first, bins.shape, strict=True)]
        function, dtype = self._reducer.function, self._reducer.dtype
        for axis, picture in enumerate(self.along):
            part = picture[tuple(bounds for other, bounds in enumerate(box) if other != axis)]
            function(part, function.reduce(bins, axis=axis, dtype=dtype), out=part)


def count_bins(shape: ShapeZYX, bin_zyx: ShapeZYX) -> ShapeZYX:
    """Number of bins of a volume along each axis; those at its end may be smaller."""
    z, y, x = (-(-length // edge) for length, edge in zip(shape, bin_zyx, strict=True))
    return z, y, x


def in_bins(voxels: Array, start: ShapeZYX, bin_zyx: ShapeZYX, reducer: Reducer) -> Array:
    """Reduce the voxels of each bin; bins are counted from the volume's first voxel, and the box begins at the voxel `start`.

    The first voxels of all bins are reduced together, then the second ones, and so on: several times faster than `reduceat`.
    """
    for axis, (begin, edge) in enumerate(zip(start, bin_zyx, strict=True)):
        if edge > 1:
            length, first = voxels.shape[axis], begin // edge
            shape = list(voxels.shape)
            shape[axis] = (begin + length - 1) // edge + 1 - first
            binned = np.full(shape, reducer.identity, reducer.dtype)
            before = (slice(None),) * axis
            for offset in range(min(edge, length)):
                at = (begin + offset) // edge - first
                place = binned[(*before, slice(at, at + -(-(length - offset) // edge)))]
                reducer.function(place, voxels[(*before, slice(offset, None, edge))], out=place)
            voxels = binned
    return voxels


def bin_shape(shape: ShapeZYX, voxel: SpacingUm, pixels: int) -> ShapeZYX:
    """Voxels (z, y, x) of a bin, so that the three projections side by side are about `pixels` wide and high at most.

    Args:
        shape: shape of the volume, voxels (z, y, x).
        voxel: voxel size, in any unit.
        pixels: longest side of the projections together.
    """
    depth, height, width = (n * s for n, s in zip(shape, voxel, strict=True))
    edge = (depth + max(height, width)) / pixels
    z, y, x = (min(n, max(1, int(np.ceil(edge / s)))) for n, s in zip(shape, voxel, strict=True))
    return z, y, x


def fine_levels(levels: Levels, shape: ShapeZYX, voxel: SpacingUm, pixels: int) -> Levels:
    """The resolutions, finest first, that have a voxel for each pixel of a volume's projections; at least the finest.

    Args:
        levels: the volume, or its image, at every resolution, finest first.
        shape: shape of the volume, voxels (z, y, x).
        voxel: voxel size of the volume, in any unit.
        pixels: longest side of the projections together.
    """
    least = count_bins(shape, bin_shape(shape, voxel, pixels))
    return tuple(level for level in levels if (np.array(level.shape) >= least).all()) or levels[:1]


def voxels_of_level(level: Volume, shape: ShapeZYX, voxel: SpacingUm) -> SpacingUm:
    """Voxel size of a resolution that covers the same space as a volume of this shape and voxel size."""
    z, y, x = (s * n / m for s, n, m in zip(voxel, shape, level.shape, strict=True))
    return z, y, x


def read_blocks(volume: Volume, read: Read, label: str, progress: Progress[Any]) -> Iterator[tuple[ShapeZYX, Array]]:
    """First voxel and voxels of each block of a volume; each voxel is read once."""
    for block in progress(list(blocks(volume.shape, block_edge([volume]))), label):
        z, y, x = (slice(start, stop) for start, stop in zip(block.start, block.stop, strict=True))
        yield block.start, read(z, y, x)


def project_image(image: Levels, shape: ShapeZYX, voxel: SpacingUm, progress: Progress[Any] = silent) -> Pictures:
    """The highest grey values along z, y and x, float32; -inf where no value is finite.

    The coarsest resolution that has a voxel for each pixel is read. Coarse resolutions are usually means of the finest: structures of one
    voxel look fainter there, and so do hot pixels of the camera.

    Args:
        image: the image at every resolution, finest first.
        shape: shape of the segmentation it belongs to, voxels (z, y, x).
        voxel: voxel size of the segmentation, µm, or 1 if it is not known.
        progress: shows how far the work is.
    """
    level = fine_levels(image, shape, voxel, IMAGE_PIXELS)[-1]
    bins = bin_shape(level.shape, voxels_of_level(level, shape, voxel), IMAGE_PIXELS)
    projections = Projections(level.shape, bins, HIGHEST)
    for start, voxels in read_blocks(level, slices_kept(level), "image", progress):
        projections.add(start, voxels)
    return projections.along
