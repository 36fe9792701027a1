"""Objects: components of two masks, matched one to one; panoptic quality, precision and recall.

Matching goes from the best pair to the worst and takes a pair if both of its objects are free, as panoptica's `NaiveThresholdMatching`
does. Pairs of equal score are taken in raster order, so that blockwise and whole results are the same to the last pair.
"""

from dataclasses import dataclass
from math import inf, nan
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array

IOU_2026 = 0.3
"""Least intersection over union of a match in the evaluator of SELMA3D 2026."""

Pairs = NDArray[np.int64]
"""Matched objects, (n, 2): number of the predicted one, number of the true one, from 0."""


@dataclass(frozen=True)
class Instances:
    """Sizes of all objects of two masks, and of what they share."""

    prediction: NDArray[np.int64]
    """Voxels of each predicted object."""
    reference: NDArray[np.int64]
    """Voxels of each true object."""
    pairs: Pairs
    """Objects that share voxels, in raster order."""
    shared: NDArray[np.int64]
    """Voxels that each pair shares."""

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair."""
        both = self.prediction[self.pairs[:, 0]] + self.reference[self.pairs[:, 1]]
        iou: NDArray[np.float64] = self.shared / (both - self.shared)
        return iou

    def dice(self) -> NDArray[np.float64]:
        """Dice coefficient of each pair."""
        both = self.prediction[self.pairs[:, 0]] + self.reference[self.pairs[:, 1]]
        dice: NDArray[np.float64] = 2 * self.shared / both
        return dice


def instances(prediction_labels: Array, reference_labels: Array) -> Instances:
    """Compare two labelled arrays (z, y, x) of the same shape, numbered from 1 without gaps."""
    predicted, true = (_sizes(labels) for labels in (prediction_labels, reference_labels))
    return Instances(predicted, true, *_shared(prediction_labels, reference_labels))


def _sizes(labels: Array) -> NDArray[np.int64]:
    return np.bincount(labels[labels > 0], minlength=1)[1:].astype(np.int64)


def _shared(prediction: Array, reference: Array) -> tuple[Pairs, NDArray[np.int64]]:
    """Pairs of labels (from 1) that share voxels, less 1, and how many voxels."""
    both = (prediction > 0) & (reference > 0)
    columns = int(reference.max(initial=0)) + 1
    numbers, counts = np.unique(prediction[both].astype(np.int64) * columns + reference[both], return_counts=True)
    return np.stack(np.divmod(numbers, columns), axis=1) - 1, counts.astype(np.int64)


def match(pairs: Pairs, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which pairs are taken: from the highest score down, each object once; pairs of equal score in the order they stand."""
    taken = np.zeros(len(pairs), np.bool_)
    used: tuple[set[int], set[int]] = (set(), set())
    for number in np.argsort(-scores, kind="stable"):
        p, r = (int(n) for n in pairs[number])
        if p not in used[0] and r not in used[1]:
            taken[number] = True
            used[0].add(p)
            used[1].add(r)
    return taken


def panoptic_quality(found: Instances, least_iou: float = IOU_2026) -> float:
    """Panoptic quality with the Dice coefficient as segmentation quality (panoptica 2.1.7's `pq_dsc`).

    Objects match one to one at an intersection over union of at least `least_iou`. The mean Dice coefficient of the matches, times
    TP / (TP + FP/2 + FN/2). Without any match 0.0, without any object NaN.
    """
    predicted, true = len(found.prediction), len(found.reference)
    if not predicted + true:
        return nan
    good = found.iou() >= least_iou
    taken = match(found.pairs[good], found.iou()[good])
    hits = int(np.count_nonzero(taken))
    return float(found.dice()[good][taken].mean()) * 2 * hits / (predicted + true) if hits else 0.0


@dataclass(frozen=True)
class MatchingRule:
    """When a predicted object and a true one are the same."""

    kind: Literal["iou", "overlap", "distance"]
    threshold: float = 0.0
    """Least intersection over union, or largest distance between the centres in µm."""

    @classmethod
    def parse(cls, text: str) -> "MatchingRule":
        """From `iou:0.3`, `overlap` (a shared voxel is enough) or `distance:10` (µm between centres of mass).

        Raises:
            SelmaError: it is none of them.
        """
        kind, _, number = text.partition(":")
        try:
            threshold = float(number) if number else 0.0
        except ValueError:
            threshold = -1.0
        if kind == "overlap" and not number:
            return cls("overlap")
        if kind == "iou" and 0 < threshold <= 1:
            return cls("iou", threshold)
        if kind == "distance" and 0 < threshold < inf:
            return cls("distance", threshold)
        raise SelmaError(f"matching rule {text!r}: give iou:0.3, overlap, or distance:10 (µm between centres)")

    def __str__(self) -> str:
        """As it is parsed."""
        return self.kind if self.kind == "overlap" else f"{self.kind}:{self.threshold:g}"


@dataclass(frozen=True)
class Detection:
    """How many objects were found, and how many there are."""

    predicted: int
    true: int
    matched: int

    @property
    def precision(self) -> float:
        """Share of predicted objects that are true; 0.0 if none was predicted, 1.0 if there is none on either side."""
        return self._of(self.predicted)

    @property
    def recall(self) -> float:
        """Share of true objects that were found; 0.0 if there is none, 1.0 if there is none on either side."""
        return self._of(self.true)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1.0 if there is no object on either side."""
        return self._of((self.predicted + self.true) / 2)

    @property
    def count_error(self) -> int:
        """Difference of the numbers of objects, without sign."""
        return abs(self.predicted - self.true)

    def _of(self, number: float) -> float:
        if not self.predicted + self.true:
            return 1.0
        return self.matched / number if number else 0.0


def detection(found: Instances, least_iou: float = 0.0) -> Detection:
    """Objects that match by their voxels: any shared voxel, or at least this intersection over union."""
    good = found.iou() >= least_iou
    taken = match(found.pairs[good], found.iou()[good])
    return Detection(len(found.prediction), len(found.reference), int(np.count_nonzero(taken)))


def detection_by_distance(
    prediction_labels: Array, reference_labels: Array, largest_um: float, spacing_um_zyx: tuple[float, float, float]
) -> Detection:
    """Objects that match by the distance of their centres of mass, nearest first.

    Args:
        prediction_labels: (z, y, x), numbered from 1 without gaps.
        reference_labels: the same of the truth.
        largest_um: largest distance of a match, µm.
        spacing_um_zyx: voxel size, µm.
    """
    predicted, true = (_centres(labels) * spacing_um_zyx for labels in (prediction_labels, reference_labels))
    matched = 0
    if len(predicted) and len(true):
        near = cKDTree(predicted).sparse_distance_matrix(cKDTree(true), largest_um, output_type="ndarray")
        near = near[np.lexsort((near["j"], near["i"]))]
        pairs: Pairs = np.stack([near["i"], near["j"]], axis=1).astype(np.int64)
        matched = int(np.count_nonzero(match(pairs, -near["v"])))
    return Detection(len(predicted), len(true), matched)


def _centres(labels: Array) -> NDArray[np.float64]:
    """Centre of mass of each object, voxels, (n, 3) in (z, y, x)."""
    at = np.nonzero(labels)
    numbers = labels[at].astype(np.int64) - 1
    sizes = np.bincount(numbers)
    return np.stack([np.bincount(numbers, axis) / sizes for axis in at], axis=1)
