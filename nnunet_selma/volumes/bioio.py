"""Files of further microscopes, as Olympus OIR or SlideBook, through a reader plugin of BioIO that the user has installed.

A plugin is chosen by the ending of the file, so that opening tries no other and errors are those of this plugin.
"""

import inspect
import os
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume, cut_short, damaged_file
from nnunet_selma.volumes.choice import (
    Choice,
    Inventory,
    check_level,
    chosen_channel,
    chosen_scene,
    chosen_time,
)
from nnunet_selma.volumes.library_errors import errors_as
from nnunet_selma.volumes.stated_names import distinct_names, stated_names
from nnunet_selma.volumes.units import spacing_in_um

_PLUGINS = "bioio.readers"
"""Group of the entry points of BioIO's plugins; the name of each is that of its package."""


class _Format(NamedTuple):
    """A file format of a microscope."""

    name: str
    plugins: tuple[str, ...]
    """Packages that read it, the one to install first."""
    companion: str = ""
    """Name of the folder beside the file that holds the voxels, with `{name}` and `{stem}` of the file."""


_FORMATS = {
    ".dv": _Format("DeltaVision", ("bioio-dv", "bioio-bioformats")),
    ".r3d": _Format("DeltaVision", ("bioio-dv", "bioio-bioformats")),
    ".sldy": _Format("SlideBook", ("bioio-sldy",), "{stem}.dir"),
    ".sld": _Format("SlideBook", ("bioio-bioformats",)),
    ".oib": _Format("Olympus OIB", ("bioio-bioformats",)),
    ".oif": _Format("Olympus OIF", ("bioio-bioformats",), "{name}.files"),
    ".oir": _Format("Olympus OIR", ("bioio-bioformats",)),
    ".vsi": _Format("Olympus VSI", ("bioio-bioformats", "bioio-vsi"), "_{stem}_"),
}
"""Endings that go to a plugin; no plugin is asked for its endings, since some claim those of pictures and texts too."""

_FURTHER_AXES = {
    "S": "colours or samples",
    "M": "tiles of a mosaic that are not merged",
    "P": "positions",
    "U": "steps of a loop without a name",
    "A": "rotations",
    "B": "blocks",
    "H": "phases",
    "I": "illuminations",
    "R": "rotations",
    "V": "views",
}
"""Axes of BioIO's plugins, beside those of a volume, channels and time points."""


def is_bioio_file(path: Path) -> bool:
    """True for the file endings that a plugin of BioIO is asked to read, installed or not."""
    return path.suffix.lower() in _FORMATS


def missing_bioio_plugin(path: Path) -> str | None:
    """A part of a sentence where no plugin for a file of a microscope is installed; imports nothing."""
    file_format = _FORMATS[path.suffix.lower()]
    if _installed(file_format) is not None:
        return None
    plugin = file_format.plugins[0]
    return f"{file_format.name} needs {plugin}; install it with: pip install {plugin}"


def _installed(file_format: _Format) -> EntryPoint | None:
    """The first plugin for a format that is installed."""
    plugins = {plugin.name: plugin for plugin in entry_points(group=_PLUGINS)}
    return next((plugins[name] for name in file_format.plugins if name in plugins), None)


def bioio_inventory(path: Path, scene: str | None = None) -> Inventory:
    """The images in a file of a microscope; without a scene the channels, time points and levels are those of the first.

    Raises:
        SelmaError: no plugin for the format is installed, the file is damaged, or it has no such scene.
    """
    image = _Image(path)
    image.set_scene(0 if scene is None else chosen_scene(path, scene, image.scenes))
    companion = _FORMATS[path.suffix.lower()].companion.format(name=path.name, stem=path.stem)
    return Inventory(
        scenes=image.scenes,
        channels=image.lengths.get("C", 1),
        channel_names=image.channel_names,
        times=image.lengths.get("T", 1),
        levels=image.levels,
        companions=(path.with_name(companion),) if companion and path.with_name(companion).exists() else (),
    )


