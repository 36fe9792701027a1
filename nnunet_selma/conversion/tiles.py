"""Choosing the tiles of a volume that are rich in tissue and signal.

A few slices of each tile are read for the choice. Memory: one slice, and two numbers for each box within a tile (about 1/8000 of the
voxels at the default tile).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Mask
from nnunet_selma.morphology.tissue import box_means, find_tissue, intensity_unit, log_intensity
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume

_BOXES = 8
"""Boxes along a tile's edge, and slices that are read for a tile."""
_LEAST_BOX = 16
"""Least edge of a box, voxels; a single cell would fill a smaller one, and cells would be taken for all the tissue there is."""
_LINES = 8
"""Lines of a box that are looked at; all of them would take longer than reading the slice."""
_FLAT = 1e-3
"""Standard deviation of the log intensity up to which a tile holds rounding, not signal."""


@dataclass(frozen=True, kw_only=True)
class TileSettings:
    """Options of the choice of tiles."""

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
                "a tile has at least 1 voxel, a volume gives at least 1 tile, and the least foreground of a tile is a share from 0 to 1"
            )


@dataclass(frozen=True, order=True)
class Tile:
    """A box of a volume that becomes a training case."""

    start: ShapeZYX
    """First voxel (z, y, x)."""
    shape: ShapeZYX
    """Length along each axis, voxels."""

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The tile as slices (z, y, x)."""
        z, y, x = (slice(s, s + n) for s, n in zip(self.start, self.shape, strict=True))
        return z, y, x


@dataclass(frozen=True)
class TissueMap:
    """Tissue and signal of each tile of a volume, from a sparse read."""

    tiles: list[Tile]
    foreground: NDArray[np.float64]
    """Share of tissue in each tile."""
    signal: NDArray[np.float64]
    """Median standard deviation of the log intensity over the boxes of a tile that are tissue: high where there is structure."""
    log_threshold: float
    """Log intensity that tissue exceeds; `ALL_TISSUE` where the volume has no empty outside."""
    unit: float
    """Intensities are divided by it before the logarithm: 1, or less for volumes that were scaled to a few units."""
    brightness: NDArray[np.float64]
    """Mean log intensity of the boxes of a tile that are tissue; 0 where none is."""


def has_signal(tissue: TissueMap, min_foreground: float) -> Mask:
    """True for each tile that holds enough tissue, and signal in it."""
    return (tissue.foreground >= min_foreground) & (tissue.signal > _FLAT)


def tile_grid(shape: ShapeZYX, tile: int) -> list[Tile]:
    """Tiles side by side without overlap; the rest of an axis is shared by its two borders, where images are poorest."""
    edges = [min(tile, length) for length in shape]
    starts = [
        [(length % edge) // 2 + i * edge for i in range(length // edge)]
        for length, edge in zip(shape, edges, strict=True)
    ]
    z, y, x = edges
    return [Tile((a, b, c), (z, y, x)) for a in starts[0] for b in starts[1] for c in starts[2]]


def tissue_map(volume: Volume, tile: int, progress: Progress[Any] = silent) -> TissueMap:
    """Tissue and signal of each tile of a grid, from a few slices of each layer of tiles.

    Raises:
        SelmaError: a slice cannot be read, or holds NaN or infinite values.
    """
    tiles = tile_grid(volume.shape, tile)
    layers = [list(layer) for _, layer in groupby(tiles, key=lambda tile: tile.start[0])]
    unit = intensity_unit(volume)
    means, deviations = (
        np.concatenate(part)
        for part in zip(
            *(_layer_boxes(volume, layer, unit) for layer in progress(layers, "finding tissue")),
            strict=True,
        )
    )
    if not np.isfinite(means).all():
        raise SelmaError(
            f"{volume.path}: holds NaN or infinite values; replace them (the background's value will do) and try again"
        )
    tissue, threshold = _tissue_of_tiles(means, volume.shape, tiles)  # (tile, box)
    # bright boxes and the median, because a box that the edge of the tissue cuts has the largest standard deviation of all
    inside = np.ma.array(deviations, mask=means <= threshold, dtype=np.float64)  # type: ignore[no-untyped-call]
    signal = np.ma.median(inside, axis=1).filled(0.0)  # type: ignore[no-untyped-call]
    bright = np.ma.array(means, mask=means <= threshold, dtype=np.float64).mean(axis=1)  # type: ignore[no-untyped-call]
    return TissueMap(tiles, tissue.mean(axis=1), signal, threshold, unit, np.ma.filled(bright, 0.0))  # type: ignore[no-untyped-call]


def _tissue_of_tiles(means: NDArray[np.float64], shape: ShapeZYX, tiles: Sequence[Tile]) -> tuple[Mask, float]:
    """Tissue among the boxes of tiles, both (tile, box), and its log threshold; the boxes of all tiles lie side by side in one grid."""
    edges = tiles[0].shape
    counts = [length // edge for length, edge in zip(shape, edges, strict=True)]
    slices, rows, columns = _box_counts(edges)
    apart = means.reshape(*counts, slices, rows, columns)
    grid = apart.transpose(0, 3, 1, 4, 2, 5)
    tissue, threshold = find_tissue(grid.reshape([a * b for a, b in zip(counts, apart.shape[3:], strict=True)]))
    return tissue.reshape(grid.shape).transpose(0, 2, 4, 1, 3, 5).reshape(means.shape), threshold


def _layer_boxes(volume: Volume, layer: Sequence[Tile], unit: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the log intensity in boxes of each tile of one layer, both (tile, box)."""
    first, depth = layer[0].start[0], layer[0].shape[0]
    count, _, _ = _box_counts(layer[0].shape)
    samples = np.unique(first + (np.arange(count) + 0.5) * depth // count).astype(int)
    y, x = (slice(layer[0].start[axis], layer[-1].start[axis] + layer[-1].shape[axis]) for axis in (1, 2))
    means, deviations = [], []
    for sample in samples:
        plane = volume.read(slice(sample, sample + 1), y, x)[0]
        parts = [plane[t.start[1] - y.start :, t.start[2] - x.start :][: t.shape[1], : t.shape[2]] for t in layer]
        statistics = [_box_statistics(part, unit) for part in parts]
        means.append([mean for mean, _ in statistics])
        deviations.append([deviation for _, deviation in statistics])
    return np.concatenate(means, axis=1), np.concatenate(deviations, axis=1)


def _box_statistics(part: Array, unit: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the log intensity in each whole box of one slice (y, x) of a tile."""
    edge_y, edge_x = (_box_edge(length) for length in part.shape)
    height, width = (length // edge * edge for length, edge in zip(part.shape, (edge_y, edge_x), strict=True))
    lines = part[:height, :width].reshape(-1, edge_y, width)[:, :: max(1, edge_y // _LINES)]
    edges = (lines.shape[1], edge_x)
    logged = log_intensity(lines.reshape(-1, width), unit)
    means = box_means(logged, edges)
    differences = logged - means.repeat(edges[0], axis=0).repeat(edges[1], axis=1)
    return means.ravel(), np.sqrt(box_means(differences**2, edges)).ravel()


def _box_edge(length: int) -> int:
    """Edge of a box along y or x of a tile of this length, voxels."""
    return min(length, max(_LEAST_BOX, length // _BOXES))


def _box_counts(tile: ShapeZYX) -> ShapeZYX:
    """Slices that are read of a tile (z, y, x), and boxes along y and x in each of them."""
    z, y, x = tile
    return min(_BOXES, z), y // _box_edge(y), x // _box_edge(x)


def choose_tiles(tissue: TissueMap, settings: TileSettings) -> list[Tile]:
    """Draw tiles that hold enough tissue, with a chance proportional to tissue share times signal; in reading order.

    Returns an empty list where no tile holds enough tissue.
    """
    enough = np.flatnonzero(has_signal(tissue, settings.min_foreground))
    if len(enough) > settings.per_volume:
        weights = (tissue.foreground * tissue.signal)[enough]
        rng = np.random.default_rng(settings.seed)
        enough = rng.choice(enough, size=settings.per_volume, replace=False, p=weights / weights.sum())
    return sorted(tissue.tiles[i] for i in enough)
