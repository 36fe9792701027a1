"""Centrelines of tree-like structures: the skeleton of Lee, Kashyap and Chu (1994), clDice (Shit et al. 2021), and length.

Thinning looks at 3×3×3 voxels, and no two 26-connected components share such a neighbourhood. So each component is thinned in its own box:
the result is that of the whole array, in the time that its components take, and it needs no more memory than the box of the largest one.
"""

from dataclasses import dataclass
from itertools import product
from math import nan

import numpy as np
from scipy.ndimage import find_objects
from skimage.morphology import skeletonize

from nnunet_selma.metrics.blocks import Mask, Read
from nnunet_selma.metrics.components import components_by_blocks, label
from nnunet_selma.metrics.overlap import Overlap
from nnunet_selma.volumes.base import Array, ShapeZYX

_SMOOTH = 1e-6


def skeleton(labels: Array) -> Mask:
    """The skeleton of a labelled array (z, y, x), same shape.

    A component may have none: cubes with an even edge vanish, as they do in the official evaluators.
    """
    thin = np.zeros(labels.shape, np.bool_)
    for number, box in enumerate(find_objects(labels), 1):
        thin[box] |= skeletonize(labels[box] == number).astype(np.bool_)
    return thin


def skeleton_overlap_by_blocks(read: Read, read_other: Read, shape: ShapeZYX, edge: ShapeZYX) -> tuple[int, int]:
    """Voxels of a volume's skeleton, and how many of them lie in another volume's mask.

    The components are found block by block; then each is thinned in its own box.

    Args:
        read: gives the voxels of a box of the volume that is thinned; `> 0` is its mask.
        read_other: the same of the other volume.
        shape: of both, voxels (z, y, x).
        edge: of a block, voxels (z, y, x).
    """
    components = components_by_blocks(read, shape, edge)
    voxels = inside = 0
    for number, first in enumerate(components.first):
        box = components.box(number)
        labels, _ = label(read(*box) > 0)
        own = labels == labels[tuple(first - components.low[number])]
        thin = skeletonize(own).astype(np.bool_)
        voxels += int(np.count_nonzero(thin))
        inside += int(np.count_nonzero(thin & (read_other(*box) > 0)))
    return voxels, inside


@dataclass(frozen=True)
class Centrelines:
    """Voxels of both skeletons, and how many of them lie in the other mask."""

    prediction: int
    prediction_inside: int
    reference: int
    reference_inside: int

    @property
    def cldice_2024(self) -> float:
        """The clDice of SELMA3D 2024, smoothed: an empty skeleton counts 0, and two zeros make 1.0.

        So a prediction that is empty, or misses the structure altogether, gets 1.0.
        """
        a, b = self._shares(0.0, 0.0)
        return (2 * a * b + _SMOOTH) / (a + b + _SMOOTH)

    @property
    def cldice_2026(self) -> float:
        """The clDice of SELMA3D 2026 (panoptica 2.1.7), without guard: NaN where a skeleton is empty or the masks are apart."""
        a, b = self._shares(nan, nan)
        return 2 * a * b / (a + b) if a + b else nan

    def corrected(self, overlap: Overlap) -> float:
        """The clDice that says what it should where the official ones do not, given the overlap of the two masks.

        0.0 for masks that are apart, or if just one is empty; 1.0 if both are. Where a mask has voxels but no skeleton, its voxels
        stand in for it.
        """
        if not overlap.prediction or not overlap.reference:
            return float(overlap.prediction == overlap.reference)
        a, b = self._shares(overlap.both / overlap.reference, overlap.both / overlap.prediction)
        return 2 * a * b / (a + b) if a + b else 0.0

    def _shares(self, no_reference: float, no_prediction: float) -> tuple[float, float]:
        """Share of the reference's skeleton in the prediction, and the reverse; the given numbers where a skeleton is empty."""
        return (
            self.reference_inside / self.reference if self.reference else no_reference,
            self.prediction_inside / self.prediction if self.prediction else no_prediction,
        )


def centreline_length(thin: Mask, spacing_zyx: tuple[float, float, float]) -> float:
    """Length of a skeleton (z, y, x) in the unit of the spacing: the sum of its steps between neighbouring voxels.

    A diagonal step is left out where the skeleton also goes round by a voxel between, so that corners and junctions do not count twice.
    A single voxel has length 0.
    """
    padded = np.pad(thin, 1)
    z, y, x = np.nonzero(padded)
    length = 0.0
    for step in product((-1, 0, 1), repeat=3):
        if step <= (0, 0, 0):
            continue
        goes = padded[z + step[0], y + step[1], x + step[2]]
        for between in product(*({0, s} for s in step)):
            if between not in ((0, 0, 0), step):
                goes = goes & ~padded[z + between[0], y + between[1], x + between[2]]
        length += int(np.count_nonzero(goes)) * float(np.linalg.norm(np.multiply(step, spacing_zyx)))
    return length