class _Image:
    """A file that is opened with a plugin, and the scene and level of it that are read."""

    def __init__(self, path: Path) -> None:
        plugin = _installed(_FORMATS[path.suffix.lower()])
        if plugin is None:
            raise SelmaError(f"{path}: {missing_bioio_plugin(path)}")
        self.path = path
        self.plugin = plugin.name
        with errors_as(SelmaError(f"{path}: {plugin.name} is installed but cannot be loaded; install it again")):
            reader = plugin.load().Reader
        with errors_as(damaged_file(path)):
            # a chunk for each slice, where the plugin leaves the choice; otherwise it would be a stack
            chunks = {"chunk_dims": ["Y", "X"]} if "chunk_dims" in inspect.signature(reader).parameters else {}
            self.reader = reader(str(path), **chunks)
            names = [str(name) for name in self.reader.scenes]
        self.scenes = () if len(names) == 1 and not stated_names(names) else distinct_names(names)
        """Names of the scenes; empty for a single one without a name."""

    def set_scene(self, scene: int, level: int = 0) -> None:
        """Read this scene, in this level, from now on."""
        with errors_as(damaged_file(self.path)):
            self.reader.set_scene(scene)
            if level:
                self.reader.set_resolution_level(self.reader.resolution_levels[level])

    @property
    def levels(self) -> int:
        """Number of resolution levels."""
        with errors_as(damaged_file(self.path)):
            return len(self.reader.resolution_levels)

    @property
    def lengths(self) -> dict[str, int]:
        """Length of each axis, by its letter."""
        with errors_as(damaged_file(self.path)):
            dims = self.reader.dims
            return dict(zip(dims.order, map(int, dims.shape), strict=True))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels; empty unless all have one."""
        with errors_as(damaged_file(self.path)):
            names = stated_names(self.reader.channel_names or ())
        return names if len(names) == self.lengths.get("C", 1) else ()

    @property
    def sizes_zyx(self) -> tuple[float, float, float] | None:
        """Voxel size in the unit of the plugin; None where it states none."""
        with errors_as(damaged_file(self.path)):
            sizes = self.reader.physical_pixel_sizes
            z, y, x = (float(size or 0) for size in (sizes.Z, sizes.Y, sizes.X))
        # some plugins give the step of the stage, which is negative for a stack from top to bottom
        return (abs(z), abs(y), abs(x)) if z and y and x else None

    @property
    def units_zyx(self) -> list[str] | None:
        """Unit of the voxel size; None where the plugin states none."""
        with errors_as(damaged_file(self.path)):
            stated = self.reader.dimension_properties
            units_zyx = [getattr(stated, axis).unit for axis in "ZYX"]
        return None if None in units_zyx else [str(unit) for unit in units_zyx]


class BioioVolume(Volume):
    """One scene, channel, time point and level of a file that a plugin of BioIO reads.

    Plugins that read parts read slice by slice here; with others the chunks of their Dask array decide, and one that has the whole image
    as a chunk reads it whole, once (`read_whole`).

    Raises:
        SelmaError: no plugin is installed, the file is damaged, there is no such scene, channel, time point or level, or it holds several
            and none was chosen; a colour image, tiles that are not merged, or further axes longer than one.
    """

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008 - it is frozen
        self.path, self._level = path, choice.level
        image = _Image(path)
        self._scene = chosen_scene(path, choice.scene, image.scenes)
        image.set_scene(self._scene)
        check_level(path, choice.level, image.levels)
        lengths = image.lengths
        self._place = self._chosen_entries(choice, lengths)
        sizes, units = image.sizes_zyx, image.units_zyx
        finest = _shape(lengths)
        if choice.level:
            image.set_scene(self._scene, choice.level)
        self.shape = _shape(image.lengths)
        z, y, x = (float(round(a / b)) for a, b in zip(finest, self.shape, strict=True))
        self.level_factor_zyx = (z, y, x)
        self.spacing_um_zyx = None
        if sizes is not None:
            self._set_spacing(image.plugin, sizes, units)
        with errors_as(damaged_file(path)):
            self.dtype = np.dtype(image.reader.dtype)
            self._parts = _reads_parts(image.reader)
            if not self._parts:
                self._set_chunks(self._lazy(image.reader).chunksize)
        self._opened: tuple[int, Any] | None = None

    def _chosen_entries(self, choice: Choice, lengths: dict[str, int]) -> dict[str, int]:
        """The entry to read along each axis other than z, y and x."""
        if missing := [axis for axis in "YX" if axis not in lengths]:
            raise SelmaError(f"{self.path}: has no axis {' and '.join(missing)}; an image is needed")
        for axis, length in lengths.items():
            if axis not in "TCZYX" and length > 1:
                what = _FURTHER_AXES.get(axis, "entries")
                raise SelmaError(
                    f"{self.path}: has {length} {what} (axis {axis}), one three-dimensional grey-value image is needed; save that as a file "
                    "of its own with the microscope's program"
                )
        channel = chosen_channel(self.path, choice.channel, lengths.get("C", 1))
        time = chosen_time(self.path, choice.time, lengths.get("T", 1))
        return {axis: {"C": channel, "T": time}.get(axis, 0) for axis in lengths if axis not in "ZYX"}

    def _set_spacing(self, plugin: str, sizes: SpacingUm, units: Sequence[str] | None) -> None:
        """Set the voxel size of the level, and say so where its unit is a guess."""
        if units is None:
            numbers = " × ".join(f"{size:g}" for size in sizes)
            self.spacing_guess = f"{plugin} states no unit; its voxel size {numbers} is taken as µm"
        level = [size * factor for size, factor in zip(sizes, self.level_factor_zyx, strict=True)]
        self.spacing_um_zyx = spacing_in_um(level, units or ["µm"] * 3)

    def _set_chunks(self, chunk: Sequence[int]) -> None:
        """Set how the image is read from the shape of the plugin's chunks (z, y, x)."""
        z, y, x = (min(edge, length) for edge, length in zip(chunk, self.shape, strict=True))
        self.read_whole = (z, y, x) == self.shape and z > 1
        self.plane_wise = (y, x) == self.shape[1:]
        self.chunk_zyx = None if self.plane_wise and (z == 1 or self.read_whole) else (z, y, x)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_opened": None}

    def _reader(self) -> Any:
        """The plugin's reader of the scene and level, opened by this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            image = _Image(self.path)
            image.set_scene(self._scene, self._level)
            self._opened = (os.getpid(), image.reader)
        return self._opened[1]

    def _lazy(self, reader: Any) -> Any:
        """The image as a Dask array, (z, y, x)."""
        return reader.get_image_dask_data("ZYX", **{axis: self._place[axis] for axis in _axes(reader, self._place)})

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        if 0 in (z.stop - z.start, y.stop - y.start, x.stop - x.start):
            return np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), self.dtype)
        with errors_as(cut_short(self.path)):
            reader = self._reader()
            if self._parts:
                bounds = {"Z": z, "Y": y, "X": x}
                index = self._place | bounds
                voxels = reader.get_image_data("ZYX", **{axis: index[axis] for axis in _axes(reader, index)})
            else:
                # threads would open the file several times over
                voxels = self._lazy(reader)[z, y, x].compute(scheduler="synchronous")
            voxels = np.ascontiguousarray(voxels)
        expected = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
        if voxels.dtype != self.dtype or voxels.shape != expected:
            raise SelmaError(
                f"{self.path}: its plugin read voxels of type {voxels.dtype} and shape {voxels.shape} instead of {self.dtype} and {expected}, as "
                "where channels differ; save the channel as a file of its own"
            )
        return voxels


def _shape(lengths: dict[str, int]) -> ShapeZYX:
    """Shape of the volume; an image without z has one slice."""
    return lengths.get("Z", 1), lengths["Y"], lengths["X"]


def _axes(reader: Any, entries: dict[str, Any]) -> list[str]:
    """The axes among these that a reader has."""
    return [axis for axis in entries if axis in reader.dims.order]


def _reads_parts(reader: Any) -> bool:
    """True if a plugin reads parts of an image; BioIO's base class reads all and cuts the part out."""
    from bioio_base.reader import Reader

    return type(reader)._read_indexed is not Reader._read_indexed
