"""Lazy volumes: shape, dtype, voxel size, and reading of any box, whatever the file format."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Volume, check_exists, stem, to_intensities
from nnunet_selma.volumes.bigdataviewer import (
    BigDataViewerVolume,
    bigdataviewer_inventory,
    is_bigdataviewer,
    is_hdf5_name,
    missing_for_bigdataviewer,
)
from nnunet_selma.volumes.bioio import BioioVolume, bioio_inventory, is_bioio_file, missing_bioio_plugin
from nnunet_selma.volumes.choice import Choice, Inventory, check_only_image
from nnunet_selma.volumes.czi import CZI_LIBRARY, CziVolume, czi_inventory, is_czi
from nnunet_selma.volumes.hdf5 import missing_h5py, other_hdf5
from nnunet_selma.volumes.imaris import ImarisVolume, imaris_inventory, is_imaris
from nnunet_selma.volumes.itk import ItkVolume, is_itk_file
from nnunet_selma.volumes.lif import LIF_LIBRARY, LifVolume, is_lif, lif_inventory
from nnunet_selma.volumes.n5 import is_n5, other_n5
from nnunet_selma.volumes.nd2 import ND2_LIBRARY, Nd2Volume, is_nd2, nd2_inventory
from nnunet_selma.volumes.nifti import NiftiVolume, is_nifti
from nnunet_selma.volumes.ome_zarr import OmeZarrVolume, is_zarr, zarr_inventory
from nnunet_selma.volumes.tiff import TiffSlices, is_tiff, slice_channels, tiff_slices
from nnunet_selma.volumes.tiff_pages import TiffPages, tiff_inventory

__all__ = [
    "Choice",
    "Inventory",
    "OnBadSlice",
    "Volume",
    "check_exists",
    "inventory",
    "is_store",
    "is_volume",
    "missing_library",
    "open_volume",
    "parts_of",
    "parts_of_others",
    "stem",
    "to_intensities",
]

OnBadSlice = Literal["error", "interpolate"]
_IN_SEVERAL_FILES = (".xml", ".h5", ".hdf5", ".n5")
"""Endings of volumes that may lie in several files: BigDataViewer's."""


class _Format(NamedTuple):
    """A file format and its reader."""

    takes: Callable[[Path], bool]
    """True for the names of its files; a name that several formats share is decided by the first bytes."""
    inventory: Callable[[Path, str | None], Inventory]
    """The images in a file; the scene is the one whose channels, time points and levels are counted."""
    open: Callable[[Path, Choice], Volume]
    missing_library: Callable[[Path], str | None] = lambda path: None
    """The reason why a file cannot be read, where the library that reads it is not installed."""


def _single(reader: Callable[[Path], Volume]) -> Callable[[Path, Choice], Volume]:
    """The reader of a format whose files hold a single image, which refuses any other choice."""

    def open_single(path: Path, choice: Choice) -> Volume:
        check_only_image(path, choice)
        return reader(path)

    return open_single


_FORMATS = (
    _Format(is_zarr, zarr_inventory, OmeZarrVolume),
    _Format(is_tiff, tiff_inventory, TiffPages),
    _Format(is_nifti, lambda path, scene: Inventory(), _single(NiftiVolume)),
    _Format(is_itk_file, lambda path, scene: Inventory(), _single(ItkVolume)),
    _Format(is_imaris, imaris_inventory, ImarisVolume, missing_h5py),
    _Format(is_bigdataviewer, bigdataviewer_inventory, BigDataViewerVolume, missing_for_bigdataviewer),
    _Format(is_czi, czi_inventory, CziVolume, lambda path: CZI_LIBRARY.missing()),
    _Format(is_lif, lif_inventory, LifVolume, lambda path: LIF_LIBRARY.missing()),
    _Format(is_nd2, nd2_inventory, Nd2Volume, lambda path: ND2_LIBRARY.missing()),
    _Format(is_bioio_file, bioio_inventory, BioioVolume, missing_bioio_plugin),
)
"""The formats, apart from folders of TIFF slices."""


def is_store(path: Path) -> bool:
    """True for a folder that holds the chunks of images: an OME-Zarr, or N5 of BigDataViewer."""
    return path.is_dir() and (is_zarr(path) or is_bigdataviewer(path))


def _format_of(path: Path) -> _Format | None:
    """The format of a file or folder by its name; None for a folder of slices, and for what no reader takes."""
    if path.is_dir() and not is_store(path):
        return None
    return next((file_format for file_format in _FORMATS if file_format.takes(path)), None)


