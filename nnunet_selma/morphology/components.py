"""Connected components of a mask, of a whole array or block by block with the same result.

Block by block: (1) each block is labelled alone, and its labels continue the numbers of the block before; (2) where two blocks share voxels,
the two numbers of each voxel are recorded as a pair; (3) after the last block, numbers in pairs become one component (connected components
of a graph). Memory: one block, a slice of labels of the whole volume (8 bytes a voxel), and about 100 bytes for each component of each
block; places and sizes take another 50 bytes for each foreground voxel of a block.
"""

from dataclasses import dataclass
from typing import Literal

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nnunet_selma.morphology.blocks import Block, Box, Read, blocks
from nnunet_selma.volumes.base import Array, ShapeZYX

Connectivity = Literal[6, 26]
"""Neighbours of a voxel that belong to its component: 6 share a face with it, 26 at least a corner."""


def label(mask: Array, connectivity: Connectivity = 26) -> tuple[Array, int]:
    """Number the components of a mask (z, y, x) from 1 in raster order; 0 is background.

    In an array of integers, a component is made of touching voxels of equal value.

    Returns:
        Labels in the shape of the mask, and the number of components.
    """
    if not mask.size:
        return np.zeros(mask.shape, np.uint16), 0
    voxels = np.ascontiguousarray(mask)
    if voxels.dtype == np.bool_:
        voxels = voxels.view(np.uint8)  # for bytes the labelling is faster than for bool
    labels, n = cc3d.connected_components(voxels, connectivity=connectivity, return_N=True)
    return labels, int(n)


@dataclass(frozen=True)
class Components:
    """The 26-connected components of a mask, in raster order of their first voxels; axes are (z, y, x)."""

    sizes: NDArray[np.int64]
    """Voxels of each component, (n,)."""
    low: NDArray[np.int64]
    """First corner of each component's box, (n, 3)."""
    high: NDArray[np.int64]
    """Corner behind the last voxel of each component's box, (n, 3)."""
    first: NDArray[np.int64]
    """First voxel of each component in raster order, (n, 3)."""

    def box(self, number: int) -> Box:
        """The box of a component, numbered from 0, as slices of the volume."""
        z, y, x = (slice(int(a), int(b)) for a, b in zip(self.low[number], self.high[number], strict=True))
        return z, y, x


def components_by_blocks(read: Read, shape: ShapeZYX, edge: ShapeZYX) -> Components:
    """The components of the mask `> 0` of a volume, read block by block.

    Args:
        read: reader of boxes of the volume.
        shape: shape of the volume, voxels (z, y, x).
        edge: shape of a block, voxels (z, y, x).
    """
    table = ComponentTable()
    for block in blocks(shape, edge):
        table.add(block, *label(read(*block.box) > 0))
    return table.finish()[0]


class ComponentTable:
    """Sizes and places of components that are labelled block by block, in the order of `blocks`."""

    def __init__(self) -> None:
        self._joined = JoinedComponents()
        self._parts = [Components(*(np.zeros((0, *more), np.int64) for more in ((), (3,), (3,), (3,))))]

    def add(self, block: Block, labels: Array, n: int) -> int:
        """Register a labelled block; returns the offset that makes its labels unique across blocks."""
        self._parts.append(_describe(labels, n, block))
        return self._joined.add(block, labels, n)

    def finish(self) -> tuple[Components, NDArray[np.int64]]:
        """All components, and for each component of each block, in the order of blocks, its number among all, from 0."""
        final, n = self._joined.join()
        if not n:
            return self._parts[0], final
        sizes, low, high, first = (
            np.concatenate([getattr(part, name) for part in self._parts]) for name in ("sizes", "low", "high", "first")
        )
        order = np.lexsort((*first.T[::-1], final))  # sorted by component, and within one by first voxel
        starts = np.flatnonzero(np.diff(final[order], prepend=-1))
        firsts = first[order][starts]
        raster = np.lexsort(firsts.T[::-1])
        columns = (
            np.add.reduceat(sizes[order], starts),
            np.minimum.reduceat(low[order], starts),
            np.maximum.reduceat(high[order], starts),
            firsts,
        )
        return Components(*(column[raster] for column in columns)), np.argsort(raster)[final]


def _describe(labels: Array, n: int, block: Block) -> Components:
    """Components of a block; sizes count voxels of its core only."""
    at = np.flatnonzero(labels)
    numbers = labels.ravel()[at].astype(np.int64) - 1
    corners = np.stack(np.unravel_index(at, labels.shape), axis=1) + np.array(block.start)
    low, high = np.full((n, 3), np.iinfo(np.int64).max), np.zeros((n, 3), np.int64)
    for axis in range(3):  # numpy is several times faster along one axis than along all
        np.minimum.at(low[:, axis], numbers, corners[:, axis])
        np.maximum.at(high[:, axis], numbers, corners[:, axis] + 1)
    in_core = (corners < np.array(block.stop)).all(axis=1)
    first = corners[np.unique(numbers, return_index=True)[1]]
    return Components(np.bincount(numbers[in_core], minlength=n), low, high, first)


class JoinedComponents:
    """Components that are labelled block by block, in the order of `blocks`, and joined where blocks share voxels."""

    def __init__(self) -> None:
        self._provisional = 0
        self._faces: dict[tuple[int, tuple[int, ...]], tuple[Array, int]] = {}
        """For a block and an axis: the last layer of labels of the block before it, and the offset of those labels."""
        self._pairs: list[NDArray[np.int64]] = []

    def add(self, block: Block, labels: Array, n: int) -> int:
        """Register a labelled block; returns the offset that makes its labels unique across blocks."""
        offset = self._provisional
        self._provisional += n
        for axis in range(3):
            if (axis, block.index) in self._faces:
                before, offset_before = self._faces.pop((axis, block.index))
                here = labels.take(0, axis)
                seen = here > 0
                pairs = np.stack([before[seen] + np.int64(offset_before), here[seen] + np.int64(offset)], axis=1)
                changes = np.diff(pairs, axis=0, prepend=-1).any(axis=1)  # few, which leaves less to sort
                self._pairs.append(np.unique(pairs[changes], axis=0))
            if block.end[axis] > block.stop[axis]:
                behind = tuple(i + (a == axis) for a, i in enumerate(block.index))
                self._faces[axis, behind] = labels.take(-1, axis), offset
        return offset

    def join(self) -> tuple[NDArray[np.int64], int]:
        """The final number, from 0, of each component of each block, and how many components there are; call it after the last block."""
        pairs = np.concatenate([np.zeros((0, 2), np.int64), *self._pairs]) - 1
        graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(self._provisional,) * 2)
        if not self._provisional:
            return np.zeros(0, np.int64), 0
        n, final = connected_components(graph, directed=False)
        return final.astype(np.int64), int(n)
