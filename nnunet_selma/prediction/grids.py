"""How the voxels of a volume and those that the network sees lie to each other, and what predicting a box takes. Numbers only.

A volume has axes (z, y, x). nnU-Net turns them (`transpose_forward`), crops to the voxels that are not 0, resamples to the spacing of the
plans, and slides its window over that; the way back is the reverse. "Network axes" are the turned ones, counted from the crop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.prediction.resampling import Resampling, configured_resampling
from nnunet_selma.prediction.tiling import Tiling, common, hull
from nnunet_selma.volumes.base import Array, ShapeZYX
from nnunet_selma.volumes.units import VOXEL_UNITS, um_in_header_unit

SpacingZYX = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class BoxWork:
    """Boxes and tiles that predicting one box takes."""

    tiles: list[Box]
    """In nnU-Net's order; network axes, resampled."""
    around: Box
    """All tiles; may reach out of the volume, where nnU-Net pads with zeros."""
    image: Box
    """Part of the image that lies in the volume."""
    logits: Box
    """Box of logits that is needed."""
    result: Box
    """The box itself, within the crop; network axes, as they were before resampling."""
    source: Box
    """Voxels of the volume to read, (z, y, x)."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The two grids of one volume and model."""

    transpose: tuple[int, int, int]
    """Axis of the volume that becomes each network axis."""
    crop: Box
    """Box of the volume that nnU-Net keeps after cropping, (z, y, x)."""
    forward: Resampling
    backward: Resampling
    tiling: Tiling

    def work(self, box: Box, wanted: Callable[[Box], bool] = lambda _: True) -> BoxWork | None:
        """Work that predicting a box of the volume (z, y, x) takes; None where nothing is to be predicted.

        Args:
            box: lies within the crop.
            wanted: whether something of a box (z, y, x) is to be predicted; tiles that only reach what is not are left out.
        """
        own = self._turned(box)
        logits = self.backward.needed(own)

        def reaches(tile: Box) -> bool:
            return wanted(self._turned_back(common(self.backward.reached(common(tile, logits)), own)))

        tiles = self.tiling.touching(logits, reaches)
        if not tiles:
            return None
        around = hull(tiles)
        image = common(around, _whole(self.tiling.shape))
        source = self._turned_back(self.forward.needed(image))
        return BoxWork(tiles=tiles, around=around, image=image, logits=logits, result=own, source=source)

    def _turned(self, box: Box) -> Box:
        """Network axes, counted from the crop."""
        z, y, x = (
            slice(box[axis].start - self.crop[axis].start, box[axis].stop - self.crop[axis].start)
            for axis in self.transpose
        )
        return z, y, x

    def _turned_back(self, box: Box) -> Box:
        bounds = [slice(0)] * 3
        for axis, own in zip(self.transpose, box, strict=True):
            bounds[axis] = slice(own.start + self.crop[axis].start, own.stop + self.crop[axis].start)
        return bounds[0], bounds[1], bounds[2]

    def turn(self, voxels: Array) -> Array:
        """An array (c, z, y, x) with network axes."""
        return voxels.transpose(0, *(axis + 1 for axis in self.transpose))

    def turn_back(self, voxels: Array) -> Array:
        """An array with network axes as (…, z, y, x)."""
        lead = voxels.ndim - 3
        back = np.argsort(self.transpose)
        return voxels.transpose(*range(lead), *(int(axis) + lead for axis in back))


def trained_in_voxels(plans: dict[str, Any]) -> bool:
    """True if the images that plans were made from had no voxel size: 1, 1, 1."""
    return um_in_header_unit(plans["original_median_spacing_after_transp"]) is None


def spacing_in_plans(spacing_um_zyx: SpacingZYX | None, plans: dict[str, Any]) -> SpacingZYX:
    """The spacing of a volume, (z, y, x), in the unit of the plans: of a model trained in voxels it is 1.

    Raises:
        SelmaError: the model was trained in µm or mm, and the spacing of the volume is not known.
    """
    unit = um_in_header_unit(plans["original_median_spacing_after_transp"])
    if unit is None:
        return VOXEL_UNITS
    if spacing_um_zyx is None:
        raise SelmaError(
            "the volume does not say its voxel size, and the model was trained with one; give it with --spacing Z,Y,X in µm"
        )
    z, y, x = (size / unit for size in spacing_um_zyx)
    return z, y, x


def geometry(
    configuration: dict[str, Any],
    transpose: tuple[int, int, int],
    crop: Box,
    spacing_zyx: SpacingZYX,
    tile: ShapeZYX,
    step: float,
) -> Geometry:
    """The geometry of a volume under a configuration of plans.

    Args:
        configuration: as in plans.json.
        transpose: `transpose_forward` of the plans.
        crop: of the volume, (z, y, x).
        spacing_zyx: of the volume, in the unit of the plans.
        tile: the patch, network axes.
        step: of the sliding window, in patches.

    Raises:
        SelmaError: the volume has to be resampled in a way that cannot be done block by block.
    """
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    own = [spacing_zyx[axis] for axis in transpose]
    wanted: Sequence[float] = configuration["spacing"]
    wanted = [own[0], *wanted] if len(wanted) == 2 else wanted
    before = _shape(crop[axis].stop - crop[axis].start for axis in transpose)
    after = _shape(compute_new_shape(before, own, wanted))
    if min(after) < 1:
        raise SelmaError(
            f"the volume has {before} voxels of {tuple(own)}, less than one of the model's {tuple(wanted)}; check the voxel size (--spacing)"
        )
    return Geometry(
        transpose=transpose,
        crop=crop,
        forward=configured_resampling(configuration, "data", before, after, own, wanted),
        backward=configured_resampling(configuration, "probabilities", after, before, wanted, own),
        tiling=Tiling(shape=after, tile=tile, step=step),
    )


def _shape(lengths: Any) -> ShapeZYX:
    z, y, x = (int(length) for length in lengths)
    return z, y, x


def _whole(shape: ShapeZYX) -> Box:
    z, y, x = (slice(0, length) for length in shape)
    return z, y, x
