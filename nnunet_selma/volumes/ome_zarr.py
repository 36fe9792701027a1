"""OME-Zarr 0.4 and 0.5, in folders and zip files, read with zarr (an extra: `pip install nnunet-selma[zarr]`)."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from itertools import product as combinations
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.cores import compute_threads
from nnunet_selma.running.parallel import in_threads
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume
from nnunet_selma.volumes.choice import Choice, Inventory, check_level, chosen_channel, chosen_scene, chosen_time
from nnunet_selma.volumes.stated_names import stated_names
from nnunet_selma.volumes.units import VOXEL_UNITS, spacing_from_header, spacing_in_um

_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)
"""Exceptions of zarr and of missing metadata."""
_METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_ZIPPED = (".zarr.zip", ".ozx")
_USUAL_AXES = ("t", "c", "z", "y", "x")
"""Names of the axes where nothing names them; of fewer axes, the last ones."""
PLACE = "nnunet_selma"
"""Attribute of a group, beside OME-Zarr's metadata, with what OME-Zarr cannot express of a place: `affine` and `voxels_of_finest` (`Volume.affine`
and `Volume.level_factor_zyx`, both of level 0)."""


def is_zarr(path: Path) -> bool:
    """True for a folder that holds zarr metadata of version 2 or 3, and for a file with the ending of a zipped OME-Zarr."""
    return any((path / name).is_file() for name in _METADATA) or _is_zipped(path)


def _is_zipped(path: Path) -> bool:
    return path.name.lower().endswith(_ZIPPED) and path.is_file()


def zarr_library() -> Any:
    """The zarr module, which decodes and compresses on as many threads as this process computes with.

    Raises:
        SelmaError: zarr is not installed; says how to install it.
    """
    try:
        import zarr
    except ImportError as error:
        raise SelmaError(
            "OME-Zarr needs zarr; install it with: pip install 'nnunet-selma[brains]', or 'nnunet-selma[zarr]' to read only"
        ) from error
    zarr.config.set({"async.concurrency": compute_threads()})
    return zarr


def zarr_node(path: Path) -> Any:
    """The zarr group or array at a path, to read; raises `SelmaError` where zarr is not installed or the metadata are damaged."""
    library = zarr_library()
    try:
        if _is_zipped(path):
            return library.open(library.storage.ZipStore(path, mode="r"), path=_root_in_zip(path), mode="r")
        return library.open(str(path), mode="r")
    except _DAMAGE as error:
        raise _damaged_metadata(path, error) from error


def _root_in_zip(path: Path) -> str:
    """The folder in a zip file that holds the OME-Zarr: the root, or the folder that was zipped."""
    with zipfile.ZipFile(path) as archive:
        files = [PurePosixPath(name) for name in archive.namelist()]
    roots = [file.parent for file in files if file.name in _METADATA]
    root = min(roots, key=lambda folder: len(folder.parts))
    return "" if root == PurePosixPath() else str(root)


def _damaged_metadata(path: Path, error: Exception) -> SelmaError:
    return SelmaError(f"{path}: the OME-Zarr's metadata cannot be read ({error}); copy it again")


def ome_metadata(node: Any) -> dict[str, Any]:
    """OME-Zarr's metadata of a zarr group, of version 0.4 or 0.5; empty for an array."""
    if hasattr(node, "shape"):
        return {}
    attributes = dict(node.attrs)
    content: dict[str, Any] = attributes.get("ome", attributes)
    return content


def image_group(path: Path, scene: str | None = None) -> Any:
    """The zarr group or array of the image at a path, to read: of a root of bioformats2raw, the chosen series or its only one.

    Raises:
        SelmaError: as in `zarr_node`; there is no such series, or several and no choice; or the group is a plate or a well.
    """
    node = zarr_node(path)
    try:
        kind, images = _images_below(node)
        if kind == "file" and images and (scene is not None or len(images) == 1):
            return node[images[chosen_scene(path, scene, tuple(images))]]
    except SelmaError:
        raise
    except _DAMAGE as error:
        raise _damaged_metadata(path, error) from error
    if kind is None:
        chosen_scene(path, scene, ())
        return node
    listed = ", ".join(images[:10])
    raise SelmaError(
        f"{path}: is a {kind} of {len(images)} images ({listed}), not one; {_choice(path, images)}",
        option="choose one with --scene" if kind == "file" else "",
    )


def _images_below(node: Any) -> tuple[str | None, list[str]]:
    """Kind of a group of images, and paths of the images (of a plate, the first of each well); None for an image."""
    metadata = ome_metadata(node)
    if "plate" in metadata:
        return "plate", [f"{well['path']}/0" for well in metadata["plate"]["wells"]]
    if "well" in metadata:
        return "well", [str(image["path"]) for image in metadata["well"]["images"]]
    if "bioformats2raw.layout" in metadata:
        series = ome_metadata(node["OME"]).get("series") if "OME" in node else None
        return "file", series or list(takewhile(lambda name: name in node, map(str, count())))
    return None, []


