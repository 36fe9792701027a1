"""Labels: whole numbers from 0, whatever type a file stores them in; and the mask of the objects in them."""

from collections.abc import Collection, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume

_MOST = 2**32 - 1
_IGNORED = 255
"""Value by which several programs mark voxels that nobody annotated."""
_MANY_VALUES = 100
"""Number of values above which a file with a 0 may be an image though neighbours are often equal."""
_SEVERAL_VALUES = 16
"""The same for a file without any 0, as labels have a background and cameras an offset; and above which any may be an image of noise."""
_CHANGING = 0.5
"""Share of neighbours that differ, of those that are both not 0, above which a file of many values is an image."""
_NOISY = 0.8
"""The same for a file of several values with a 0: an image of few photons, in which neighbours may also be equal by chance."""
_FEW_PAIRS = 0.1
"""Neighbours that are both not 0, per voxel other than 0, below which they do not count: points that touch by chance always differ."""
_SAMPLE: ShapeZYX = (16, 64, 64)
"""Shape of the nine boxes by which labels are told from an image, voxels."""
_SAMPLE_SLICES = 2
"""The same of volumes whose slices are read whole."""
_FEW_VOXELS = 10
"""Number of voxels in objects below which a ground truth may be a slip of the pen."""
_LARGEST_SHARE = 0.5
"""Share of the voxels in objects above which a ground truth may be inverted."""


class ObjectMask(NamedTuple):
    """The objects of a label file."""

    mask: NDArray[np.bool_]
    """True in objects, (z, y, x)."""
    values: dict[int, int]
    """Each value of the file, in order, to its number of voxels."""
    warnings: list[str]
    """Sentences about unusual values."""


def read_mask(
    volume: Volume, foreground: int | None = None, *, truth: bool = True, ignored: int | None = None
) -> ObjectMask:
    """Read a whole label file as the mask of its objects.

    Args:
        volume: the label file.
        foreground: the value of the objects; None takes every value above 0.
        truth: True for a ground truth, whose values must leave no doubt; False for a prediction, which may be anything.
        ignored: value of voxels that nobody annotated, taken as 0; None if there is none.

    Raises:
        SelmaError: the values are no labels (`label_values`), or many values that change from voxel to voxel, as in an image; the foreground
            value does not occur; or, for a ground truth without `foreground`, it is not clear which values are objects: there is no 0, or 255
            stands beside 1.
    """
    labels = label_values(volume.read(), volume.path)
    if ignored is not None:
        labels = np.where(labels == ignored, labels.dtype.type(0), labels)
    values = dict(zip(*(part.tolist() for part in np.unique(labels, return_counts=True)), strict=True))
    if foreground is not None and foreground not in values:
        raise SelmaError(
            f"{volume.path}: the foreground value {foreground} does not occur; the values are {_listed(values)}"
        )
    if foreground is None:
        _check_no_image(values.keys(), [labels], volume.path)
    if truth and foreground is None:
        _check_clear(values, volume.path)
    mask = labels > 0 if foreground is None else labels == foreground
    warnings = []
    if truth and (share := float(mask.mean())) > _LARGEST_SHARE:
        warnings.append(f"{share:.0%} of the voxels are objects; the label may be inverted")
    if truth and 0 < (count := int(mask.sum())) < _FEW_VOXELS:
        warnings.append(f"the objects have {count} voxel(s) altogether; check that the label is complete")
    if foreground is None and not set(values) <= {0, 1}:
        warnings.append(f"label values other than 0 and 1: {_listed(values)}; every value above 0 becomes 1")
    return ObjectMask(mask, values, warnings)


def _check_clear(values: dict[int, int], path: Path) -> None:
    """Raise `SelmaError` if values do not tell which of them are objects."""
    remedy = "write the objects as 1 and all else as 0"
    if 0 not in values:
        raise SelmaError(
            f"{path}: has no background of 0; the values are {_listed(values)}. ilastik, for example, numbers its classes from 1: {remedy}",
            option="say which value the objects have with --foreground VALUE",
        )
    if 1 in values and _IGNORED in values and len(values) <= 3:
        raise SelmaError(
            f"{path}: holds 255 beside 1, which often marks voxels that nobody annotated; {remedy}",
            option="say which value the objects have with --foreground VALUE",
        )


