"""NIfTI written slab by slab, with the header of the volume that it belongs to, in memory that does not grow with the volume."""

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import HeaderDataError

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.volumes.base import Volume, check_exists
from nnunet_selma.volumes.nifti import IN_UM, is_nifti

_SLAB_BYTES = 2**28
"""Bytes of slices that are read together."""
_MOST_NIFTI1 = 2**15 - 1
"""Longest axis of a NIfTI-1 file, voxels."""
_PROGRAM = b"nnunet-selma"
_LABEL = 1002
"""Code of NIfTI for an image of labels."""


def write_label_nifti(path: Path, labels: Volume, like: Any, progress: Progress[Any] = silent) -> None:
    """Write labels as .nii.gz that lies over the volume they were predicted from; the file is whole or absent.

    A NIfTI keeps its affine, the codes of qform and sform, units and zooms. Any other volume is placed by the affine that the labels keep, or else by
    their voxel size and origin, with x, y and z along the axes of NIfTI's world.

    Args:
        path: the file.
        labels: the labels.
        like: path of the volume that they were predicted from, or a header of `label_header`.
        progress: shows the slabs.

    Raises:
        SelmaError: the header of the volume cannot be read, or labels have a type that NIfTI does not know.
    """
    header = label_header(labels, like) if isinstance(like, Path) else like.copy()
    header["intent_code"], header["intent_name"], header["aux_file"] = _LABEL, _PROGRAM, b""
    _write(path, labels, header, progress)


def write_image_nifti(path: Path, image: Volume, progress: Progress[Any] = silent) -> None:
    """Write an image as .nii.gz, placed as `write_label_nifti` places labels of a volume that is no NIfTI; the file is whole or absent.

    Raises:
        SelmaError: voxels have a type that NIfTI does not know.
    """
    _write(path, image, _new_header(image), progress)


def _write(path: Path, volume: Volume, header: Any, progress: Progress[Any]) -> None:
    """Write the voxels of a volume behind a header."""
    depth, height, width = volume.shape
    try:
        header.set_data_dtype(volume.dtype)
    except HeaderDataError as error:
        raise SelmaError(f"{path}: NIfTI holds no voxels of type {volume.dtype}") from error
    header.set_data_shape((width, height, depth))
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0  # the window of the image
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    step = max(1, _SLAB_BYTES // max(1, height * width * volume.dtype.itemsize))
    with whole_file(path) as partial, partial.open("wb") as raw, gzip.GzipFile("", "wb", 3, raw, mtime=0) as file:
        file.write(header.binaryblock.ljust(header.single_vox_offset, b"\0"))  # without extensions
        for z in progress(range(0, depth, step), f"writing {path.name}"):
            voxels = volume.read(slice(z, min(z + step, depth)))  # (z, y, x) as it lies in memory is NIfTI's x, y, z
            file.write(voxels.astype(volume.dtype.newbyteorder("<"), copy=False).tobytes())


def label_header(labels: Volume, like: Path) -> Any:
    """Header for labels, little-endian, with the place of the volume that they belong to; raises `SelmaError` if it is missing."""
    if is_nifti(like):
        check_exists(like)
        stored = nibabel.load(like).header
        if stored.get_data_shape()[:3] == labels.shape[::-1]:
            return stored.as_byteswapped("<")
    return _new_header(labels)


def _new_header(labels: Volume) -> Any:
    """A header with the place of labels, or of an image, whose volume has no header of NIfTI."""
    kind = nibabel.Nifti1Header if max(labels.shape) <= _MOST_NIFTI1 else nibabel.Nifti2Header
    header = kind(endianness="<")
    affine, unit = labels.affine, "mm"
    spacing = labels.spacing_um_zyx
    if affine is None:
        edges = np.array(spacing or labels.level_factor_zyx)[::-1] / (1e3 if spacing else 1)
        affine = np.diag([*edges, 1.0])
        affine[:3, 3] = np.array((labels.origin_voxels_zyx or (0.0, 0.0, 0.0))[::-1]) * edges
        unit = "mm" if spacing else "unknown"
    elif spacing is not None and np.allclose(voxel_sizes(affine)[::-1], spacing, rtol=1e-4):
        header["descrip"] = IN_UM  # ITK and nnU-Net would divide numbers in µm by 1000
    header.set_data_shape(labels.shape[::-1])
    header.set_xyzt_units(unit)
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    return header
