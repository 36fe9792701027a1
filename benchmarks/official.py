"""SELMA3D's official metrics in their own formulation, with the libraries they use: what ours is timed against, and tested against.

2024: github.com/YingChen7/SELMA3D_challenge-evaluation (scikit-image). 2026: github.com/YingChen7/SELMA3D2026_evaluation (panoptica 2.1.7, which
only the tests need).
"""

import warnings
from typing import Any

import numpy as np
from skimage.measure import euler_number, label
from skimage.morphology import skeletonize

from nnunet_selma.volumes.base import Array


def betti_2024(mask: Array) -> tuple[int, int]:
    """β0 and β1 of a 0/1 array (z, y, x)."""
    padded = np.pad(mask, 1)
    if not set(np.unique(padded)) <= {0, 1}:
        raise ValueError("a mask holds 0 and 1")
    components = label(padded, return_num=True, connectivity=3)[1]
    euler = euler_number(padded, connectivity=3)
    background = label(1 - padded, return_num=True, connectivity=1)[1]
    return int(components), int(components + background - 1 - euler)


def cldice_2024(reference: Array, prediction: Array) -> float:
    """The smoothed clDice of two 0/1 arrays (z, y, x)."""
    shares = []
    for mask, other in ((reference, prediction), (prediction, reference)):
        skeleton = skeletonize(mask)
        shares.append(np.sum(other * skeleton) / np.sum(skeleton) if np.any(skeleton) else 0)
    a, b = shares
    return float((2 * a * b + 1e-6) / (a + b + 1e-6))


def panoptic_quality_2026(reference: Array, prediction: Array) -> float:
    """Panoptica's `pq_dsc` of two 0/1 arrays (z, y, x), set up as the evaluator does."""
    from panoptica import (
        ConnectedComponentsInstanceApproximator,
        InputType,
        NaiveThresholdMatching,
        Panoptica_Evaluator,
    )
    from panoptica.metrics import Metric

    evaluator: Any = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(cca_backend=None),
        instance_matcher=NaiveThresholdMatching(matching_threshold=0.3),
        instance_metrics=[Metric.DSC],
    )
    result = evaluator.evaluate(prediction, reference, verbose=False)["ungrouped"]
    result.to_dict()
    return float(result.pq_dsc)


def cldice_2026(reference: Array, prediction: Array) -> float:
    """Panoptica's clDice of two 0/1 arrays (z, y, x)."""
    from panoptica.metrics.cldice import _compute_centerline_dice_coefficient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0, which is the NaN that is wanted
        return float(_compute_centerline_dice_coefficient(reference, prediction))
