"""Data of a picture of a whole segmentation: projections along three axes, where objects are, and how large.

One pass over the segmentation at its finest resolution, so that no single voxel is lost, and one over the image, at a coarser one where it
has one. Memory: a block and the pictures, as `projections` says, and what `objects.table` needs to measure objects across blocks (4 bytes a
voxel of one slice, about 600 bytes an object); with a table of objects, only the latter's 32 bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Block, blocks
from nnunet_selma.objects.reading import as_labels, block_edge, slices_kept
from nnunet_selma.objects.table import MeasuredComponents
from nnunet_selma.pictures.overview.projections import (
    ANY_BIT,
    SUM,
    VOXEL,
    Pictures,
    Projections,
    in_cells,
    pixel,
    project_image,
)
from nnunet_selma.pictures.overview.shown_objects import ShownObjects, read_objects
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume
from nnunet_selma.volumes.base import Array, ShapeZYX
from nnunet_selma.volumes.segmented import Segmented

CLASSES = 7
"""Classes that are told apart; a segmentation with higher values is shown as one class."""
LABEL_PIXELS = 640
"""Longest side of the three projections of a segmentation; fewer than of an image, so that a single voxel is still seen on a slide."""
_OTHER = 1 << CLASSES  # the bit of values above the classes
_LEAST_CELLS, _MOST_CELLS = 8, 60  # of the density map, along its longer side
_OBJECTS_IN_A_CELL = 4  # at least on average, so that the map is more than a scatter of dots
_MM3 = 1e-9  # of a µm³


@dataclass(frozen=True)
class DensityMap:
    """How dense the objects are, all along z."""

    values: NDArray[np.float64]
    """Density of objects in each cell, (y, x)."""
    unit: str
    cell_yx: tuple[float, float]
    """Edges of a cell, µm or voxels; cells at the end may be smaller."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Everything the picture shows."""

    name: str
    shape: ShapeZYX
    spacing_um_zyx: SpacingUm | None
    classes: Mapping[int, str]
    """Bit in the projected labels to the name of its class; only those that occur."""
    labels: Pictures
    """Bits of the classes on each line."""
    shares: Pictures
    """How much of each line is foreground, 0 to 1."""
    raw: Pictures | None
    """Highest grey value on each line, on a grid of its own; -inf where none is finite."""
    objects: ShownObjects
    density: DensityMap
    foreground: float
    """Share of the volume."""

    @property
    def extent_zyx(self) -> tuple[float, float, float]:
        """Size of the volume, µm; voxels where the voxel size is not known."""
        z, y, x = (n * s for n, s in zip(self.shape, self.spacing_um_zyx or VOXEL, strict=True))
        return z, y, x


