"""Unannotated whole-brain volumes to a nnU-Net dataset of tiles: raw, with the tissue as their label, or straight to a tile store.

The label makes nnU-Net's fingerprint, foreground sampling and preprocessing work on unlabelled data as they are.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.layouts import VesselChannels
from nnunet_selma.conversion.raw_dataset import RawDataset, check_free_id, dataset_folder_name
from nnunet_selma.conversion.slabs import SlabTask, case_name, convert_slab
from nnunet_selma.conversion.spacing import Spacing, default_spacing, spacing_of
from nnunet_selma.conversion.staging import StagedDataset, StagedFolder
from nnunet_selma.conversion.tiles import (
    Tile,
    TileSettings,
    choose_tiles,
    slabs,
    tissue_map,
)
from nnunet_selma.conversion.volume_tree import UnlabelledVolume, find_volumes
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.plans import Plans, check_same_unit, store_plans
from nnunet_selma.running.parallel import run_tasks
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm, named
from nnunet_selma.volumes import OnBadSlice, Volume, open_volume

_WORTH_PROCESSES = 2**28
"""Bytes of tiles below which starting processes would take longer than the work."""


@dataclass(frozen=True, kw_only=True)
class UnannotatedSettings:
    """Options for converting unannotated volumes."""

    dataset_id: int = 500
    """Dataset id of nnU-Net."""
    name: str = "SELMA3Dunlabelled"
    """Name of the dataset, after its id."""
    structures: tuple[str, ...] = ()
    """Structures to take; empty: all."""
    structure: str | None = None
    """Structure of volumes whose folders do not name it."""
    spacing: Spacing | None = None
    """Voxel size to write: that of the structure table, 1 voxel, or µm; None: physical for one structure, voxel for several."""
    vessel_channels: VesselChannels = "separate"
    """Channels of stains that have two: only one, both as two input channels, or each as a volume."""
    tiles: TileSettings = field(default_factory=TileSettings)
    """How tiles are chosen."""
    on_bad_slice: OnBadSlice = "error"
    """A slice that is missing or unreadable: stop, or interpolate from its neighbours."""
    channel: int | None = None
    """Channel of files with several, from 0."""
    level: int = 0
    """Resolution level of an OME-Zarr; 0 is the finest."""

    def open(self, path: Path) -> Volume:
        """Open a file with these choices."""
        return open_volume(path, channel=self.channel, level=self.level, on_bad_slice=self.on_bad_slice)


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Where the plans of a tile store come from."""

    plans_from: int
    """Id of the annotated dataset, which is planned already."""
    plans_name: str = "nnUNetPlans"
    """Plans of the annotated dataset."""
    configuration: str = "3d_fullres"
    """Configuration to pretrain."""

    @property
    def choice(self) -> dict[str, str]:
        """The arguments of `planning.store_plans`."""
        return {"plans_name": self.plans_name, "configuration": self.configuration}


