"""Objects: connected components of equal label, measured block by block, with the same result for every shape of blocks.

Each block is labelled and measured alone; components are joined where blocks share voxels (`morphology/components.py`). Sums of positions
are integers, so that the order of blocks does not change them; sums of intensities are float64, and exact for integers up to 2^53.
Memory: a block, 4 bytes a voxel of one slice, and about 450 bytes for each object of each block while the last block is joined; the
objects themselves take 100 bytes each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Block, Box, blocks
from nnunet_selma.morphology.components import ComponentTable, Connectivity, label
from nnunet_selma.objects.reading import Sources
from nnunet_selma.objects.table import Objects
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes.base import Array

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float64]
_FEW, _CROWDED = 2**14, 6
"""More components than this, with fewer voxels of the block for each than this, are grey values of an image: points apart have 8 voxels each."""


def find_objects(
    sources: Sources,
    connectivity: Connectivity = 26,
    progress: Progress[Any] = silent,
    also: Callable[[Block, Array], None] = lambda _block, _labels: None,
) -> tuple[Objects, NDArray[np.int64]]:
    """Find and measure the objects of a volume, in one pass over its blocks.

    Args:
        sources: the labels, and the image whose intensities are measured.
        connectivity: neighbours of a voxel that belong to its object.
        progress: shows the blocks.
        also: called with each block and the labels in its box, for other work in the same pass.

    Returns:
        The objects, and for each component of each block, in the order of blocks, the row of its object.

    Raises:
        SelmaError: a block cannot be read, or the labels look like an image.
    """
    components = MeasuredComponents(connectivity)
    read, read_raw = sources.read_labels, sources.read_raw
    for block in progress(list(blocks(sources.labels.shape, sources.edge)), "objects"):
        labels = read(*block.box)
        try:
            components.add(block, labels, read_raw(*block.box) if read_raw else None)
        except ValueError as error:
            raise SelmaError(
                f"{sources.labels.path}: looks like an image, not like labels ({error}); give the segmentation, and the image with --raw"
            ) from error
        also(block, labels)
    return components.finish()


@dataclass(frozen=True)
class _Part:
    """Sums over the voxels of each component in one block, (n,) or (n, 3)."""

    label: _Integers
    position: _Integers
    """Sum of voxel indices (z, y, x)."""
    intensity: _Floats
    """Sum of intensities."""
    brightest: _Floats
    """Greatest intensity."""


class MeasuredComponents:
    """The components of a volume, added block by block in the order of `blocks`."""

    def __init__(self, connectivity: Connectivity = 26) -> None:
        self._connectivity = connectivity
        self._table = ComponentTable()
        self._parts: list[_Part] = []
        self._with_raw = False

    def add(self, block: Block, values: Array, raw: Array | None = None) -> None:
        """Measure the components of a block, from the labels and the intensities in its box.

        Raises:
            ValueError: so many components that the values are no labels, but an image.
        """
        labels, n = label(values, self._connectivity)
        if n > _FEW and n * _CROWDED > values.size:
            raise ValueError(f"{n} objects in {values.size} voxels")
        self._table.add(block, labels, n)
        self._parts.append(_measure(block, labels, n, values, raw))
        self._with_raw |= raw is not None

    def finish(self) -> tuple[Objects, _Integers]:
        """All objects, and for each component of each block, in the order in which blocks were added, the row of its object."""
        components, rows = self._table.finish()
        sizes = components.sizes
        unknown = np.full(len(sizes), np.nan)

        def gather(name: str, combine: np.ufunc, empty: float) -> Array:
            parts = np.concatenate([getattr(part, name) for part in self._parts])
            whole = np.full((len(sizes), *parts.shape[1:]), empty, parts.dtype)
            combine.at(whole, rows, parts)
            return whole

        return Objects(
            label=gather("label", np.maximum, 0),
            voxels=sizes,
            centroid=gather("position", np.add, 0) / sizes[:, None],
            start=components.low,
            stop=components.high,
            mean_intensity=gather("intensity", np.add, 0) / sizes if self._with_raw else unknown,
            max_intensity=gather("brightest", np.maximum, -np.inf) if self._with_raw else unknown,
        ), rows


def measure_pieces(box: Box, numbers: Array, n: int, value: int, raw: Array | None = None) -> Objects:
    """The pieces of a component of one label, measured as the components are.

    Args:
        box: place of the component in the volume.
        numbers: number of the piece at each voxel of the box, 1 to n; 0 outside.
        n: number of pieces.
        value: label of the component.
        raw: intensities in the box; None: there is no image.
    """
    (z, y, x), boxes = box, ndimage.find_objects(numbers)
    begin, end = (z.start, y.start, x.start), (z.stop, y.stop, x.stop)
    part = _measure(Block((0, 0, 0), begin, end, end), numbers, n, np.broadcast_to(value, numbers.shape), raw)
    voxels = np.bincount(numbers.ravel(), minlength=n + 1)[1:]
    unknown = np.full(n, np.nan)
    return Objects(
        label=part.label,
        voxels=voxels,
        centroid=part.position / voxels[:, None],
        start=np.array([[side.start for side in piece] for piece in boxes]) + begin,
        stop=np.array([[side.stop for side in piece] for piece in boxes]) + begin,
        mean_intensity=unknown if raw is None else part.intensity / voxels,
        max_intensity=unknown if raw is None else part.brightest,
    )


def _measure(block: Block, labels: Array, n: int, values: Array, raw: Array | None) -> _Part:
    """Sums over the block's core, so that each voxel counts in one block."""
    core = np.ascontiguousarray(labels[block.core])
    at = np.flatnonzero(core)
    numbers = core.ravel()[at].astype(np.int64) - 1
    corners = (axis + begin for axis, begin in zip(np.unravel_index(at, core.shape), block.start, strict=True))
    position = [np.bincount(numbers, axis, minlength=n).astype(np.int64) for axis in corners]
    classes = np.zeros(n, np.int64)
    classes[numbers] = values[block.core].ravel()[at]  # equal in all voxels of a component
    intensity, brightest = np.zeros(n), np.full(n, -np.inf)
    if raw is not None:
        grey = raw[block.core].ravel()[at].astype(np.float64)
        np.add.at(intensity, numbers, grey)
        np.maximum.at(brightest, numbers, grey)
    return _Part(classes, np.stack(position, axis=1), intensity, brightest)
