"""NRRD and MHA through SimpleITK."""

import os
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array, Volume, cut_short, damaged_file, origin_in_voxels, three_axes
from nnunet_selma.volumes.units import spacing_from_header

_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
_HEADER_BYTES = 4096


def is_itk_file(path: Path) -> bool:
    """True for the file endings of NRRD and MHA."""
    return path.name.lower().endswith(_ENDINGS)


def itk_name(path: Path) -> str:
    """The name of a file for ITK, which would abort the process at a name that is not UTF-8; raises `SelmaError` for such a name."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SelmaError(
            f"{path}: the name is not UTF-8, and ITK opens no such file; rename the file or its folder"
        ) from error


def _header(path: Path) -> str:
    """The first lines of a file, which are text in NRRD and MetaImage."""
    with path.open("rb") as file:
        return file.read(_HEADER_BYTES).decode("utf-8", "replace")


def _is_compressed(path: Path) -> bool:
    """True if the header of an MHA or MHD says that its voxels are compressed."""
    return re.search(r"^CompressedData\s*=\s*True", _header(path), re.MULTILINE | re.IGNORECASE) is not None


def _unit(path: Path) -> str | None:
    """Unit of the spacing: NRRD's `space units` or `units`, MetaImage's `DistanceUnits`; ITK reads none of them."""
    unit = re.search(
        r'^(?:(?:space )?units:[^"\n]*"([^"\n]+)"|DistanceUnits\s*=\s*(\S+))',
        _header(path),
        re.MULTILINE | re.IGNORECASE,
    )
    return (unit[1] or unit[2]) if unit else None


def _affine(reader: sitk.ImageFileReader) -> NDArray[np.float64]:
    """Matrix from the index of a voxel to its place in RAS+; ITK counts in LPS."""
    axes = reader.GetDimension()
    affine = np.eye(4)
    directions = np.reshape(reader.GetDirection(), (axes, axes)) * reader.GetSpacing()
    affine[:3, :3], affine[:3, 3] = directions[:3, :3], reader.GetOrigin()[:3]
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return lps_to_ras @ affine


class ItkVolume(Volume):
    """One grey-value image of three axes; further axes of length 1 are dropped.

    ITK reads boxes of an uncompressed MHA; other files it reads whole, and they stay in memory (`read_whole`).

    Raises:
        SelmaError: not an image, colour, or not three axes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = self._reader()
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise damaged_file(path) from error
        if reader.GetNumberOfComponents() != 1:
            raise SelmaError(
                f"{path}: is a colour image ({reader.GetNumberOfComponents()} values a voxel); give grey values"
            )
        self._size = reader.GetSize()
        self._axes_xyz = three_axes(self._size, path)
        x, y, z = (self._size[axis] for axis in self._axes_xyz)
        self.shape = (z, y, x)
        self.dtype = np.dtype(sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype)
        spacing = reader.GetSpacing()
        self.spacing_um_zyx, self.spacing_guess = spacing_from_header(
            [spacing[axis] for axis in reversed(self._axes_xyz)], _unit(path)
        )
        if self._axes_xyz == (0, 1, 2):
            self.affine = _affine(reader)
            if np.linalg.det(self.affine):
                self.origin_voxels_zyx = origin_in_voxels(self.affine)
        self.read_whole = path.suffix.lower() in (".nrrd", ".nhdr") or _is_compressed(path)

    def _reader(self) -> sitk.ImageFileReader:
        reader = sitk.ImageFileReader()
        reader.SetFileName(itk_name(self.path))
        return reader

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        if 0 in (z.stop - z.start, y.stop - y.start, x.stop - x.start):
            return np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), self.dtype)
        reader = self._reader()
        index, size = [0] * len(self._size), [0] * len(self._size)  # size 0 drops an axis
        for axis, bounds in zip(self._axes_xyz, (x, y, z), strict=True):
            index[axis], size[axis] = bounds.start, bounds.stop - bounds.start
        reader.SetExtractIndex(index)
        reader.SetExtractSize(size)
        try:
            return np.asarray(sitk.GetArrayFromImage(reader.Execute()))
        except RuntimeError as error:
            raise cut_short(self.path) from error
