"""Labels: whole numbers from 0, whatever type a file stores them in."""

from pathlib import Path

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array

_MOST = 2**32 - 1


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
        raise SelmaError(
            f"{path}: holds fractions ({lowest:.3g} to {highest:.3g}), as images and probabilities do; threshold it, or give the labels"
        )
    if lowest < 0 or highest > _MOST:
        raise SelmaError(
            f"{path}: holds the values {lowest:g} to {highest:g}; labels are whole numbers from 0 to {_MOST}. Export the labels again"
        )
    return values.astype(np.uint32)
