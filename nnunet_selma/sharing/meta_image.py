"""MetaImage (.mha) written slab by slab: whole or absent, in memory that does not grow with the volume."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.volumes.base import Array, ShapeZYX, damaged_file
from nnunet_selma.volumes.itk import is_itk_file, itk_name

_TYPES = {"uint8": "MET_UCHAR", "int8": "MET_CHAR", "uint16": "MET_USHORT"}


@dataclass(frozen=True)
class Geometry:
    """Place of an image as its header states it, axes x, y, z."""

    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    """Rows of the matrix whose columns are the directions of the axes."""


def geometry_of(path: Path, shape: ShapeZYX) -> Geometry:
    """Geometry in the header of an MHA; the usual one for other files, and for an image whose axes were not its first three.

    Args:
        path: the image.
        shape: its shape (z, y, x), without axes of length 1 beyond the third.

    Raises:
        SelmaError: the header cannot be read.
    """
    if not is_itk_file(path):
        return Geometry()
    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise damaged_file(path) from error
    if tuple(reversed(reader.GetSize()[:3])) != shape:
        return Geometry()
    axes = reader.GetDimension()
    direction = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3]
    return Geometry(reader.GetSpacing()[:3], reader.GetOrigin()[:3], tuple(direction.ravel().tolist()))


def write_mha(path: Path, shape: ShapeZYX, dtype: str, geometry: Geometry, slabs: Iterable[Array]) -> None:
    """Write an MHA, uncompressed.

    ITK would write a file that is cut short where the disk is full, without an error.

    Args:
        path: the file.
        shape: shape of the image, voxels (z, y, x).
        dtype: uint8, int8 or uint16.
        geometry: place of the image.
        slabs: all voxels, (z, y, x), in parts along z.
    """
    axis_vectors = np.reshape(geometry.direction, (3, 3)).T.ravel().tolist()
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _numbers(axis_vectors),
        "Offset": _numbers(geometry.origin),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _numbers(geometry.spacing),
        "DimSize": _numbers(shape[::-1]),
        "ElementType": _TYPES[dtype],
        "ElementDataFile": "LOCAL",  # is the last one, the voxels follow
    }
    kind = np.dtype(dtype).newbyteorder("<")
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write("".join(f"{name} = {value}\n" for name, value in header.items()).encode())
        for slab in slabs:
            file.write(np.ascontiguousarray(slab, kind).tobytes())


def _numbers(values: Sequence[float]) -> str:
    return " ".join(repr(value) for value in values)
