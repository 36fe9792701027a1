"""nnU-Net's resampling of one box at a time, to the same voxels as its `resample_data_or_seg` gives for the whole volume.

Every voxel of the result is a spline through its neighbours. A box of the result needs the voxels around it and, for splines of order 2 and
more, a halo: spline coefficients come from a recursive filter, in which the influence of a voxel fades to a quarter with each step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, spline_filter

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.prediction.tiling import lengths
from nnunet_selma.volumes.base import Array, ShapeZYX

_THRESHOLD = ("separate_z_anisotropy_threshold",)
_OPTIONS = {"is_seg", "order", "order_z", "force_separate_z", *_THRESHOLD}
"""Options of nnU-Net's default resampling."""
_HALO = 24
"""Width of the halo, voxels; 0.27 to the power of 24 is 1e-14."""
_EDGE = 12
"""Voxels that scipy repeats at the border of a volume before it filters."""


@dataclass(frozen=True)
class Limits:
    """Lowest and highest value of each channel (c, 1), or of each channel and plane across the axis of anisotropy (c, plane)."""

    low: Array
    high: Array


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Resampling from one grid of voxels to another that covers the same volume; axes are nnU-Net's."""

    before: ShapeZYX
    """Shape of the volume on the grid that is read."""
    after: ShapeZYX
    """Shape of the volume on the grid that is computed."""
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
        """True if the grids differ within planes."""
        return any(
            a != b for axis, (a, b) in enumerate(zip(self.before, self.after, strict=True)) if axis != self.across
        )

    def needed(self, box: Box) -> Box:
        """Box of the grid before that a box of the grid after is computed from."""
        if not self.changes:
            return box
        z, y, x = (self._needed_along(axis, bounds) for axis, bounds in enumerate(box))
        return z, y, x

    def reached(self, box: Box) -> Box:
        """Box of the grid after whose voxels may depend on a box of the grid before; the far tails of splines are left out.

        The box may be a little too large, and is never too small.
        """
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
            planes = self._nearest_planes(bounds)
            return slice(int(planes.min()), int(planes.max()) + 1)
        if self.across is not None and not self._planes_change:
            return bounds
        halo = _HALO if self.order > 1 else 1
        scale, length = self.before[axis] / self.after[axis], self.before[axis]
        low, high = ((index + 0.5) * scale - 0.5 for index in (bounds.start, bounds.stop - 1))
        return slice(max(0, int(np.floor(low)) - halo), min(length, int(np.ceil(high)) + halo + 1))

    def _nearest_planes(self, bounds: slice) -> NDArray[np.int64]:
        """Plane of the grid before for each plane of the grid after, along the axis of anisotropy."""
        assert self.across is not None
        length = self.before[self.across]
        places = (np.arange(bounds.start, bounds.stop) + 0.5) * (length / self.after[self.across]) - 0.5
        planes = map_coordinates(np.arange(length, dtype=float), places[None], order=0, mode="nearest")
        return np.asarray(planes, np.int64)

    def apply(self, voxels: Array, box: Box, limits: Limits | None = None) -> Array:
        """Resampled voxels of a box of the grid after, (c, z, y, x), in the dtype of the input.

        Args:
            voxels: the box `needed(box)` of the grid before, (c, z, y, x).
            box: box of the grid after.
            limits: lowest and highest value of the whole volume; results of splines of order 2 and more are clipped to them.
        """
        if not self.changes:
            return voxels
        source = self.needed(box)
        result = np.empty((len(voxels), *lengths(box)), voxels.dtype)
        for channel, image in enumerate(voxels):
            low_high = (limits.low[channel], limits.high[channel]) if limits and self.order > 1 else None
            if self.across is None:
                result[channel] = self._spline(image, source, box, (0, 1, 2), low_high)
            else:
                self._fill_by_planes(result[channel], image, source, box, low_high)
        return result

    def _fill_by_planes(
        self, result: Array, voxels: Array, source: Box, box: Box, limits: tuple[Array, Array] | None
    ) -> None:
        """Fill a box of the grid after, plane by plane of the grid before."""
        across = self.across
        assert across is not None
        axes = tuple(axis for axis in range(3) if axis != across)
        first = source[across].start
        nearest, planes = self._nearest_planes(box[across]) - first, np.moveaxis(result, across, 0)
        for index in np.unique(nearest):
            plane = voxels.take(index, across)
            if self._planes_change:
                low_high = None if limits is None else (limits[0][first + index], limits[1][first + index])
                plane = self._spline(plane, [source[a] for a in axes], [box[a] for a in axes], axes, low_high)
            planes[nearest == index] = plane

    def _spline(
        self, voxels: Array, source: Sequence[slice], box: Sequence[slice], axes: Sequence[int], limits: Any
    ) -> NDArray[np.float64]:
        """Values at the voxels of a box; source, box and axes are those along which the spline runs."""
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
        result = np.empty([len(along) for along in places])
        for index in range(len(places[0])):  # plane by plane, because places take more memory than values
            grid = np.meshgrid(places[0][index : index + 1], *places[1:], indexing="ij")
            map_coordinates(values, grid, result[index : index + 1], order=self.order, mode="nearest", prefilter=False)
        if limits is not None:
            result.clip(*limits, out=result)
        return result


def configured_resampling(
    configuration: Mapping[str, Any],
    kind: str,
    before: ShapeZYX,
    after: ShapeZYX,
    spacing: Sequence[float],
    target: Sequence[float],
) -> Resampling:
    """The resampling between two grids that a configuration of plans prescribes.

    Args:
        configuration: as in plans.json.
        kind: "data" or "probabilities".
        before: shape of the grid that is read, network axes.
        after: shape of the grid that is computed.
        spacing: voxel size of the grid that is read, in the unit of the plans.
        target: voxel size of the grid that is computed.

    Raises:
        SelmaError: the grids differ, and the plans resample by another function than nnU-Net's default.
    """
    from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

    function, options = configuration[f"resampling_fn_{kind}"], configuration[f"resampling_fn_{kind}_kwargs"]
    across = None
    if before != after:
        smooth = kind == "probabilities" and options.get("order", 3) > 1
        unknown = options.keys() - _OPTIONS
        other = function != "resample_data_or_seg_to_shape" or options.get("order_z", 0) or options.get("is_seg")
        if other or smooth or unknown:
            raise SelmaError(
                f"the plans resample {kind} with {function} ({options}), which cannot be done block by block; predict a volume whose voxel "
                "size is that of the plans, or plan with nnU-Net's default resampling"
            )
        apart, axis = determine_do_sep_z_and_axis(
            options.get("force_separate_z", False), spacing, target, *(options[n] for n in _THRESHOLD if n in options)
        )
        across = int(axis) if apart and axis is not None else None
    return Resampling(before=before, after=after, order=options.get("order", 3), across=across)
