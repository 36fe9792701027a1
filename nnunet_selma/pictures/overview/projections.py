"""A volume seen along each of its axes, in pictures of a bounded size, read block by block.

Each block is reduced to cells of a few voxels, and these to a part of three pictures. Memory: a block, or the whole slices that are read
together, and the pictures; nothing grows with the volume.
"""

from dataclasses import dataclass

import numpy as np

from nnunet_selma.morphology.blocks import Block, blocks
from nnunet_selma.objects.reading import block_edge, slices_kept
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX
from nnunet_selma.volumes.segmented import Levels

IMAGE_PIXELS = 1000
"""Longest side of the three projections of an image when they are laid side by side."""
VOXEL: SpacingUm = (1.0, 1.0, 1.0)
"""Stands for a voxel size that is not known: lengths are voxels then."""
Pictures = tuple[Array, Array, Array]
"""Along z (y, x), along y (z, x) and along x (z, y)."""


@dataclass(frozen=True)
class Join:
    """A reduction of voxels: the ufunc, its identity value, and the output type."""

    function: np.ufunc
    nothing: float
    dtype: type[np.generic]


HIGHEST = Join(np.fmax, -np.inf, np.float32)
ANY_BIT = Join(np.bitwise_or, 0, np.uint8)
SUM = Join(np.add, 0, np.int64)


class Projections:
    """A volume along each axis, in cells of whole voxels; blocks are added in any order, each voxel once.

    Args:
        shape: of the volume, voxels (z, y, x).
        cell: voxels of a cell, (z, y, x).
        join: what becomes of the voxels of a cell, and of the cells on a line.
    """

    def __init__(self, shape: ShapeZYX, cell: ShapeZYX, join: Join) -> None:
        self._cell, self._join = cell, join
        along_z, along_y, along_x = (np.delete(cells_of(shape, cell), axis) for axis in range(3))
        self.along: Pictures = (
            np.full(along_z, join.nothing, join.dtype),
            np.full(along_y, join.nothing, join.dtype),
            np.full(along_x, join.nothing, join.dtype),
        )

    def add(self, start: ShapeZYX, voxels: Array) -> None:
        """Take in a box of voxels that begins at `start`."""
        cells = in_cells(voxels, start, self._cell, self._join)
        first = [begin // edge for begin, edge in zip(start, self._cell, strict=True)]
        box = [slice(begin, begin + length) for begin, length in zip(first, cells.shape, strict=True)]
        for axis, picture in enumerate(self.along):
            part = picture[tuple(bounds for other, bounds in enumerate(box) if other != axis)]
            self._join.function(part, self._join.function.reduce(cells, axis=axis, dtype=self._join.dtype), out=part)


def cells_of(shape: ShapeZYX, cell: ShapeZYX) -> ShapeZYX:
    """How many cells a volume has along each axis; those at its end may be smaller."""
    z, y, x = (-(-length // edge) for length, edge in zip(shape, cell, strict=True))
    return z, y, x


def in_cells(voxels: Array, start: ShapeZYX, cell: ShapeZYX, join: Join) -> Array:
    """Reduce the voxels of each cell; cells count from the volume's first voxel, the box begins at `start`.

    All voxels that stand at one place of their cells are taken together, several times faster than `reduceat`.
    """
    for axis, (begin, edge) in enumerate(zip(start, cell, strict=True)):
        if edge > 1:
            length, first = voxels.shape[axis], begin // edge
            shape = list(voxels.shape)
            shape[axis] = (begin + length - 1) // edge + 1 - first
            joined = np.full(shape, join.nothing, join.dtype)
            before = (slice(None),) * axis
            for offset in range(min(edge, length)):
                at = (begin + offset) // edge - first
                place = joined[(*before, slice(at, at + -(-(length - offset) // edge)))]
                join.function(place, voxels[(*before, slice(offset, None, edge))], out=place)
            voxels = joined
    return voxels


def pixel(shape: ShapeZYX, spacing_um_zyx: SpacingUm, pixels: int) -> ShapeZYX:
    """Voxels that become one pixel, so that all three projections side by side have no more than about so many pixels."""
    depth, height, width = (n * s for n, s in zip(shape, spacing_um_zyx, strict=True))
    edge = (depth + max(height, width)) / pixels
    z, y, x = (min(n, max(1, int(np.ceil(edge / s)))) for n, s in zip(shape, spacing_um_zyx, strict=True))
    return z, y, x


def project_image(
    image: Levels, shape: ShapeZYX, spacing_um_zyx: SpacingUm, progress: Progress[Block] = silent
) -> Pictures:
    """The highest grey values along z, y and x, float32; -inf where no value is finite.

    They are those of the coarsest resolution that has a voxel for each pixel. Coarser ones are means of the finest as a rule: what is
    one voxel large looks fainter there, and so do hot pixels of the camera.

    Args:
        image: at every resolution.
        shape: of the segmentation it belongs to.
        spacing_um_zyx: of the segmentation.
        progress: shows how far the work is.
    """
    pixels = cells_of(shape, pixel(shape, spacing_um_zyx, IMAGE_PIXELS))
    fine = [level for level in image if all(n >= least for n, least in zip(level.shape, pixels, strict=True))]
    volume = fine[-1] if fine else image[0]
    z, y, x = (s * n / m for s, n, m in zip(spacing_um_zyx, shape, volume.shape, strict=True))
    projections = Projections(volume.shape, pixel(volume.shape, (z, y, x), IMAGE_PIXELS), HIGHEST)
    read = slices_kept(volume)
    for block in progress(list(blocks(volume.shape, block_edge([volume]))), "image"):
        own = (slice(a, b) for a, b in zip(block.start, block.stop, strict=True))
        projections.add(block.start, read(*own))
    return projections.along
