"""Imaris 5.5 and later (`.ims`), read with h5py.

Source: "Imaris File Format Description", imaris.oxinst.com/support/imaris-file-format. Voxels are in
`DataSet/ResolutionLevel R/TimePoint T/Channel C/Data`, axes (z, y, x), padded to whole chunks; `ImageSizeX`, `Y` and `Z` of the channel are
the true lengths. Attributes are texts, written as arrays of single characters; other programs write plain strings or numbers, which are read
too. `DataSetInfo/Image` holds the extents of the image, `ExtMin0` to `ExtMax2` for x, y and z, from the outer face of the first voxel to that
of the last (as Imaris-Bridge, github.com/imaris, also takes them), so that all levels share them. A file with several images numbers them:
`DataSet`, `DataSet1`, and so on.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import ShapeZYX
from nnunet_selma.volumes.choice import Choice, Inventory, check_level, chosen_channel, chosen_scene, chosen_time
from nnunet_selma.volumes.hdf5 import Hdf5Volume, external_file, hdf5_file, hdf5_object
from nnunet_selma.volumes.stated_names import stated_names
from nnunet_selma.volumes.units import spacing_in_um

_AXES = {"Z": 2, "Y": 1, "X": 0}
"""Letter of each axis of the array, the slowest first, to its number in the names of the extents."""
_DEFAULT_UNIT = "um"
"""Unit of extents without one, in which Imaris measures and which its description shows."""
_TIFF = (b"II*\0", b"MM\0*")


def is_imaris(path: Path) -> bool:
    """True for the file ending of Imaris."""
    return path.name.lower().endswith(".ims")


def _refuse_classic(path: Path) -> None:
    """Raise `SelmaError` for a file of Imaris 3 or 4, which is a TIFF."""
    try:
        with path.open("rb") as file:
            classic = file.read(4) in _TIFF
    except OSError:
        return
    if classic:
        raise SelmaError(
            f"{path}: is a file of Imaris before 5.5, which is no HDF5; open it in Imaris or in Fiji and save it again, as .ims or TIFF"
        )


def _text(attributes: Mapping[str, Any], name: str) -> str | None:
    """The text of an attribute, in whatever form it was written; None without it."""
    if name not in attributes:
        return None
    value = np.asarray(attributes[name])
    if value.dtype.kind == "S" or (value.dtype.itemsize == 1 and value.size > 1):
        text = value.tobytes().decode("utf-8", "replace")
    else:
        parts = [part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part) for part in value.ravel()]
        text = "".join(parts)
    return text.strip("\0 \t\r\n") or None


def _number(attributes: Mapping[str, Any], name: str) -> float | None:
    """The finite number in an attribute; None without it."""
    try:
        number = float(_text(attributes, name) or "")
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _numbered(group: Any, word: str) -> list[int]:
    """Numbers of the members of a group that are named by a word and a number."""
    names = (re.fullmatch(rf"{re.escape(word)}(\d+)", name) for name in group)
    return sorted(int(name[1]) for name in names if name)


class _Layout(NamedTuple):
    """Groups of one image in an Imaris file."""

    scenes: tuple[str, ...]
    """Names of the groups with voxels, one for each image; empty for a single image."""
    voxels: str
    """Name of the group with the voxels of the chosen image."""
    information: str
    """Name of the group with its metadata."""
    levels: int
    times: list[int]
    """Numbers in the names of its time points."""
    channels: list[int]
    """Numbers in the names of its channels."""


def _layout(file: Any, path: Path, scene: str | None, *, choose: bool) -> _Layout:
    """The groups of the image that a scene names; `choose` demands a name where there are several, otherwise the first counts."""
    voxels = _text(file.attrs, "DataSetDirectoryName") or "DataSet"
    information = _text(file.attrs, "DataSetInfoDirectoryName") or "DataSetInfo"
    further = [str(number) for number in _numbered(file, voxels) if number]
    scenes = (voxels, *(voxels + number for number in further)) if further else ()
    number = chosen_scene(path, scene, scenes) if choose or scene is not None else 0
    suffix = ["", *further][number]
    levels = _numbered(file[voxels + suffix], "ResolutionLevel ")
    finest = hdf5_object(file, f"{voxels}{suffix}/ResolutionLevel 0")
    times = _numbered(finest, "TimePoint ")
    channels = _numbered(hdf5_object(finest, f"TimePoint {times[0]}"), "Channel ")
    if not channels or levels != list(range(len(levels))):
        raise KeyError("channels or levels")
    return _Layout(scenes, voxels + suffix, information + suffix, len(levels), times, channels)


def imaris_inventory(path: Path, scene: str | None = None) -> Inventory:
    """The images in an Imaris file; several data sets are scenes, named by their groups.

    Raises:
        SelmaError: h5py is not installed, the file is damaged, or there is no such scene.
    """
    _refuse_classic(path)
    with hdf5_file(path) as file:
        layout = _layout(file, path, scene, choose=False)
        names = [_channel_name(file, layout, channel) for channel in layout.channels]
        place = f"{layout.voxels}/ResolutionLevel 0/TimePoint {layout.times[0]}/Channel {layout.channels[0]}/Data"
        part = external_file(file, place)
        return Inventory(
            scenes=layout.scenes,
            channels=len(layout.channels),
            channel_names=stated_names(names, layout.channels),
            times=len(layout.times),
            levels=layout.levels,
            companions=(part,) if part else (),
        )


def _channel_name(file: Any, layout: _Layout, channel: int) -> str | None:
    group = file.get(f"{layout.information}/Channel {channel}")
    return None if group is None else _text(group.attrs, "Name")


class ImarisVolume(Hdf5Volume):
    """One resolution level of one channel at one time point of an Imaris file, without its padding.

    The voxel size is the extent of the image over the number of voxels of the level.

    Raises:
        SelmaError: h5py is not installed, the file is damaged or of Imaris before 5.5, or there is no such image or several and no choice.
    """

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008  # frozen
        self.path = path
        _refuse_classic(path)
        with hdf5_file(path) as file:
            layout = _layout(file, path, choice.scene, choose=True)
            channel = layout.channels[chosen_channel(path, choice.channel, len(layout.channels))]
            time = layout.times[chosen_time(path, choice.time, len(layout.times))]
            check_level(path, choice.level, layout.levels)
            image = file.get(f"{layout.information}/Image")
            attributes: Mapping[str, Any] = {} if image is None else image.attrs
            finest, shape = (
                _image_shape(file, f"{layout.voxels}/ResolutionLevel {level}/TimePoint {time}/Channel {channel}", whole)
                for level, whole in ((0, attributes), (choice.level, attributes if choice.level == 0 else {}))
            )
            place = f"{layout.voxels}/ResolutionLevel {choice.level}/TimePoint {time}/Channel {channel}/Data"
            self._use(file, place, shape=shape)
            z, y, x = (float(fine / n) for fine, n in zip(finest, shape, strict=True))
            self.level_factor_zyx = (z, y, x)
            self._set_place(attributes)

    def _set_place(self, attributes: Mapping[str, Any]) -> None:
        """Set voxel size and origin from the extents; both stay None where extents are missing or empty."""
        self.spacing_um_zyx: SpacingUm | None = None
        ends = [[_number(attributes, f"Ext{end}{axis}") for axis in _AXES.values()] for end in ("Min", "Max")]
        lows = [low for low in ends[0] if low is not None]
        highs = [high for high in ends[1] if high is not None]
        if len(lows) + len(highs) < 6 or any(low == high for low, high in zip(lows, highs, strict=True)):
            return
        edges = [(high - low) / n for low, high, n in zip(lows, highs, self.shape, strict=True)]
        unit = _text(attributes, "Unit")
        self.spacing_um_zyx = spacing_in_um([abs(edge) for edge in edges], [unit or _DEFAULT_UNIT] * 3)
        # an axis whose extents run backwards counts along the array, as everywhere
        z, y, x = (low / edge + 0.5 for low, edge in zip(lows, edges, strict=True))
        self.origin_voxels_zyx = (z, y, x)
        backwards = [letter.lower() for letter, edge in zip(_AXES, edges, strict=True) if edge < 0]
        numbers = " × ".join(f"{abs(edge):g}" for edge in edges)
        if not unit:
            self.spacing_guess = (
                f"the file names no unit; its voxel size {numbers} is taken as µm, in which Imaris measures"
            )
        elif backwards:
            self.spacing_guess = f"the extents run backwards along {', '.join(backwards)}; the voxels are read as they are stored, with the voxel size {numbers}"


def _image_shape(file: Any, channel: str, image: Mapping[str, Any]) -> ShapeZYX:
    """Shape of a channel without padding: its `ImageSize`, without which that of the whole image counts, without which that of the dataset."""
    group = hdf5_object(file, channel)
    stored = hdf5_object(file, f"{channel}/Data").shape
    z, y, x = (
        int(_number(group.attrs, f"ImageSize{letter}") or _number(image, letter) or length)
        for letter, length in zip(_AXES, stored, strict=True)
    )
    return z, y, x
