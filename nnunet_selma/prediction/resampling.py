"""nnU-Net's resampling of one box at a time, to the same voxels as its `resample_data_or_seg` gives for the whole volume.

Every voxel of the result is a spline through its neighbours. A box of the result needs the voxels around it and, for splines of order 2 and
more, a halo: spline coefficients come from a recursive filter, in which the influence of a voxel fades to a quarter with each step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, spline_filter1d

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.prediction.tiling import lengths
from nnunet_selma.running.parallel import in_threads
from nnunet_selma.volumes.base import Array, ShapeZYX

_THRESHOLD = ("separate_z_anisotropy_threshold",)
_OPTIONS = {"is_seg", "order", "order_z", "force_separate_z", *_THRESHOLD}
"""Options of nnU-Net's default resampling."""
_HALO = 24
"""Width of the halo, voxels; 0.27 to the power of 24 is 1e-14."""
_EDGE = 12
"""Voxels that scipy repeats at the border of a volume before it filters."""
_BAND = 32
"""Voxels of the grid after along an axis that are computed by one matrix product."""
_SMALL_PRODUCT = 2**18
"""Multiplications of a matrix product that OpenBLAS does in the calling thread; for more it wakes others, of which `threads` knows nothing."""
_ROWS = 8
"""Lines of all planes that are computed together along z."""

_Neighbour = tuple[NDArray[np.intp], NDArray[np.float64]]
"""Index of a voxel of the grid before, and its weight, for each voxel of the grid after along an axis."""
_Bands = list[tuple[slice, slice, NDArray[np.float64]]]
"""A matrix of weights, voxels of the grid after by voxels of the grid before, in bands: rows, columns, and what is not 0."""


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

    def apply(self, voxels: Array, box: Box, limits: Limits | None = None, *, threads: int = 1) -> Array:
        """Resampled voxels of a box of the grid after, (c, z, y, x), in the dtype of the input.

        Args:
            voxels: the box `needed(box)` of the grid before, (c, z, y, x).
            box: box of the grid after.
            limits: lowest and highest value of the whole volume; results of splines of order 2 and more are clipped to them.
            threads: threads that share the work; they do not change the result.
        """
        if not self.changes:
            return voxels
        source = self.needed(box)
        axes = [_Axis(self, axis, source[axis], box[axis]) for axis in range(3)]
        fill = _Spline.along(axes) if self.order > 1 else _Neighbours.along(axes)
        result = np.empty((len(voxels), *lengths(box)), voxels.dtype)
        for channel, image in enumerate(voxels):
            low_high = (limits.low[channel], limits.high[channel]) if limits and self.order > 1 else None
            if self.across is None:
                fill(result[channel], image, low_high, threads)
                continue
            planes = source[self.across]
            if low_high is not None:
                low_high = low_high[0][planes], low_high[1][planes]
            nearest = self._nearest_planes(box[self.across]) - planes.start
            self._fill_by_planes(result[channel], image, fill, nearest, low_high, threads)
        return result

    def _fill_by_planes(
        self,
        result: Array,
        voxels: Array,
        fill: "_Spline | _Neighbours",
        nearest: NDArray[np.int64],
        limits: tuple[Array, Array] | None,
        threads: int,
    ) -> None:
        """Fill a box of the grid after from the nearest plane of the grid before, each of which is resampled once."""
        across = self.across
        assert across is not None
        planes = np.moveaxis(result, across, 0)

        def fill_from(index: int) -> None:
            plane = voxels.take([index], across)
            if self._planes_change:
                made = np.empty([1 if axis == across else n for axis, n in enumerate(result.shape)], result.dtype)
                fill(made, plane, None if limits is None else (limits[0][index], limits[1][index]), 1)
                plane = made
            planes[nearest == index] = plane.take(0, across)

        in_threads(fill_from, [int(index) for index in np.unique(nearest)], threads)


