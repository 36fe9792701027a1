"""Distance between two surfaces."""

from math import nan

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from nnunet_selma.morphology.overlap import check_same_shape
from nnunet_selma.volumes.base import Array


def hd95(prediction: Array, reference: Array, spacing_um_zyx: tuple[float, float, float]) -> float:
    """The 95th percentile of the Hausdorff distance of two masks `> 0`, (z, y, x), in µm.

    The larger one of the 95th percentiles of both directions (Maier-Hein et al. 2024, Metrics Reloaded). Distances are between voxels that
    have a face on the background or on the border of the array. 0.0 if both masks are empty, NaN if one is.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(prediction, reference)
    p, r = (_surface(mask) * spacing_um_zyx for mask in (prediction, reference))
    if not len(p) or not len(r):
        return 0.0 if len(p) == len(r) else nan
    return max(float(np.percentile(cKDTree(a).query(b)[0], 95)) for a, b in ((p, r), (r, p)))


def _surface(mask: Array) -> NDArray[np.intp]:
    """Voxels with a face on the background or on the border, (n, 3) in (z, y, x)."""
    inside = mask > 0
    return np.argwhere(inside & ~binary_erosion(inside))
