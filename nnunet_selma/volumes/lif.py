"""Leica LIF, read with liffile (an extra: `pip install nnunet-selma[microscopes]`)."""

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from nnunet_selma.errors import SelmaError
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
from nnunet_selma.volumes.stated_names import stated_names
from nnunet_selma.volumes.units import spacing_in_um

LIF_LIBRARY = MicroscopeLibrary("liffile", "Leica LIF needs liffile, which needs Python 3.11")
_DESCRIPTION = "Data/Image/ImageDescription"
_DIMENSION_OF_AXIS = {"Z": "3", "Y": "2", "X": "1"}
"""Number of each axis in the header."""
_FURTHER_AXES = {
    "S": "colours",
    "M": "tiles of a mosaic that are not merged",
    "H": "bins of a lifetime histogram",
    "λ": "emission wavelengths",
    "Λ": "excitation wavelengths",
    "A": "rotations",
    "L": "loops",
    "N": "line scans",
    "Q": "time points of a line",
}
"""Axes of LIF beside those of a volume, channels and time points, by liffile's letters."""


def is_lif(path: Path) -> bool:
    """True for the file ending of LIF."""
    return path.name.lower().endswith(".lif")


def lif_inventory(path: Path, scene: str | None = None) -> Inventory:
    """The images in a LIF file; without a scene the channels and time points are those of the first.

    Raises:
        SelmaError: liffile is not installed, the file is damaged, or it has no such scene.
    """
    with errors_as(damaged_file(path)), _open(path) as file:
        scenes = _scenes(path, file)
        image = file.images[0 if scene is None else chosen_scene(path, scene, scenes)]
        channels = int(image.sizes.get("C", 1))
        return Inventory(
            scenes=scenes,
            channels=channels,
            channel_names=_channel_names(image.xml_element, channels),
            times=int(image.sizes.get("T", 1)),
        )


def _open(path: Path) -> Any:
    """The file, opened with liffile."""
    LIF_LIBRARY.check(path)
    from liffile import LifFile

    return LifFile(path)


def _scenes(path: Path, file: Any) -> tuple[str, ...]:
    """Names of the images, with those of their folders; raises `SelmaError` if there is none, or if two have the same name."""
    scenes = tuple(str(image.path) for image in file.images)
    stored = sum(element.find("Data/Image") is not None for element in file.xml_element.iter("Element"))
    if not scenes:
        raise SelmaError(f"{path}: holds no image")
    if stored > len(scenes):
        raise SelmaError(
            f"{path}: holds {stored} images, some of the same name; rename them, or save one as a file of its own"
        )
    return scenes


def _channel_names(header: ElementTree.Element, channels: int) -> tuple[str, ...]:
    """Names of the channels, which are those of their colours; empty unless all have one."""
    stated = header.findall(f"{_DESCRIPTION}/Channels/ChannelDescription")
    stated.sort(key=lambda channel: int(channel.attrib["BytesInc"]))
    return stated_names([channel.get("LUTName") for channel in stated]) if len(stated) == channels else ()


def _spacing_um_zyx(header: ElementTree.Element) -> SpacingUm | None:
    """Voxel size, µm: the header states the way from the first voxel to the last one, which is negative for a stack from top to bottom."""
    sizes, units = [], []
    for number in _DIMENSION_OF_AXIS.values():
        axis = header.find(f"{_DESCRIPTION}/Dimensions/DimensionDescription[@DimID='{number}']")
        voxels = 1 if axis is None else int(axis.attrib["NumberOfElements"])
        if axis is None or voxels < 2:
            return None
        sizes.append(abs(float(axis.attrib["Length"])) / (voxels - 1))
        units.append(axis.get("Unit"))
    return spacing_in_um(sizes, units)


class LifVolume(Volume):
    """One scene, channel and time point of a LIF file; slices are read one by one.

    Raises:
        SelmaError: liffile is not installed, the file is damaged, there is no such scene, channel, time point or level, or it holds several
            and none was chosen; a colour image, tiles that are not merged, or further axes longer than one.
    """

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008 - it is frozen
        self.path = path
        check_level(path, choice.level, 1)
        with errors_as(damaged_file(path)), _open(path) as file:
            self._scene = chosen_scene(path, choice.scene, _scenes(path, file))
            image = file.images[self._scene]
            lengths = {axis: int(length) for axis, length in image.sizes.items()}
            self._check_axes(lengths)
            self._transposed = self._frame_is_transposed(tuple(image.frames.frame_sizes))
            self.dtype = np.dtype(image.dtype)
            self.spacing_um_zyx = _spacing_um_zyx(image.xml_element)
        self.shape = (lengths.get("Z", 1), lengths["Y"], lengths["X"])
        place = {
            "C": chosen_channel(path, choice.channel, lengths.get("C", 1)),
            "T": chosen_time(path, choice.time, lengths.get("T", 1)),
        }
        self._place = {axis: entry for axis, entry in place.items() if axis in lengths}
        self._opened: tuple[int, Any] | None = None

    def _check_axes(self, lengths: dict[str, int]) -> None:
        """Raise `SelmaError` for an image with further axes, or without y and x; liffile leaves out axes of length 1."""
        for axis, length in lengths.items():
            if axis not in "TCZYX":
                raise SelmaError(
                    f"{self.path}: has {length} {_FURTHER_AXES.get(axis, 'entries')} (axis {axis}), one three-dimensional grey-value image is "
                    "needed; save that as a file of its own"
                )
        if not {"Y", "X"} <= set(lengths):
            raise SelmaError(f"{self.path}: has the axes {', '.join(lengths)}; y and x are needed")

    def _frame_is_transposed(self, frame: tuple[str, ...]) -> bool:
        """True if a slice is stored with x before y; raises `SelmaError` for scans that are not stored in slices along z."""
        if set(frame) != {"Y", "X"}:
            raise SelmaError(
                f"{self.path}: is stored in planes of {' and '.join(frame)}, not of y and x; save it as x, y, z"
            )
        return frame == ("X", "Y")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def _image(self) -> Any:
        """The image, in the file as opened by this process: after a fork both processes would move one position in the file."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _open(self.path))
        return self._opened[1].images[self._scene]

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        voxels = np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), self.dtype)
        if 0 in voxels.shape:
            return voxels
        with errors_as(cut_short(self.path)):
            image = self._image()
            for number, plane in enumerate(voxels, z.start):
                place = self._place if self.shape[0] == 1 else self._place | {"Z": number}
                frame = image.frame(**place)
                plane[:] = (frame.T if self._transposed else frame)[y, x]
        return voxels
