"""A prediction and its truth, with the intermediate results that several metrics share; each is computed once, when it is first needed."""

from functools import cached_property

import numpy as np

from nnunet_selma.evaluation.metrics.matching import Instances, instances
from nnunet_selma.morphology.blocks import Mask
from nnunet_selma.morphology.centreline import Centrelines, skeleton
from nnunet_selma.morphology.components import label
from nnunet_selma.morphology.overlap import Overlap, check_same_shape, overlap
from nnunet_selma.morphology.topology import Betti, betti_numbers
from nnunet_selma.volumes.base import Array


class Segmentation:
    """A mask `> 0`, (z, y, x), with the results that depend on it alone."""

    def __init__(self, values: Array) -> None:
        self.mask: Mask = values > 0

    @cached_property
    def _labelled(self) -> tuple[Array, int]:
        return label(self.mask)

    @property
    def labels(self) -> Array:
        """26-connected components, numbered from 1."""
        return self._labelled[0]

    @cached_property
    def betti(self) -> Betti:
        """Betti numbers."""
        return betti_numbers(self.mask, self._labelled[1])

    @cached_property
    def skeleton(self) -> Mask:
        """Skeleton, same shape as the mask."""
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
        """Numbers of voxels of each mask and of their intersection."""
        return overlap(self.prediction.mask, self.reference.mask)

    @property
    def betti(self) -> tuple[Betti, Betti]:
        """Betti numbers of the prediction and of the reference."""
        return self.prediction.betti, self.reference.betti

    @cached_property
    def instances(self) -> Instances:
        """Objects of both masks, and the voxels that they share."""
        return instances(self.prediction.labels, self.reference.labels)

    @cached_property
    def centrelines(self) -> Centrelines:
        """Voxels of each skeleton, and how many of them lie in the other mask."""
        prediction, reference = self.prediction, self.reference
        return Centrelines(
            prediction=int(np.count_nonzero(prediction.skeleton)),
            prediction_inside=int(np.count_nonzero(prediction.skeleton & reference.mask)),
            reference=int(np.count_nonzero(reference.skeleton)),
            reference_inside=int(np.count_nonzero(reference.skeleton & prediction.mask)),
        )
