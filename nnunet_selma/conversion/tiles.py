"""Tissue in a volume, and tiles that are rich in signal.

A sparse read of a few slices a tile gives block means of the log intensity; a threshold on them separates tissue from the empty outside.
Memory: one slice, and the block map (about 1/8000 of the voxels at the default tile).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from skimage.filters import threshold_otsu

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume

ALL_TISSUE = -1.0
"""A log threshold that every voxel exceeds."""
_BLOCKS = 8  # blocks along a tile's edge, and slices read for a tile
_LINES = 8  # lines of a block that are looked at; all of them would take longer than reading the slice
_FLAT = 1e-3  # a standard deviation of the log intensity that is rounding, not signal
_LEAST_BLOCK = (
    16  # voxels; smaller blocks would be filled by a single cell, and cells taken for all the tissue there is
)
_SMOOTHING = 9  # voxels; width of the box mean before the threshold is applied to voxels
# A threshold means something only if it parts the blocks into two camps: by Otsu's criterion (share of the variance
# that lies between the camps; 0.64 for one Gaussian, 0.75 for a uniform ramp) in brightness
# (a factor of 1.5), and if tissue is more than a few bright cells (a fiftieth of the blocks).
_SEPARATION, _LOG_RATIO, _LEAST_TISSUE = 0.75, float(np.log(1.5)), 0.02


@dataclass(frozen=True, kw_only=True)
class TileSettings:
    """How tiles are chosen."""

    tile: int = 256
    """Edge of a tile, voxels; shorter axes of the volume are taken whole."""
    per_volume: int = 32
    """Tiles to choose from one volume."""
    min_foreground: float = 0.1
    """Least share of tissue in a tile."""
    seed: int = 0
    """Seed of the choice of tiles."""

    def __post_init__(self) -> None:
        """Refuse numbers that give no tiles."""
        if self.tile < 1 or self.per_volume < 1 or not 0 <= self.min_foreground <= 1:
            raise SelmaError(
                "a tile has at least 1 voxel, a volume gives at least 1 tile, and --min-foreground is a share from 0 to 1"
            )


@dataclass(frozen=True, order=True)
class Tile:
    """One box: where it starts and how long it is, voxels, (z, y, x)."""

    start: ShapeZYX
    shape: ShapeZYX

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The slices to read."""
        z, y, x = (slice(s, s + n) for s, n in zip(self.start, self.shape, strict=True))
        return z, y, x


@dataclass(frozen=True)
class TissueMap:
    """Tissue and signal of each tile of the grid, from a sparse read of the volume."""

    tiles: list[Tile]
    foreground: NDArray[np.float64]
    """Share of tissue in each tile."""
    signal: NDArray[np.float64]
    """Median standard deviation of the log intensity within the tissue blocks of each tile: high where there is structure."""
    log_threshold: float
    """Block means above it are tissue, log(1 + intensity); `ALL_TISSUE` where the volume has no empty outside."""
    unit: float
    """Intensities are divided by it before the logarithm: 1, or less for volumes that were scaled to a few units."""


