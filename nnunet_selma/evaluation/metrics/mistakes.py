"""Mistakes of a prediction, voxel by voxel, for pictures."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.evaluation.metrics.instances import Instances
from nnunet_selma.evaluation.metrics.pair import Pair


class Mistake(IntEnum):
    """Kinds of voxels; 0 is background on both sides."""

    RIGHT = 1
    MISSED = 2
    """Foreground that was not predicted."""
    EXTRA = 3
    """Background that was predicted."""
    SPLIT = 4
    """Found, but in another piece than most of its object."""
    MERGED = 5
    """Found, but in one piece with another object, of which more was found."""


def mistakes(pair: Pair) -> NDArray[np.uint8]:
    """The `Mistake` of each voxel, (z, y, x)."""
    prediction, reference = pair.prediction.mask, pair.reference.mask
    shown = np.zeros(reference.shape, np.uint8)
    both = prediction & reference
    shown[reference & ~both] = Mistake.MISSED
    shown[prediction & ~both] = Mistake.EXTRA
    found = pair.instances
    if len(found.pairs):
        # pairs stand in the order of this number
        factors = (len(found.reference), 1)
        labels = [side.labels[both].astype(np.int64) - 1 for side in (pair.prediction, pair.reference)]
        at = np.searchsorted(found.pairs @ factors, np.stack(labels, axis=1) @ factors)
        shown[both] = _of_pairs(found)[at]
    return shown


def _of_pairs(found: Instances) -> NDArray[np.uint8]:
    """Kind of the voxels of each overlapping pair: the largest piece of an object is right, smaller ones are split or merged."""
    kinds = np.full(len(found.pairs), Mistake.RIGHT, np.uint8)
    for side, kind in ((1, Mistake.SPLIT), (0, Mistake.MERGED)):
        owner = found.pairs[:, side]
        order = np.lexsort((-found.shared, owner))
        first = np.diff(owner[order], prepend=-1) != 0
        kinds[order[~first]] = kind
    return kinds
