"""Objects: connected components of equal label, measured block by block, with the same result for every shape of blocks.

Each block is labelled by itself, and what it holds of each component is summed up; where blocks share voxels, components are joined
(`metrics/components.py`). Sums are of integers, so that the order of blocks does not show; those of intensities are float64, and exact for
integers up to 2^53. Memory: a block, 4 bytes a voxel of one slice, and while the last block is joined about 450 bytes for each
object in each block; the table itself has 100 bytes an object.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.morphology.blocks import Block
from nnunet_selma.morphology.components import Components, ComponentTable, Connectivity, label
from nnunet_selma.volumes.base import Array, ShapeZYX

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float64]
_FEW, _CROWDED = 2**14, 6
"""More components, with fewer voxels of the block for each, are the grey values of an image: points apart have 8 voxels each."""


@dataclass(frozen=True)
class Objects:
    """Objects in raster order of their first voxels; one row an object, axes are (z, y, x), unit is the voxel."""

    label: _Integers
    """Which label its voxels have, (n,)."""
    voxels: _Integers
    """How many, (n,)."""
    centroid: _Floats
    """Mean index of its voxels, (n, 3); the centre of the first voxel of the volume is 0."""
    start: _Integers
    """First corner of its box, (n, 3)."""
    stop: _Integers
    """Corner behind its last voxels, (n, 3)."""
    mean_intensity: _Floats
    """Mean intensity of the image; NaN where there is none, (n,)."""
    max_intensity: _Floats
    """Greatest intensity of the image; NaN where there is none, (n,)."""

    def __len__(self) -> int:
        return len(self.voxels)

    def of(self, rows: NDArray[np.bool_]) -> "Objects":
        """Some of them."""
        return Objects(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def touches_border(self, shape: ShapeZYX) -> NDArray[np.bool_]:
        """True for objects with voxels in the outermost layer of the volume, so that a part of them may lie outside."""
        touches: NDArray[np.bool_] = (self.start == 0).any(axis=1) | (self.stop == np.array(shape)).any(axis=1)
        return touches


@dataclass(frozen=True)
class _Part:
    """Measurements of components from the voxels of one block, (n,) or (n, 3)."""

    label: _Integers
    position: _Integers
    """Sum of the indices of voxels."""
    intensity: _Floats
    """Sum."""
    brightest: _Floats


class MeasuredComponents:
    """The components of a volume, added block by block in the order of `blocks`."""

    def __init__(self, connectivity: Connectivity = 26) -> None:
        self._connectivity = connectivity
        self._table = ComponentTable()
        self._parts: list[_Part] = []
        self._with_raw = False

    def add(self, block: Block, values: Array, raw: Array | None = None) -> int:
        """Take in the labels in a block's box, and its intensities; returns the number of components in it.

        Raises:
            ValueError: so many components that these are no labels, but an image.
        """
        labels, n = label(values, self._connectivity)
        if n > _FEW and n * _CROWDED > values.size:
            raise ValueError(f"{n} objects in {values.size} voxels")
        self._table.add(block, labels, n)
        self._parts.append(_measured(block, labels, n, values, raw))
        self._with_raw |= raw is not None
        return n

    def finish(self) -> tuple[Objects, _Integers]:
        """All objects, and which of them, from 0, each component of each block has become, in the order they were added."""
        components, which = self._table.finish()
        labels, position, intensity, brightest = (
            np.concatenate([getattr(part, name) for part in self._parts] or [np.zeros((0, *more))])
            for name, more in (("label", ()), ("position", (3,)), ("intensity", ()), ("brightest", ()))
        )
        n = len(components.sizes)
        return self._objects(
            components,
            _gathered(np.maximum, labels.astype(np.int64), which, n, 0),
            np.stack([_gathered(np.add, axis.astype(np.int64), which, n, 0) for axis in position.T], axis=1),
            _gathered(np.add, intensity, which, n, 0),
            _gathered(np.maximum, brightest, which, n, -np.inf),
        ), which

    def _objects(
        self, found: Components, labels: _Integers, position: _Integers, intensity: _Floats, brightest: _Floats
    ) -> Objects:
        nothing = np.full(len(found.sizes), np.nan)
        return Objects(
            label=labels,
            voxels=found.sizes,
            centroid=position / found.sizes[:, None],
            start=found.low,
            stop=found.high,
            mean_intensity=intensity / found.sizes if self._with_raw else nothing,
            max_intensity=brightest if self._with_raw else nothing,
        )


def _measured(block: Block, labels: Array, n: int, values: Array, raw: Array | None) -> _Part:
    own = np.ascontiguousarray(labels[block.own])
    at = np.flatnonzero(own)
    numbers = own.ravel()[at].astype(np.int64) - 1
    corners = (axis + begin for axis, begin in zip(np.unravel_index(at, own.shape), block.start, strict=True))
    position = [np.bincount(numbers, axis, minlength=n).astype(np.int64) for axis in corners]
    classes = np.zeros(n, np.int64)
    classes[numbers] = values[block.own].ravel()[at]  # one and the same in all voxels of a component
    intensity, brightest = np.zeros(n), np.full(n, -np.inf)
    if raw is not None:
        grey = raw[block.own].ravel()[at].astype(np.float64)
        np.add.at(intensity, numbers, grey)
        np.maximum.at(brightest, numbers, grey)
    return _Part(classes, np.stack(position, axis=1), intensity, brightest)


def _gathered(how: np.ufunc, parts: Array, which: _Integers, n: int, empty: float) -> Array:
    """Sum, or maximum, over the parts of each object."""
    whole = np.full(n, empty, parts.dtype)
    how.at(whole, which, parts)
    return whole
