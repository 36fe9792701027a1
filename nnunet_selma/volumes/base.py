"""Interface of every volume, and the intensities that the project works with."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError

Array = NDArray[Any]
ShapeZYX = tuple[int, int, int]


class Volume(ABC):
    """A three-dimensional grey-value image that is read piece by piece; axes are (z, y, x)."""

    path: Path
    shape: ShapeZYX
    dtype: np.dtype[Any]
    spacing_um_zyx: tuple[float, float, float] | None
    """Voxel size in µm; None where the file does not say (a spacing of 1, 1, 1 says nothing)."""

    plane_wise: bool = True
    """True if whole slices, in order, are the cheap way to read it; False if boxes are (chunks, memory maps)."""

    slices_apart: bool = False
    """True if each slice is its own file, so that single slices are cheap to read; otherwise each read starts from the front."""

    chunk_zyx: ShapeZYX | None = None
    """Shape of the chunks that are read whole, voxels; None for slices and memory maps."""

    read_whole: bool = False
    """True if reading any part takes memory for all of it."""

    @property
    def repaired(self) -> tuple[str, ...]:
        """Slices that were missing or unreadable and stand interpolated; always empty unless that was asked for."""
        return ()

    @abstractmethod
    def _read(self, z: slice, y: slice, x: slice) -> Array:
        """The box between plain, in-range bounds."""

    def read(self, z: slice = slice(None), y: slice = slice(None), x: slice = slice(None)) -> Array:
        """The voxels of a box, (z, y, x), in the dtype of the file; bounds as in numpy, step 1.

        Raises:
            SelmaError: a part of the file cannot be read; the message names it.
        """
        box = []
        for axis, (bounds, length) in enumerate(zip((z, y, x), self.shape, strict=True)):
            start, stop, step = bounds.indices(length)
            if step != 1:
                raise ValueError(f"axis {axis}: a box is read with step 1, not {step}")
            box.append(slice(start, max(start, stop)))
        return self._read(*box)


def stem(path: Path) -> str:
    """The name of a file without its ending, `.nii.gz` being one ending; an OME-Zarr has one too, other folders have none."""
    if path.is_dir() and path.suffix != ".zarr":
        return path.name
    return re.sub(r"(\.ome)?\.[A-Za-z]+(\.gz)?$", "", path.name)


def three_axes(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """The axes that remain after axes of length 1 were dropped from the far end first; None if they are not three."""
    spare = [axis for axis in reversed(range(len(shape))) if shape[axis] == 1]
    dropped = set(spare[: max(0, len(shape) - 3)])
    axes = [axis for axis in range(len(shape)) if axis not in dropped]
    return (axes[0], axes[1], axes[2]) if len(axes) == 3 else None


def to_intensities(image: Array, name: str) -> Array:
    """The same values as uint16, or as float32 where uint16 cannot hold them.

    SELMA3D's intensities are uint16 and reach 65535, whatever type a file stores them in (DELiVR's c-Fos patches are
    float64 that hold integers). Values that are negative floats, no integers or above 65535 stay, as float32.

    Raises:
        SelmaError: NaN or infinite values, complex or colour data, or negative integers (16-bit values saved as signed).
    """
    if image.dtype == np.uint16:
        return image
    if image.dtype.kind not in "buif":
        raise SelmaError(f"{name}: holds values of type {image.dtype}, grey values are needed")
    if image.dtype.kind == "f":
        if not np.isfinite(image).all():
            raise SelmaError(
                f"{name}: holds NaN or infinite values; replace them (the background's value will do) and try again"
            )
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
