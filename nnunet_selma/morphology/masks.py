"""A mask drawn on a volume, at any resolution: which voxels of the volume it marks.

A run keeps a copy of one bit for each voxel of the mask, so that a process anywhere reads the part that a block needs. Memory: that part, and
one truth value for each grid box of the volume.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box, Mask
from nnunet_selma.morphology.tissue import TissueGrid, grid_box, grid_shape
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import ShapeZYX, Volume
from nnunet_selma.volumes.orientation import IN_PLACE, Affine, field_turn

_READ_BYTES = 2**27
"""Bytes of the mask that are read together, or a single slice where that is larger."""
_BITS, _BOXES = "mask.npy", "mask_boxes.npz"


def store_mask(
    mask: Volume, folder: Path, shape: ShapeZYX, spacing_um_zyx: SpacingUm | None, affine: Affine | None = None
) -> None:
    """Copy a mask, `> 0`, into a folder, from which `StoredMask.open` reads it.

    Args:
        mask: the mask.
        folder: where two files are written.
        shape: shape of the volume, voxels (z, y, x).
        spacing_um_zyx: voxel size of the volume, µm; None where it is not known.
        affine: place of the volume, as `Volume.affine`. A mask that lies there with some axes reversed is stored as the volume lies.

    Raises:
        SelmaError: the mask does not cover the same field of view, has its axes in another order or in directions that no reversal explains,
            or marks nothing.
    """
    _check_field(mask, shape, spacing_um_zyx)
    flips = _flips(mask, shape, affine)
    reversed_axes = [axis for axis, flip in enumerate(flips) if flip]
    depth, height, width = mask.shape
    bits = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        folder / _BITS, "w+", np.uint8, (depth, height, -(-width // 8))
    )
    step = max(1, _READ_BYTES // (height * width * mask.dtype.itemsize))
    for z in range(0, depth, step):
        part = np.packbits(np.flip(mask.read(slice(z, z + step)) > 0, reversed_axes), axis=2)
        start = depth - z - len(part) if flips[0] else z
        bits[start : start + len(part)] = part
    bits.flush()
    boxes = _marked_boxes(bits, mask.shape, shape)
    if not boxes.any():
        raise SelmaError(
            f"{mask.path}: marks no voxel of the volume, so that nothing would be predicted; give a mask that is above 0 in the part to predict"
        )
    np.savez_compressed(folder / _BOXES, boxes=boxes, mask_shape=np.array(mask.shape))


def _check_field(mask: Volume, shape: ShapeZYX, spacing_um_zyx: SpacingUm | None) -> None:
    """Raise `SelmaError` if a mask does not have the proportions of the volume."""
    scales = [length / whole for length, whole in zip(mask.shape, shape, strict=True)]
    if spacing_um_zyx is not None and mask.spacing_um_zyx is not None:
        # how many times as long as the volume the mask is
        ratios = [s * size / whole for s, size, whole in zip(scales, mask.spacing_um_zyx, spacing_um_zyx, strict=True)]
        same = all(0.9 < ratio < 1.1 for ratio in ratios)
    else:  # slices are often thicker in one of them; y and x are alike
        same = 2 / 3 < scales[1] / scales[2] < 1.5
    if same:
        return
    turned = sorted(mask.shape) == sorted(shape) and mask.shape != shape
    raise SelmaError(
        f"{mask.path}: has {mask.shape} voxels and the volume {shape} (z, y, x): they do not cover the same field of view; "
        + (
            "the lengths are equal in another order: turn the axes of the mask to those of the volume"
            if turned
            else "give a mask drawn on this volume, at any resolution"
        )
    )


def _flips(mask: Volume, shape: ShapeZYX, affine: Affine | None) -> tuple[bool, bool, bool]:
    """For each axis (z, y, x), True if the headers say that it runs against that of the volume; raises `SelmaError` if they need more than that."""
    if mask.affine is None or affine is None:
        return IN_PLACE.flips
    turn = field_turn(mask.affine, mask.shape, affine, shape)
    if turn is None or turn.axes != IN_PLACE.axes:
        raise SelmaError(
            f"{mask.path}: its header gives its axes other directions than those of the volume, "
            + ("and another place" if turn is None else "in another order")
            + "; give the mask with axes, directions and origin of the volume, or as TIFF, which states none and is taken as it lies"
        )
    return turn.flips


@dataclass(frozen=True, kw_only=True)
class StoredMask(TissueGrid):
    """The voxels of a volume that a mask marks; `boxes` are the grid boxes that hold some of them."""

    bits: Path
    """File of the mask `> 0`, one bit a voxel, (z, y, eighths of x)."""
    mask_shape: ShapeZYX
    """Shape of the mask, voxels (z, y, x)."""
    shape: ShapeZYX
    """Shape of the volume, voxels (z, y, x)."""

    @staticmethod
    def open(folder: Path, shape: ShapeZYX) -> "StoredMask | None":
        """The mask that `store_mask` has written into a folder, for a volume of this shape; None if there is none."""
        if not (folder / _BOXES).is_file():
            return None
        with np.load(folder / _BOXES) as stored:
            z, y, x = (int(length) for length in stored["mask_shape"])
            boxes = stored["boxes"]
        return StoredMask(boxes=boxes, box=grid_box(shape), bits=folder / _BITS, mask_shape=(z, y, x), shape=shape)

    def mask(self, box: Box) -> Mask:
        """True for each voxel of a box (z, y, x) of the volume whose centre lies in a marked voxel of the mask."""
        places = [_nearest(bounds, *lengths) for bounds, *lengths in zip(box, self.mask_shape, self.shape, strict=True)]
        if min(map(len, places)) == 0:
            return np.zeros([len(along) for along in places], np.bool_)
        starts, stops = [int(along[0]) for along in places], [int(along[-1]) + 1 for along in places]
        first = starts[2] // 8
        bits = np.load(self.bits, mmap_mode="r")[starts[0] : stops[0], starts[1] : stops[1], first : -(-stops[2] // 8)]
        part = np.unpackbits(bits, axis=2).view(np.bool_)
        for axis, (along, start) in enumerate(zip(places, (starts[0], starts[1], 8 * first), strict=True)):
            part = part.take(along - start, axis)
        return part


def _nearest(bounds: slice, length: int, whole: int) -> NDArray[np.intp]:
    """Along one axis: the voxel of the mask in which the centre of each voxel of the volume lies.

    Args:
        bounds: voxels of the volume.
        length: voxels of the mask along the axis.
        whole: voxels of the volume along the axis.
    """
    return (2 * np.arange(bounds.start, bounds.stop) + 1) * length // (2 * whole)


def _marked_boxes(bits: NDArray[np.uint8], mask_shape: ShapeZYX, shape: ShapeZYX) -> Mask:
    """Grid boxes of a volume (z, y, x) with a voxel that the mask marks; each slice of the mask is read once or twice."""
    starts = [np.arange(0, length, edge) for length, edge in zip(shape, grid_box(shape), strict=True)]
    z, y, x = (_nearest(slice(0, whole), length, whole) for length, whole in zip(mask_shape, shape, strict=True))
    boxes = np.zeros(grid_shape(shape), np.bool_)
    for layer, planes in zip(boxes, np.split(z, starts[0][1:]), strict=True):
        face = np.zeros(bits.shape[1:], np.uint8)
        for plane in np.unique(planes):
            face |= bits[plane]
        rows = np.logical_or.reduceat(np.unpackbits(face, axis=1)[y], starts[1], axis=0)
        layer[...] = np.logical_or.reduceat(rows[:, x], starts[2], axis=1)
    return boxes