def check_labels(volume: Volume) -> None:
    """Check in a few boxes, about 600 000 voxels of any volume, that these are labels of objects, classes or regions, not an image.

    Raises:
        SelmaError: the boxes hold fractions, or many values that change from voxel to voxel.
    """
    boxes = list(_samples(volume))
    finite = np.concatenate([box[np.isfinite(box)] for box in boxes])
    if volume.dtype.kind == "f" and not (finite == np.rint(finite)).all():
        raise _fractions(volume.path, float(finite.min()), float(finite.max()))
    _check_no_image(set[float]().union(*(np.unique(box).tolist() for box in boxes)), boxes, volume.path)


def _samples(volume: Volume) -> Iterator[Array]:
    """Boxes at the middle, and at the quarters of all axes."""
    depth = _SAMPLE_SLICES if volume.plane_wise else _SAMPLE[0]
    edges = (depth, *_SAMPLE[1:])
    bounds = []
    for length, edge in zip(volume.shape, edges, strict=True):
        starts = [max(0, int(length * quarters / 4) - edge // 2) for quarters in (1, 2, 3)]
        bounds.append([slice(start, min(start + edge, length)) for start in starts])
    for number, z in enumerate(bounds[0]):
        places = [(1, 1)] if number == 1 else product((0, 2), (0, 2))
        planes = volume.read(z) if volume.plane_wise else None
        for row, column in places:
            y, x = bounds[1][row], bounds[2][column]
            yield volume.read(z, y, x) if planes is None else planes[:, y, x].copy()


def _check_no_image(values: Collection[float], boxes: Sequence[Array], path: Path) -> None:
    """Raise `SelmaError` if there are many values in boxes, and they change from voxel to voxel."""
    most = _NOISY if 0 in values and len(values) <= _MANY_VALUES else _CHANGING
    if len(values) > _SEVERAL_VALUES and _changing(boxes) > most:
        raise SelmaError(
            f"{path}: holds {len(values)} values that change from voxel to voxel, as in an image; give labels instead (a segmentation, "
            "a mask or an atlas): a file of them, or an OME-Zarr that has them below labels/"
        )


def _changing(boxes: Sequence[Array]) -> float:
    """Share of neighbours that differ, of those that are both not 0, along the axis with the smallest share; 0 where there are few of them."""
    shares = []
    for axis in range(3):
        changes = pairs = voxels = 0
        for box in boxes:
            lines = np.moveaxis(box, axis, 0)
            first, second = lines[:-1], lines[1:]
            voxels += np.count_nonzero(first)
            both = (first != 0) & (second != 0)
            pairs += np.count_nonzero(both)
            changes += np.count_nonzero((first != second) & both)
        if pairs > _FEW_PAIRS * voxels:
            shares.append(changes / pairs)
    return min(shares, default=0.0)


def _listed(values: dict[int, int]) -> str:
    """The first values and their voxels, for a sentence."""
    return ", ".join(f"{value} ({count} voxels)" for value, count in list(values.items())[:8])


def label_values(values: Array, path: Path) -> Array:
    """The same labels as unsigned integers, of any shape.

    Args:
        values: a whole label volume, or a box of it, as the file stores it.
        path: the file, for the errors.

    Raises:
        SelmaError: these are no labels: colour or complex values, NaN, infinite values, fractions, negative numbers, or numbers above
            2^32 - 1.
    """
    kind = values.dtype.kind
    if kind not in "buif":
        raise SelmaError(f"{path}: holds values of type {values.dtype}; labels are whole numbers from 0")
    if kind == "b":
        return values.astype(np.uint8)
    if (kind == "u" and values.itemsize <= 4) or not values.size:
        return values.astype(values.dtype.newbyteorder("=") if kind == "u" else np.uint32, copy=False)
    lowest, highest = float(values.min()), float(values.max())
    if not np.isfinite([lowest, highest]).all():
        raise SelmaError(
            f"{path}: holds NaN or infinite values; labels are whole numbers from 0. Export the labels again"
        )
    if kind == "f" and not (values == np.rint(values)).all():
        raise _fractions(path, lowest, highest)
    if lowest < 0 or highest > _MOST:
        raise SelmaError(
            f"{path}: holds the values {lowest:g} to {highest:g}; labels are whole numbers from 0 to {_MOST}. Export the labels again"
        )
    return values.astype(np.uint32)


def _fractions(path: Path, lowest: float, highest: float) -> SelmaError:
    return SelmaError(
        f"{path}: holds fractions ({lowest:.3g} to {highest:.3g}), as images and probabilities do; threshold it, or give the labels"
    )
