"""Interface of every volume, and the intensities that the project works with."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.cores import usable_memory
from nnunet_selma.structures import SpacingUm

Array = NDArray[Any]
ShapeZYX = tuple[int, int, int]

_ENDING = re.compile(r"(\.ome)?(\.([a-z]+|h5|hdf5|n5|nd2|r3d)(\.gz)?|\.zarr\.zip)$", re.IGNORECASE)
"""Ending of a file; other endings with digits are parts of names, as in `brain.c1`."""
_MOST_OF_MEMORY = 0.5
"""Part of the memory that a file may take which is read whole; its boxes and what is made of them need the rest."""


class Volume(ABC):
    """A three-dimensional grey-value image that is read piece by piece; axes are (z, y, x)."""

    path: Path
    shape: ShapeZYX
    dtype: np.dtype[Any]
    spacing_um_zyx: SpacingUm | None
    """Voxel size in µm; None where the file does not state it."""

    affine: NDArray[np.float64] | None = None
    """Matrix (4, 4) from the index (x, y, z) of a voxel to its place in the file's unit, in RAS+ as in NIfTI; None where the file states none."""

    origin_voxels_zyx: SpacingUm | None = None
    """Place of the centre of the first voxel along the axes of the array, in voxels; None where the file states no place."""

    spacing_guess: str | None = None
    """A sentence where the file states a voxel size without its unit, and the unit was guessed."""

    order: str | None = None
    """The rule by which slices in files of their own were ordered, for a sentence; None for other volumes."""

    level_factor_zyx: SpacingUm = (1.0, 1.0, 1.0)
    """Edges of a voxel of the level that is read, in voxels of the finest level."""

    plane_wise: bool = True
    """True if whole slices in order are cheap to read; False if boxes are, as in chunks and memory maps."""

    slices_apart: bool = False
    """True if each slice is its own file, so that single slices are cheap to read; otherwise each read starts from the front."""

    read_in_threads: bool = False
    """True if several threads may read slices at once, and are faster together."""

    chunk_zyx: ShapeZYX | None = None
    """Shape of the chunks that are read whole, voxels; None for slices and memory maps."""

    kept_bytes: int = 0
    """Most memory for decoded chunks that are kept from one read to the next, in each process."""

    read_whole: bool = False
    """True if the file cannot be read in part: the first read takes memory for the whole volume, and keeps it."""

    _whole: Array | None = None
    """All voxels of a volume that is read whole, once it was."""

    @property
    def origin_um_zyx(self) -> SpacingUm | None:
        """Place of the centre of the first voxel along the axes of the array, µm; None where the file states no place or no voxel size.

        For axes that are those of the world this is the origin in the file. Otherwise it is the origin turned into the axes of the array, so
        that origin and voxel size place all files of one direction relative to each other; `affine` holds the direction.
        """
        if self.origin_voxels_zyx is None or self.spacing_um_zyx is None:
            return None
        z, y, x = (
            round(place * edge, 6) for place, edge in zip(self.origin_voxels_zyx, self.spacing_um_zyx, strict=True)
        )
        return z, y, x

    @property
    def repaired(self) -> tuple[str, ...]:
        """Names of slices that were missing or unreadable and were interpolated; empty unless interpolation was asked for."""
        return ()

    @abstractmethod
    def _read(self, z: slice, y: slice, x: slice) -> Array:
        """The voxels of a box; all bounds are numbers within the volume. Where the volume is read whole, the box is the whole volume."""

    def read(self, z: slice = slice(None), y: slice = slice(None), x: slice = slice(None)) -> Array:
        """The voxels of a box, (z, y, x), in the dtype of the file; bounds as in numpy, step 1.

        Raises:
            SelmaError: a part of the file cannot be read, or it cannot be read in part and is too large for the memory; the message names it.
            ValueError: a step other than 1.
        """
        box = []
        for axis, (bounds, length) in enumerate(zip((z, y, x), self.shape, strict=True)):
            start, stop, step = bounds.indices(length)
            if step != 1:
                raise ValueError(f"axis {axis}: a box is read with step 1, not {step}")
            box.append(slice(start, max(start, stop)))
        if not self.read_whole or 0 in (bounds.stop - bounds.start for bounds in box):
            return self._read(*box)
        if self._whole is None:
            self._check_memory()
            z, y, x = (slice(0, length) for length in self.shape)
            self._whole = self._read(z, y, x)
        return self._whole[tuple(box)].copy()

    def _check_memory(self) -> None:
        """Raise `SelmaError` if the whole volume is too large for the memory."""
        taken, memory = prod(self.shape) * self.dtype.itemsize, usable_memory()
        if taken > _MOST_OF_MEMORY * memory:
            raise SelmaError(
                f"{self.path}: files of this kind cannot be read in part, and it is too large to be read whole ({taken / 1e9:.1f} GB; the memory "
                f"is {memory / 1e9:.1f} GB); save it as OME-Zarr, TIFF slices or NIfTI, or give more memory"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_whole": None}


def origin_in_voxels(affine: NDArray[np.float64]) -> SpacingUm:
    """Place of the first voxel along the axes of the array (z, y, x), in voxels, for a matrix from the index (x, y, z) to a place."""
    x, y, z = np.linalg.solve(affine[:3, :3], affine[:3, 3]).tolist()
    return z, y, x


def stem(path: Path) -> str:
    """The name of a file, OME-Zarr or N5 without its ending, `.nii.gz` and `.ome.zarr.zip` being one ending; of other folders the whole name."""
    if path.is_dir() and path.suffix.lower() not in (".zarr", ".n5"):
        return path.name
    return _ENDING.sub("", path.name)


def by_times(shape: Iterable[object]) -> str:
    """A shape for a sentence: 3 × 4 × 5."""
    return " × ".join(map(str, shape))


def three_axes(shape_xyz: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """The three axes of an image that remain when axes of length 1 are dropped, the last first.

    Raises:
        SelmaError: the image in the file has another number of axes.
    """
    spare = [axis for axis in reversed(range(len(shape_xyz))) if shape_xyz[axis] == 1]
    dropped = set(spare[: max(0, len(shape_xyz) - 3)])
    axes = [axis for axis in range(len(shape_xyz)) if axis not in dropped]
    if len(axes) != 3:
        raise SelmaError(
            f"{path}: has the shape {by_times(shape_xyz)} (x, y, z, …); one three-dimensional image is needed"
        )
    return axes[0], axes[1], axes[2]


def check_exists(path: Path) -> None:
    """Raise `SelmaError` if there is no such file or folder, or if the path is an address such as `https://…` or `s3://…`."""
    if path.exists():
        return
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise SelmaError(
            f"{path}: addresses are not read; download the data, or mount them as a folder, and give that path"
        )
    raise SelmaError(f"{path}: there is no such file or folder")


def damaged_file(path: Path) -> SelmaError:
    """The error for a file whose header cannot be read."""
    return SelmaError(f"{path}: cannot be read, the file is damaged or no image; copy or download it again")


def cut_short(path: Path) -> SelmaError:
    """The error for a file whose voxels cannot be read to their end."""
    return SelmaError(f"{path}: cannot be read to its end, the file is cut short or damaged; copy it again")


def to_intensities(image: Array, name: str) -> Array:
    """The same values as uint16, or as float32 where uint16 cannot hold them; any shape.

    SELMA3D's intensities are uint16 and reach 65535, whatever type a file stores them in (DELiVR's c-Fos patches are
    float64 that hold integers). Values that are negative floats, fractions or above 65535 stay, as float32.

    Args:
        image: the values as a file stores them.
        name: the file, for the error.

    Raises:
        SelmaError: NaN or infinite values, complex or colour data, or negative integers (16-bit values saved as signed).
    """
    if image.dtype == np.uint16:
        return image
    if image.dtype.kind not in "buif":
        raise SelmaError(f"{name}: holds values of type {image.dtype}, grey values are needed")
    if image.dtype.kind == "f":
        check_finite_voxels(image, name)
        if image.size and (image.min() < 0 or image.max() > 65535 or not (image == np.rint(image)).all()):
            return image.astype(np.float32)
    elif image.size and image.dtype.kind == "i" and image.min() < 0:
        raise SelmaError(
            f"{name}: holds negative grey values (lowest {image.min()}); unsigned 16-bit data were probably saved as signed. "
            "Save the image again as unsigned 16 bit"
        )
    elif image.size and image.max() > 65535:
        return image.astype(np.float32)
    return image.astype(np.uint16)


def check_finite_voxels(values: Array, name: str) -> None:
    """Raise `SelmaError`, which names the file, if intensities or their means hold NaN or infinite values."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise SelmaError(
            f"{name}: holds NaN or infinite values; replace them (the background's value will do) and try again"
        )
