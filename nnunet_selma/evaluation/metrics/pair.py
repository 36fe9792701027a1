"""A prediction and its truth, and everything that several metrics ask of the two, computed when it is first asked for and once."""

from functools import cached_property
from typing import Protocol

import numpy as np

from nnunet_selma.evaluation.metrics.instances import Instances, instances, instances_by_blocks
from nnunet_selma.morphology.blocks import Mask, Read, blocks
from nnunet_selma.morphology.centreline import Centrelines, skeleton, skeleton_overlap_by_blocks
from nnunet_selma.morphology.components import label
from nnunet_selma.morphology.overlap import Overlap, check_same_shape, overlap
from nnunet_selma.morphology.topology import Betti, betti_numbers, betti_numbers_by_blocks
from nnunet_selma.volumes.base import Array, ShapeZYX


class Compared(Protocol):
    """Prediction and reference, with everything that the official metrics are computed from."""

    @property
    def overlap(self) -> Overlap:
        """Voxels of each mask, and of both."""

    @property
    def betti(self) -> tuple[Betti, Betti]:
        """Betti numbers of the prediction and of the reference."""

    @property
    def instances(self) -> Instances:
        """Objects of both, and what they share."""

    @property
    def centrelines(self) -> Centrelines:
        """How much of each skeleton lies in the other mask."""


class Segmentation:
    """A mask `> 0`, (z, y, x), and what metrics ask of it alone."""

    def __init__(self, values: Array) -> None:
        self.mask: Mask = values > 0

    @cached_property
    def _labelled(self) -> tuple[Array, int]:
        return label(self.mask)

    @property
    def labels(self) -> Array:
        """Its 26-connected components, numbered from 1."""
        return self._labelled[0]

    @cached_property
    def betti(self) -> Betti:
        """Its Betti numbers."""
        return betti_numbers(self.mask, self._labelled[1])

    @cached_property
    def skeleton(self) -> Mask:
        """Its skeleton."""
        return skeleton(self.labels)


class Pair:
    """A prediction and its truth, of the same shape; one truth may be compared with several predictions.

    Raises:
        ValueError: the shapes differ.
    """

    def __init__(self, prediction: Array | Segmentation, reference: Array | Segmentation) -> None:
        self.prediction, self.reference = (
            side if isinstance(side, Segmentation) else Segmentation(side) for side in (prediction, reference)
        )
        check_same_shape(self.prediction.mask, self.reference.mask)

    @cached_property
    def overlap(self) -> Overlap:
        """Voxels of each mask, and of both."""
        return overlap(self.prediction.mask, self.reference.mask)

    @property
    def betti(self) -> tuple[Betti, Betti]:
        """Betti numbers of the prediction and of the reference."""
        return self.prediction.betti, self.reference.betti

    @cached_property
    def instances(self) -> Instances:
        """Objects of both, and what they share."""
        return instances(self.prediction.labels, self.reference.labels)

    @cached_property
    def centrelines(self) -> Centrelines:
        """How much of each skeleton lies in the other mask."""
        prediction, reference = self.prediction, self.reference
        return Centrelines(
            prediction=int(np.count_nonzero(prediction.skeleton)),
            prediction_inside=int(np.count_nonzero(prediction.skeleton & reference.mask)),
            reference=int(np.count_nonzero(reference.skeleton)),
            reference_inside=int(np.count_nonzero(reference.skeleton & prediction.mask)),
        )


class VolumePair:
    """Two volumes of the same shape that are read block by block; the metrics are those of the whole.

    Args:
        prediction: gives the voxels of a box; `> 0` is the mask.
        reference: the same of the truth.
        shape: of both, voxels (z, y, x).
        edge: of a block, voxels (z, y, x).
    """

    def __init__(self, prediction: Read, reference: Read, shape: ShapeZYX, edge: ShapeZYX) -> None:
        self._sides = (prediction, reference)
        self._shape, self._edge = shape, edge

    @cached_property
    def overlap(self) -> Overlap:
        """Voxels of each mask, and of both."""
        parts = (
            overlap(*(read(*block.box)[block.own] for read in self._sides)) for block in blocks(self._shape, self._edge)
        )
        return sum(parts, Overlap(0, 0, 0))

    @cached_property
    def betti(self) -> tuple[Betti, Betti]:
        """Betti numbers of the prediction and of the reference."""
        prediction, reference = (betti_numbers_by_blocks(read, self._shape, self._edge) for read in self._sides)
        return prediction, reference

    @cached_property
    def instances(self) -> Instances:
        """Objects of both, and what they share."""
        return instances_by_blocks(*self._sides, self._shape, self._edge)

    @cached_property
    def centrelines(self) -> Centrelines:
        """How much of each skeleton lies in the other mask."""
        prediction, reference = self._sides
        predicted = skeleton_overlap_by_blocks(prediction, reference, self._shape, self._edge)
        true = skeleton_overlap_by_blocks(reference, prediction, self._shape, self._edge)
        return Centrelines(*predicted, *true)
