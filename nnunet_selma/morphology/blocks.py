"""Blocks of a volume, each of which shares one layer of voxels with the next block along every axis.

Because of that layer, every pair of neighbouring voxels (26-neighbours too) and every window of 2×2×2 voxels lies whole in one block.
Counts over windows add up, and components are joined where blocks share voxels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.volumes.base import Array, ShapeZYX

Read = Callable[[slice, slice, slice], Array]
"""Returns the voxels of a box, given as three slices (z, y, x): `Volume.read`, or `reader` of an array."""
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]


def reader(array: Array) -> Read:
    """A function that reads boxes of an array (z, y, x)."""
    return lambda z, y, x: array[z, y, x]


@dataclass(frozen=True)
class Block:
    """A core of voxels that belong to this block alone, and the layer behind it; voxel bounds are (z, y, x)."""

    index: ShapeZYX
    """Place in the grid of blocks."""
    start: ShapeZYX
    """First voxel."""
    stop: ShapeZYX
    """End of the core."""
    end: ShapeZYX
    """End of the box: one layer behind the core, unless the volume ends there."""

    @property
    def box(self) -> Box:
        """Core and layer, as slices of the volume."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.end, strict=True))
        return z, y, x

    @property
    def core(self) -> Box:
        """The core, as slices of the box."""
        z, y, x = (slice(0, b - a) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x


def blocks(shape: ShapeZYX, edge: ShapeZYX) -> Iterator[Block]:
    """The blocks of a volume in raster order; the last block of an axis may be smaller.

    Args:
        shape: shape of the volume, voxels (z, y, x).
        edge: shape of a block's core, voxels (z, y, x).

    Raises:
        ValueError: an edge is below 1.
    """
    if min(edge) < 1:
        raise ValueError(f"blocks of {edge} voxels: an edge is at least 1")
    for index in product(*(range(-(-length // step)) for length, step in zip(shape, edge, strict=True))):
        start = tuple(i * step for i, step in zip(index, edge, strict=True))
        stop = tuple(min(a + step, length) for a, step, length in zip(start, edge, shape, strict=True))
        end = tuple(min(b + 1, length) for b, length in zip(stop, shape, strict=True))
        yield Block(index, start, stop, end)  # type: ignore[arg-type]


def with_margin(read: Read, shape: ShapeZYX) -> tuple[Read, ShapeZYX]:
    """A reader of the mask `> 0` of a volume with one empty voxel around it, and the shape of that mask."""

    def read_mask(*box: slice) -> Mask:
        inner = [slice(max(b.start - 1, 0), min(b.stop - 1, n)) for b, n in zip(box, shape, strict=True)]
        widths = [(int(b.start == 0), int(b.stop == n + 2)) for b, n in zip(box, shape, strict=True)]
        return np.pad(read(*inner) > 0, widths)

    z, y, x = (n + 2 for n in shape)
    return read_mask, (z, y, x)
