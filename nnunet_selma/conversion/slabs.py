"""One slab of one volume: its slices are read once, its tiles written one after another."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_selma.conversion.checks import as_json, image_facts
from nnunet_selma.conversion.staging import StagedDataset
from nnunet_selma.conversion.tiles import Tile, foreground_mask, read_slab, slab_steps
from nnunet_selma.conversion.volume_tree import UnlabelledVolume
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume, to_intensities
from nnunet_selma.volumes.base import Array


@dataclass(frozen=True, kw_only=True)
class SlabTask:
    """Tiles that are read in one pass and written one after another; small enough to send to another process."""

    dataset: StagedDataset
    volume: UnlabelledVolume
    channels: Sequence[Volume]
    spacing_zyx: SpacingUm
    log_threshold: float
    unit: float
    tiles: Sequence[Tile]

    @property
    def steps(self) -> int:
        """Slices that are read."""
        return sum(slab_steps(channel, self.tiles) for channel in self.channels)

    @property
    def bytes(self) -> int:
        """Voxels that are written, before compression."""
        return sum(math.prod(tile.shape) for tile in self.tiles) * sum(c.dtype.itemsize for c in self.channels)


def convert_slab(task: SlabTask) -> Generator[int, None, set[str]]:
    """Read and write the tiles of a slab; yields the number of slices read, and returns the slices that stand interpolated."""
    boxes = [[np.empty(tile.shape, channel.dtype) for tile in task.tiles] for channel in task.channels]
    for channel, its_boxes in zip(task.channels, boxes, strict=True):
        yield from read_slab(channel, task.tiles, its_boxes)
    for i, tile in enumerate(task.tiles):
        _write_tile(task, tile, [its_boxes[i] for its_boxes in boxes])
    return {name for channel in task.channels for name in channel.repaired}


def case_name(volume: UnlabelledVolume, tile: Tile) -> str:
    """`<volume>_z…_y…_x…`: where the tile begins, voxels."""
    z, y, x = tile.start
    return f"{volume.name}_z{z:05d}_y{y:05d}_x{x:05d}"


def _write_tile(task: SlabTask, tile: Tile, voxels: Sequence[Array]) -> None:
    structure = task.volume.structure
    record: dict[str, Any] = {
        "structure": structure.prefix if structure else None,
        "group": task.volume.name,
        "spacing_zyx": list(task.spacing_zyx),
        "start_zyx": list(tile.start),
        "images": [as_json(image_facts(v, c, structure)) for v, c in zip(voxels, task.channels, strict=True)],
    }
    images = [to_intensities(v, str(c.path)) for v, c in zip(voxels, task.channels, strict=True)]
    mask = None
    if task.dataset.needs_labels:
        mask = foreground_mask(voxels[0], task.log_threshold, task.unit)
        record["foreground_share"] = float(mask.mean())
    task.dataset.write(case_name(task.volume, tile), images, mask, task.spacing_zyx, record)
