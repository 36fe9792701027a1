"""A segmentation seen along each axis: which classes lie behind each pixel, and how much of the line is foreground."""

from collections.abc import Mapping
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.objects.reading import as_labels, slices_kept
from nnunet_selma.objects.table import Objects
from nnunet_selma.pictures.overview.projections import (
    ANY_BIT,
    SUM,
    Pictures,
    Projections,
    bin_shape,
    fine_levels,
    read_blocks,
    voxels_of_level,
)
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX
from nnunet_selma.volumes.segmented import Levels

CLASSES = 7
"""Number of classes that are told apart; a segmentation with higher values is shown as one class."""
LABEL_PIXELS = 640
"""Longest side of the three projections of a segmentation; fewer than of an image, so that a single voxel is still seen on a slide."""
_OTHER = 1 << CLASSES  # the bit of values above the classes
_PIXELS_OF_SMALL = 3  # an object whose box is no wider is drawn as its box
_LEAST_FOREGROUND = 0.9  # of the objects' volume, which a coarse resolution must still show


class ProjectedLabels:
    """The projections of a segmentation; boxes of voxels are added in any order, each voxel once.

    Args:
        shape: shape of the volume, voxels (z, y, x).
        voxel: voxel size, µm, or 1 if it is not known.
    """

    def __init__(self, shape: ShapeZYX, voxel: SpacingUm) -> None:
        self.shape, self.voxel = shape, voxel
        self.bin = bin_shape(shape, voxel, LABEL_PIXELS)
        self._bits, self._counts = Projections(shape, self.bin, ANY_BIT), Projections(shape, self.bin, SUM)

    def add(self, start: ShapeZYX, values: Array) -> None:
        """Add the labels of a box that begins at the voxel `start`."""
        if values.any():
            self._bits.add(start, class_bits(values))
            self._counts.add(start, values > 0)

    def mark(self, objects: Objects, shape: ShapeZYX) -> None:
        """Draw the boxes of small objects, because coarse resolutions lose them.

        Args:
            objects: objects of the segmentation at its finest resolution.
            shape: shape of the segmentation at its finest resolution, voxels (z, y, x).
        """
        per_voxel = np.array(self.shape) / shape
        widths = (objects.stop - objects.start) * per_voxel
        small = objects.select(np.all(widths <= _PIXELS_OF_SMALL * np.array(self.bin), axis=1))
        first, last = (
            ((corner * per_voxel) // self.bin).astype(int) for corner in (small.start + 0.5, small.stop - 0.5)
        )
        bits_of_class, level_voxels = class_bits(small.label), small.voxels * per_voxel.prod()
        for axis, (bits, counts) in enumerate(zip(self._bits.along, self._counts.along, strict=True)):
            low, high = np.delete(first, axis, axis=1), np.delete(last, axis, axis=1)
            per_pixel = level_voxels / np.prod(high - low + 1, axis=1)
            voxels = np.zeros(counts.shape)
            for offset in product(range(_PIXELS_OF_SMALL + 1), repeat=2):
                in_box = (low + offset <= high).all(axis=1)
                pixels = tuple((low + offset)[in_box].T)
                np.bitwise_or.at(bits, pixels, bits_of_class[in_box])
                np.add.at(voxels, pixels, per_pixel[in_box])
            np.maximum(counts, voxels, out=counts)

    @property
    def pixel(self) -> tuple[float, float, float]:
        """Edges of a pixel along z, y and x, in the unit of `voxel`."""
        z, y, x = (k * s for k, s in zip(self.bin, self.voxel, strict=True))
        return z, y, x

    @property
    def foreground(self) -> Pictures:
        """Number of foreground voxels on each line."""
        return self._counts.along

    def voxels(self, axis: int) -> NDArray[np.int64]:
        """Number of voxels behind each pixel of the picture along an axis; pixels at the end may have fewer."""
        rows, columns = (
            np.diff(np.append(np.arange(0, length, edge), length))
            for other, (length, edge) in enumerate(zip(self.shape, self.bin, strict=True))
            if other != axis
        )
        return self.shape[axis] * np.outer(rows, columns)

    @property
    def shares(self) -> Pictures:
        """Share of each line that is foreground, 0 to 1."""
        z, y, x = (np.minimum(counts / self.voxels(axis), 1) for axis, counts in enumerate(self.foreground))
        return z, y, x

    @property
    def _one_class(self) -> bool:
        """True if values are not told apart, because some are above the classes: objects are numbered, or the mask is 255."""
        return bool((self._bits.along[0] & _OTHER).any())

    @property
    def pictures(self) -> Pictures:
        """Bits of the classes behind each pixel; the lowest bit if there is one class."""
        z, y, x = ((bits > 0).astype(np.uint8) if self._one_class else bits for bits in self._bits.along)
        return z, y, x

    def classes(self, names: Mapping[int, str]) -> dict[int, str]:
        """Bit to the name of each class that occurs, given the names of labels."""
        if self._one_class:
            return {0: "segmentation"}
        present = int(np.bitwise_or.reduce(self._bits.along[0], axis=None))
        return {bit: names.get(bit + 1, f"label {bit + 1}") for bit in range(CLASSES) if present >> bit & 1}


def project_labels(
    levels: Levels, objects: Objects, voxel: SpacingUm, progress: Progress[Any] = silent
) -> ProjectedLabels:
    """Project a segmentation whose objects are known, from a coarse resolution if it has one.

    The resolution is the coarsest that has a voxel for each pixel and, with small objects drawn from the table, still shows nine tenths of
    the objects' volume: thin vessels vanish from coarse labels.

    Args:
        levels: the segmentation at every resolution, finest first.
        objects: its objects.
        voxel: voxel size of the finest resolution, µm, or 1 if it is not known.
        progress: shows how far the work is.
    """
    finest = levels[0].shape
    for level in reversed(fine_levels(levels, finest, voxel, LABEL_PIXELS)):
        projected = ProjectedLabels(level.shape, voxels_of_level(level, finest, voxel))
        read = as_labels(slices_kept(level), level.path)
        for start, labels in read_blocks(level, read, "segmentation", progress):
            projected.add(start, labels)
        if level is not levels[0]:
            projected.mark(objects, finest)
        if projected.foreground[0].sum() >= _LEAST_FOREGROUND * objects.voxels.sum() * prod(level.shape) / prod(finest):
            break
    return projected


def class_bits(labels: Array) -> NDArray[np.uint8]:
    """A bit for the class of each label: the lowest bit for 1, the highest for labels above `CLASSES`, none for background."""
    values = np.minimum(labels, CLASSES + 1).astype(np.uint8)
    if values.max(initial=0) <= 1:
        return values
    return (np.left_shift(np.uint16(1), values) >> 1).astype(np.uint8)