def is_volume(path: Path) -> bool:
    """True for a file or folder that `open_volume` has a reader for; names are looked at, and the first bytes of HDF5."""
    if path.is_dir() and not is_store(path):
        return bool(tiff_slices(path))
    return not path.name.startswith(".") and _format_of(path) is not None


def missing_library(path: Path) -> str | None:
    """The reason why a file cannot be read where an optional library is missing, for a sentence; None where nothing is missing."""
    file_format = _format_of(path)
    return file_format.missing_library(path) if file_format else None


def inventory(path: Path, scene: str | None = None, *, slice_pattern: str | None = None) -> Inventory:
    """The scenes, channels, time points and levels of a file or folder, from its headers.

    Args:
        path: any volume.
        scene: name or number of the scene whose channels, time points and levels are counted; None: the first one.
        slice_pattern: as in `open_volume`.

    Raises:
        SelmaError: the path does not exist, no reader takes it, it has no such scene, or its headers are damaged.
    """
    check_exists(path)
    file_format = _format_of(path)
    if file_format is not None:
        return file_format.inventory(path, scene)
    if path.is_dir() and tiff_slices(path):
        return Inventory(channels=slice_channels(path, slice_pattern))
    raise _no_reader(path)


def parts_of(path: Path, scene: str | None = None) -> tuple[Path, ...]:
    """The path of a volume, and the other files and folders that hold a part of it; none of a damaged one, which opening it will name.

    Args:
        path: any volume, or a file without a reader.
        scene: name or number of the scene whose files count.
    """
    file_format = _format_of(path)
    try:
        others = file_format.inventory(path, scene).companions if file_format else ()
    except SelmaError:
        return (path,)
    return (path, *(part for part in others if part.exists()))


def parts_of_others(paths: Iterable[Path]) -> dict[Path, Path]:
    """Resolved path of each file that holds a part of one of these volumes, to that volume; a description in XML stands for all its files."""
    parts: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda path: path.suffix.lower() != ".xml"):
        if path.suffix.lower() in _IN_SEVERAL_FILES and path.resolve() not in parts:
            parts |= dict.fromkeys((part.resolve() for part in parts_of(path)[1:]), path)
    return parts


def open_volume(
    path: str | Path,
    *,
    scene: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    level: int = 0,
    on_bad_slice: OnBadSlice = "error",
    slice_pattern: str | None = None,
) -> Volume:
    """Open a folder of TIFF slices, or a file of any format in docs/your-data.md; reads no voxels.

    Args:
        path: the file or folder.
        scene: name or number of the image in a file with several, as tiles, positions or series.
        channel: number of the channel of a file with several; a file with one has channel 0.
        time: number of the time point of a file with several; a file with one has time point 0.
        level: resolution level of a file with several, 0 is the finest.
        on_bad_slice: treatment of a slice, in a folder of slices, that is missing, unreadable, or of another shape or dtype: "error" stops
            and names it, "interpolate" replaces it by the mean of its readable neighbours and lists it in `Volume.repaired`, up to 2 % of
            the slices, or one.
        slice_pattern: a regular expression whose first parenthesis, or all of it, is the slice number in the names of a folder of slices.

    Raises:
        SelmaError: the path does not exist, no reader takes it, it has no such scene, channel, time point or level or several and no choice,
            or the file is not one three-dimensional grey-value image.
    """
    path = Path(path)
    check_exists(path)
    choice = Choice(scene=scene, channel=channel, time=time, level=level)
    file_format = _format_of(path)
    if file_format is not None:
        return file_format.open(path, choice)
    if path.is_dir() and tiff_slices(path):
        check_only_image(path, choice, channels=True)
        interpolate = on_bad_slice == "interpolate"
        return TiffSlices(path, channel=channel, interpolate=interpolate, slice_pattern=slice_pattern)
    raise _no_reader(path)


def _no_reader(path: Path) -> SelmaError:
    """The error for a file or folder that no reader takes."""
    if is_n5(path):
        return other_n5(path)
    if path.is_dir():
        return SelmaError(f"{path}: the folder holds neither TIFF slices nor an OME-Zarr")
    if is_hdf5_name(path):
        return other_hdf5(path)
    return SelmaError(
        f"{path}: no reader for this kind of file; give one of the formats in docs/your-data.md, as TIFF or OME-Zarr"
    )
