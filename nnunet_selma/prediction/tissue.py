"""Where the tissue of a volume is, in cells of 8×16×16 voxels; what is nowhere near it is not predicted.

As for the choice of tiles (`tiles.py`): the mean log intensity of a cell of every eighth slice, and a threshold where the means fall into two camps.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from nnunet_selma.conversion.tiles import tissue_threshold
from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume

CELL: ShapeZYX = (8, 16, 16)
"""Voxels, (z, y, x)."""
_MARGIN = 2
"""Cells around tissue that belong to it: its border is dim, and looked at in one slice of eight."""


def cell_means(slab: Array, first: int, depth: int, unit: float) -> NDArray[np.float32]:
    """Mean log intensity of the cells whose middle slice lies in a slab, over channels the largest.

    Args:
        slab: grey values, (c, z, y, x); all of y and x, or parts of them that begin with a cell.
        first: index of its first slice in the volume.
        depth: slices of the volume.
        unit: intensities are divided by it.

    Returns:
        (cells along z whose slice is here, cells along y, cells along x).
    """
    middles = [min(z + CELL[0] // 2, depth - 1) for z in range(0, depth, CELL[0])]
    planes = [slab[:, z - first] for z in middles if first <= z < first + slab.shape[1]]
    tall, wide = (
        np.diff([*range(0, length, edge), length]) for length, edge in zip(slab.shape[2:], CELL[1:], strict=True)
    )
    means = np.zeros((len(planes), len(tall), len(wide)), np.float32)
    for plane, result in zip(planes, means, strict=True):
        for channel in plane:
            logged = np.log1p(np.maximum(channel, 0) / np.float32(unit), dtype=np.float32)
            rows = np.add.reduceat(logged, np.arange(0, len(logged), CELL[1]), axis=0)
            sums = np.add.reduceat(rows, np.arange(0, logged.shape[1], CELL[2]), axis=1)
            np.maximum(result, sums / np.outer(tall, wide), out=result)
    return means


def cells_of_mask(
    mask: Volume, shape: ShapeZYX, spacing_um_zyx: tuple[float, float, float] | None
) -> NDArray[np.bool_]:
    """Cells of a volume that a mask `> 0` of the same field of view marks; the mask may have another resolution.

    Raises:
        SelmaError: the mask cannot be of the same volume.
    """
    scales = [own / length for own, length in zip(mask.shape, shape, strict=True)]
    other = mask.spacing_um_zyx
    if spacing_um_zyx is not None and other is not None:  # how much longer the mask is than the volume
        odd = [scale * own / size for scale, own, size in zip(scales, other, spacing_um_zyx, strict=True)]
        same = all(0.9 < ratio < 1.1 for ratio in odd)
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
        for scale, edge, length in zip(scales, CELL, shape, strict=True)
    )
    cells = np.zeros((len(z_bounds), len(y_bounds), len(x_bounds)), np.bool_)
    for layer, (low, high) in zip(cells, z_bounds, strict=True):
        face: NDArray[np.bool_] = np.any(mask.read(slice(low, high)) > 0, axis=0)
        rows = np.stack([face[a:b].any(axis=0) for a, b in y_bounds])
        layer[...] = np.stack([rows[:, a:b].any(axis=1) for a, b in x_bounds], axis=1)
    return cells


@dataclass(frozen=True)
class Tissue:
    """The cells of a volume that are predicted."""

    cells: NDArray[np.bool_]

    @staticmethod
    def from_means(means: NDArray[np.float32]) -> "Tissue":
        """Cells above the threshold and their neighbours; all of them where there is no empty outside."""
        bright = means > tissue_threshold(means)
        return Tissue(np.asarray(binary_dilation(bright, np.ones((3, 3, 3)), iterations=_MARGIN)))

    @staticmethod
    def everywhere(shape: ShapeZYX) -> "Tissue":
        """The whole volume."""
        z, y, x = (-(-length // edge) for length, edge in zip(shape, CELL, strict=True))
        return Tissue(np.ones((z, y, x), np.bool_))

    @property
    def share(self) -> float:
        """Share of the volume."""
        return float(self.cells.mean())

    def touches(self, box: Box) -> bool:
        """True if there is tissue in a box of voxels (z, y, x)."""
        return bool(self.cells[self._of(box)].any())

    def mask(self, box: Box) -> NDArray[np.bool_]:
        """The voxels of a box that are tissue."""
        part = self.cells[self._of(box)]
        for axis, (bounds, edge) in enumerate(zip(box, CELL, strict=True)):
            places = np.arange(bounds.start, bounds.stop) // edge - bounds.start // edge
            part = part.take(places, axis)
        return part

    def _of(self, box: Box) -> Box:
        z, y, x = (slice(b.start // edge, -(-b.stop // edge)) for b, edge in zip(box, CELL, strict=True))
        return z, y, x
