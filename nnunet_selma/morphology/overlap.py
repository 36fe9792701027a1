"""Overlap of two masks, counted in voxels; counts of parts of a volume add up to those of the whole."""

from dataclasses import dataclass

import numpy as np

from nnunet_selma.volumes.base import Array


@dataclass(frozen=True)
class Overlap:
    """Numbers of foreground voxels of two masks; overlaps of two parts of a volume can be added."""

    prediction: int
    """Foreground voxels of the prediction."""
    reference: int
    """Foreground voxels of the reference."""
    both: int
    """Voxels that are foreground in both."""

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(self.prediction + other.prediction, self.reference + other.reference, self.both + other.both)

    @property
    def dice(self) -> float:
        """The Dice coefficient; 1.0 if both masks are empty, as in all evaluators of SELMA3D."""
        total = self.prediction + self.reference
        return 2 * self.both / total if total else 1.0


def check_same_shape(prediction: Array, reference: Array) -> None:
    """Raise ValueError if the shapes of two arrays differ."""
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction has the shape {prediction.shape}, reference {reference.shape}: they must be equal"
        )


def overlap(prediction: Array, reference: Array) -> Overlap:
    """Count the voxels of two masks `> 0` of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(prediction, reference)
    p, r = prediction > 0, reference > 0
    return Overlap(int(np.count_nonzero(p)), int(np.count_nonzero(r)), int(np.count_nonzero(p & r)))
