"""NIfTI through nibabel, which keeps NaN and notices a file that is cut short; ITK turns both into zeros without a word."""

import gzip
import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array, Volume, three_axes
from nnunet_selma.volumes.units import spacing_from_header

_MM = {"micron": 1e-3, "meter": 1e3}
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, ImageFileError)


def is_nifti(path: Path) -> bool:
    """True for the file endings of NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


class NiftiVolume(Volume):
    """One grey-value image of three axes; further axes of length 1 are dropped, wherever they stand.

    Only the box that is asked for is kept. A compressed file stays open, so that boxes in order are decompressed once; a box before the last
    one is decompressed from the front.

    Raises:
        SelmaError: no NIfTI, colour, or more than three axes longer than one voxel.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plane_wise = path.name.lower().endswith(".gz")
        try:
            image = nibabel.load(path, keep_file_open=self.plane_wise)
            shape, dtype = tuple(image.shape), np.dtype(image.dataobj.dtype)
        except _DAMAGE as error:
            raise SelmaError(
                f"{path}: cannot be read, the file is damaged or no image; copy or download it again"
            ) from error
        if dtype.kind not in "buif":
            raise SelmaError(f"{path}: is a colour or complex image ({dtype}); give grey values")
        self._axes_xyz = three_axes(shape)
        if self._axes_xyz is None:
            raise SelmaError(
                f"{path}: has the shape {'×'.join(map(str, shape))} (x, y, z, …); one three-dimensional image is needed"
            )
        x, y, z = (int(shape[axis]) for axis in self._axes_xyz)
        self.shape = (z, y, x)
        self.dtype = (
            dtype
            if image.dataobj.is_proxy and (image.dataobj.slope, image.dataobj.inter) == (1, 0)
            else np.dtype(np.float64)
        )
        zooms, unit = image.header.get_zooms(), image.header.get_xyzt_units()[0]
        self.spacing_um_zyx = spacing_from_header(
            tuple(float(zooms[axis]) * _MM.get(unit, 1.0) for axis in reversed(self._axes_xyz))
        )
        self._proxy = image.dataobj

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        box: list[slice | int] = [0] * len(self._proxy.shape)
        for axis, bounds in zip(self._axes_xyz or (), (x, y, z), strict=True):
            box[axis] = bounds
        try:
            stored = np.asarray(self._proxy[tuple(box)])  # (x, y, z)
        except _DAMAGE as error:
            raise SelmaError(
                f"{self.path}: cannot be read to its end, the file is cut short or damaged; copy it again"
            ) from error
        return np.ascontiguousarray(stored.T)
