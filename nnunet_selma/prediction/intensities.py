"""Intensities that nnU-Net's preprocessing needs of a whole volume, slab by slab: its non-zero box, mean, standard deviation, lowest and highest value.

Sums are exact to float64 rounding; nnU-Net adds up float32 numbers, so that its mean may differ in the seventh digit. That, and nothing
else, keeps normalised voxels from being equal bit by bit.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.prediction.tiling import lengths
from nnunet_selma.volumes.base import Array, ShapeZYX

_EPSILON = 1e-8  # nnU-Net's
_ROWS = 2**22
"""Voxels that are widened to float64 together."""


Planes = tuple[Array, Array, Array]
"""A number for each channel and plane across z, y and x: three times (channel, plane)."""


@dataclass(frozen=True, kw_only=True)
class Intensities:
    """Intensities of a volume, or of a slab of it; axes are (z, y, x)."""

    shape: ShapeZYX
    sums: NDArray[np.float64]
    """Sum of each channel."""
    squares: NDArray[np.float64]
    """Sum of squares of each channel."""
    low: Planes
    """Lowest value that is not 0; infinite where there is none."""
    high: Planes
    """Highest value that is not 0."""
    zeros: Planes
    """Per plane and channel, the number of voxels that are 0."""
    empty: Planes
    """Per plane, the number of voxels that are 0 in every channel."""

    @staticmethod
    def of(slab: Array) -> "Intensities":
        """Measure a slab (c, z, y, x); raises `ValueError` for NaN or infinite values."""
        channels, *shape = slab.shape
        flat = slab.reshape(channels, -1)
        sums, squares = np.zeros(channels), np.zeros(channels)
        for start in range(0, flat.shape[1], _ROWS):
            wide = flat[:, start : start + _ROWS].astype(np.float64)
            sums += wide.sum(axis=1)
            squares += np.einsum("cv,cv->c", wide, wide)
        if not np.isfinite(squares).all():
            raise ValueError("NaN or infinite values")
        zero = slab == 0
        low, high = (slab, slab) if not zero.any() else (_without(slab, zero, np.inf), _without(slab, zero, -np.inf))
        return Intensities(
            shape=(shape[0], shape[1], shape[2]),
            sums=sums,
            squares=squares,
            low=_by_planes(low, np.min),
            high=_by_planes(high, np.max),
            zeros=_by_planes(zero, np.sum),
            empty=_by_planes(zero.all(axis=0, keepdims=True), np.sum),
        )

    def beside(self, other: "Intensities", axis: int) -> "Intensities":
        """Join two parts, this one in front along an axis."""

        def join(name: str, combine: Callable[[Array, Array], Array]) -> Planes:
            pairs = list(zip(getattr(self, name), getattr(other, name), strict=True))
            z, y, x = (np.concatenate(pair, axis=1) if a == axis else combine(*pair) for a, pair in enumerate(pairs))
            return z, y, x

        z, y, x = (
            one + other_one if a == axis else one
            for a, (one, other_one) in enumerate(zip(self.shape, other.shape, strict=True))
        )
        return Intensities(
            shape=(z, y, x),
            sums=self.sums + other.sums,
            squares=self.squares + other.squares,
            low=join("low", np.minimum),
            high=join("high", np.maximum),
            zeros=join("zeros", np.add),
            empty=join("empty", np.add),
        )

    @property
    def box(self) -> Box | None:
        """The smallest box around all voxels that are not 0 in some channel, which nnU-Net crops to; None where there are none."""
        sizes = [int(np.prod(self.shape)) // length for length in self.shape]
        seen = [np.flatnonzero(planes[0] < size) for planes, size in zip(self.empty, sizes, strict=True)]
        if not seen[0].size:
            return None
        z, y, x = (slice(int(planes[0]), int(planes[-1]) + 1) for planes in seen)
        return z, y, x

    def limits(self, box: Box, axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest value of each channel and plane across an axis, within the box of all voxels that are not 0."""
        planes = box[axis]
        inside = prod(lengths(box)) // lengths(box)[axis]
        outside = int(np.prod(self.shape)) // self.shape[axis] - inside
        low, high = self.low[axis][:, planes].astype(float), self.high[axis][:, planes].astype(float)
        has_zero = self.zeros[axis][:, planes] > outside
        low[has_zero], high[has_zero] = np.minimum(low[has_zero], 0), np.maximum(high[has_zero], 0)
        return low, high

    def as_arrays(self) -> dict[str, Array]:
        """For `numpy.savez`."""
        planes = {f"{name}_{axis}": getattr(self, name)[axis] for name in _PLANES for axis in range(3)}
        return {"shape": np.array(self.shape), "sums": self.sums, "squares": self.squares, **planes}

    @staticmethod
    def from_arrays(arrays: Any) -> "Intensities":
        """The reverse of `as_arrays`."""
        z, y, x = (int(length) for length in arrays["shape"])
        planes = {name: tuple(arrays[f"{name}_{axis}"] for axis in range(3)) for name in _PLANES}
        return Intensities(shape=(z, y, x), sums=arrays["sums"], squares=arrays["squares"], **planes)


