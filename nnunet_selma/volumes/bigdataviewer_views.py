"""The voxels of BigDataViewer's views, in HDF5 or N5.

Source: "BigDataViewer: visualization and processing for large image data" (Pietzsch et al., Nature Methods 2015), and the classes and the
description of N5 in github.com/bigdataviewer/bigdataviewer-core. A view is an image of one setup at one time point.

HDF5: voxels are in `tTTTTT/sSS/L/cells`, axes (z, y, x), and `sSS/resolutions` holds the edges of a voxel of each level in voxels of the finest
one, (x, y, z). BigDataViewer writes unsigned integers of 16 bits as signed ones, because its first HDF5 library had no others; later versions
name another type in the attribute `dataType`.

N5: voxels are in `setupS/timepointT/sL`, axes (x, y, z), and the attribute `downsamplingFactors` of a setup holds the edges.
"""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Volume, damaged_file
from nnunet_selma.volumes.hdf5 import Hdf5Volume, external_file, hdf5_file, hdf5_object
from nnunet_selma.volumes.n5 import N5Volume, n5_attributes, numbered

_TIME = r"t(\d{5,})"
_SETUP = r"s(\d{2,})"


class View(NamedTuple):
    """An image of one setup at one time point."""

    time: int
    setup: int


class Views(ABC):
    """The views of a dataset, each in several resolutions.

    Args:
        path: the file or folder that errors of a view name.
        place: the HDF5 file, or the folder of N5.
    """

    def __init__(self, path: Path, place: Path) -> None:
        self._path, self._place = path, place

    @abstractmethod
    def stored(self) -> list[View]:
        """The views that have voxels."""

    @abstractmethod
    def levels(self, view: View) -> int:
        """Number of resolution levels of a view."""

    @abstractmethod
    def voxels(self, view: View, level: int) -> Volume:
        """The voxels of a level of a view, without voxel size and place."""

    @abstractmethod
    def factors_xyz(self, setup: int) -> NDArray[np.float64] | None:
        """Edges of a voxel of each level (level, xyz), up to a factor; None where nothing states them."""

    def parts(self) -> tuple[Path, ...]:
        """Other files in which a part of the views lies."""
        return ()


class Hdf5Views(Views):
    """The views in an HDF5 file, or in other ones to which it links."""

    def stored(self) -> list[View]:
        """The views that have voxels."""
        with hdf5_file(self._place) as file:
            return [
                View(time, setup)
                for time in _numbers(file, _TIME)
                for setup in _numbers(hdf5_object(file, f"t{time:05d}"), _SETUP)
            ]

    def levels(self, view: View) -> int:
        """Number of resolution levels of a view."""
        with hdf5_file(self._place) as file:
            return len(_numbers(hdf5_object(file, self._group(view)), r"(\d+)"))

    def voxels(self, view: View, level: int) -> Volume:
        """The voxels of a level of a view, without voxel size and place."""
        with hdf5_file(self._place) as file:
            named = _named_type(file.get(f"s{view.setup:02d}"))
            return _Cells(self._path, file, f"{self._group(view)}/{level}/cells", unsigned=named != "int16")

    def factors_xyz(self, setup: int) -> NDArray[np.float64] | None:
        """Edges of a voxel of each level (level, xyz), up to a factor; None where nothing states them."""
        with hdf5_file(self._place) as file:
            properties = file.get(f"s{setup:02d}")
            if properties is None or "resolutions" not in properties:
                return None
            return np.asarray(properties["resolutions"], float)

    def parts(self) -> tuple[Path, ...]:
        """The other files to which the file links."""
        views = self.stored()
        with hdf5_file(self._place) as file:
            linked = (external_file(file, self._group(view)) for view in views)
            return tuple(dict.fromkeys(part for part in linked if part))

    def _group(self, view: View) -> str:
        return f"t{view.time:05d}/s{view.setup:02d}"


def has_views(file: Any) -> bool:
    """True for an open HDF5 file with groups of views."""
    return bool(_numbers(file, _TIME))


def _numbers(group: Any, pattern: str) -> list[int]:
    """Numbers in the names of the members of a group, of those that fit a pattern."""
    names = (re.fullmatch(pattern, name) for name in group)
    return sorted(int(name[1]) for name in names if name)


def _named_type(properties: Any) -> str | None:
    """Type of the voxels of a setup that later versions name in an attribute."""
    name = None if properties is None else properties.attrs.get("dataType")
    return name.decode() if isinstance(name, bytes) else name


class _Cells(Hdf5Volume):
    """The voxels of a level of a view in HDF5."""

    spacing_um_zyx = None

    def __init__(self, path: Path, file: Any, place: str, *, unsigned: bool) -> None:
        self.path = path
        self._use(file, place, unsigned=unsigned)


class N5Views(Views):
    """The views in a folder of N5."""

    def stored(self) -> list[View]:
        """The views that have voxels."""
        setups = numbered(self._place, "setup")
        return [View(time, setup) for setup in setups for time in numbered(self._place / f"setup{setup}", "timepoint")]

    def levels(self, view: View) -> int:
        """Number of resolution levels of a view."""
        group = self._group(view)
        levels = len(numbered(group, "s"))
        if not levels:
            raise SelmaError(f"{self._path}: a part of it lies in {group}, which is missing or empty; copy it there")
        return levels

    def voxels(self, view: View, level: int) -> Volume:
        """The voxels of a level of a view, without voxel size and place."""
        return N5Volume(self._path, self._group(view) / f"s{level}")

    def factors_xyz(self, setup: int) -> NDArray[np.float64] | None:
        """Edges of a voxel of each level (level, xyz), up to a factor; None where nothing states them."""
        group = self._place / f"setup{setup}"
        factors = n5_attributes(group).get("downsamplingFactors")
        try:
            return None if factors is None else np.asarray(factors, float)
        except (ValueError, TypeError) as error:
            raise damaged_file(group / "attributes.json") from error

    def _group(self, view: View) -> Path:
        return self._place / f"setup{view.setup}" / f"timepoint{view.time}"
