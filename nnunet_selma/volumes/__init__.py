"""Lazy volumes: shape, dtype, voxel size, and reading of any box, whatever the file format."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Volume, check_exists, chosen_channel, stem, to_intensities
from nnunet_selma.volumes.itk import ItkVolume, is_itk_file
from nnunet_selma.volumes.nifti import NiftiVolume, is_nifti
from nnunet_selma.volumes.ome_zarr import OmeZarrVolume, is_zarr
from nnunet_selma.volumes.tiff import TiffSlices, is_tiff, tiff_slices
from nnunet_selma.volumes.tiff_pages import TiffPages, tiff_channels

__all__ = ["OnBadSlice", "Volume", "check_exists", "is_volume", "open_volume", "stem", "to_intensities"]

OnBadSlice = Literal["error", "interpolate"]

_READERS: tuple[tuple[Callable[[Path], bool], Callable[[Path, int | None], Volume]], ...] = (
    (is_tiff, lambda path, channel: TiffPages(path, channel=channel)),
    (is_nifti, lambda path, _: NiftiVolume(path)),
    (is_itk_file, lambda path, _: ItkVolume(path)),
)
"""For each file format, the test of its endings, and its reader of a path and a channel."""


def is_volume(path: Path) -> bool:
    """True for a file or folder that `open_volume` has a reader for; only names are looked at."""
    if path.is_dir():
        return is_zarr(path) or bool(tiff_slices(path))
    return not path.name.startswith(".") and (is_zarr(path) or any(has_ending(path) for has_ending, _ in _READERS))


def open_volume(
    path: str | Path,
    *,
    channel: int | None = None,
    level: int = 0,
    on_bad_slice: OnBadSlice = "error",
    slice_pattern: str | None = None,
) -> Volume:
    """Open a folder of TIFF slices, a multi-page TIFF, a NIfTI, NRRD or MHA file, or an OME-Zarr; reads no voxels.

    Args:
        path: the file or folder.
        channel: number of the channel, for a TIFF, slices or an OME-Zarr with several; a file with one has channel 0.
        level: resolution level of an OME-Zarr, 0 is the finest; other formats have level 0 only.
        on_bad_slice: treatment of a slice, in a folder of slices, that is missing, unreadable, or of another shape or dtype: "error" stops
            and names it, "interpolate" replaces it by the mean of its readable neighbours and lists it in `Volume.repaired`, up to 2 % of
            the slices, or one.
        slice_pattern: a regular expression whose first parenthesis, or all of it, is the slice number in the names of a folder of slices.

    Raises:
        SelmaError: the path does not exist, no reader takes it, it has no such channel or level, or the file is not one three-dimensional
            grey-value image.
    """
    path = Path(path)
    check_exists(path)
    if is_zarr(path):
        return OmeZarrVolume(path, channel=channel, level=level)
    if level != 0:
        raise SelmaError(f"{path}: has one resolution, there is no level {level}; levels are for OME-Zarr")
    if path.is_dir():
        if tiff_slices(path):
            interpolate = on_bad_slice == "interpolate"
            return TiffSlices(path, channel=channel, interpolate=interpolate, slice_pattern=slice_pattern)
        raise SelmaError(f"{path}: the folder holds neither TIFF slices nor an OME-Zarr")
    for has_ending, reader in _READERS:
        if has_ending(path):
            volume = reader(path, channel)
            if channel:
                chosen_channel(path, channel, tiff_channels(path) if is_tiff(path) else 1)
            return volume
    raise SelmaError(f"{path}: no reader for this kind of file; give TIFF, NIfTI, NRRD, MHA or OME-Zarr")
