"""nnU-Net's resampling, of one box at a time: the same voxels as its `resample_data_or_seg` gives for the whole volume.

Every voxel of the result is a spline through its neighbours. A box of it needs the voxels it lies between and, for splines of order 2 and
more, a halo: their coefficients come from a recursive filter, whose answer to a voxel fades to a quarter with each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, spline_filter

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.prediction.tiling import lengths
from nnunet_selma.volumes.base import Array, ShapeZYX

_HALO = 24
"""Voxels; 0.27 to the power of 24 is 1e-14."""
_EDGE = 12
"""Voxels that scipy repeats at the border of a volume before it filters."""


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """From one grid of voxels to another that covers the same volume; axes are nnU-Net's."""

    before: ShapeZYX
    after: ShapeZYX
    order: int
    """Order of the spline."""
    across: int | None = None
    """Axis of anisotropy: splines within planes, nearest neighbour along this axis. None: isotropic."""

    @property
    def changes(self) -> bool:
        """True if the grids differ."""
        return self.before != self.after

    @property
    def _planes_change(self) -> bool:
        """True if planes across the thick axis are resampled themselves."""
        return any(
            a != b for axis, (a, b) in enumerate(zip(self.before, self.after, strict=True)) if axis != self.across
        )

    def needed(self, box: Box) -> Box:
        """Box of the grid before that is needed for a box of the grid after; bounds are voxels."""
        if not self.changes:
            return box
        z, y, x = (self._needed_along(axis, bounds) for axis, bounds in enumerate(box))
        return z, y, x

    def reached(self, box: Box) -> Box:
        """Voxels of the grid after that may depend on a box of the grid before, splines' far tails left out; a little more, never less."""
        if not self.changes:
            return box
        scales = [before / after for before, after in zip(self.before, self.after, strict=True)]
        z, y, x = (
            slice(max(0, int((b.start - 1) // scale) - 1), min(length, int(-(-(b.stop + 1) // scale)) + 1))
            for b, scale, length in zip(box, scales, self.after, strict=True)
        )
        return z, y, x

    def _needed_along(self, axis: int, bounds: slice) -> slice:
        if axis == self.across:
            planes = self._planes(bounds)
            return slice(int(planes.min()), int(planes.max()) + 1)
        if self.across is not None and not self._planes_change:
            return bounds
        halo = _HALO if self.order > 1 else 1
        scale, length = self.before[axis] / self.after[axis], self.before[axis]
        low, high = ((index + 0.5) * scale - 0.5 for index in (bounds.start, bounds.stop - 1))
        return slice(max(0, int(np.floor(low)) - halo), min(length, int(np.ceil(high)) + halo + 1))

    def _planes(self, bounds: slice) -> NDArray[np.int64]:
        """The plane of the grid before that each plane of a box shows."""
        assert self.across is not None
        length = self.before[self.across]
        places = (np.arange(bounds.start, bounds.stop) + 0.5) * (length / self.after[self.across]) - 0.5
        planes = map_coordinates(np.arange(length, dtype=float), places[None], order=0, mode="nearest")
        return np.asarray(planes, np.int64)

    def apply(self, voxels: Array, box: Box, limits: "Limits | None" = None) -> Array:
        """A box of the grid after, (c, z, y, x), in the dtype of what is given.

        Args:
            voxels: the box `needed(box)` of the grid before, (c, z, y, x).
            box: of the grid after.
            limits: lowest and highest value of the whole volume, which splines of order 2 and more are cut off at.
        """
        if not self.changes:
            return voxels
        source = self.needed(box)
        result = np.empty((len(voxels), *lengths(box)), voxels.dtype)
        for channel, one in enumerate(voxels):
            low_high = limits.of(channel) if limits and self.order > 1 else None
            if self.across is None:
                result[channel] = self._spline(one, source, box, (0, 1, 2), low_high)
            else:
                self._planes_apart(one, source, box, low_high, result[channel])
        return result

    def _planes_apart(
        self, voxels: Array, source: Box, box: Box, limits: "tuple[Array, Array] | None", result: Array
    ) -> None:
        """Fill a box of the grid after, plane by plane of the grid before."""
        across = self.across
        assert across is not None
        axes = tuple(axis for axis in range(3) if axis != across)
        first = source[across].start
        shown, planes = self._planes(box[across]) - first, np.moveaxis(result, across, 0)
        for index in np.unique(shown):
            plane = voxels.take(index, across)
            if self._planes_change:
                plane = self._spline(
                    plane,
                    tuple(source[axis] for axis in axes),
                    tuple(box[axis] for axis in axes),
                    axes,
                    None if limits is None else (limits[0][first + index], limits[1][first + index]),
                )
            planes[shown == index] = plane

    def _spline(
        self, voxels: Array, source: Sequence[slice], box: Sequence[slice], axes: Sequence[int], limits: Any
    ) -> NDArray[np.float64]:
        """Values at the places of a box, along the given axes of the volume."""
        values = voxels.astype(np.float64)
        scale = np.array([self.before[axis] / self.after[axis] for axis in axes])
        start = np.array([bounds.start for bounds in source], float)
        if self.order > 1:
            edges = [
                (_EDGE * (bounds.start == 0), _EDGE * (bounds.stop == self.before[axis]))
                for axis, bounds in zip(axes, source, strict=True)
            ]
            values = spline_filter(np.pad(values, edges, mode="edge"), self.order, output=np.float64, mode="nearest")
            start -= [before for before, _ in edges]
        # places are computed as scipy's zoom does, to the last bit: an interpolated half-precision logit is often a tie
        places = [
            (np.arange(bounds.start, bounds.stop) + 0.5) * step - 0.5 - begin
            for bounds, step, begin in zip(box, scale, start, strict=True)
        ]
        result = np.empty([len(one) for one in places])
        for index in range(len(places[0])):  # plane by plane, because places take more memory than values
            grid = np.meshgrid(places[0][index : index + 1], *places[1:], indexing="ij")
            map_coordinates(values, grid, result[index : index + 1], order=self.order, mode="nearest", prefilter=False)
        if limits is not None:
            result.clip(*limits, out=result)
        return result


@dataclass(frozen=True)
class Limits:
    """Lowest and highest value, (c, 1), or of each plane across the thick axis, (c, plane)."""

    low: Array
    high: Array

    def of(self, channel: int) -> tuple[Array, Array]:
        """Lowest and highest values of one channel."""
        return self.low[channel], self.high[channel]


def configured_resampling(
    settings: dict[str, Any],
    which: str,
    before: ShapeZYX,
    after: ShapeZYX,
    spacing: Sequence[float],
    target: Sequence[float],
) -> Resampling:
    """Resampling that a configuration of the plans does between two grids.

    Args:
        settings: the configuration, as in plans.json.
        which: "data" or "probabilities".
        before: shape of the one grid, nnU-Net's axes.
        after: shape of the other.
        spacing: of the one, the unit of the plans.
        target: of the other.

    Raises:
        SelmaError: the plans resample by another function than nnU-Net's default, and there is something to resample.
    """
    from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

    function, options = settings[f"resampling_fn_{which}"], settings[f"resampling_fn_{which}_kwargs"]
    across = None
    if before != after:
        smooth = which == "probabilities" and options.get("order", 3) > 1
        if function != "resample_data_or_seg_to_shape" or options.get("order_z", 0) or options.get("is_seg") or smooth:
            raise SelmaError(
                f"the plans resample {which} with {function} ({options}), which cannot be done block by block; predict a volume whose voxel "
                "size is that of the plans, or plan with nnU-Net's default resampling"
            )
        apart, across = determine_do_sep_z_and_axis(options.get("force_separate_z", False), spacing, target)
        across = int(across) if apart and across is not None else None
    return Resampling(before=before, after=after, order=options.get("order", 3), across=across)
