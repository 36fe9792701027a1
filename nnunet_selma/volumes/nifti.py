"""NIfTI through nibabel, which keeps NaN and notices a file that is cut short; ITK turns both into zeros and reports nothing."""

import gzip
import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array, Volume, cut_short, damaged_file, origin_in_voxels, three_axes
from nnunet_selma.volumes.units import spacing_from_header

IN_UM = b"voxel size in um"
"""Description of a NIfTI whose numbers are µm though its unit is mm: ITK, and nnU-Net with it, would divide numbers in µm by 1000."""
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, ImageFileError)


def is_nifti(path: Path) -> bool:
    """True for the file endings of NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


class NiftiVolume(Volume):
    """One grey-value image of three axes; further axes of length 1 are dropped, wherever they stand.

    Only the box that is read is kept in memory. A compressed file stays open, so that boxes in order are decompressed once; a box before
    the last one is decompressed from the front.

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
            raise damaged_file(path) from error
        if dtype.kind not in "buif":
            raise SelmaError(f"{path}: is a colour or complex image ({dtype}); give grey values")
        self._axes_xyz = three_axes(shape, path)
        x, y, z = (int(shape[axis]) for axis in self._axes_xyz)
        self.shape = (z, y, x)
        unscaled = image.dataobj.is_proxy and (image.dataobj.slope, image.dataobj.inter) == (1, 0)
        self.dtype = dtype if unscaled else np.dtype(np.float64)
        # the affine counts, not pixdim, which some programs leave at 1; it has no fourth axis
        sizes = [*map(float, voxel_sizes(image.affine)), *map(float, image.header.get_zooms()[3:])]
        unit = "um" if bytes(image.header["descrip"]).startswith(IN_UM) else image.header.get_xyzt_units()[0]
        self.spacing_um_zyx, self.spacing_guess = spacing_from_header(
            [sizes[axis] for axis in reversed(self._axes_xyz)], None if unit == "unknown" else unit
        )
        states_place = any(int(image.header[code]) for code in ("qform_code", "sform_code"))
        affine = np.asarray(image.affine, float)
        if states_place and self._axes_xyz == (0, 1, 2) and np.isfinite(affine).all() and np.linalg.det(affine):
            self.affine, self.origin_voxels_zyx = affine, origin_in_voxels(affine)
        self._proxy = image.dataobj

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        box: list[slice | int] = [0] * len(self._proxy.shape)
        for axis, bounds in zip(self._axes_xyz, (x, y, z), strict=True):
            box[axis] = bounds
        try:
            stored = np.asarray(self._proxy[tuple(box)])  # (x, y, z)
        except _DAMAGE as error:
            raise cut_short(self.path) from error
        return np.ascontiguousarray(stored.T)
