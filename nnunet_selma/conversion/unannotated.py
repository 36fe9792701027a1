"""Unannotated whole-brain volumes to a nnU-Net dataset of tiles, with the tissue as their label.

The label makes nnU-Net's fingerprint, foreground sampling and preprocessing work on unlabelled data as they are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.checks import as_json, image_facts
from nnunet_selma.conversion.layouts import VesselChannels
from nnunet_selma.conversion.raw_dataset import RawDataset, dataset_folder_name, demand_free_id
from nnunet_selma.conversion.spacing import Spacing, default_spacing, spacing_of
from nnunet_selma.conversion.volume_tree import UnlabelledVolume, find_volumes
from nnunet_selma.errors import SelmaError
from nnunet_selma.folders import Folders
from nnunet_selma.progress import Progress, silent
from nnunet_selma.structures import SpacingUm, named
from nnunet_selma.tiles import Tile, TileSettings, choose_tiles, foreground_mask, read_tiles, tissue_map
from nnunet_selma.volumes import OnBadSlice, Volume, open_volume, to_intensities
from nnunet_selma.volumes.base import Array


@dataclass(frozen=True, kw_only=True)
class UnannotatedSettings:
    """What a user decides about unannotated volumes."""

    dataset_id: int = 500
    """nnU-Net's dataset id."""
    name: str = "SELMA3Dunlabelled"
    """Name of the dataset, behind its id."""
    structures: tuple[str, ...] = ()
    """Prefixes of the structures to take; empty for all."""
    structure: str | None = None
    """The structure that volumes show whose folders do not say it."""
    spacing: Spacing | None = None
    """Voxel size to write: the structure table's, 1 voxel, or µm (z, y, x); None is physical for one structure, voxel for several."""
    vessel_channels: VesselChannels = "separate"
    """Of stains with two channels: one of them, both as two input channels, or each as a volume of its own."""
    tiles: TileSettings = field(default_factory=TileSettings)
    """How tiles are chosen."""
    on_bad_slice: OnBadSlice = "error"
    """What to do about a slice that is missing or unreadable."""
    channel: int | None = None
    """Which channel of files that hold several."""
    level: int = 0
    """Which resolution level of an OME-Zarr, 0 is the finest."""

    def open(self, path: Path) -> Volume:
        """Open a file with these choices."""
        return open_volume(path, channel=self.channel, level=self.level, on_bad_slice=self.on_bad_slice)


def convert_unannotated(
    source: Path, settings: UnannotatedSettings, folders: Folders, progress: Progress[Any] = silent
) -> dict[str, Any]:
    """Write a dataset of tiles rich in signal into `folders.raw`, with the tissue as label 1; returns the manifest.

    Every slice is read at most twice: a few for the tissue map, then those that chosen tiles need, once. A run that was killed
    goes on where it stopped, with the same tiles.

    Raises:
        SelmaError: anything that makes the source unusable; nothing is left that nnU-Net would take for whole.
    """
    folder_name = dataset_folder_name(settings.dataset_id, settings.name)
    demand_free_id(settings.dataset_id, folder_name, (folders.raw, folders.preprocessed, folders.results))
    volumes = find_volumes(
        source, structures=settings.structures, structure=settings.structure, vessel_channels=settings.vessel_channels
    )
    if len({len(v.channels) for v in volumes}) > 1:
        raise SelmaError(
            "--vessel-channels both gives vessels two input channels, other structures have one: choose --structures blood_vessel"
        )
    opened = [[settings.open(path) for path in volume.channels] for volume in progress(volumes, "opening volumes")]
    spacing = settings.spacing or default_spacing([volume.structure for volume in volumes])
    spacings = [
        spacing_of(v.structure, spacing, channels[0].spacing_um_zyx)
        for v, channels in zip(volumes, opened, strict=True)
    ]
    for volume, channels in zip(volumes, opened, strict=True):
        if len({channel.shape for channel in channels}) > 1:
            raise SelmaError(
                f"{volume.channels[0].parent}: the two channels differ in size ({' and '.join(str(c.shape) for c in channels)}, z, y, x); "
                "choose --vessel-channels separate"
            )
    identity = {
        **vars(settings),
        "tiles": vars(settings.tiles),
        "source": source.resolve(),
        "volumes": {
            v.name: [str(p) for p in v.channels] + list(o[0].shape) for v, o in zip(volumes, opened, strict=True)
        },
    }
    dataset = RawDataset(folders.raw, folder_name, identity)
    if dataset.complete:
        return dataset.manifest()
    plans = [
        _planned(dataset, v, o[0], settings.tiles)
        for v, o in progress(list(zip(volumes, opened, strict=True)), "finding tissue")
    ]
    facts = {}
    for volume, channels, size, plan in zip(volumes, opened, spacings, plans, strict=True):
        facts[volume.name] = _convert_volume(dataset, volume, channels, size, plan, progress)
    if not any(one["tiles"] for one in facts.values()):
        raise SelmaError(
            f"{source}: no tile holds {settings.tiles.min_foreground:.0%} tissue; choose a lower --min-foreground or a smaller --tile"
        )
    names = (
        ["light sheet"]
        if len(volumes[0].channels) == 1
        else list((volumes[0].structure or named("blood_vessel")).channels.values())
    )
    return dataset.finish(
        channels=names,
        foreground="tissue",
        description="unannotated light-sheet tiles, label is tissue",
        facts={"volumes": facts},
    )


