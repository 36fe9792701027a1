"""Where the tissue of a volume is: boxes of a coarse grid whose mean log intensity exceeds a threshold.

Training tiles are chosen by it (`conversion/tiles.py`, which looks at a few slices of each tile), and so are the blocks to predict
(`prediction`, which looks at every eighth slice). Memory: one slice as float32, and one number for each box.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, uniform_filter
from skimage.filters import threshold_otsu

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box, Mask
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume

ALL_TISSUE = -1.0
"""A log threshold that every voxel exceeds."""
GRID_BOX: ShapeZYX = (8, 16, 16)
"""Size of a grid box, voxels (z, y, x)."""
_MARGIN = 2
"""Grid boxes around tissue that are predicted too: the border of tissue is dim, and only one slice of eight is looked at."""
_SMOOTHING = 9
"""Width in voxels of the box mean before the threshold is applied to voxels."""
# A threshold is used only if it parts the boxes into two camps: by Otsu's criterion (share of the variance that lies between
# the camps; 0.64 for one Gaussian, 0.75 for a uniform ramp), in brightness (a factor of 1.5), and if tissue is more than a few
# bright cells (a fiftieth of the boxes).
_SEPARATION, _LOG_RATIO, _LEAST_TISSUE = 0.75, float(np.log(1.5)), 0.02


def find_tissue(means: NDArray[np.floating]) -> tuple[Mask, float]:
    """Decide which boxes are tissue.

    Args:
        means: mean log intensity of each box, an array of any shape.

    Returns:
        True for each box that is tissue, in the same shape, and the threshold that tissue exceeds: midway between the means of
        tissue and outside, or `ALL_TISSUE` where the boxes do not fall into two camps.
    """
    threshold = _tissue_threshold(means.ravel().astype(np.float64))
    return means > threshold, threshold


def _tissue_threshold(means: NDArray[np.float64]) -> float:
    if np.ptp(means) < _LOG_RATIO:
        return ALL_TISSUE
    otsu = threshold_otsu(means)
    below, above = means[means <= otsu], means[means > otsu]
    if min(len(below), len(above)) == 0 or len(above) < _LEAST_TISSUE * len(means):
        return ALL_TISSUE
    distance = above.mean() - below.mean()
    between = len(below) * len(above) / len(means) ** 2 * distance**2
    if between / means.var() < _SEPARATION or distance < _LOG_RATIO:
        return ALL_TISSUE
    # midway between the camps: Otsu's own value may lie just above the darker one, where noise crosses it
    return float(below.mean() + above.mean()) / 2


def tissue_voxels(voxels: Array, log_threshold: float, unit: float = 1.0) -> NDArray[np.uint8]:
    """Tissue among voxels (z, y, x) as 0/1: a box mean of the log intensity above the volume's threshold."""
    widths = [min(_SMOOTHING, length) for length in voxels.shape]
    return np.asarray(uniform_filter(log_intensity(voxels, unit), size=widths) > log_threshold, np.uint8)


def intensity_unit(volume: Volume) -> float:
    """Intensity that counts as 1 before the logarithm: 1, or a thousandth of the middle slice's brightest voxel where that is below 16.

    Images that were scaled to 0..1 hold no counts of photons, and their logarithm would be flat.
    """
    if volume.dtype.kind != "f":
        return 1.0
    middle = volume.shape[0] // 2
    brightest = float(volume.read(slice(middle, middle + 1)).max())
    return brightest / 1000 if 0 < brightest < 16 else 1.0


def log_intensity(voxels: Array, unit: float) -> NDArray[np.float32]:
    """log(1 + intensity / unit), in which tissue differs from the outside by a factor; negative values count as 0."""
    return np.log1p(np.maximum(voxels, 0) / np.float32(unit), dtype=np.float32)


def box_means(plane: NDArray[np.floating], edges_yx: tuple[int, int]) -> NDArray[np.float64]:
    """Mean of each box of a slice (y, x), (box along y, box along x); boxes at the end of an axis may be smaller."""
    rows, columns = (np.arange(0, length, edge) for length, edge in zip(plane.shape, edges_yx, strict=True))
    sums = np.add.reduceat(np.add.reduceat(plane, rows, axis=0), columns, axis=1)
    return sums / np.outer(np.diff(rows, append=plane.shape[0]), np.diff(columns, append=plane.shape[1]))