def image_path(path: Path, scene: str | None = None) -> Path:
    """Path of the image of an OME-Zarr: below a root of bioformats2raw, the series; raises `SelmaError` as `image_group`."""
    return path if _is_zipped(path) else path / image_group(path, scene).path


def label_names(path: Path, image: Any) -> list[str]:
    """Names of the label images that a zarr group or array of an OME-Zarr lists; raises `SelmaError` for damaged metadata."""
    try:
        labels = _labels_below(path, image)
    except _DAMAGE as error:
        raise _damaged_metadata(path, error) from error
    names: list[str] | None = None if labels is None else ome_metadata(labels).get("labels")
    return names or []


def _labels_below(path: Path, image: Any) -> Any:
    """The group `labels` below a group; None without one."""
    if not _is_zipped(path):
        # consolidated metadata lack labels that were added later
        labels = path / image.path / "labels"
        return zarr_node(labels) if is_zarr(labels) else None
    return image["labels"] if not hasattr(image, "shape") and "labels" in image else None


def zarr_inventory(path: Path, scene: str | None = None) -> Inventory:
    """The series, channels, time points and levels of an OME-Zarr; of a file with several series, those of the chosen or first one.

    Raises:
        SelmaError: as in `image_group`, but for a file with several series and no choice.
    """
    try:
        kind, images = _images_below(zarr_node(path))
        scenes = tuple(images) if kind == "file" and len(images) > 1 else ()
        image = image_group(path, scene or ("0" if scenes else None))
        multiscales = ome_metadata(image).get("multiscales")
        if not multiscales:
            return Inventory(scenes=scenes)
        datasets = multiscales[0]["datasets"]
        lengths = dict(zip(axis_names(multiscales[0]), image[datasets[0]["path"]].shape, strict=True))
    except SelmaError:
        raise
    except _DAMAGE as error:
        raise _damaged_metadata(path, error) from error
    stated = ome_metadata(image).get("omero", {}).get("channels") or ()
    names = stated_names([channel.get("label") for channel in stated])
    channels = int(lengths.get("c", 1))
    return Inventory(
        scenes=scenes,
        channels=channels,
        channel_names=names if len(names) == channels else (),
        times=int(lengths.get("t", 1)),
        levels=len(datasets),
    )


def _choice(path: Path, places: Sequence[str]) -> str:
    """Words that ask for one of the images in a group."""
    if not places:
        return "give an image"
    return "unpack it and give one of them" if _is_zipped(path) else f"give one of them, as {path / places[0]}"


def axis_names(multiscale: Mapping[str, Any]) -> list[str]:
    """Names of the axes of a multiscale image, the slowest first."""
    axes = multiscale.get("axes", _USUAL_AXES)
    return [str(axis["name"] if isinstance(axis, dict) else axis).lower() for axis in axes]


class _Transform(NamedTuple):
    """Place of the voxels of a level along the axes of the file, in the file's unit: index times `scale`, plus `translation`."""

    scale: NDArray[np.float64]
    translation: NDArray[np.float64]
    states_place: bool
    """True if the file states a translation; without one, the first voxel is at 0."""


def _transform(multiscale: Mapping[str, Any], level: int) -> _Transform:
    """Transform of a level: those of its dataset, then those of the multiscale image, each in the order of the file.

    Source: OME-Zarr 0.4 and 0.5, "multiscales" metadata. A level without a translation has its first voxel at 0, whatever the others state.
    """
    scale, translation, states_place = np.ones(axes := len(axis_names(multiscale))), np.zeros(axes), False
    for holder in (multiscale["datasets"][level], multiscale):
        for transform in holder.get("coordinateTransformations", []):
            if transform.get("type") == "scale":
                factor = np.asarray(transform["scale"], float)
                scale, translation = scale * factor, translation * factor
            if transform.get("type") == "translation":
                translation, states_place = translation + np.asarray(transform["translation"], float), True
    return _Transform(scale, translation, states_place)


def _other_axes(path: Path, axes: Sequence[str], shape: Sequence[int]) -> SelmaError:
    """The error for an image whose axes are not z, y and x, and c and t besides; a two-dimensional one gets a hint."""
    named = f"{path}: has {len(shape)} axes, named {', '.join(axes)}; z, y and x are needed, and besides them c and t at most"
    if "z" in axes or not {"y", "x"} <= set(axes) or len(set(axes)) != len(shape):
        return SelmaError(named)
    stacked = [
        f"{length} along {name}" for name, length in zip(axes, shape, strict=True) if name not in "yx" and length > 1
    ]
    if stacked:
        hint = f"the image is two-dimensional, {' and '.join(stacked)}. If these are the slices of a volume, name their axis z in the metadata"
    else:
        hint = "the image is a single plane, as a projection or one slice is. If it is one of many, join them: a folder of TIFF slices is read"
    return SelmaError(f"{named}; {hint}; otherwise give the volume itself")


