"""Slabs of tiles: the slices of a volume are read once for all tiles of a slab, which are then written one after another.

Memory: the tiles of one slab, at most `SLAB_TILE_BYTES` of them, and 128 MB of slices, or a single slice where that is larger.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from nnunet_selma.conversion.checks import facts_as_json, image_facts
from nnunet_selma.conversion.staging import StagedDataset
from nnunet_selma.conversion.tiles import Tile
from nnunet_selma.conversion.volume_tree import UnlabelledVolume
from nnunet_selma.morphology.tissue import tissue_voxels
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume, to_intensities
from nnunet_selma.volumes.base import Array

SLAB_TILE_BYTES = 2**30
"""Tiles of one slab that are held in memory together (31 of 256³ uint16); a layer with more of them is read again."""
_READ_BYTES = 2**27  # slices read in one go; a compressed NIfTI is decompressed from its start by every read


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """Tiles chosen from a volume, and the threshold of its tissue."""

    tiles: tuple[Tile, ...]
    log_threshold: float
    """Voxels above it are tissue, log(1 + intensity / unit)."""
    unit: float
    """Intensities are divided by this number before the logarithm."""

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return {**vars(self), "tiles": [[list(tile.start), list(tile.shape)] for tile in self.tiles]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "TilePlan":
        """Restore a plan from the result of `as_json`."""
        tiles = tuple(Tile(tuple(start), tuple(shape)) for start, shape in content["tiles"])
        return cls(**{**content, "tiles": tiles})


@dataclass(frozen=True, kw_only=True)
class TileSlab:
    """Tiles of one volume that are read in one pass; small enough to send to another process."""

    dataset: StagedDataset
    volume: UnlabelledVolume
    channels: Sequence[Volume]
    spacing_zyx: SpacingUm
    plan: TilePlan
    """The tiles of this slab, which begin at one slice."""

    @property
    def steps(self) -> int:
        """Slices that are read."""
        return sum(slices_read(channel, self.plan.tiles) for channel in self.channels)

    @property
    def bytes(self) -> int:
        """Size of the tiles before compression."""
        voxels = sum(math.prod(tile.shape) for tile in self.plan.tiles)
        return voxels * sum(channel.dtype.itemsize for channel in self.channels)


def remaining_slabs(
    dataset: StagedDataset,
    volume: UnlabelledVolume,
    channels: Sequence[Volume],
    spacing_zyx: SpacingUm,
    plan: TilePlan,
) -> list[TileSlab]:
    """Slabs of the tiles of a volume that no earlier run has written."""
    tiles = [tile for tile in plan.tiles if not dataset.staged.has(case_name(volume, tile))]
    return [
        TileSlab(
            dataset=dataset,
            volume=volume,
            channels=channels,
            spacing_zyx=spacing_zyx,
            plan=replace(plan, tiles=together),
        )
        for together in tiles_of_slabs(tiles, sum(channel.dtype.itemsize for channel in channels))
    ]


def tiles_of_slabs(tiles: Sequence[Tile], voxel_bytes: int) -> list[tuple[Tile, ...]]:
    """Tiles that are read together: they begin at one slice, and take no more than `SLAB_TILE_BYTES`; at least one tile each.

    Args:
        tiles: in any order.
        voxel_bytes: bytes of a voxel, over all channels.
    """
    together = []
    for _, layer in groupby(sorted(tiles), key=lambda tile: tile.start[0]):
        row = tuple(layer)
        at_once = max(1, SLAB_TILE_BYTES // (voxel_bytes * math.prod(row[0].shape)))
        together += [row[first : first + at_once] for first in range(0, len(row), at_once)]
    return together


def write_slab(slab: TileSlab) -> Generator[int, None, set[str]]:
    """Read and write the tiles of a slab; yields the number of slices read, and returns the names of interpolated slices."""
    boxes = [[np.empty(tile.shape, channel.dtype) for tile in slab.plan.tiles] for channel in slab.channels]
    for channel, boxes_of_channel in zip(slab.channels, boxes, strict=True):
        yield from read_tiles(channel, slab.plan.tiles, boxes_of_channel)
    for tile, *voxels in zip(slab.plan.tiles, *boxes, strict=True):
        _write_tile(slab, tile, voxels)
    return {name for channel in slab.channels for name in channel.repaired}


def slices_read(volume: Volume, tiles: Sequence[Tile]) -> int:
    """Number of slices that `read_tiles` reports."""
    return tiles[0].shape[0] * (1 if volume.plane_wise else len(tiles))


def read_tiles(volume: Volume, tiles: Sequence[Tile], boxes: Sequence[Array]) -> Iterator[int]:
    """Fill the boxes of tiles, (z, y, x), that begin at one slice; yields the number of slices read.

    Each slice of a stack is read once for all tiles; a volume in chunks is read box by box.
    """
    if not volume.plane_wise:
        for tile, box in zip(tiles, boxes, strict=True):
            box[...] = volume.read(*tile.box)
            yield tile.shape[0]
        return
    low = np.min([tile.start for tile in tiles], axis=0)
    high = np.max([np.add(tile.start, tile.shape) for tile in tiles], axis=0)
    plane_bytes = int((high[1] - low[1]) * (high[2] - low[2])) * volume.dtype.itemsize
    step = 1 if volume.slices_apart else max(1, _READ_BYTES // plane_bytes)
    for z in range(low[0], high[0], step):
        planes = volume.read(slice(z, min(z + step, high[0])), slice(low[1], high[1]), slice(low[2], high[2]))
        for tile, box in zip(tiles, boxes, strict=True):
            _, y, x = tile.box
            inside = planes[:, y.start - low[1] : y.stop - low[1], x.start - low[2] : x.stop - low[2]]
            box[z - low[0] : z - low[0] + len(planes)] = inside
        yield len(planes)


def case_name(volume: UnlabelledVolume, tile: Tile) -> str:
    """`<volume>_z…_y…_x…` with the voxel at which the tile begins."""
    z, y, x = tile.start
    return f"{volume.name}_z{z:05d}_y{y:05d}_x{x:05d}"


def _write_tile(slab: TileSlab, tile: Tile, voxels: Sequence[Array]) -> None:
    structure = slab.volume.structure
    record: dict[str, Any] = {
        "structure": structure.prefix if structure else None,
        "group": slab.volume.name,
        "spacing_zyx": list(slab.spacing_zyx),
        "start_zyx": list(tile.start),
        "images": [
            facts_as_json(image_facts(v, c, slab.volume.tabled)) for v, c in zip(voxels, slab.channels, strict=True)
        ],
    }
    images = [to_intensities(v, str(c.path)) for v, c in zip(voxels, slab.channels, strict=True)]
    mask = None
    if slab.dataset.needs_labels:
        mask = tissue_voxels(voxels[0], slab.plan.log_threshold, slab.plan.unit)
        record["foreground_share"] = float(mask.mean())
    slab.dataset.write(case_name(slab.volume, tile), images, mask, slab.spacing_zyx, record)
