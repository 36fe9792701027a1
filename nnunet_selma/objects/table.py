"""The measured objects of a segmentation, as the columns of the table that `nnunet-selma objects` writes, and read back from it."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.objects.table_files import Columns, read_table
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import ShapeZYX, by_times

MOST_CLASSES = 256
"""Greatest number of labels that are counted class by class; more labels are numbers of instances."""
UM3_PER_MM3 = 1e9
_INTENSITIES = ("mean_intensity", "max_intensity")


@dataclass(frozen=True)
class Objects:
    """Objects in raster order of their first voxels: one row an object, axes (z, y, x), lengths in voxels."""

    label: NDArray[np.int64]
    """Label of the object's voxels, (n,)."""
    voxels: NDArray[np.int64]
    """Number of voxels, (n,)."""
    centroid: NDArray[np.float64]
    """Mean index of the voxels, (n, 3); the centre of the volume's first voxel is 0."""
    start: NDArray[np.int64]
    """First corner of the object's box, (n, 3)."""
    stop: NDArray[np.int64]
    """Corner behind the object's last voxels, (n, 3)."""
    mean_intensity: NDArray[np.float64]
    """Mean intensity of the image, (n,); NaN without an image."""
    max_intensity: NDArray[np.float64]
    """Greatest intensity of the image, (n,); NaN without an image."""

    def __len__(self) -> int:
        return len(self.voxels)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Objects":
        """The objects whose row is True, or whose rows are given, in that order."""
        return Objects(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def touches_border(self, shape: ShapeZYX) -> NDArray[np.bool_]:
        """True for objects with voxels in the outermost layer of the volume, so that a part of them may lie outside."""
        touches: NDArray[np.bool_] = (self.start == 0).any(axis=1) | (self.stop == np.array(shape)).any(axis=1)
        return touches


def table_of(
    objects: Objects,
    shape: ShapeZYX,
    spacing_um_zyx: SpacingUm | None,
    origin_voxels_zyx: SpacingUm | None = None,
) -> Columns:
    """The columns of the table, one row an object; µm and intensities that are not known are NaN.

    Args:
        objects: the objects.
        shape: shape of the segmentation, voxels (z, y, x).
        spacing_um_zyx: voxel size.
        origin_voxels_zyx: `Volume.origin_voxels_zyx`, from which places in µm are counted; None: they are counted from the first voxel.
    """
    spacing = spacing_um_zyx or (np.nan,) * 3
    places = (objects.centroid + (origin_voxels_zyx or 0.0)) * spacing
    return {
        "id": np.arange(1, len(objects) + 1),
        "label": objects.label,
        "voxels": objects.voxels,
        "volume_um3": objects.voxels * prod(spacing),
        **{f"centroid_{axis}_um": places[:, i] for i, axis in enumerate("zyx")},
        **_split("centroid", objects.centroid),
        **_split("start", objects.start),
        **_split("stop", objects.stop),
        "mean_intensity": objects.mean_intensity,
        "max_intensity": objects.max_intensity,
        "touches_border": objects.touches_border(shape),
    }


def _split(name: str, values: NDArray[np.generic]) -> Columns:
    """One column for each axis of (n, 3) values."""
    return {f"{name}_{axis}": values[:, i] for i, axis in enumerate("zyx")}


def read_objects(path: Path, shape: ShapeZYX) -> Objects:
    """The objects of a table that `nnunet-selma objects` wrote.

    Args:
        path: .csv or .parquet.
        shape: shape of the segmentation, voxels (z, y, x).

    Raises:
        SelmaError: there is no such table, or its objects lie outside of the segmentation.
    """
    vectors = {name: [f"{name}_{axis}" for axis in "zyx"] for name in ("centroid", "start", "stop")}
    needed = ["label", "voxels", *(name for names in vectors.values() for name in names)]
    columns = read_table(path, [*needed, *_INTENSITIES])
    incomplete = [name for name in needed if np.isnan(columns[name]).any()]
    if incomplete:
        raise SelmaError(
            f"{path}: has empty cells in {', '.join(incomplete)}; write it again with nnunet-selma objects"
        )
    centroid, start, stop = (np.stack([columns[name] for name in names], axis=1) for names in vectors.values())
    if (start < 0).any() or (stop > shape).any():
        raise SelmaError(
            f"{path}: has objects outside of the segmentation, which has {by_times(shape)} voxels (z, y, x); "
            "give the table of this segmentation"
        )
    return Objects(
        label=columns["label"].astype(np.int64),
        voxels=columns["voxels"].astype(np.int64),
        centroid=centroid,
        start=start.astype(np.int64),
        stop=stop.astype(np.int64),
        mean_intensity=columns["mean_intensity"],
        max_intensity=columns["max_intensity"],
    )
