"""Objects of two masks matched one to one; panoptic quality, precision and recall.

Pairs are matched from the best to the worst, each object once, as by panoptica's `NaiveThresholdMatching`. Pairs of equal score are matched
in raster order.
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
"""Pairs of objects, (n, 2): number of the predicted object, number of the true object, both from 0."""


@dataclass(frozen=True)
class Instances:
    """Sizes of all objects of two masks, and of their overlaps."""

    prediction: NDArray[np.int64]
    """Voxels of each predicted object."""
    reference: NDArray[np.int64]
    """Voxels of each true object."""
    pairs: Pairs
    """Objects that share voxels, in raster order."""
    shared: NDArray[np.int64]
    """Number of voxels that each pair shares."""

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
    """Objects of two labelled arrays (z, y, x) of the same shape, each numbered from 1 without gaps."""
    columns = int(reference_labels.max(initial=0)) + 1
    both = (prediction_labels > 0) & (reference_labels > 0)
    numbers = prediction_labels[both].astype(np.int64) * columns + reference_labels[both]
    pairs, shared = np.unique(numbers, return_counts=True)
    return Instances(
        prediction=_sizes(prediction_labels),
        reference=_sizes(reference_labels),
        pairs=np.stack(np.divmod(pairs, columns), axis=1) - 1,
        shared=shared.astype(np.int64),
    )


def _sizes(labels: Array) -> NDArray[np.int64]:
    return np.bincount(labels[labels > 0], minlength=1)[1:].astype(np.int64)


def match(pairs: Pairs, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Match pairs from the highest score down, each object once; of pairs with equal score, the first one wins.

    Returns:
        For each pair, True if it is a match.
    """
    matched = np.zeros(len(pairs), np.bool_)
    used: tuple[set[int], set[int]] = (set(), set())
    for number in np.argsort(-scores, kind="stable"):
        p, r = (int(n) for n in pairs[number])
        if p not in used[0] and r not in used[1]:
            matched[number] = True
            used[0].add(p)
            used[1].add(r)
    return matched


def panoptic_quality(objects: Instances, least_iou: float = IOU_2026) -> float:
    """Panoptic quality with the Dice coefficient as segmentation quality (panoptica 2.1.7's `pq_dsc`).

    Objects match one to one at an intersection over union of at least `least_iou`. The quality is the mean Dice coefficient of the matches,
    times TP / (TP + FP/2 + FN/2): 0.0 without any match, NaN without any object.
    """
    predicted, true = len(objects.prediction), len(objects.reference)
    if not predicted + true:
        return nan
    matched = _matched(objects, least_iou)
    hits = int(np.count_nonzero(matched))
    return float(objects.dice()[matched].mean()) * 2 * hits / (predicted + true) if hits else 0.0


def _matched(objects: Instances, least_iou: float) -> NDArray[np.bool_]:
    """For each pair, True if it is matched by its intersection over union."""
    matched = objects.iou() >= least_iou
    matched[matched] = match(objects.pairs[matched], objects.iou()[matched])
    return matched


@dataclass(frozen=True)
class MatchingRule:
    """Condition under which a predicted object and a true one match."""

    kind: Literal["iou", "overlap", "distance"]
    threshold: float = 0.0
    """Least intersection over union, or largest distance between the centres in µm."""

    @classmethod
    def parse(cls, text: str) -> "MatchingRule":
        """Read a rule: `iou:0.3`, `overlap` (a shared voxel is enough) or `distance:10` (µm between centres of mass).

        Raises:
            SelmaError: the text is none of these.
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
        """The text that `parse` reads."""
        return self.kind if self.kind == "overlap" else f"{self.kind}:{self.threshold:g}"


@dataclass(frozen=True)
class Detection:
    """Numbers of objects: predicted, true, and matched."""

    predicted: int
    true: int
    matched: int

    @property
    def precision(self) -> float:
        """Share of predicted objects that match; 0.0 if none was predicted, 1.0 if there is none on either side."""
        return self._share_of(self.predicted)

    @property
    def recall(self) -> float:
        """Share of true objects that match; 0.0 if there is no true object, 1.0 if there is none on either side."""
        return self._share_of(self.true)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1.0 if there is no object on either side."""
        return self._share_of((self.predicted + self.true) / 2)

    @property
    def count_error(self) -> int:
        """Difference of the numbers of objects, without sign."""
        return abs(self.predicted - self.true)

    def _share_of(self, number: float) -> float:
        if not self.predicted + self.true:
            return 1.0
        return self.matched / number if number else 0.0


def detection(objects: Instances, least_iou: float = 0.0) -> Detection:
    """Count objects that match by at least this intersection over union; 0 asks for a shared voxel."""
    matched = int(np.count_nonzero(_matched(objects, least_iou)))
    return Detection(len(objects.prediction), len(objects.reference), matched)


def detection_by_distance(
    prediction_labels: Array, reference_labels: Array, largest_um: float, spacing_um_zyx: tuple[float, float, float]
) -> Detection:
    """Count objects that match by the distance of their centres of mass, nearest first.

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
