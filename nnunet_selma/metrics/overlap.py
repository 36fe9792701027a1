"""Overlap of two masks."""

import numpy as np

from nnunet_selma.volumes.base import Array


def dice(prediction: Array, reference: Array) -> float:
    """The Dice coefficient of two masks `> 0` of the same shape; 1.0 if both are empty (as SELMA3D's evaluators have it).

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction has the shape {prediction.shape}, reference {reference.shape}: they must be equal"
        )
    p, r = prediction > 0, reference > 0
    total = int(np.count_nonzero(p)) + int(np.count_nonzero(r))
    return 2 * int(np.count_nonzero(p & r)) / total if total else 1.0
