"""The objects that a picture shows: as they were measured, or from the table that `nnunet-selma objects` writes."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import ShapeZYX

_COLUMNS = ("voxels", "centroid_z", "centroid_y", "centroid_x")


@dataclass(frozen=True)
class ShownObjects:
    """How large the objects of a segmentation are, and where."""

    sizes: NDArray[np.float64]
    """Volume of each object, µm³; voxels where the voxel size is not known."""
    places: NDArray[np.float64]
    """The centroid of each, (n, 3), z, y, x, µm from the first corner of the volume; voxels where the voxel size is not known."""

    @staticmethod
    def of(voxels: ArrayLike, centroids: ArrayLike, spacing_um_zyx: SpacingUm) -> "ShownObjects":
        """Build from numbers of voxels, (n,), and mean indices of voxels, (n, 3)."""
        sizes = np.asarray(voxels, np.float64) * float(np.prod(spacing_um_zyx))
        places = (np.asarray(centroids, np.float64) + 0.5) * np.array(spacing_um_zyx)
        return ShownObjects(sizes, places)


def read_objects(path: Path, shape: ShapeZYX, spacing_um_zyx: SpacingUm) -> ShownObjects:
    """The objects of a CSV or Parquet file.

    Args:
        path: ends in .csv or .parquet.
        shape: of the segmentation, voxels (z, y, x).
        spacing_um_zyx: its voxel size.

    Raises:
        SelmaError: no such table, or its objects lie outside of the volume.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise SelmaError(f"{path}: a table of objects ends in .csv or .parquet")
    try:
        rows = _csv(path) if path.suffix == ".csv" else _parquet(path)
    except SelmaError:
        raise
    except (ValueError, IndexError, csv.Error) as error:
        raise SelmaError(
            f"{path}: is no table of numbers ({error}); write it again with nnunet-selma objects"
        ) from error
    inside = (rows[:, 1:] >= 0) & (rows[:, 1:] < shape)
    if not inside.all():
        raise SelmaError(
            f"{path}: has objects outside of the segmentation, which has {' × '.join(map(str, shape))} voxels (z, y, x); "
            "give the table of this segmentation"
        )
    return ShownObjects.of(rows[:, 0], rows[:, 1:], spacing_um_zyx)


def _csv(path: Path) -> NDArray[np.float64]:
    """The columns of a CSV file, (n, 4)."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        names = next(rows, [])
        _check_columns(names, path)
        at = [names.index(name) for name in _COLUMNS]

        def numbers() -> Iterator[tuple[float, ...]]:
            return (tuple(float(row[place]) for place in at) for row in rows if row)

        return np.fromiter(numbers(), np.dtype((float, len(at))))


def _parquet(path: Path) -> NDArray[np.float64]:
    """The columns of a Parquet file, (n, 4)."""
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise SelmaError(
            f"{path}: reading Parquet needs pyarrow; install it with: pip install 'nnunet-selma[brains]', or give .csv"
        ) from error
    _check_columns(parquet.read_schema(path).names, path)
    table = parquet.read_table(path, columns=list(_COLUMNS))
    return np.stack([np.asarray(table[name], float) for name in _COLUMNS], axis=1)


def _check_columns(names: Sequence[str], path: Path) -> None:
    lacking = [name for name in _COLUMNS if name not in names]
    if lacking:
        raise SelmaError(f"{path}: has no column {', '.join(lacking)}; give the table that nnunet-selma objects wrote")
