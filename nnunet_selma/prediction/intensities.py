"""Intensities of a whole volume that nnU-Net's normalisation needs, measured slab by slab.

They are its non-zero box and the mean, standard deviation, lowest and highest value within that box. Sums are kept in double precision;
nnU-Net adds up float32 numbers, so that its mean may differ in the seventh digit. No other step changes a bit of the normalised voxels.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box, Mask
from nnunet_selma.morphology.tissue import box_means, grid_box, middle_planes
from nnunet_selma.prediction.tiling import lengths
from nnunet_selma.volumes.base import Array, ShapeZYX
from nnunet_selma.volumes.moments import Moments

_EPSILON = 1e-8  # nnU-Net's
_PIECE = 2**20
"""Voxels of numbers with fractions that are converted to float64 together."""
_BAND = 2**16
"""Voxels that are measured together."""
_PLANES = ("low", "high", "zeros", "empty")
"""Fields of `Intensities` that hold `Planes`."""

Planes = tuple[Array, Array, Array]
"""A number for each channel and each plane across z, y and x: three arrays (channel, plane)."""


@dataclass(frozen=True, kw_only=True)
class Intensities:
    """Intensities of a volume, or of a part of it; axes are (z, y, x)."""

    shape: ShapeZYX
    """Shape of the part, voxels."""
    moments: tuple[Moments, ...]
    """Moments of the voxels that are not 0, for each channel."""
    low: Planes
    """Lowest value that is not 0; infinity (for integers the type's largest value) where all are 0."""
    high: Planes
    """Highest value that is not 0; minus infinity or the type's smallest value where all are 0."""
    zeros: Planes
    """Number of voxels that are 0."""
    empty: Planes
    """Number of voxels that are 0 in every channel; has a single channel."""
    tissue: tuple[Moments, ...] | None = None
    """Moments of each channel over tissue, by which the whole volume is normalised; None: by those of all its voxels."""

    @staticmethod
    def measure(slab: Array) -> "Intensities":
        """Measure a slab (c, z, y, x).

        Every plane is looked at in bands of rows that stay in the processor's cache, so that the slab is read from memory once.

        Raises:
            ValueError: NaN or infinite values.
        """
        channels = [_Channel.measure(channel) for channel in slab]
        moments = tuple(channel.moments for channel in channels)
        if not np.isfinite([part.squares for part in moments]).all():
            raise ValueError("NaN or infinite values")
        low, high, zeros = (
            _stacked([getattr(channel, name) for channel in channels]) for name in ("low", "high", "zeros")
        )
        empty = zeros if len(slab) == 1 else _stacked([_counts((slab == 0).all(axis=0))])
        _, z, y, x = slab.shape
        return Intensities(shape=(z, y, x), moments=moments, low=low, high=high, zeros=zeros, empty=empty)

    def join(self, behind: "Intensities", axis: int) -> "Intensities":
        """Intensities of this part and the one that lies behind it along an axis."""

        def planes(name: str, combine: Callable[[Array, Array], Array]) -> Planes:
            pairs = list(zip(getattr(self, name), getattr(behind, name), strict=True))
            z, y, x = (np.concatenate(pair, axis=1) if a == axis else combine(*pair) for a, pair in enumerate(pairs))
            return z, y, x

        z, y, x = (length + behind.shape[a] if a == axis else length for a, length in enumerate(self.shape))
        return Intensities(
            shape=(z, y, x),
            moments=tuple(first + second for first, second in zip(self.moments, behind.moments, strict=True)),
            low=planes("low", np.minimum),
            high=planes("high", np.maximum),
            zeros=planes("zeros", np.add),
            empty=planes("empty", np.add),
        )

    @property
    def box(self) -> Box | None:
        """The smallest box around all voxels that are not 0 in some channel, which nnU-Net crops to; None if all are 0."""
        sizes = [prod(self.shape) // length for length in self.shape]
        filled = [np.flatnonzero(planes[0] < size) for planes, size in zip(self.empty, sizes, strict=True)]
        if not filled[0].size:
            return None
        z, y, x = (slice(int(planes[0]), int(planes[-1]) + 1) for planes in filled)
        return z, y, x

    def moments_within(self, box: Box) -> list[Moments]:
        """Moments of each channel within the box of all voxels that are not 0: the zeros in it count too."""
        return [part + Moments(prod(lengths(box)) - part.count) for part in self.moments]

    def limits(self, box: Box, axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest value of each channel and plane across an axis, within the box of all voxels that are not 0."""
        planes = box[axis]
        inside = prod(lengths(box)) // lengths(box)[axis]
        outside = prod(self.shape) // self.shape[axis] - inside
        low, high = self.low[axis][:, planes].astype(float), self.high[axis][:, planes].astype(float)
        has_zero = self.zeros[axis][:, planes] > outside
        low[has_zero], high[has_zero] = np.minimum(low[has_zero], 0), np.maximum(high[has_zero], 0)
        return low, high

    def as_arrays(self) -> dict[str, Array]:
        """Arrays for `numpy.savez`."""
        planes = {f"{name}_{axis}": getattr(self, name)[axis] for name in _PLANES for axis in range(3)}
        moments = np.array([(part.count, part.mean, part.squares) for part in self.moments])
        return {"shape": np.array(self.shape), "moments": moments, **planes}

    @staticmethod
    def from_arrays(arrays: Mapping[str, Array]) -> "Intensities":
        """Intensities from the arrays of `as_arrays`."""
        z, y, x = (int(length) for length in arrays["shape"])
        planes: dict[str, Any] = {name: tuple(arrays[f"{name}_{axis}"] for axis in range(3)) for name in _PLANES}
        moments = [Moments(int(count), float(mean), float(squares)) for count, mean, squares in arrays["moments"]]
        return Intensities(shape=(z, y, x), moments=tuple(moments), **planes)


_Lines = tuple[Array, Array, Array]
"""A number for each plane of one channel across z, y and x: three arrays (plane)."""


@dataclass(frozen=True)
class _Channel:
    """Intensities of one channel of a slab."""

    moments: Moments
    low: _Lines
    high: _Lines
    zeros: _Lines

    @staticmethod
    def measure(voxels: Array) -> "_Channel":
        """Measure an array (z, y, x)."""
        depth, height, width = voxels.shape
        lowest, highest = _limits(voxels.dtype)
        low, high = np.full(depth, highest, voxels.dtype), np.full(depth, lowest, voxels.dtype)
        low_face, high_face = (np.full((height, width), value, voxels.dtype) for value in (highest, lowest))
        zeros, zero_face = np.zeros(depth, np.int64), np.zeros((height, width), np.uint32)
        exact, sums, squares = voxels.dtype.kind in "ui" and voxels.dtype.itemsize <= 2, 0, 0
        step = max(1, _BAND // width)
        for z, y in itertools.product(range(depth), range(0, height, step)):
            rows = slice(y, y + step)
            band = voxels[z, rows]
            if exact:
                wide = band.astype(
                    np.float64
                ).ravel()  # sums of a band are whole numbers below 2**53, in whatever order
                sums += int(wide.sum())
                squares += int(
                    np.square(wide, out=wide).sum()
                )  # not a product of vectors, for which BLAS wakes threads
            zero = band == 0
            count = int(np.count_nonzero(zero))
            small = large = band
            if count:
                zeros[z] += count
                zero_face[rows] += zero
                small = np.where(zero, low.dtype.type(highest), band)
                large = band if lowest == 0 else np.where(zero, high.dtype.type(lowest), band)
            low[z], high[z] = min(low[z], small.min()), max(high[z], large.max())
            np.minimum(low_face[rows], small, out=low_face[rows])
            np.maximum(high_face[rows], large, out=high_face[rows])
        return _Channel(
            moments=Moments.of_sums(voxels.size - int(zeros.sum()), sums, squares)
            if exact
            else _nonzero_moments(voxels),
            low=(low, low_face.min(axis=1), low_face.min(axis=0)),
            high=(high, high_face.max(axis=1), high_face.max(axis=0)),
            zeros=(zeros, zero_face.sum(axis=1, dtype=np.int64), zero_face.sum(axis=0, dtype=np.int64)),
        )


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The lowest and the highest number of a type."""
    if dtype.kind == "f":
        return -np.inf, np.inf
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def _counts(marked: Array) -> _Lines:
    """Number of marked voxels of an array (z, y, x) in each plane across z, y and x."""
    face = marked.sum(axis=0)
    return marked.sum(axis=(1, 2)), face.sum(axis=1), face.sum(axis=0)


def _stacked(channels: Sequence[_Lines]) -> Planes:
    """Numbers of each channel as three arrays (channel, plane)."""
    z, y, x = (np.stack(lines) for lines in zip(*channels, strict=True))
    return z, y, x


def _nonzero_moments(channel: Array) -> Moments:
    """Moments of the voxels that are not 0."""
    flat, total = channel.reshape(-1), Moments()
    with np.errstate(invalid="ignore"):  # infinite values become NaN, which the caller finds
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE]
            total += Moments.measure(piece[piece != 0])
    return total


def join_parts(parts: Iterable[Intensities], axis: int) -> Intensities:
    """Join the intensities of parts that lie one behind the other along an axis."""
    return reduce(lambda before, behind: before.join(behind, axis), parts)


def box_moments(slab: Array, first: int, shape: ShapeZYX) -> NDArray[np.float32]:
    """Mean and standard deviation of the middle slice of each grid box that has it in a slab.

    Args:
        slab: grey values, (c, z, y, x); all of y and x, or parts of them that begin with a grid box.
        first: index of its first slice in the volume.
        shape: shape of the volume, voxels (z, y, x).

    Returns:
        (channel, grid box along z, y, x, 2).
    """
    depth, *edges = grid_box(shape)
    layers = []
    for planes in middle_planes(slab, first, shape[0], depth):
        wide = planes.astype(np.float64)
        means = np.stack([box_means(plane, (edges[0], edges[1])) for plane in wide])
        around = means.repeat(edges[0], 1)[:, : wide.shape[1]].repeat(edges[1], 2)[:, :, : wide.shape[2]]
        variances = [box_means(plane, (edges[0], edges[1])) for plane in (wide - around) ** 2]
        layers.append(np.stack([means, np.sqrt(variances)], axis=-1))
    empty = np.zeros((len(slab), 0, *(-(-n // e) for n, e in zip(slab.shape[2:], edges, strict=True)), 2))
    result: NDArray[np.float32] = np.concatenate([empty, *(layer[:, None] for layer in layers)], 1, dtype=np.float32)
    return result


def moments_in_boxes(moments: NDArray[np.float32], boxes: Mask, shape: ShapeZYX) -> list[Moments]:
    """Moments of each channel over some grid boxes, from the means and deviations of `box_moments`.

    Args:
        moments: (channel, grid box along z, y, x, 2), some layers along z of the volume's grid.
        boxes: True for the boxes that count, in the same layers.
        shape: shape of the volume, voxels (z, y, x).
    """
    sizes = [np.minimum(edge, n - np.arange(0, n, edge)) for n, edge in zip(shape, grid_box(shape), strict=True)]
    counts = np.broadcast_to(np.outer(sizes[1], sizes[2]), boxes.shape)[boxes]
    total, joined = int(counts.sum()), []
    for channel in moments:
        means, deviations = channel[boxes].astype(np.float64).T
        mean = float(counts @ means) / max(total, 1)
        joined.append(Moments(total, mean, float(counts @ (deviations**2 + (means - mean) ** 2))))
    return joined


def depends_on_statistics(configuration: Mapping[str, Any]) -> bool:
    """True if each image is normalised by its mean and deviation, and no instance norm of the network takes a tile's shift and scale out again."""
    norm = str(configuration["architecture"]["arch_kwargs"].get("norm_op"))
    return "ZScoreNormalization" in configuration["normalization_schemes"] and "instancenorm" not in norm.lower()


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Normalisation of an image: values are clipped to bounds, then become (value - offset) / scale."""

    offset: NDArray[np.float32]
    """Offset of each channel."""
    scale: NDArray[np.float32]
    """Divisor of each channel."""
    bounds: tuple[tuple[float, float] | None, ...]
    """Lowest and highest value of each channel; None: no clipping."""

    def apply(self, voxels: Array) -> NDArray[np.float32]:
        """Normalised values, (c, …) with at least one axis beside c."""
        image = voxels.astype(np.float32)
        for channel, bounds, offset, scale in zip(image, self.bounds, self.offset, self.scale, strict=True):
            if bounds is not None:
                np.clip(channel, *bounds, out=channel)
            channel -= offset  # in two steps as nnU-Net does, for the same rounding
            channel /= scale
        return image


def configured_normalisation(
    configuration: Mapping[str, Any], properties: Mapping[str, Any], intensities: Intensities
) -> Normalisation:
    """The normalisation of a configuration for a volume; matches nnU-Net's `default_normalization_schemes`.

    Args:
        configuration: as in plans.json.
        properties: `foreground_intensity_properties_per_channel` of the plans.
        intensities: intensities of the volume, in which some voxel is not 0.

    Raises:
        SelmaError: an unknown scheme, or one that needs more than a single pass over the volume gives.
    """
    box = intensities.box
    assert box is not None
    has_holes = int(intensities.empty[0].sum()) > prod(intensities.shape) - prod(lengths(box))
    moments, (lows, highs) = intensities.tissue or intensities.moments_within(box), intensities.limits(box, 0)
    rows: list[tuple[float, float, tuple[float, float] | None]] = []
    for channel, (scheme, masked) in enumerate(
        zip(configuration["normalization_schemes"], configuration["use_mask_for_norm"], strict=True)
    ):
        trained = properties[str(channel)]
        if scheme == "ZScoreNormalization":
            if masked and has_holes:
                raise SelmaError(
                    "the plans normalise within the non-zero part of an image only (use_mask_for_norm), and the volume has zeros inside of it; "
                    "fill them with the background's value, or plan with use_mask_for_norm false"
                )
            rows.append((moments[channel].mean, max(moments[channel].standard_deviation, _EPSILON), None))
        elif scheme == "CTNormalization":
            bounds = (trained["percentile_00_5"], trained["percentile_99_5"])
            rows.append((trained["mean"], max(trained["std"], _EPSILON), bounds))
        elif scheme == "NoNormalization":
            rows.append((0.0, 1.0, None))
        elif scheme == "RescaleTo01Normalization":
            low, high = float(lows[channel].min()), float(highs[channel].max())
            rows.append((low, max(high - low, _EPSILON), None))
        elif scheme == "RGBTo01Normalization":
            rows.append((0.0, 255.0, None))
        else:
            raise SelmaError(
                f"the plans normalise by {scheme}, which is not known here; predict with nnUNetv2_predict, or plan with one of nnU-Net's own"
            )
    offset, scale, clipping = zip(*rows, strict=True)
    return Normalisation(offset=np.array(offset, np.float32), scale=np.array(scale, np.float32), bounds=clipping)