def convert_unannotated(
    source: Path,
    settings: UnannotatedSettings,
    folders: Folders,
    progress: Progress[Any] = silent,
    *,
    store: StoreSettings | None = None,
    workers: int = 1,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Write a dataset of tiles rich in signal; returns the manifest.

    Into `folders.raw`, with the tissue as label 1, or, where `store` says whose plans to take, straight into
    `folders.preprocessed` as a tile store that `SelmaSSLTrainer` trains on.

    Every slice is read at most twice: a few for the tissue map, then those that chosen tiles need, once. A run that was killed
    goes on where it stopped, with the same tiles. Memory: about 1.3 GB for each worker, whatever the size of the volumes, and more
    only where a single tile is larger than that.

    Raises:
        SelmaError: anything that makes the source unusable; nothing is left that nnU-Net would take for whole.
    """
    folder_name = dataset_folder_name(settings.dataset_id, settings.name)
    check_free_id(settings.dataset_id, folder_name, (folders.raw, folders.preprocessed, folders.results))
    if store is not None:  # what is wrong with the plans is said before volumes are opened
        store_plans(store.plans_from, folder_name, folders, **store.choice)
    volumes = find_volumes(
        source, structures=settings.structures, structure=settings.structure, vessel_channels=settings.vessel_channels
    )
    opened = _opened(volumes, settings, progress)
    spacing = settings.spacing or default_spacing([volume.structure for volume in volumes])
    spacings = [
        spacing_of(v.structure, spacing, channels[0].spacing_um_zyx)
        for v, channels in zip(volumes, opened, strict=True)
    ]
    identity = {
        **vars(settings),
        "tiles": vars(settings.tiles),
        "source": source.resolve(),
        "volumes": {
            v.name: [str(p) for p in v.channels] + list(o[0].shape) for v, o in zip(volumes, opened, strict=True)
        },
    }
    if store is None:
        dataset: StagedDataset = RawDataset(folders.raw, folder_name, identity)
    else:
        dataset = _store_dataset(store, folder_name, folders, identity, spacings, len(volumes[0].channels))
    if dataset.staged.complete:
        return dataset.staged.manifest()
    tasks, facts = [], {}
    for volume, channels, size in progress(list(zip(volumes, opened, spacings, strict=True)), "finding tissue"):
        plan = _planned(dataset.staged, volume, channels[0], settings.tiles)
        tasks += _slab_tasks(dataset, volume, channels, size, plan)
        facts[volume.name] = _volume_facts(volume, channels, len(plan["tiles"]))
    if not any(one["tiles"] for one in facts.values()):
        raise SelmaError(
            f"{source}: no tile holds {settings.tiles.min_foreground:.0%} tissue; choose a lower --min-foreground or a smaller --tile"
        )
    for name, repaired in _convert(tasks, workers, scheduler, progress).items():
        facts[name]["interpolated_slices"] = sorted({*facts[name]["interpolated_slices"], *repaired})
    stains = (
        ["light sheet"]
        if len(volumes[0].channels) == 1
        else list((volumes[0].structure or named("blood_vessel")).channels.values())
    )
    return dataset.finish(
        channels=stains,
        foreground="tissue",
        description="unannotated light-sheet tiles, label is tissue",
        facts={"volumes": facts},
    )


def _store_dataset(
    store: StoreSettings,
    folder_name: str,
    folders: Folders,
    identity: Mapping[str, Any],
    spacings: Sequence[SpacingUm],
    channels: int,
) -> StagedDataset:
    from nnunet_selma.conversion.preprocessed_dataset import PreprocessedDataset

    plans = store_plans(store.plans_from, folder_name, folders, **store.choice)
    _check_channels(channels, plans)
    check_same_unit(folders.dataset(store.plans_from), folders, folder_name, spacings)
    return PreprocessedDataset(folders.preprocessed, folder_name, plans, identity)


def _convert(
    tasks: Sequence[SlabTask], workers: int, scheduler: str | None, progress: Progress[Any]
) -> dict[str, set[str]]:
    """Do all tasks; returns which slices of each volume stand interpolated."""
    small = sum(task.bytes for task in tasks) < _WORTH_PROCESSES
    done = run_tasks(
        convert_slab,
        tasks,
        steps=sum(task.steps for task in tasks),
        workers=1 if small else workers,
        label="converting slices",
        progress=progress,
        scheduler=scheduler,
    )
    repaired: dict[str, set[str]] = {}
    for task, names in zip(tasks, done, strict=True):
        repaired.setdefault(task.volume.name, set()).update(names)
    return repaired


def _check_channels(count: int, plans: Plans) -> None:
    (own,) = plans["configurations"].values()
    if len(own["normalization_schemes"]) != count:
        raise SelmaError(
            f"the plans are for {len(own['normalization_schemes'])} input channel(s), the volumes have {count}; "
            "convert both datasets with the same --vessel-channels"
        )


def _opened(
    volumes: Sequence[UnlabelledVolume], settings: UnannotatedSettings, progress: Progress[Any]
) -> list[list[Volume]]:
    """The channels of each volume; raises `SelmaError` where they do not fit together."""
    if len({len(v.channels) for v in volumes}) > 1:
        raise SelmaError(
            "--vessel-channels both gives vessels two input channels, other structures have one: choose --structures blood_vessel"
        )
    opened = [[settings.open(path) for path in volume.channels] for volume in progress(volumes, "opening volumes")]
    for volume, channels in zip(volumes, opened, strict=True):
        if len({channel.shape for channel in channels}) > 1:
            raise SelmaError(
                f"{volume.channels[0].parent}: the two channels differ in size ({' and '.join(str(c.shape) for c in channels)}, z, y, x); "
                "choose --vessel-channels separate"
            )
    return opened


def _planned(staged: StagedFolder, volume: UnlabelledVolume, first: Volume, settings: TileSettings) -> dict[str, Any]:
    """Threshold, unit and tiles of one volume, chosen in this run or in one that was interrupted."""
    plan: dict[str, Any] | None = staged.noted(f"plan_{volume.name}")
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
        staged.note(f"plan_{volume.name}", plan)
    return plan


def _volume_facts(volume: UnlabelledVolume, channels: Sequence[Volume], tiles: int) -> dict[str, Any]:
    return {
        "files": [str(path) for path in volume.channels],
        "shape_zyx": list(channels[0].shape),
        "dtype": str(channels[0].dtype),
        "header_spacing_um_zyx": channels[0].spacing_um_zyx,
        "tiles": tiles,
        "interpolated_slices": sorted({name for channel in channels for name in channel.repaired}),
        "warnings": [] if tiles else ["no tile holds enough tissue; the volume gave no case"],
    }


def _slab_tasks(
    dataset: StagedDataset,
    volume: UnlabelledVolume,
    channels: Sequence[Volume],
    spacing: SpacingUm,
    plan: Mapping[str, Any],
) -> list[SlabTask]:
    """Tasks that are left to do for one volume."""
    tiles = [Tile(tuple(start), tuple(shape)) for start, shape in plan["tiles"]]
    left = [tile for tile in tiles if not dataset.staged.has(case_name(volume, tile))]
    return [
        SlabTask(
            dataset=dataset,
            volume=volume,
            channels=channels,
            spacing_zyx=spacing,
            log_threshold=plan["log_threshold"],
            unit=plan["unit"],
            tiles=slab,
        )
        for slab in slabs(left, sum(channel.dtype.itemsize for channel in channels))
    ]