_PLANES = ("low", "high", "zeros", "empty")


def _without(slab: Array, zero: Array, instead: float) -> Array:
    """The slab with another value for zeros: of its own type if that has no infinity."""
    if slab.dtype.kind != "f":
        limits = np.iinfo(slab.dtype)
        return np.where(zero, slab.dtype.type(limits.max if instead > 0 else limits.min), slab)
    return np.where(zero, slab.dtype.type(instead), slab)


def _by_planes(values: Array, reduction: Callable[..., Array]) -> Planes:
    """A reduction of (c, z, y, x) over the planes across each axis."""
    lines, face = reduction(values, axis=3), reduction(values, axis=1)  # (c, z, y), (c, y, x)
    return reduction(lines, axis=2), reduction(lines, axis=1), reduction(face, axis=1)


def joined(parts: Iterable[Intensities], axis: int) -> Intensities:
    """Join the intensities of parts that lie one behind the other along an axis."""
    return reduce(lambda one, other: one.beside(other, axis), parts)


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How voxels become what the network sees: (value - offset) / scale, after cutting off where there are bounds; a row a channel."""

    offset: NDArray[np.float32]
    scale: NDArray[np.float32]
    bounds: tuple[tuple[float, float] | None, ...]

    def apply(self, voxels: Array) -> NDArray[np.float32]:
        """Normalised values, (c, …) with at least one axis beside c."""
        image = voxels.astype(np.float32)
        for channel, bounds, offset, scale in zip(image, self.bounds, self.offset, self.scale, strict=True):
            if bounds is not None:
                np.clip(channel, *bounds, out=channel)
            channel -= offset  # in two steps as nnU-Net does, for the same rounding
            channel /= scale
        return image


def normalisation(settings: dict[str, Any], properties: dict[str, Any], found: Intensities) -> Normalisation:
    """The normalisation of a configuration for a volume; matches nnU-Net's `default_normalization_schemes`.

    Args:
        settings: the configuration, as in plans.json.
        properties: `foreground_intensity_properties_per_channel` of the plans.
        found: of the volume; not empty.

    Raises:
        SelmaError: a scheme that is not known here, or that needs what no single pass gives.
    """
    box = found.box
    assert box is not None
    voxels = prod(lengths(box))
    holes = int(found.empty[0].sum()) > int(np.prod(found.shape)) - voxels
    lows, highs = found.limits(box, 0)
    rows: list[tuple[float, float, tuple[float, float] | None]] = []
    for channel, (scheme, masked) in enumerate(
        zip(settings["normalization_schemes"], settings["use_mask_for_norm"], strict=True)
    ):
        known = properties[str(channel)]
        if scheme == "ZScoreNormalization":
            if masked and holes:
                raise SelmaError(
                    "the plans normalise within the non-zero part of an image only (use_mask_for_norm), and the volume has zeros inside of it; "
                    "fill them with the background's value, or plan with use_mask_for_norm false"
                )
            mean = found.sums[channel] / voxels
            deviation = np.sqrt(max(0.0, found.squares[channel] / voxels - mean**2))
            rows.append((mean, max(deviation, _EPSILON), None))
        elif scheme == "CTNormalization":
            cut = (known["percentile_00_5"], known["percentile_99_5"])
            rows.append((known["mean"], max(known["std"], _EPSILON), cut))
        elif scheme == "NoNormalization":
            rows.append((0.0, 1.0, None))
        elif scheme == "RescaleTo01Normalization":
            low = float(lows[channel].min())
            rows.append((low, max(float(highs[channel].max()) - low, _EPSILON), None))
        elif scheme == "RGBTo01Normalization":
            rows.append((0.0, 255.0, None))
        else:
            raise SelmaError(
                f"the plans normalise by {scheme}, which is not known here; predict with nnUNetv2_predict, or plan with one of nnU-Net's own"
            )
    offset, scale, bounds = zip(*rows, strict=True)
    return Normalisation(offset=np.array(offset, np.float32), scale=np.array(scale, np.float32), bounds=bounds)
