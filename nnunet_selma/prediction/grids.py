"""The voxel grid of a volume, the grid that the network sees, and the voxels and tiles that predicting a box takes. Arithmetic only.

A volume has axes (z, y, x). nnU-Net permutes them (`transpose_forward`), crops to the voxels that are not 0, resamples to the spacing of the
plans, and slides its window over the result; the way back is the reverse. "Network axes" are the permuted ones, counted from the crop.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.nnunet.voxel_sizes import ORIGINAL, in_unit, unit_of
from nnunet_selma.prediction.resampling import Resampling, configured_resampling
from nnunet_selma.prediction.tiling import Tiling, hull, intersection, lengths
from nnunet_selma.volumes.base import Array, ShapeZYX
from nnunet_selma.volumes.units import VOXEL_UNITS

SpacingZYX = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class BoxWork:
    """Tiles and voxels that predicting one box takes."""

    tiles: list[Box]
    """Tiles in nnU-Net's order; network axes, resampled."""
    around: Box
    """Smallest box around all tiles; it exceeds the volume where nnU-Net pads with zeros."""
    image: Box
    """Part of `around` within the volume."""
    logits: Box
    """Box of logits that is needed; network axes, resampled."""
    result: Box
    """The box itself; network axes, before resampling."""
    source: Box
    """Voxels of the volume that are read, (z, y, x)."""


@dataclass(frozen=True, kw_only=True)
class Grids:
    """The grid of a volume and that of the network."""

    transpose: tuple[int, int, int]
    """Axis of the volume that becomes each network axis."""
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

    def work(self, box: Box, to_predict: Callable[[Box], bool] = lambda _: True) -> BoxWork | None:
        """Tiles and voxels that predicting a box takes; None if no voxel of it is to be predicted.

        Args:
            box: box of the volume (z, y, x), within the crop.
            to_predict: True if some voxel of a box (z, y, x) is to be predicted. Tiles without such voxels are left out.
        """
        result = self._to_network(box)
        logits = self.backward.needed(result)

        def is_needed(tile: Box) -> bool:
            reached = self.backward.reached(intersection(tile, logits))
            return to_predict(self._to_volume(intersection(reached, result)))

        tiles = [tile for tile in self.tiling.touching(logits) if is_needed(tile)]
        if not tiles:
            return None
        around = hull(tiles)
        z, y, x = (slice(0, length) for length in self.tiling.shape)
        image = intersection(around, (z, y, x))
        source = self._to_volume(self.forward.needed(image))
        return BoxWork(tiles=tiles, around=around, image=image, logits=logits, result=result, source=source)

    def _to_network(self, box: Box) -> Box:
        """A box of the volume with network axes."""
        z, y, x = (
            slice(box[axis].start - self.crop[axis].start, box[axis].stop - self.crop[axis].start)
            for axis in self.transpose
        )
        return z, y, x

    def _to_volume(self, box: Box) -> Box:
        """A box with network axes as a box of the volume."""
        z, y, x = (
            slice(bounds.start + first.start, bounds.stop + first.start)
            for bounds, first in zip((box[self.transpose.index(axis)] for axis in range(3)), self.crop, strict=True)
        )
        return z, y, x

    def array_to_network(self, voxels: Array) -> Array:
        """An array (c, z, y, x) with network axes."""
        return voxels.transpose(0, *(axis + 1 for axis in self.transpose))

    def array_to_volume(self, voxels: Array) -> Array:
        """An array with network axes as (…, z, y, x)."""
        lead = voxels.ndim - 3
        return voxels.transpose(*range(lead), *(int(axis) + lead for axis in np.argsort(self.transpose)))


def trained_in_voxels(plans: dict[str, Any]) -> bool:
    """True if the training images of the plans had no voxel size: 1, 1, 1."""
    return unit_of(plans[ORIGINAL]) == "voxel"


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
    crop: Box,
    spacing_zyx: SpacingZYX,
    tile: ShapeZYX,
    step: float,
) -> Grids:
    """The grids of a volume under a configuration of plans.

    Args:
        configuration: as in plans.json.
        transpose: `transpose_forward` of the plans.
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
        crop=crop,
        forward=configured_resampling(configuration, "data", before, after, spacing, target),
        backward=configured_resampling(configuration, "probabilities", after, before, target, spacing),
        tiling=Tiling(shape=after, tile=tile, step=step),
    )


def _shape(edges: Iterable[int]) -> ShapeZYX:
    z, y, x = map(int, edges)
    return z, y, x
