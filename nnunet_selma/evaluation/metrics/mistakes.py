"""Mistakes of a prediction, voxel by voxel, for pictures."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.evaluation.metrics.matching import Instances
from nnunet_selma.evaluation.metrics.pair import Pair


class Mistake(IntEnum):
    """Kinds of voxels; 0 is background on both sides."""

    RIGHT = 1
    MISSED = 2
    """Foreground that was not predicted."""
    EXTRA = 3
    """Background that was predicted."""
    SPLIT = 4
    """Predicted, but in another piece than most of its object."""
    MERGED = 5
    """Predicted, but in one piece with another object, of which the piece holds more."""


def mistakes(pair: Pair) -> NDArray[np.uint8]:
    """The `Mistake` of each voxel, (z, y, x)."""
    prediction, reference = pair.prediction.mask, pair.reference.mask
    kinds = np.zeros(reference.shape, np.uint8)
    both = prediction & reference
    kinds[reference & ~both] = Mistake.MISSED
    kinds[prediction & ~both] = Mistake.EXTRA
    objects = pair.instances
    if len(objects.pairs):
        factors = (len(objects.reference), 1)  # pairs are sorted by the number that these make of two labels
        labels = [side.labels[both].astype(np.int64) - 1 for side in (pair.prediction, pair.reference)]
        at = np.searchsorted(objects.pairs @ factors, np.stack(labels, axis=1) @ factors)
        kinds[both] = _kinds_of_pairs(objects)[at]
    return kinds


def _kinds_of_pairs(objects: Instances) -> NDArray[np.uint8]:
    """Kind of the voxels that each pair of objects shares: the largest piece of an object is right, smaller ones are split or merged."""
    kinds = np.full(len(objects.pairs), Mistake.RIGHT, np.uint8)
    for side, kind in ((1, Mistake.SPLIT), (0, Mistake.MERGED)):
        number = objects.pairs[:, side]
        order = np.lexsort((-objects.shared, number))
        largest = np.diff(number[order], prepend=-1) != 0
        kinds[order[~largest]] = kind
    return kinds