def grid_means(slab: Array, first: int, depth: int, unit: float) -> NDArray[np.float32]:
    """Mean log intensity of the grid boxes whose middle slice lies in a slab; over channels the largest.

    Args:
        slab: grey values, (c, z, y, x); all of y and x, or parts of them that begin with a grid box.
        first: index of its first slice in the volume.
        depth: slices of the volume.
        unit: intensities are divided by it.

    Returns:
        (grid boxes along z whose middle slice is in the slab, grid boxes along y, grid boxes along x).
    """
    middles = [min(z + GRID_BOX[0] // 2, depth - 1) for z in range(0, depth, GRID_BOX[0])]
    planes = [slab[:, z - first] for z in middles if first <= z < first + slab.shape[1]]
    means = np.zeros((len(planes), *grid_shape((1, *slab.shape[2:]))[1:]), np.float32)
    for plane, result in zip(planes, means, strict=True):
        for channel in plane:
            np.maximum(result, box_means(log_intensity(channel, unit), GRID_BOX[1:]), out=result)
    return means


def grid_shape(shape: tuple[int, ...]) -> ShapeZYX:
    """Number of grid boxes along each axis of a volume (z, y, x)."""
    z, y, x = (-(-length // edge) for length, edge in zip(shape, GRID_BOX, strict=True))
    return z, y, x


def mask_boxes(mask: Volume, shape: ShapeZYX, spacing_um_zyx: tuple[float, float, float] | None) -> Mask:
    """Grid boxes of a volume that a mask `> 0` of the same field of view marks; the mask may have another resolution.

    Args:
        mask: the mask.
        shape: shape of the volume, voxels (z, y, x).
        spacing_um_zyx: voxel size of the volume, µm; None where it is not known.

    Raises:
        SelmaError: the mask does not cover the same field of view.
    """
    scales = [length / whole for length, whole in zip(mask.shape, shape, strict=True)]
    if spacing_um_zyx is not None and mask.spacing_um_zyx is not None:
        # how many times as long as the volume the mask is
        ratios = [s * size / whole for s, size, whole in zip(scales, mask.spacing_um_zyx, spacing_um_zyx, strict=True)]
        same = all(0.9 < ratio < 1.1 for ratio in ratios)
    else:  # slices are often thicker in one of them; y and x are alike
        same = 2 / 3 < scales[1] / scales[2] < 1.5
    if not same:
        raise SelmaError(
            f"{mask.path}: has {mask.shape} voxels and the volume {shape} (z, y, x): they do not cover the same field of view; give a mask "
            "drawn on this volume, at any resolution"
        )
    z_bounds, y_bounds, x_bounds = (
        [
            (int(a * scale), max(int(a * scale) + 1, int(np.ceil(min(a + edge, length) * scale))))
            for a in range(0, length, edge)
        ]
        for scale, edge, length in zip(scales, GRID_BOX, shape, strict=True)
    )
    boxes = np.zeros(grid_shape(shape), np.bool_)
    for layer, (low, high) in zip(boxes, z_bounds, strict=True):
        face: Mask = np.any(mask.read(slice(low, high)) > 0, axis=0)
        rows = np.stack([face[a:b].any(axis=0) for a, b in y_bounds])
        layer[...] = np.stack([rows[:, a:b].any(axis=1) for a, b in x_bounds], axis=1)
    return boxes


@dataclass(frozen=True)
class TissueGrid:
    """The grid boxes of a volume that are predicted."""

    boxes: Mask
    """True for each grid box that is predicted, (z, y, x)."""

    @staticmethod
    def from_means(means: NDArray[np.float32]) -> "TissueGrid":
        """Grid boxes that are tissue and their neighbours; all of them where there is no empty outside."""
        tissue, _ = find_tissue(means)
        return TissueGrid(np.asarray(binary_dilation(tissue, np.ones((3, 3, 3)), iterations=_MARGIN)))

    @staticmethod
    def whole(shape: ShapeZYX) -> "TissueGrid":
        """All grid boxes of a volume."""
        return TissueGrid(np.ones(grid_shape(shape), np.bool_))

    @property
    def share(self) -> float:
        """Share of the grid boxes that are predicted."""
        return float(self.boxes.mean())

    def touches(self, box: Box) -> bool:
        """True if a box of voxels (z, y, x) shares voxels with a grid box that is predicted."""
        return bool(self.boxes[_boxes_around(box)].any())

    def mask(self, box: Box) -> Mask:
        """True for each voxel of a box (z, y, x) that is predicted."""
        part = self.boxes[_boxes_around(box)]
        for axis, (bounds, edge) in enumerate(zip(box, GRID_BOX, strict=True)):
            part = part.take(np.arange(bounds.start, bounds.stop) // edge - bounds.start // edge, axis)
        return part


def _boxes_around(box: Box) -> Box:
    """The grid boxes that share voxels with a box."""
    z, y, x = (slice(b.start // edge, -(-b.stop // edge)) for b, edge in zip(box, GRID_BOX, strict=True))
    return z, y, x