class OmeZarrVolume(Volume):
    """One resolution level and one channel of an OME-Zarr image, or a bare zarr array; its axes may stand in any order.

    Raises:
        SelmaError: zarr is not installed, the path holds no image, there is no such scene, channel, time point or level, or there are
            several and no choice.
    """

    plane_wise = False

    def __init__(self, path: Path, choice: Choice) -> None:
        self.path, self.choice = path, choice
        image = image_group(path, choice.scene)
        try:
            self._array, self._axes, self.spacing_um_zyx, self.levels = self._level(image, choice.level)
        except SelmaError:
            raise
        except _DAMAGE as error:
            raise _damaged_metadata(path, error) from error
        if not set("zyx") <= set(self._axes) or len(set(self._axes)) != len(self._array.shape):
            raise _other_axes(path, self._axes, self._array.shape)
        self._fixed = self._fixed_axes()
        self.shape = self._zyx(self._array.shape)
        if self.level_factor_zyx == (1, 1, 1):  # the scales do not tell
            z, y, x = (float(round(a / b)) for a, b in zip(self._zyx(self._finest), self.shape, strict=True))
            self.level_factor_zyx = (z, y, x)
        self.dtype = np.dtype(self._array.dtype)
        self.chunk_zyx = self._zyx(self._array.chunks)
        self.file_zyx = self._zyx(self._array.shards or self._array.chunks)
        """Shape of the part of the image in one file, voxels: a shard, or a chunk where there are no shards."""
        self.fill_value = self._array.fill_value or 0
        """Value of voxels whose file is missing."""
        # a zip file has its own sums, and the index of a shard stands at its end
        unguarded = not _is_zipped(path) and self._array.shards is None
        self._is_blosc = unguarded and type(next(iter(self._array.compressors[-1:]), None)).__name__.startswith("Blosc")

    def _level(self, node: Any, level: int) -> tuple[Any, list[str], SpacingUm | None, int]:
        """Array, axis names and spacing (µm, zyx) of a resolution level, and the number of levels."""
        if hasattr(node, "shape"):  # a bare array: no scale
            self._finest = node.shape
            names = [str(name).lower() for name in getattr(node.metadata, "dimension_names", None) or ()]
            check_level(self.path, level, 1)
            return node, names if set("zyx") <= set(names) else list(_USUAL_AXES[-len(node.shape) :]), None, 1
        multiscales = ome_metadata(node).get("multiscales")
        if not multiscales:
            inside = sorted([*node.group_keys(), *node.array_keys()])[:10]
            raise SelmaError(
                f"{self.path}: is a zarr group without OME-Zarr's multiscales, with {', '.join(inside) or 'nothing'} in it; give the image inside it"
            )
        datasets = multiscales[0]["datasets"]
        check_level(self.path, level, len(datasets))
        self._finest = node[datasets[0]["path"]].shape
        names = axis_names(multiscales[0])
        units = [axis.get("unit") if isinstance(axis, dict) else None for axis in multiscales[0].get("axes", names)]
        space = [names.index(name) for name in "zyx" if name in names]
        spacing = None
        if len(space) == 3:
            first, this = (_transform(multiscales[0], number) for number in (0, level))
            finest, chosen = first.scale[space].tolist(), this.scale[space].tolist()
            self._place(dict(node.attrs).get(PLACE, {}), first, this, space)
            z, y, x = (c / f for c, f in zip(chosen, finest, strict=True))
            self.level_factor_zyx = (z, y, x)
            spacing = spacing_in_um(chosen, [units[i] for i in space])
            if not any(units[i] for i in space):
                in_voxels = dict(node.attrs).get(PLACE, {}).get("voxels_of_finest") or VOXEL_UNITS
                guessed, self.spacing_guess = spacing_from_header(np.divide(finest, in_voxels).tolist())
                z, y, x = (g * c / f for g, c, f in zip(guessed or finest, chosen, finest, strict=True))
                spacing = (z, y, x) if guessed else None
        return node[datasets[level]["path"]], names, spacing, len(datasets)

    def _place(self, stated: Mapping[str, Any], first: _Transform, this: _Transform, space: list[int]) -> None:
        """Set origin and affine of the level that is read; `stated` holds the affine of the first level, if there is one."""
        if this.states_place:
            z, y, x = (this.translation / this.scale)[space].tolist()
            self.origin_voxels_zyx = (z, y, x)
        if "affine" in stated:
            to_first = np.eye(4)  # from the index (x, y, z) in this level to that in the first one
            backwards = space[::-1]
            to_first[:3, :3] = np.diag((this.scale / first.scale)[backwards])
            to_first[:3, 3] = ((this.translation - first.translation) / first.scale)[backwards]
            self.affine = np.array(stated["affine"], float) @ to_first

    def _fixed_axes(self) -> dict[str, int]:
        """Name of each axis other than z, y and x to the entry that is read."""
        lengths = dict(zip(self._axes, self._array.shape, strict=True))
        chosen = {
            "c": chosen_channel(self.path, self.choice.channel, lengths.pop("c", 1)),
            "t": chosen_time(self.path, self.choice.time, lengths.pop("t", 1)),
        }
        for name, length in lengths.items():
            if name not in "zyx" and length != 1:
                raise SelmaError(
                    f"{self.path}: has {length} entries along the axis {name}; save one of them as an image of its own"
                )
        return {name: chosen.get(name, 0) for name in self._axes if name not in "zyx"}

    def _zyx(self, lengths: Sequence[int]) -> ShapeZYX:
        """The entries for z, y and x among those for the axes of the file."""
        z, y, x = (int(lengths[self._axes.index(name)]) for name in "zyx")
        return z, y, x

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        index = self._fixed | {"z": z, "y": y, "x": x}
        if self._is_blosc:
            self._check_blosc((z, y, x))
        try:
            voxels = np.asarray(self._array[tuple(index[name] for name in self._axes)])
        except MemoryError:
            raise
        except Exception as error:  # each codec has exceptions of its own
            raise SelmaError(f"{self.path}: a chunk cannot be read ({error}); copy the OME-Zarr again") from error
        space = [name for name in self._axes if name in "zyx"]
        return np.ascontiguousarray(voxels.transpose([space.index(name) for name in "zyx"]))

    def _check_blosc(self, box: tuple[slice, slice, slice]) -> None:
        """Raise `SelmaError` if a chunk of a box is cut short: Blosc's decoder would read on behind it, and give any values.

        Source: "Blosc header format", github.com/Blosc/c-blosc: bytes 12 to 15 of a chunk are its length.
        """
        grid = [range(b.start // edge, -(-b.stop // edge)) for b, edge in zip(box, self.chunk_zyx or (), strict=True)]
        chunk_shape = dict(zip(self._axes, self._array.chunks, strict=True))
        fixed = {name: entry // chunk_shape[name] for name, entry in self._fixed.items()}

        def check(place: tuple[int, ...]) -> None:
            index = fixed | dict(zip("zyx", place, strict=True))
            file = Path(self._folder, self._array.metadata.encode_chunk_key(tuple(index[name] for name in self._axes)))
            try:
                with file.open("rb") as opened:
                    length = int.from_bytes(opened.read(16)[12:], "little")
                    complete = os.fstat(opened.fileno()).st_size >= max(length, 16)
            except OSError:  # no file, which is an empty chunk, or one that reading will name
                return
            if not complete:
                raise SelmaError(f"{self.path}: a chunk cannot be read ({file} is cut short); copy the OME-Zarr again")

        in_threads(check, list(combinations(*grid)), compute_threads())

    @property
    def _folder(self) -> str:
        """Folder of the array."""
        return str(self.path / self._array.path)

    def stored_files(self) -> NDArray[np.bool_]:
        """True for each part of the image that has a file, on the grid of parts of shape `file_zyx` along (z, y, x).

        Voxels without a file read as the fill value, usually 0. Only names are listed, no voxels are read.
        """
        keys = self._keys()
        grid = [-(-length // edge) for length, edge in zip(self.shape, self.file_zyx, strict=True)]
        file_shape = dict(zip(self._axes, self._array.shards or self._array.chunks, strict=True))
        fixed = {name: entry // file_shape[name] for name, entry in self._fixed.items()}
        stored = np.zeros(grid, bool)
        for place in np.ndindex(*grid):
            index = fixed | dict(zip("zyx", place, strict=True))
            stored[place] = self._array.metadata.encode_chunk_key(tuple(index[name] for name in self._axes)) in keys
        return stored

    def _keys(self) -> set[str]:
        """Names of the files of the array, below its folder."""
        if _is_zipped(self.path):
            folder = f"{self._array.path}/" if self._array.path else ""
            with zipfile.ZipFile(self.path) as archive:
                return {name.removeprefix(folder) for name in archive.namelist() if name.startswith(folder)}
        return {
            os.path.join(place, name)[len(self._folder) + 1 :].replace(os.sep, "/")
            for place, _, names in os.walk(self._folder)
            for name in names
        }
