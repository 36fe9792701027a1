"""The voxel grid of a volume, the grid that the network sees, and the voxels and tiles that predicting a box takes. Arithmetic only.

A volume has axes (z, y, x). nnU-Net permutes them (`transpose_forward`), crops to the voxels that are not 0, resamples to the spacing of the
plans, and slides its window over the result; the way back is the reverse. "Network axes" are the permuted ones, counted from the crop.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.nnunet.voxel_sizes import ORIGINAL, in_unit, unit_of
from nnunet_selma.prediction.resampling import Resampling, configured_resampling
from nnunet_selma.prediction.tiling import Tiling, hull, intersection, lengths
from nnunet_selma.volumes.base import Array, ShapeZYX
from nnunet_selma.volumes.units import VOXEL_UNITS

SpacingZYX = tuple[float, float, float]

REORIENTING_READER = "NibabelIOWithReorient"
"""nnU-Net's reader that turns images to RAS+."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Tiles that begin at the same place along the first network axis, the slowest one in nnU-Net's order."""

    planes: slice
    """Bounds of the tiles along the first network axis, resampled; they may exceed the volume."""
    tiles: tuple[Box, ...]
    """The tiles in nnU-Net's order; network axes, resampled."""


@dataclass(frozen=True, kw_only=True)
class BlockWork:
    """Tiles and boxes that predicting one block of a column takes; boxes have network axes."""

    layers: tuple[Layer, ...]
    """Layers that reach into the block, in nnU-Net's order."""
    logits: Box
    """Box of logits that is needed, resampled."""
    result: Box
    """The block itself, before resampling."""

    def after(self, done: int | None) -> tuple[Layer, ...]:
        """The layers that begin behind a plane, the first plane of the last layer whose sums are there already; None: all layers."""
        return self.layers if done is None else tuple(layer for layer in self.layers if layer.planes.start > done)


@dataclass(frozen=True, kw_only=True)
class Column:
    """The tiles of blocks that lie one behind the other along the first network axis.

    nnU-Net's tiles advance along that axis most slowly. Block by block along it each tile is computed once, and the sums of every voxel are
    added up in nnU-Net's order.
    """

    layers: tuple[Layer, ...]
    """All layers of the column in which something is to be predicted."""
    across: tuple[slice, slice]
    """Bounds of all tiles along the second and third network axis, resampled; they may exceed the volume."""


@dataclass(frozen=True, kw_only=True)
class Grids:
    """The grid of a volume and that of the network."""

    transpose: tuple[int, int, int]
    """Axis of the volume that becomes each network axis."""
    flips: tuple[bool, bool, bool]
    """True for each axis of the volume, (z, y, x), along which the network's grid runs the other way."""
    crop: Box
    """Box of the volume that nnU-Net keeps after cropping, (z, y, x)."""
    forward: Resampling
    """Resampling of the image to the network's grid."""
    backward: Resampling
    """Resampling of logits to the grid of the volume."""
    tiling: Tiling
    """Tiles on the network's grid."""

    @property
    def scale(self) -> tuple[float, float, float]:
        """Voxels of the network's grid for one of the volume, along each axis of the volume."""
        z, y, x = (self.forward.after[axis] / self.forward.before[axis] for axis in map(self.transpose.index, range(3)))
        return z, y, x

    def column(self, box: Box, to_predict: Callable[[Box], bool] = lambda _: True) -> Column | None:
        """The tiles of a column of blocks; None if no voxel of it is to be predicted.

        Args:
            box: the blocks of the column together, within the crop, (z, y, x).
            to_predict: True if some voxel of a box (z, y, x) is to be predicted. Tiles without such voxels are left out.
        """
        result = self.to_network(box)
        logits = self.backward.needed(result)

        def is_needed(tile: Box) -> bool:
            reached = self.backward.reached(intersection(tile, logits))
            return to_predict(self.to_volume(intersection(reached, result)))

        tiles = [tile for tile in self.tiling.touching(logits) if is_needed(tile)]
        if not tiles:
            return None
        _, y, x = hull(tiles)
        planes = dict.fromkeys((tile[0].start, tile[0].stop) for tile in tiles)
        layers = (
            Layer(planes=slice(*ends), tiles=tuple(tile for tile in tiles if tile[0].start == ends[0]))
            for ends in planes
        )
        return Column(layers=tuple(layers), across=(y, x))

    def work(self, column: Column, box: Box) -> BlockWork | None:
        """Tiles and boxes of a block (z, y, x) of a column, within the crop; None if no tile of the column reaches into it."""
        result = self.to_network(box)
        logits = self.backward.needed(result)
        layers = tuple(
            layer
            for layer in column.layers
            if layer.planes.start < logits[0].stop and layer.planes.stop > logits[0].start
        )
        return BlockWork(layers=layers, logits=logits, result=result) if layers else None

    def image_box(self, column: Column, planes: slice) -> Box:
        """Box of the image that planes of a column cover, network axes, resampled: what exceeds the volume is padded with zeros."""
        z, y, x = (slice(0, length) for length in self.tiling.shape)
        return intersection((planes, *column.across), (z, y, x))

    def source(self, image: Box) -> Box:
        """Voxels of the volume, (z, y, x), from which a box of the image is computed."""
        return self.to_volume(self.forward.needed(image))

    def to_network(self, box: Box) -> Box:
        """A box of the volume with network axes."""
        z, y, x = (self._moved(box[axis], axis, -1) for axis in self.transpose)
        return z, y, x

    def to_volume(self, box: Box) -> Box:
        """A box with network axes as a box of the volume."""
        z, y, x = (self._moved(box[self.transpose.index(axis)], axis, 1) for axis in range(3))
        return z, y, x

    def _moved(self, bounds: slice, axis: int, sign: int) -> slice:
        """Bounds along an axis of the volume, counted from the crop (sign -1) or from the volume (1), from its other end if it is flipped."""
        crop = self.crop[axis]
        if self.flips[axis]:
            last = crop.stop
            return slice(last - bounds.stop, last - bounds.start)
        return slice(bounds.start + sign * crop.start, bounds.stop + sign * crop.start)

    def array_to_network(self, voxels: Array) -> Array:
        """An array (c, z, y, x) with network axes."""
        flipped = np.flip(voxels, [axis + 1 for axis in range(3) if self.flips[axis]])
        return flipped.transpose(0, *(axis + 1 for axis in self.transpose))

    def array_to_volume(self, voxels: Array) -> Array:
        """An array with network axes as (…, z, y, x)."""
        lead = voxels.ndim - 3
        turned = voxels.transpose(*range(lead), *(int(axis) + lead for axis in np.argsort(self.transpose)))
        return np.flip(turned, [axis + lead for axis in range(3) if self.flips[axis]])