def _planned(dataset: RawDataset, volume: UnlabelledVolume, first: Volume, settings: TileSettings) -> dict[str, Any]:
    """Threshold, unit and tiles of one volume, chosen in this run or in one that was interrupted."""
    plan: dict[str, Any] | None = dataset.noted(f"plan_{volume.name}")
    if plan is None:
        # the volume's name goes into the seed, so that equal volumes do not give the same tiles
        seed = int.from_bytes(hashlib.blake2b(f"{settings.seed} {volume.name}".encode(), digest_size=4).digest(), "big")
        tissue = tissue_map(first, settings.tile)
        tiles = choose_tiles(tissue, replace(settings, seed=seed))
        plan = {
            "log_threshold": tissue.log_threshold,
            "unit": tissue.unit,
            "tiles": [[list(t.start), list(t.shape)] for t in tiles],
        }
        dataset.note(f"plan_{volume.name}", plan)
    return plan


def _convert_volume(
    dataset: RawDataset,
    volume: UnlabelledVolume,
    channels: Sequence[Volume],
    spacing: SpacingUm,
    plan: dict[str, Any],
    progress: Progress[Any],
) -> dict[str, Any]:
    """Write the tiles of one volume that are not there yet; returns what the manifest says about the volume."""
    tiles = [Tile(tuple(start), tuple(shape)) for start, shape in plan["tiles"]]
    open_tiles = [tile for tile in tiles if not dataset.has(_case(volume, tile))]
    streams = [read_tiles(channel, open_tiles) for channel in channels]
    for _ in progress(open_tiles, volume.name):
        parts = [next(stream) for stream in streams]
        tile, voxels = parts[0][0], [part[1] for part in parts]
        mask = foreground_mask(voxels[0], plan["log_threshold"], plan["unit"])
        _write_tile(dataset, volume, channels, tile, voxels, spacing, mask)
    return {
        "files": [str(path) for path in volume.channels],
        "shape_zyx": list(channels[0].shape),
        "dtype": str(channels[0].dtype),
        "header_spacing_um_zyx": channels[0].spacing_um_zyx,
        "tiles": len(tiles),
        "interpolated_slices": sorted({name for channel in channels for name in channel.repaired}),
        "warnings": [] if tiles else ["no tile holds enough tissue; the volume gave no case"],
    }


def _case(volume: UnlabelledVolume, tile: Tile) -> str:
    z, y, x = tile.start
    return f"{volume.name}_z{z:05d}_y{y:05d}_x{x:05d}"


def _write_tile(
    dataset: RawDataset,
    volume: UnlabelledVolume,
    channels: Sequence[Volume],
    tile: Tile,
    voxels: Sequence[Array],
    spacing: SpacingUm,
    mask: Array,
) -> None:
    record = {
        "structure": volume.structure.prefix if volume.structure else None,
        "group": volume.name,
        "spacing_zyx": list(spacing),
        "start_zyx": list(tile.start),
        "images": [as_json(image_facts(v, c, volume.structure)) for v, c in zip(voxels, channels, strict=True)],
        "foreground_share": float(mask.mean()),
    }
    images = [to_intensities(v, str(c.path)) for v, c in zip(voxels, channels, strict=True)]
    dataset.write(_case(volume, tile), images, mask, spacing, record)