@dataclass(frozen=True)
class _Axis:
    """Resampling along one axis, from a range of voxels of the grid before to one of the grid after."""

    resampling: Resampling
    axis: int
    source: slice
    target: slice

    @property
    def _places(self) -> NDArray[np.float64]:
        """Place of each voxel of the grid after, counted in voxels of the grid before from the first one of the range.

        They are computed as scipy's zoom does, to the last bit: an interpolated half-precision logit is often a tie.
        """
        step = self.resampling.before[self.axis] / self.resampling.after[self.axis]
        return (np.arange(self.target.start, self.target.stop) + 0.5) * step - 0.5 - float(self.source.start)

    def neighbours(self) -> list[_Neighbour] | None:
        """The neighbours whose weighted sum is each voxel, in scipy's order; None along the axis of anisotropy."""
        if self.axis == self.resampling.across:
            return None
        last = self.source.stop - self.source.start - 1
        if self.resampling.order == 0:
            nearest = map_coordinates(np.arange(last + 1.0), self._places[None], order=0, mode="nearest")
            return [(np.asarray(nearest, np.intp), np.ones(len(nearest)))]
        first = np.floor(self._places).astype(np.intp)
        near = 1.0 - (self._places - first)
        # beyond the border both neighbours are the last voxel, with weights of their own, as scipy has it
        return [(first.clip(0, last), near), ((first + 1).clip(0, last), 1.0 - near)]

    def spline_weights(self) -> _Bands | None:
        """Weights of the voxels of the grid before in each voxel of the grid after; None along the axis of anisotropy.

        They are scipy's spline through single voxels of 1. What lies beyond the halo is left out, at 1e-14 of the value.
        """
        resampling, length = self.resampling, self.source.stop - self.source.start
        if self.axis == resampling.across:
            return None
        edges = (
            _EDGE * (self.source.start == 0),
            _EDGE * (self.source.stop == resampling.before[self.axis]),
        )
        places = self._places + edges[0]
        bands = []
        for start in range(0, len(places), _BAND):
            inside = places[start : start + _BAND] - edges[0]
            low = max(0, int(np.floor(inside[0])) - _HALO)
            high = min(length, int(np.ceil(inside[-1])) + _HALO + 1)
            bands.append((slice(start, start + len(inside)), slice(low, high)))
        units = np.pad(np.eye(length), ((0, 0), edges), mode="edge")
        coefficients = spline_filter1d(units, resampling.order, axis=1, output=np.float64, mode="nearest")
        weights = np.empty((len(places), length))
        for column, values in enumerate(coefficients):
            map_coordinates(
                values, places[None], weights[:, column], order=resampling.order, mode="nearest", prefilter=False
            )
        return [(rows, columns, np.ascontiguousarray(weights[rows, columns])) for rows, columns in bands]


@dataclass(frozen=True)
class _Neighbours:
    """Weighted sums of neighbours, with scipy's operations in scipy's order, to the last bit.

    For each neighbour, a voxel is multiplied by its weights along z, y and x in this order, and the products are added up in the order of
    the neighbours.
    """

    zyx: tuple[list[_Neighbour] | None, list[_Neighbour] | None, list[_Neighbour] | None]
    """Neighbours along each axis; None: nothing changes along it."""

    @staticmethod
    def along(axes: Sequence[_Axis]) -> "_Neighbours":
        """The sums for three axes."""
        z, y, x = (axis.neighbours() for axis in axes)
        return _Neighbours((z, y, x))

    def __call__(self, result: Array, voxels: Array, _limits: object, threads: int) -> None:
        """Fill (z, y, x); voxels are gathered along x once for all planes."""
        along_z, along_y, along_x = self.zyx
        values = voxels.astype(np.float64)
        gathered = [(values, None)] if along_x is None else [(values.take(i, 2), w) for i, w in along_x]

        def fill(z: int) -> None:
            total = np.zeros(result.shape[1:])
            for place, weight_z in [(z, None)] if along_z is None else [(i[z], w[z]) for i, w in along_z]:
                planes = [
                    (image[place] if weight_z is None else image[place] * weight_z, weight_x)
                    for image, weight_x in gathered
                ]
                for rows, weight_y in [(None, None)] if along_y is None else along_y:
                    for plane, weight_x in planes:
                        product = plane.copy() if rows is None else plane.take(rows, 0)
                        if weight_y is not None:
                            product *= weight_y[:, None]
                        if weight_x is not None:
                            product *= weight_x
                        total += product
            result[z] = total

        in_threads(fill, range(len(result)), threads)


@dataclass(frozen=True)
class _Spline:
    """Splines as matrix products along x, y and z, in double precision."""

    zyx: tuple[_Bands | None, _Bands | None, _Bands | None]
    """Weights along each axis; None: nothing changes along it."""

    @staticmethod
    def along(axes: Sequence[_Axis]) -> "_Spline":
        """The splines for three axes."""
        z, y, x = (axis.spline_weights() for axis in axes)
        return _Spline((z, y, x))

    def __call__(self, result: Array, voxels: Array, limits: tuple[Array, Array] | None, threads: int) -> None:
        """Fill (z, y, x), clipped to the limits."""
        along_z, along_y, along_x = self.zyx
        planes = np.empty((len(voxels), *result.shape[1:]))

        def fill_plane(z: int) -> None:
            plane: NDArray[np.float64] = voxels[z].astype(np.float64)
            if along_y is not None:
                plane = _product(along_y, plane)
            planes[z] = plane if along_x is None else _product(along_x, plane.T).T

        def fill_rows(y: int) -> None:
            values: NDArray[np.float64] = planes[:, y : y + _ROWS].reshape(len(planes), -1)
            values = values if along_z is None else _product(along_z, values)
            if limits is not None:
                values = values.clip(*limits)
            result[:, y : y + _ROWS] = values.reshape(len(result), -1, result.shape[2])

        in_threads(fill_plane, range(len(voxels)), threads)
        in_threads(fill_rows, range(0, result.shape[1], _ROWS), threads)


def _product(bands: _Bands, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Product of a matrix in bands and an array (row, column)."""
    result = np.empty((bands[-1][0].stop, values.shape[1]))
    for rows, columns, weights in bands:
        width = max(8, _SMALL_PRODUCT // weights.size)
        for first in range(0, values.shape[1], width):
            part = slice(first, first + width)
            np.matmul(weights, values[columns, part], out=result[rows, part])
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
