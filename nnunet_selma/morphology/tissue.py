"""Where the tissue of a volume is: boxes of a coarse grid whose mean log intensity exceeds a threshold.

Training tiles are chosen by it (`conversion/tiles.py`, which looks at a few slices of each tile), and so are the blocks to predict
(`prediction`, which looks at the middle slice of each grid box). Memory: one slice as float32, and one number for each box.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_dilation,
    binary_fill_holes,
    binary_propagation,
    generate_binary_structure,
    uniform_filter,
)
from skimage.filters import threshold_multiotsu, threshold_otsu

from nnunet_selma.morphology.blocks import Box, Mask
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume

ALL_TISSUE = -1.0
"""A log threshold that every voxel exceeds."""
GRID_BOX: ShapeZYX = (8, 16, 16)
"""Size of a grid box in a large volume, voxels (z, y, x)."""
_LEAST_BOX = 4
"""Shortest edge of a grid box in a small volume, voxels; noise and single cells would decide about smaller ones."""
_BOXES = 48
"""Grid boxes along an axis below which they are halved: at 40 µm, 16 voxels are two thirds of a millimetre."""
_MARGIN = 2
"""Grid boxes around tissue that are predicted too, where they are as small as `GRID_BOX` against the volume; else half as many."""
_NEIGHBOURS = generate_binary_structure(3, 2)
_SMOOTHING = 9
"""Width in voxels of the box mean before the threshold is applied to voxels."""
_DIM = 0.25
"""Brightness from which a box beside tissue is tissue too: this share of the way from the outside to the dimmest tissue."""
_LOG_RATIO = float(np.log(1.5))
"""Least difference of log intensity between outside and tissue: a factor of 1.5."""
_RAMP = 0.8
"""Most variance that may remain within camps, as a share of what would within equal parts of a uniform ramp.

