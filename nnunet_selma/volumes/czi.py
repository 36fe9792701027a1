"""Zeiss CZI, read with pylibCZIrw (an extra: `pip install nnunet-selma[microscopes]`)."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, Volume, cut_short, damaged_file
from nnunet_selma.volumes.choice import (
    Choice,
    Inventory,
    check_level,
    chosen_channel,
    chosen_scene,
    chosen_time,
)
from nnunet_selma.volumes.library_errors import errors_as
from nnunet_selma.volumes.microscope_libraries import MicroscopeLibrary
from nnunet_selma.volumes.stated_names import distinct_names, stated_names
from nnunet_selma.volumes.units import spacing_in_um

CZI_LIBRARY = MicroscopeLibrary("pylibCZIrw", "Zeiss CZI needs pylibCZIrw")
_DTYPES = {"Gray8": np.uint8, "Gray16": np.uint16, "Gray32Float": np.float32}
_FURTHER_AXES = {"B": "block", "H": "phase", "I": "illumination", "R": "rotation", "V": "view"}
"""Axes of CZI beside those of a volume; a light-sheet microscope writes views and illuminations."""


def is_czi(path: Path) -> bool:
    """True for the file ending of CZI."""
    return path.name.lower().endswith(".czi")


def czi_inventory(path: Path, scene: str | None = None) -> Inventory:
    """The images in a CZI file; without a scene the channels and time points are those of the first.

    Raises:
        SelmaError: pylibCZIrw is not installed, the file is damaged, or it has no such scene.
    """
    contents = _contents(path)
    tiles = contents.tiles_of(0 if scene is None else chosen_scene(path, scene, contents.scenes))
    channels = _entries(tiles, "C")
    return Inventory(
        scenes=contents.scenes,
        channels=len(channels),
        channel_names=contents.channel_names(channels),
        times=len(_entries(tiles, "T")),
    )


class _Tile(NamedTuple):
    """A rectangle of voxels of one slice, in full resolution."""

    place: dict[str, int]
    """Entry along each axis other than x and y."""
    x: int
    y: int
    width: int
    height: int
    pixels: str
    """Name of the pixel type."""


class _Contents(NamedTuple):
    """The headers of a file."""

    path: Path
    tiles: list[_Tile]
    metadata: ElementTree.Element

    @property
    def numbers(self) -> list[int]:
        """Entries along the axis of scenes."""
        return _entries(self.tiles, "S")

    @property
    def scenes(self) -> tuple[str, ...]:
        """Names of the scenes; empty for a single one without a name."""
        named = {
            scene.get("Index"): scene.get("Name")
            for scene in self.metadata.findall("Metadata/Information/Image/Dimensions/S/Scenes/Scene")
        }
        names = [named.get(str(number)) for number in self.numbers]
        if names == [None]:
            return ()
        return distinct_names([name or f"scene {number}" for number, name in zip(self.numbers, names, strict=True)])

    def tiles_of(self, scene: int) -> list[_Tile]:
        """The tiles of a scene, by its number among the scenes."""
        entry = self.numbers[scene]
        return [tile for tile in self.tiles if tile.place.get("S", 0) == entry]

    def channel_names(self, channels: Sequence[int]) -> tuple[str, ...]:
        """Names of these channels; empty unless all have one."""
        stated = self.metadata.findall("Metadata/Information/Image/Dimensions/Channels/Channel")
        if not channels or channels[-1] >= len(stated):
            return ()
        return stated_names([stated[channel].get("Name") for channel in channels], channels)

    @property
    def spacing_um_zyx(self) -> SpacingUm | None:
        """Voxel size, µm; CZI states it in metres."""
        stated = self.metadata.findall("Metadata/Scaling/Items/Distance")
        sizes = {distance.get("Id"): distance.findtext("Value") for distance in stated}
        try:
            return spacing_in_um([float(sizes.get(axis) or 0) for axis in "ZYX"], ["m"] * 3)
        except ValueError:
            return None


def _entries(tiles: Iterable[_Tile], axis: str) -> list[int]:
    """The entries along an axis that tiles have; a file without the axis has the entry 0."""
    return sorted({tile.place.get(axis, 0) for tile in tiles})


def _reader(path: Path) -> Any:
    """The file, opened with pylibCZIrw."""
    CZI_LIBRARY.check(path)
    from pylibCZIrw.czi import CziReader

    return CziReader(str(path))


def _contents(path: Path) -> _Contents:
    """The headers of a file; raises `SelmaError` for a damaged one."""
    tiles: list[_Tile] = []

    def add(_: int, block: Any) -> bool:
        box = block.logicalRect
        if (box.w, box.h) == (block.physicalSize.w, block.physicalSize.h):  # others are of a coarser level
            tiles.append(_Tile(block.coordinate.to_dict(), box.x, box.y, box.w, box.h, block.pixelType.name))
        return True

    with errors_as(damaged_file(path)), closing(_reader(path)) as reader:
        reader.enumerate_subblocks(add)
        contents = _Contents(path, tiles, ElementTree.fromstring(reader.raw_metadata))
    if not tiles:
        raise SelmaError(f"{path}: holds no image; if it is one file of several, give the one that holds the voxels")
    return contents


class CziVolume(Volume):
    """One scene, channel and time point of a CZI file, in full resolution.

    Tiles are put at the places that the file states, the last one on top; voxels of a slice that no tile covers are 0. Slices that lack
    tiles which other slices have are an error.

    Raises:
        SelmaError: pylibCZIrw is not installed, the file is damaged, there is no such scene, channel, time point or level, or it holds
            several and none was chosen; a colour image, several views, illuminations, phases or rotations, or missing slices.
    """

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008 - it is frozen
        self.path = path
        contents = _contents(path)
        scene = chosen_scene(path, choice.scene, contents.scenes)
        check_level(path, choice.level, 1)
        tiles = contents.tiles_of(scene)
        for axis, name in _FURTHER_AXES.items():
            if (number := len(_entries(tiles, axis))) > 1:
                raise SelmaError(
                    f"{path}: has {counted(number, name)} (axis {axis} of CZI), one is needed; fuse them, or save one as a file of its own"
                )
        channels, times = _entries(tiles, "C"), _entries(tiles, "T")
        channel = channels[chosen_channel(path, choice.channel, len(channels))]
        time = times[chosen_time(path, choice.time, len(times))]
        slices = _entries(tiles, "Z")
        left, top = min(tile.x for tile in tiles), min(tile.y for tile in tiles)
        right, bottom = max(tile.x + tile.width for tile in tiles), max(tile.y + tile.height for tile in tiles)
        self.shape = (slices[-1] - slices[0] + 1, bottom - top, right - left)
        self._corner = (slices[0], top, left)
        image = [tile for tile in tiles if (tile.place.get("C", 0), tile.place.get("T", 0)) == (channel, time)]
        self._check_slices(image)
        self._place = {axis: entry for axis, entry in image[0].place.items() if axis not in "SZ"}
        self._scene = image[0].place.get("S")
        self._pixels = self._pixel_type(image)
        self.dtype = np.dtype(_DTYPES[self._pixels])
        self.spacing_um_zyx = contents.spacing_um_zyx
        if len(image) > self.shape[0]:
            self.plane_wise = False
            self.chunk_zyx = (1, max(tile.height for tile in image), max(tile.width for tile in image))
        self._opened: tuple[int, Any] | None = None

    def _check_slices(self, image: Sequence[_Tile]) -> None:
        """Raise `SelmaError` if a slice has fewer tiles than another one."""
        tiles = Counter(tile.place.get("Z", 0) - self._corner[0] for tile in image)
        most = max(tiles.values(), default=1)
        if lacking := [number for number in range(self.shape[0]) if tiles[number] < most]:
            listed = ", ".join(map(str, lacking[:10])) + ", …" * (len(lacking) > 10)
            raise SelmaError(
                f"{self.path}: {counted(len(lacking), 'slice')} of {self.shape[0]} lack voxels of this channel and time point ({listed}, "
                "counted from 0), as when the acquisition was stopped; save the complete part as a file of its own"
            )

    def _pixel_type(self, image: Sequence[_Tile]) -> str:
        """Name of the pixel type that all tiles have; raises `SelmaError` for colours, and for types that are not read."""
        kinds = sorted({tile.pixels for tile in image})
        if any(kind.startswith("Bgr") for kind in kinds):
            raise SelmaError(f"{self.path}: is a colour image; give grey values")
        if len(kinds) > 1 or kinds[0] not in _DTYPES:
            raise SelmaError(
                f"{self.path}: has the pixel type {' and '.join(kinds)}, one of {', '.join(_DTYPES)} is read; save it as 16-bit grey values"
            )
        return kinds[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def _open(self) -> Any:
        """The file, opened by this process: a file that was opened before a fork has one position for both processes."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _reader(self.path))
        return self._opened[1]

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        voxels = np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), self.dtype)
        if 0 in voxels.shape:
            return voxels
        first, top, left = self._corner
        box = (left + x.start, top + y.start, voxels.shape[2], voxels.shape[1])
        with errors_as(cut_short(self.path)):
            reader = self._open()
            for number, plane in enumerate(voxels, first + z.start):
                place = self._place | {"Z": number}
                plane[:] = reader.read(roi=box, plane=place, scene=self._scene, pixel_type=self._pixels)[..., 0]
        return voxels
