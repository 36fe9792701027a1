"""What is wrong with a prediction, voxel by voxel, for pictures."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.metrics.instances import Instances
from nnunet_selma.metrics.pair import Pair


class Mistake(IntEnum):
    """What a voxel shows; 0 is background on both sides."""

    RIGHT = 1
    MISSED = 2
    """Foreground that was not predicted."""
    EXTRA = 3
    """Background that was predicted."""
    SPLIT = 4
    """Found, but in another piece than most of its object."""
    MERGED = 5
    """Found, but in one piece with a larger object."""


def mistakes(pair: Pair) -> NDArray[np.uint8]:
    """The `Mistake` of each voxel, (z, y, x)."""
    shown = np.zeros(pair.reference.shape, np.uint8)
    both = pair.prediction & pair.reference
    shown[pair.reference & ~both] = Mistake.MISSED
    shown[pair.prediction & ~both] = Mistake.EXTRA
    found = pair.instances
    if len(found.pairs):
        # pairs stand in the order of this number
        columns = len(found.reference)
        at = np.searchsorted(found.pairs @ (columns, 1), _numbers(pair, both, columns))
        shown[both] = _of_pairs(found)[at]
    return shown


def _numbers(pair: Pair, both: NDArray[np.bool_], columns: int) -> NDArray[np.int64]:
    prediction, reference = (labels[both].astype(np.int64) - 1 for labels in pair.labels)
    return prediction * columns + reference


def _of_pairs(found: Instances) -> NDArray[np.uint8]:
    """What the voxels of each overlapping pair are: the largest piece of an object is right, smaller ones are split or merged."""
    kinds = np.full(len(found.pairs), Mistake.RIGHT, np.uint8)
    for side, kind in ((1, Mistake.SPLIT), (0, Mistake.MERGED)):
        owner = found.pairs[:, side]
        order = np.lexsort((-found.shared, owner))
        first = np.diff(owner[order], prepend=-1) != 0
        kinds[order[~first]] = kind
    return kinds
