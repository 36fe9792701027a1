"""NIfTI, NRRD and MHA through SimpleITK."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array, Volume, spacing_from_header

_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def is_itk_file(path: Path) -> bool:
    """True for the file endings this reader takes."""
    return path.name.lower().endswith(_ENDINGS)


class ItkVolume(Volume):
    """One grey-value image with up to three axes longer than one voxel; further axes of length 1 are dropped.

    ITK reads only the box that is asked for from NIfTI and from uncompressed MHA; a compressed NIfTI is decompressed
    up to the end of the box, and a compressed NRRD or MHA is read whole.

    Raises:
        SelmaError: not an image, colour, or more than three axes longer than one voxel.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = self._reader()
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise SelmaError(
                f"{path}: cannot be read, the file is damaged or no image; copy or download it again"
            ) from error
        if reader.GetNumberOfComponents() != 1:
            raise SelmaError(
                f"{path}: is a colour image ({reader.GetNumberOfComponents()} values a voxel); give grey values"
            )
        self._size_xyz = reader.GetSize()
        spacing = reader.GetSpacing()
        axes = [axis for axis, length in enumerate(self._size_xyz) if length > 1]
        if len(self._size_xyz) > 3:
            # keep the order, drop singletons from the far end first: (500, 500, 50, 1) and (1, 500, 500, 50) are one image
            spare = [axis for axis in reversed(range(len(self._size_xyz))) if self._size_xyz[axis] == 1]
            dropped = set(spare[: len(self._size_xyz) - 3])
            axes = [axis for axis in range(len(self._size_xyz)) if axis not in dropped]
        else:
            axes = list(range(len(self._size_xyz)))
        if len(axes) != 3:
            raise SelmaError(
                f"{path}: has the shape {'×'.join(map(str, self._size_xyz))} (x, y, z, …); one three-dimensional image is needed"
            )
        self._axes_xyz = axes
        x, y, z = (self._size_xyz[axis] for axis in axes)
        self.shape = (z, y, x)
        self.dtype = np.dtype(sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype)
        self.spacing_um_zyx = spacing_from_header(tuple(spacing[axis] for axis in reversed(axes)))

    def _reader(self) -> sitk.ImageFileReader:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(self.path))
        return reader

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        if 0 in (z.stop - z.start, y.stop - y.start, x.stop - x.start):
            return np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), self.dtype)
        index, size = [0] * len(self._size_xyz), [0] * len(self._size_xyz)  # size 0 drops an axis
        for axis, bounds in zip(self._axes_xyz, (x, y, z), strict=True):
            index[axis], size[axis] = bounds.start, bounds.stop - bounds.start
        reader = self._reader()
        reader.SetExtractIndex(index)
        reader.SetExtractSize(size)
        try:
            return np.asarray(sitk.GetArrayFromImage(reader.Execute()))
        except RuntimeError as error:
            raise SelmaError(
                f"{self.path}: cannot be read to its end, the file is cut short or damaged; copy it again"
            ) from error