def grid(shape: ShapeZYX, tile: int) -> list[Tile]:
    """Tiles side by side without overlap; what is left over is shared by the two borders, where images are poorest."""
    edges = [min(tile, length) for length in shape]
    starts = [
        [(length % edge) // 2 + i * edge for i in range(length // edge)]
        for length, edge in zip(shape, edges, strict=True)
    ]
    z, y, x = edges
    return [Tile((a, b, c), (z, y, x)) for a in starts[0] for b in starts[1] for c in starts[2]]


def tissue_map(volume: Volume, tile: int) -> TissueMap:
    """Read a few slices of every layer of tiles and say for each tile how much tissue and signal it holds.

    Raises:
        SelmaError: a slice cannot be read, or holds NaN or infinite values.
    """
    tiles = grid(volume.shape, tile)
    layers = [list(layer) for _, layer in groupby(tiles, key=lambda one: one.start[0])]
    unit = intensity_unit(volume)
    means, deviations = (
        np.concatenate(part) for part in zip(*(_layer_blocks(volume, layer, unit) for layer in layers), strict=True)
    )
    if not np.isfinite(means).all():
        raise SelmaError(
            f"{volume.path}: holds NaN or infinite values; replace them (the background's value will do) and try again"
        )
    threshold = tissue_threshold(means)
    tissue = means > threshold  # (tile, block)
    # the median, because a block that the edge of the tissue cuts has the largest deviation of all
    inside = np.ma.array(deviations, mask=~tissue, dtype=np.float64)  # type: ignore[no-untyped-call]
    signal = np.ma.median(inside, axis=1).filled(0.0)  # type: ignore[no-untyped-call]
    return TissueMap(tiles, tissue.mean(axis=1), signal, threshold, unit)


def _layer_blocks(
    volume: Volume, layer: Sequence[Tile], unit: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of log(1 + intensity) of the blocks of each tile of one layer, both (tile, block)."""
    (z, y, x), (first, height, width) = layer[0].start, layer[0].shape
    rows, columns = len({t.start[1] for t in layer}), len({t.start[2] for t in layer})
    edge_y, edge_x = (min(length, max(_LEAST_BLOCK, length // _BLOCKS)) for length in (height, width))
    many_y, many_x = height // edge_y, width // edge_x
    samples = np.unique(z + (np.arange(min(_BLOCKS, first)) + 0.5) * first // min(_BLOCKS, first)).astype(int)
    means, deviations = [], []
    for sample in samples:
        plane = volume.read(slice(sample, sample + 1), slice(y, y + rows * height), slice(x, x + columns * width))[0]
        plane_means, plane_deviations = [], []
        for row in plane.reshape(rows, height, columns * width):  # a row of tiles at a time keeps float copies small
            lines = row[: many_y * edge_y].reshape(many_y, edge_y, -1)[:, :: max(1, edge_y // _LINES)]
            logged = np.log1p(np.maximum(lines, 0) / np.float32(unit), dtype=np.float32)
            cut = logged.reshape(*logged.shape[:2], columns, width)[..., : many_x * edge_x]
            blocks = cut.reshape(many_y, logged.shape[1], columns, many_x, edge_x)
            plane_means.append(blocks.mean(axis=(1, 4)).transpose(1, 0, 2).reshape(columns, -1))
            plane_deviations.append(blocks.std(axis=(1, 4)).transpose(1, 0, 2).reshape(columns, -1))
        means.append(np.concatenate(plane_means))  # (tile of the layer, block of the slice)
        deviations.append(np.concatenate(plane_deviations))
    return np.concatenate(means, axis=1), np.concatenate(deviations, axis=1)


def intensity_unit(volume: Volume) -> float:
    """1, or a thousandth of the brightest voxel of the middle slice where that is below 16: images scaled to 0..1 have no counts."""
    if volume.dtype.kind != "f":
        return 1.0
    middle = volume.shape[0] // 2
    brightest = float(volume.read(slice(middle, middle + 1)).max())
    return brightest / 1000 if 0 < brightest < 16 else 1.0


def tissue_threshold(means: NDArray[np.float32]) -> float:
    """A threshold between outside and tissue, or `ALL_TISSUE` if the blocks do not fall into two camps."""
    values = means.ravel().astype(np.float64)
    if np.ptp(values) < _LOG_RATIO:
        return ALL_TISSUE
    otsu = threshold_otsu(values)
    below, above = values[values <= otsu], values[values > otsu]
    if min(len(below), len(above)) == 0 or len(above) < _LEAST_TISSUE * len(values):
        return ALL_TISSUE
    distance = above.mean() - below.mean()
    between = len(below) * len(above) / len(values) ** 2 * distance**2
    if between / values.var() < _SEPARATION or distance < _LOG_RATIO:
        return ALL_TISSUE
    # midway between the camps: Otsu's own value may lie just above the darker one, where noise crosses it
    return float(below.mean() + above.mean()) / 2


def choose_tiles(tissue: TissueMap, settings: TileSettings) -> list[Tile]:
    """Draw tiles that hold enough tissue, with a chance proportional to tissue share times signal; in reading order.

    Returns an empty list where no tile holds enough tissue.
    """
    enough = np.flatnonzero((tissue.foreground >= settings.min_foreground) & (tissue.signal > _FLAT))
    if len(enough) > settings.per_volume:
        weights = (tissue.foreground * tissue.signal)[enough]
        rng = np.random.default_rng(settings.seed)
        enough = rng.choice(enough, size=settings.per_volume, replace=False, p=weights / weights.sum())
    return sorted(tissue.tiles[i] for i in enough)


def foreground_mask(tile: Array, log_threshold: float, unit: float = 1.0) -> NDArray[np.uint8]:
    """Tissue in a tile as 0/1, (z, y, x): a box mean of the log intensity above the volume's threshold."""
    smooth = uniform_filter(
        np.log1p(np.maximum(tile, 0) / np.float32(unit), dtype=np.float32),
        size=[min(_SMOOTHING, n) for n in tile.shape],
    )
    return np.asarray(smooth > log_threshold, np.uint8)