Two camps hold then at least 0.8 of the variance between them, and three 0.91; halves of a ramp hold 0.75, those of a Gaussian 0.64.
"""
_FILLED = 0.9
"""Share of the boxes within a frame of zeros that hold more than zeros, at least; a brain in an outside of zeros fills half of its surroundings."""
_LEAST_CAMP = 0.02
"""Share of the boxes below which a camp is set aside: a few bright cells, or slices of zeros."""


@dataclass(frozen=True)
class _Camps:
    """Mean log intensity of the outside, and of the dimmest tissue."""

    outside: float
    tissue: float

    def between(self, share: float) -> float:
        """Log intensity at a share of the way from the outside to the tissue."""
        return self.outside + share * (self.tissue - self.outside)


def find_tissue(means: NDArray[np.floating], box: ShapeZYX = GRID_BOX) -> tuple[Mask, float]:
    """Decide which boxes are tissue.

    The boxes are parted into two camps of brightness, or three, by Otsu's criterion. The darkest camp is parted again as long as it falls into
    camps itself, because a bright injection site makes two camps with all else, and dim tissue would count as outside. The threshold lies in
    the middle between the last outside and the camp above it. In a grid of three axes, tissue takes in what is dim beside it, such as its
    border, and what it encloses. A frame of zeros, with which stitching pads images, is set aside first if what it surrounds falls into camps.

    Args:
        means: mean log intensity of each box, (z, y, x) for neighbours in space, or an array of any other number of axes.
        box: edges of these boxes, voxels (z, y, x). Camps are those of means over whole boxes of `GRID_BOX`, because noise widens the camps of
            smaller ones.

    Returns:
        True for each box that is tissue, in the same shape, and the log threshold, or `ALL_TISSUE` where the boxes do not fall into camps.
    """
    camps = _find_camps(_within_frame(means), box) or _find_camps(means, box)
    if camps is None:
        return np.ones(means.shape, np.bool_), ALL_TISSUE
    threshold = camps.between(0.5)
    tissue = means > threshold
    if means.ndim == len(box):
        dim = means > camps.between(_DIM)
        tissue = binary_fill_holes(binary_propagation(tissue, _NEIGHBOURS, mask=dim))
    return np.asarray(tissue), threshold


def _within_frame(means: NDArray[np.floating]) -> NDArray[np.floating]:
    """The boxes that a frame of zeros surrounds, without those that it covers in part; all boxes where zeros are not a frame."""
    inside = []
    for axis, length in enumerate(means.shape):
        filled = np.flatnonzero(np.moveaxis(means, axis, 0).reshape(length, -1).any(axis=1))
        if not len(filled):
            return means
        first, last = int(filled[0]), int(filled[-1])
        inside.append(slice(first + (first > 0), last + (last == length - 1)))
    content = means[tuple(inside)]
    return content if content.size and np.count_nonzero(content) >= _FILLED * content.size else means


def _find_camps(means: NDArray[np.floating], box: ShapeZYX) -> _Camps | None:
    """Outside and dimmest tissue among boxes; None where these do not fall into camps."""
    camps: _Camps | None = None
    pooled = _pooled(means, box) if means.ndim == len(box) else means
    rest: NDArray[np.float64] = pooled.ravel().astype(np.float64)
    least = _LEAST_CAMP * len(rest)
    while (parts := _parted(rest)) is not None:
        darkest, brighter, *_ = parts
        if len(darkest) < least:
            rest = rest[rest > darkest.max()]
            continue
        if len(rest) - len(darkest) >= least:
            camps = _Camps(float(darkest.mean()), float(brighter.mean()))
        rest = darkest
    return camps


def _parted(means: NDArray[np.float64]) -> list[NDArray[np.float64]] | None:
    """Two camps of boxes, or three where two do not part them, the darkest first; None if they are one."""
    if means.size == 0 or np.ptp(means) < _LOG_RATIO:
        return None
    for count in (2, 3):
        try:
            cuts = [threshold_otsu(means)] if count == 2 else threshold_multiotsu(means, count, nbins=128)
        except ValueError:  # fewer values than camps
            return None
        camp = np.digitize(means, cuts, right=True)
        camps = [means[camp == index] for index in range(count)]
        if min(map(len, camps)) == 0:
            continue
        between = sum(len(part) * (part.mean() - means.mean()) ** 2 for part in camps) / means.size
        if between / means.var() >= 1 - _RAMP / count**2 and camps[1].mean() - camps[0].mean() >= _LOG_RATIO:
            return camps
    return None


def _pooled(means: NDArray[np.floating], box: ShapeZYX) -> NDArray[np.float64]:
    """Means over as many boxes (z, y, x) as lie in one of `GRID_BOX`; those at the end of an axis may hold fewer."""
    pooled = np.asarray(means, np.float64)
    for axis, (edge, whole) in enumerate(zip(box, GRID_BOX, strict=True)):
        starts = np.arange(0, pooled.shape[axis], max(1, whole // edge))
        counts = np.diff(starts, append=pooled.shape[axis])
        pooled = np.add.reduceat(pooled, starts, axis) / np.expand_dims(counts, tuple({0, 1, 2} - {axis}))
    return pooled


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


def grid_means(slab: Array, first: int, depth: int, unit: float, box: ShapeZYX = GRID_BOX) -> NDArray[np.float32]:
    """Mean log intensity of the grid boxes whose middle slice lies in a slab; over channels the largest.

    Args:
        slab: grey values, (c, z, y, x); all of y and x, or parts of them that begin with a grid box.
        first: index of its first slice in the volume.
        depth: slices of the volume.
        unit: intensities are divided by it.
        box: edges of a grid box, voxels (z, y, x).

    Returns:
        (grid boxes along z whose middle slice is in the slab, grid boxes along y, grid boxes along x).
    """
    planes = middle_planes(slab, first, depth, box[0])
    means = [
        np.max([box_means(log_intensity(channel, unit), box[1:]) for channel in plane], axis=0) for plane in planes
    ]
    return np.array(means, np.float32).reshape(
        len(planes), *(-(-n // e) for n, e in zip(slab.shape[2:], box[1:], strict=True))
    )


def middle_planes(slab: Array, first: int, depth: int, edge: int) -> list[Array]:
    """Middle slices (c, y, x) of the grid boxes of this edge along z that lie in a slab (c, z, y, x), which begins at slice `first`."""
    middles = [min(z + edge // 2, depth - 1) for z in range(0, depth, edge)]
    return [slab[:, z - first] for z in middles if first <= z < first + slab.shape[1]]


def grid_box(shape: ShapeZYX) -> ShapeZYX:
    """Edges of the grid boxes of a volume of a shape, both voxels (z, y, x): `GRID_BOX`, halved along axes with fewer than 48 of them."""
    edges = []
    for length, edge in zip(shape, GRID_BOX, strict=True):
        while edge > _LEAST_BOX and length < _BOXES * edge:
            edge //= 2
        edges.append(edge)
    return edges[0], edges[1], edges[2]


def grid_shape(shape: ShapeZYX) -> ShapeZYX:
    """Number of grid boxes along each axis of a volume (z, y, x)."""
    z, y, x = (-(-length // edge) for length, edge in zip(shape, grid_box(shape), strict=True))
    return z, y, x


@dataclass(frozen=True)
class TissueGrid:
    """The grid boxes of a volume that are predicted."""

    boxes: Mask
    """True for each grid box that is predicted, (z, y, x)."""
    box: ShapeZYX = GRID_BOX
    """Edges of a grid box, voxels."""

    @staticmethod
    def from_means(means: NDArray[np.float32], box: ShapeZYX = GRID_BOX) -> "TissueGrid":
        """Grid boxes that are tissue and their neighbours; all of them where there is no empty outside.

        The margin is two boxes of `GRID_BOX`, and one where boxes were made smaller, which are large against the volume still.
        """
        tissue, _ = find_tissue(means, box)
        margin = _MARGIN if box == GRID_BOX else _MARGIN // 2
        return TissueGrid(np.asarray(binary_dilation(tissue, _NEIGHBOURS, iterations=margin)), box)

    @staticmethod
    def whole(shape: ShapeZYX) -> "TissueGrid":
        """All grid boxes of a volume."""
        return TissueGrid(np.ones(grid_shape(shape), np.bool_), grid_box(shape))

    @property
    def share(self) -> float:
        """Share of the grid boxes that are predicted."""
        return float(self.boxes.mean())

    def touches(self, box: Box) -> bool:
        """True if a box of voxels (z, y, x) shares voxels with a grid box that is predicted."""
        return bool(self.boxes[self._boxes_around(box)].any())

    def mask(self, box: Box) -> Mask:
        """True for each voxel of a box (z, y, x) that is predicted."""
        part = self.boxes[self._boxes_around(box)]
        for axis, (bounds, edge) in enumerate(zip(box, self.box, strict=True)):
            part = part.take(np.arange(bounds.start, bounds.stop) // edge - bounds.start // edge, axis)
        return part

    def _boxes_around(self, box: Box) -> Box:
        """The grid boxes that share voxels with a box of voxels."""
        z, y, x = (slice(b.start // edge, -(-b.stop // edge)) for b, edge in zip(box, self.box, strict=True))
        return z, y, x