def trained_in_voxels(plans: dict[str, Any]) -> bool:
    """True if the training images of the plans had no voxel size: 1, 1, 1."""
    return unit_of(plans[ORIGINAL]) == "voxel"


def network_axes(
    plans: dict[str, Any], affine: NDArray[np.float64] | None
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Axis of the volume that becomes each network axis, and True for each axis of the volume (z, y, x) that runs the other way.

    nnU-Net's reader NibabelIOWithReorient turns an image to RAS+ before the plans permute its axes; without an affine it is taken as it lies.

    Args:
        plans: content of plans.json.
        affine: matrix (4, 4) of the volume, from the index (x, y, z) to RAS+; None where it has none.
    """
    z, y, x = plans["transpose_forward"]
    if affine is None or plans.get("image_reader_writer") != REORIENTING_READER:
        return (z, y, x), (False, False, False)
    orientation = io_orientation(affine)  # for each axis x, y, z of the volume: the axis of RAS+, and 1 or -1
    source = [2 - int(np.flatnonzero(orientation[:, 0] == 2 - axis)[0]) for axis in range(3)]
    flip_x, flip_y, flip_z = (bool(sign < 0) for sign in orientation[:, 1])
    return (source[z], source[y], source[x]), (flip_z, flip_y, flip_x)


def spacing_in_plans(spacing_um_zyx: SpacingZYX | None, plans: dict[str, Any]) -> SpacingZYX:
    """Voxel size of a volume (z, y, x) in the unit of the plans; 1, 1, 1 for a model that was trained in voxels.

    Raises:
        SelmaError: the model was trained in µm or mm, and the voxel size of the volume is not known.
    """
    if trained_in_voxels(plans):
        return VOXEL_UNITS
    if spacing_um_zyx is None:
        raise SelmaError(
            "the volume does not say its voxel size, and the model was trained with one; give it with --spacing Z,Y,X in µm"
        )
    return in_unit(spacing_um_zyx, unit_of(plans[ORIGINAL]))


def make_grids(
    configuration: dict[str, Any],
    transpose: tuple[int, int, int],
    flips: tuple[bool, bool, bool],
    crop: Box,
    spacing_zyx: SpacingZYX,
    tile: ShapeZYX,
    step: float,
) -> Grids:
    """The grids of a volume under a configuration of plans.

    Args:
        configuration: as in plans.json.
        transpose: axis of the volume that becomes each network axis.
        flips: True for each axis of the volume (z, y, x) along which the network's grid runs the other way.
        crop: crop of the volume, (z, y, x).
        spacing_zyx: voxel size of the volume, in the unit of the plans.
        tile: the patch, network axes.
        step: step of the sliding window, in patches.

    Raises:
        SelmaError: the volume has to be resampled in a way that cannot be done block by block.
    """
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    spacing = [spacing_zyx[axis] for axis in transpose]
    target: Sequence[float] = configuration["spacing"]
    target = [spacing[0], *target] if len(target) == 2 else target
    before = _shape(lengths(crop)[axis] for axis in transpose)
    after = _shape(compute_new_shape(before, spacing, target))
    if min(after) < 1:
        raise SelmaError(
            f"the volume has {before} voxels of {tuple(spacing)}, less than one of the model's {tuple(target)}; check the voxel size (--spacing)"
        )
    return Grids(
        transpose=transpose,
        flips=flips,
        crop=crop,
        forward=configured_resampling(configuration, "data", before, after, spacing, target),
        backward=configured_resampling(configuration, "probabilities", after, before, target, spacing),
        tiling=Tiling(shape=after, tile=tile, step=step),
    )


def _shape(edges: Iterable[int]) -> ShapeZYX:
    z, y, x = map(int, edges)
    return z, y, x