def overview(
    segmented: Segmented,
    *,
    spacing_um_zyx: SpacingUm | None = None,
    table: Path | None = None,
    channel: int = 0,
    progress: Progress[Block] = silent,
) -> Overview:
    """Compute what the picture of a segmentation shows.

    Args:
        segmented: with a segmentation.
        spacing_um_zyx: voxel size, instead of what the files say.
        table: objects of the segmentation, as `nnunet-selma objects` writes them; without it they are counted here.
        channel: of the image, which one is shown.
        progress: shows how far the work is.

    Raises:
        SelmaError: a part cannot be read, it is no segmentation, there is no such channel, or the table is of another volume.
    """
    volume = segmented.labels[0]
    if segmented.channels and not 0 <= channel < len(segmented.channels):
        raise SelmaError(f"--channel {channel}: the image has the channels 0 to {len(segmented.channels) - 1}")
    image = segmented.channels[channel] if segmented.channels else ()
    of_image = next((level.spacing_um_zyx for level in image if level.shape == volume.shape), None)
    spacing = spacing_um_zyx or volume.spacing_um_zyx or of_image
    voxel = spacing or VOXEL
    listed = read_objects(table, volume.shape, voxel) if table else None
    seen = _look(volume, voxel, MeasuredComponents() if listed is None else None, progress)
    objects = listed or seen.objects
    return Overview(
        name=segmented.name,
        shape=volume.shape,
        spacing_um_zyx=spacing,
        classes=seen.classes(segmented.classes),
        labels=seen.labels,
        shares=seen.shares,
        raw=project_image(image, volume.shape, voxel, progress) if image else None,
        objects=objects,
        density=(_objects_per_mm3(seen, objects) if spacing else None) or _foreground_map(seen),
        foreground=seen.foreground / float(np.prod(volume.shape)),
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """Results of one pass over a segmentation."""

    shape: ShapeZYX
    voxel: SpacingUm
    cell: ShapeZYX
    """Voxels that became one pixel."""
    bits: Pictures
    """A bit for each class behind a pixel."""
    counts: Pictures
    """Foreground voxels."""
    components: MeasuredComponents | None

    @property
    def foreground(self) -> int:
        """Voxels of it."""
        return int(self.counts[0].sum())

    @property
    def one_class(self) -> bool:
        """True if values are not told apart, because some are above the classes: objects are numbered, or the mask is 255."""
        return bool((self.bits[0] & _OTHER).any())

    @property
    def labels(self) -> Pictures:
        """The bits; of one class, the lowest."""
        z, y, x = ((picture > 0).astype(np.uint8) if self.one_class else picture for picture in self.bits)
        return z, y, x

    @property
    def shares(self) -> Pictures:
        """How much of each line is foreground."""
        z, y, x = (counts / (self.shape[axis] * self.lines(axis)) for axis, counts in enumerate(self.counts))
        return z, y, x

    def lines(self, axis: int) -> NDArray[np.int64]:
        """How many lines of voxels along an axis each pixel holds; those at the end may hold fewer."""
        one, other = (
            np.diff(np.append(np.arange(0, length, edge), length))
            for other, (length, edge) in enumerate(zip(self.shape, self.cell, strict=True))
            if other != axis
        )
        return np.outer(one, other)

    def classes(self, names: Mapping[int, str]) -> dict[int, str]:
        """Bit to the name of each class that occurs."""
        if self.one_class:
            return {0: "segmentation"}
        there = int(np.bitwise_or.reduce(self.bits[0], axis=None))
        return {bit: names.get(bit + 1, f"label {bit + 1}") for bit in range(CLASSES) if there >> bit & 1}

    @property
    def objects(self) -> ShownObjects:
        """The components of equal value."""
        assert self.components is not None
        found, _ = self.components.finish()
        return ShownObjects.of(found.voxels, found.centroid, self.voxel)


def _look(volume: Volume, voxel: SpacingUm, components: MeasuredComponents | None, progress: Progress[Block]) -> _Seen:
    """The pass over a segmentation."""
    cell = pixel(volume.shape, voxel, LABEL_PIXELS)
    bits, counts = Projections(volume.shape, cell, ANY_BIT), Projections(volume.shape, cell, SUM)
    read = as_labels(slices_kept(volume), volume.path)
    for block in progress(list(blocks(volume.shape, block_edge([volume]))), "segmentation"):
        values = read(*block.box)
        if components is not None:
            try:
                components.add(block, values)
            except ValueError as error:
                raise SelmaError(
                    f"{volume.path}: looks like an image, not like a segmentation ({error}); give the segmentation, and the image with --raw"
                ) from error
        own = values[block.own]
        if own.any():
            bits.add(block.start, class_bits(own))
            counts.add(block.start, own > 0)
    return _Seen(
        shape=volume.shape, voxel=voxel, cell=cell, bits=bits.along, counts=counts.along, components=components
    )


def class_bits(voxels: Array) -> NDArray[np.uint8]:
    """A bit for the class of each voxel: of value 1 the lowest, of values above `CLASSES` the highest; 0 for background."""
    values = np.minimum(voxels, CLASSES + 1).astype(np.uint8)
    if values.max(initial=0) <= 1:
        return values
    return (np.left_shift(np.uint16(1), values) >> 1).astype(np.uint8)


def _objects_per_mm3(seen: _Seen, objects: ShownObjects) -> DensityMap | None:
    """A map of cells that hold some objects each; None if there are no objects, or most of the foreground is in larger ones than a cell."""
    if not len(objects.sizes):
        return None
    lengths_um = [n * s for n, s in zip(seen.shape[1:], seen.voxel[1:], strict=True)]
    along = np.clip(np.sqrt(len(objects.sizes) / _OBJECTS_IN_A_CELL), _LEAST_CELLS, _MOST_CELLS)
    cell_um = max(max(lengths_um) / along, *seen.voxel[1:])
    small = objects.sizes < cell_um**3
    if 2 * objects.sizes[small].sum() < objects.sizes.sum():
        return None
    y, x = (np.linspace(0, length, max(1, round(length / cell_um)) + 1) for length in lengths_um)
    number, *_ = np.histogram2d(objects.places[:, 1], objects.places[:, 2], bins=(y, x))
    cell_mm3 = seen.shape[0] * seen.voxel[0] * y[1] * x[1] * _MM3
    return DensityMap(number / cell_mm3, "objects per mm³", (float(y[1]), float(x[1])))


def _foreground_map(seen: _Seen) -> DensityMap:
    """The share of the foreground, in cells of whole pixels."""
    pixel_yx = [k * s for k, s in zip(seen.cell[1:], seen.voxel[1:], strict=True)]
    edge = max(max(n * s for n, s in zip(seen.shape[1:], seen.voxel[1:], strict=True)) / _MOST_CELLS, *pixel_yx)
    y, x = (int(np.ceil(edge / p)) for p in pixel_yx)
    voxels, foreground = (
        in_cells(picture[None], (0, 0, 0), (1, y, x), SUM)[0]
        for picture in (seen.shape[0] * seen.lines(0), seen.counts[0])
    )
    return DensityMap(100 * foreground / voxels, "foreground, %", (y * pixel_yx[0], x * pixel_yx[1]))
