"""Measurements beyond the official metrics: detection of objects, distance of surfaces, volume and length."""

from dataclasses import dataclass

import numpy as np

from nnunet_selma.evaluation.metrics.matching import Detection, MatchingRule, detection, detection_by_distance
from nnunet_selma.evaluation.metrics.pair import Pair
from nnunet_selma.evaluation.metrics.surface import hd95
from nnunet_selma.morphology.centreline import centreline_length
from nnunet_selma.structures import SpacingUm, Structure


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Choice of measurements."""

    objects: MatchingRule | None = None
    """Rule by which objects match, for precision, recall, F1 and count error of spot-like and isolated structures."""
    hd95: bool = False
    """Measure the 95th percentile of the Hausdorff distance, µm."""
    size: bool = False
    """Measure volume (µm³) and length of the centreline (µm) of tree-like structures."""

    def suited_to(self, structure: Structure) -> "Extras":
        """The measurements that make sense for a structure."""
        spots = structure.kind_2024 == "spot" or structure.kind_2026 == "isolated"
        trees = structure.kind_2024 == "tree" or structure.kind_2026 == "contiguous"
        return Extras(objects=self.objects if spots else None, hd95=self.hd95, size=self.size and trees)

    @property
    def need_spacing(self) -> bool:
        """True if any measurement is in µm."""
        return self.hd95 or self.size or (self.objects is not None and self.objects.kind == "distance")


def measure(pair: Pair, extras: Extras, spacing_um_zyx: SpacingUm | None) -> dict[str, float]:
    """Name of each measurement, with its unit, to value.

    Raises:
        ValueError: a measurement is in µm, and the voxel size is not known.
    """
    if extras.need_spacing and spacing_um_zyx is None:
        raise ValueError("distances, volumes and lengths need a spacing in µm")
    spacing = spacing_um_zyx or (1.0, 1.0, 1.0)
    prediction, reference = pair.prediction, pair.reference
    values: dict[str, float] = {}
    if extras.objects is not None:
        objects = _detection(pair, extras.objects, spacing)
        values |= {f"object_{name}": getattr(objects, name) for name in ("precision", "recall", "f1", "count_error")}
    if extras.hd95:
        values["hd95_um"] = hd95(prediction.mask, reference.mask, spacing)
    if extras.size:
        for name, side in (("prediction", prediction), ("reference", reference)):
            values[f"volume_um3_{name}"] = float(np.count_nonzero(side.mask) * np.prod(spacing))
            values[f"length_um_{name}"] = centreline_length(side.skeleton, spacing)
    return values


def _detection(pair: Pair, rule: MatchingRule, spacing: SpacingUm) -> Detection:
    if rule.kind == "distance":
        return detection_by_distance(pair.prediction.labels, pair.reference.labels, rule.threshold, spacing)
    return detection(pair.instances, rule.threshold)
