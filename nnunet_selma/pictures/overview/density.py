"""Density of objects, or of the foreground, seen along z."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.objects.table import UM3_PER_MM3, Objects
from nnunet_selma.pictures.overview.projected_labels import ProjectedLabels
from nnunet_selma.pictures.overview.projections import SUM, in_bins
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import ShapeZYX

_FEWEST_SQUARES, _MOST_SQUARES = 8, 60  # along the longer side of the map
_OBJECTS_IN_A_SQUARE = 4  # on average, so that the map is more than a scatter of dots


@dataclass(frozen=True)
class DensityMap:
    """Density in squares that span the volume along z."""

    values: NDArray[np.float64]
    """Density in each square, (y, x)."""
    unit: str
    square_yx: tuple[float, float]
    """Edges of a square, µm or voxels; squares at the end may be smaller."""


def density_map(
    objects: Objects, labels: ProjectedLabels, shape: ShapeZYX, spacing_um_zyx: SpacingUm | None
) -> DensityMap:
    """Objects per mm³; for networks, no objects, or voxels of unknown size, the share of the foreground instead."""
    by_number = _objects_per_mm3(objects, shape, spacing_um_zyx) if spacing_um_zyx else None
    return by_number or _foreground_percent(labels)


def _objects_per_mm3(objects: Objects, shape: ShapeZYX, spacing_um_zyx: SpacingUm) -> DensityMap | None:
    """Squares of some objects each; None if there are no objects, or most of the foreground is in objects larger than a square."""
    if not len(objects):
        return None
    lengths_um = [n * s for n, s in zip(shape[1:], spacing_um_zyx[1:], strict=True)]
    along = np.clip(np.sqrt(len(objects) / _OBJECTS_IN_A_SQUARE), _FEWEST_SQUARES, _MOST_SQUARES)
    edge_um = max(max(lengths_um) / along, *spacing_um_zyx[1:])
    small = objects.voxels * np.prod(spacing_um_zyx) < edge_um**3
    if 2 * objects.voxels[small].sum() < objects.voxels.sum():
        return None
    y, x = (np.linspace(0, length, max(1, round(length / edge_um)) + 1) for length in lengths_um)
    places = (objects.centroid + 0.5) * spacing_um_zyx
    number, *_ = np.histogram2d(places[:, 1], places[:, 2], bins=(y, x))
    mm3 = shape[0] * spacing_um_zyx[0] * y[1] * x[1] / UM3_PER_MM3
    return DensityMap(number / mm3, "objects per mm³", (float(y[1]), float(x[1])))


def _foreground_percent(labels: ProjectedLabels) -> DensityMap:
    """Share of the foreground, in squares of whole pixels."""
    pixel_yx = labels.pixel[1:]
    edge = max(max(n * s for n, s in zip(labels.shape[1:], labels.voxel[1:], strict=True)) / _MOST_SQUARES, *pixel_yx)
    y, x = (int(np.ceil(edge / p)) for p in pixel_yx)
    foreground, voxels = (
        in_bins(picture[None], (0, 0, 0), (1, y, x), SUM)[0] for picture in (labels.foreground[0], labels.voxels(0))
    )
    return DensityMap(100 * foreground / voxels, "foreground, %", (y * pixel_yx[0], x * pixel_yx[1]))
