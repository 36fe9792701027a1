"""Unannotated whole brains become a nnU-Net dataset of tiles: raw, with the tissue as label, or straight a tile store.

The label makes nnU-Net's fingerprint, foreground sampling and preprocessing work on unlabelled data as they are.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.channels import (
    VesselChannels,
    check_equal_counts,
    check_stains,
    input_channels,
    numbered_within,
    stain_names,
)
from nnunet_selma.conversion.checks import MASK_BY_VALUES, check_equal_shapes, check_several_slices, is_mask
from nnunet_selma.conversion.raw_dataset import RawDataset, check_free_id, dataset_folder_name
from nnunet_selma.conversion.spacing import Spacing, SpacingSources, WrittenSpacing, default_spacing, spacing_of
from nnunet_selma.conversion.staging import StagedDataset, StagedFolder
from nnunet_selma.conversion.tile_slabs import TilePlan, TileSlab, remaining_slabs, write_slab
from nnunet_selma.conversion.tiles import TileSettings, choose_tiles, tissue_map
from nnunet_selma.conversion.volume_tree import UnlabelledVolume, find_volumes
from nnunet_selma.conversion.walk import Entry, passed_by, walk
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.plans import Plans, store_plans
from nnunet_selma.nnunet.voxel_sizes import check_voxel_sizes, dataset_unit
from nnunet_selma.running.fingerprints import fingerprint
from nnunet_selma.running.parallel import run_tasks
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm, chosen_structure
from nnunet_selma.volumes import OnBadSlice, Volume, open_volume, parts_of
from nnunet_selma.volumes.lost_chunks import lost_chunks

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
    """Structure of all volumes, one of SELMA3D's or a new name; None: that which their folders name."""
    spacing: Spacing | None = None
    """Voxel size to write: the header's, the true one (of the structure table for a download of SELMA3D, else the header's), 1 voxel, or µm; None: physical, but voxel for several structures of SELMA3D."""
    vessel_channels: VesselChannels = "separate"
    """Channels of stains that have two: only one, both as two input channels, or each as a volume."""
    stains: tuple[str, ...] = ()
    """Names of the input channels of every volume, in folders C00, C01, … or inside one file; `header` takes the names in the files; empty: one channel."""
    tiles: TileSettings = field(default_factory=TileSettings)
    """Size, number and choice of tiles."""
    on_bad_slice: OnBadSlice = "error"
    """A slice that is missing or unreadable: stop, or interpolate from its neighbours."""
    scene: str | None = None
    """Name or number of the image in files with several, as tiles, positions or series. None: the only one."""
    channel: int | None = None
    """Channel of files with several, from 0."""
    time: int | None = None
    """Time point of files with several, from 0. None: the only one."""
    level: int = 0
    """Resolution level of files with several, from 0, which is the finest."""
    slice_pattern: str | None = None
    """Regular expression whose parenthesis finds the number of a slice in its name, as in 'Z([0-9]+)'; None: the number is found by rules."""

    def __post_init__(self) -> None:
        """Raise `SelmaError` for options that contradict each other."""
        check_stains(self.stains, self.channel)

    def find(self, source: Path, entries: Sequence[Entry] | None = None) -> list[UnlabelledVolume]:
        """Find the chosen volumes of a source; raises `SelmaError` as `find_volumes`."""
        return find_volumes(
            source,
            structures=self.structures,
            structure=None if self.structure is None else chosen_structure(self.structure),
            vessel_channels=self.vessel_channels,
            stains=self.stains,
            scene=self.scene,
            entries=entries,
        )

    def open(self, path: Path, channel: int | None = None) -> Volume:
        """Open a file with the chosen channel, level and treatment of bad slices; raises `SelmaError` for a single slice."""
        volume = open_volume(
            path,
            scene=self.scene,
            channel=self.channel if channel is None else channel,
            time=self.time,
            level=self.level,
            on_bad_slice=self.on_bad_slice,
            slice_pattern=self.slice_pattern,
        )
        check_several_slices(volume)
        return volume

    def spacing_sources(self, volume: UnlabelledVolume, opened: Volume) -> SpacingSources:
        """Everything that states the voxel size of a volume, whose first channel is open."""
        return SpacingSources(
            name=str(volume.channels[0]),
            structure=volume.structure,
            in_layout=volume.in_layout,
            header_um_zyx=opened.spacing_um_zyx,
            level_factor=opened.level_factor_zyx,
        )


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Source of the plans of a tile store."""

    plans_from: int
    """Id of the annotated dataset, which is planned already."""
    plans_name: str = "nnUNetPlans"
    """Plans of the annotated dataset."""
    configuration: str = "3d_fullres"
    """Configuration to pretrain."""

    @property
    def choice(self) -> dict[str, str]:
        """Keyword arguments of `nnunet.plans.store_plans`."""
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

    The tiles go into `folders.raw`, with the tissue as label 1, or, with `store`, straight into `folders.preprocessed` as a tile store that
    `SelmaSSLTrainer` trains on. Every slice is read at most twice: a few for the tissue map, then those of chosen tiles. The next run
    continues one that was killed, with the same tiles. Memory: about 1.3 GB for each worker, whatever the size of the volumes, and more only
    where a single tile is larger than that.

    Args:
        source: the download, any folder of it, or one volume.
        settings: choice of volumes and tiles.
        folders: nnU-Net's folders.
        progress: shows the volumes and slices.
        store: plans of the tile store; None writes a raw dataset.
        workers: number of processes.
        scheduler: Dask cluster that does the work instead (`run_tasks`).

    Raises:
        SelmaError: the source or the settings cannot be used; no dataset remains that nnU-Net would take for whole.
    """
    folder_name = dataset_folder_name(settings.dataset_id, settings.name)
    check_free_id(settings.dataset_id, folder_name, folders)
    if store is not None:  # raises errors of the plans before volumes are opened
        store_plans(store.plans_from, folder_name, folders, **store.choice)
    entries = walk(source, settings.slice_pattern) if source.exists() else []
    volumes, opened, masks = _open_images(settings.find(source, entries), settings, progress)
    sources = [settings.spacing_sources(v, channels[0]) for v, channels in zip(volumes, opened, strict=True)]
    spacings = _spacings(sources, settings.spacing, store, folders)
    identity = {
        **vars(settings),
        "tiles": vars(settings.tiles),
        "source": source.resolve(),
        "volumes": {
            v.name: [
                *(str(path) for path in v.channels),
                *(fingerprint(*parts_of(path, settings.scene)) for path in dict.fromkeys(v.channels)),
                *o[0].shape,
            ]
            for v, o in zip(volumes, opened, strict=True)
        },
    }
    if store is None:
        dataset: StagedDataset = RawDataset(folders.raw, folder_name, identity, in_um=spacings[0].unit == "µm")
    else:
        sizes = {v.name: size.size_zyx for v, size in zip(volumes, spacings, strict=True)}
        dataset = _store_dataset(store, folder_name, folders, identity, sizes, len(volumes[0].channels))
    if dataset.staged.complete:
        return dataset.staged.manifest()
    slabs, facts = [], {}
    for volume, channels, size in progress(list(zip(volumes, opened, spacings, strict=True)), "finding tissue"):
        plan = _plan_tiles(dataset.staged, volume, channels[0], settings.tiles)
        slabs += remaining_slabs(dataset, volume, channels, size.size_zyx, plan)
        facts[volume.name] = _volume_facts(volume, channels, len(plan.tiles))
    if not any(of_volume["tiles"] for of_volume in facts.values()):
        raise SelmaError(
            f"{source}: no tile holds {settings.tiles.min_foreground:.0%} tissue; choose a lower --min-foreground or a smaller --tile"
        )
    for name, repaired in _write_slabs(slabs, workers, scheduler, progress).items():
        facts[name]["interpolated_slices"] = sorted({*facts[name]["interpolated_slices"], *repaired})
    return dataset.finish(
        channels=stain_names(settings.stains, [volume.channels[0] for volume in volumes], settings.scene)
        or input_channels(volumes[0].structure, len(volumes[0].channels)),
        foreground="tissue",
        description="unannotated light-sheet tiles, label is tissue",
        facts={
            "volumes": facts,
            "spacing": sorted({str(size) for size in spacings}),
            "passed_by": [vars(group) for group in passed_by([*entries, *masks])],
        },
    )


def _spacings(
    sources: Sequence[SpacingSources], chosen: Spacing | None, store: StoreSettings | None, folders: Folders
) -> list[WrittenSpacing]:
    """Voxel size of each volume; those for a tile store are in the unit of the plans, and numbers that the user gives stay as they are."""
    unit = dataset_unit(folders.dataset(store.plans_from), folders, store.plans_name) if store else "um"
    spacing = chosen or ("voxel" if unit == "voxel" else default_spacing(sources))
    sizes = [spacing_of(of_volume, spacing) for of_volume in sources]
    if store is None or unit != "mm" or spacing not in ("header", "physical"):
        return sizes
    return [size.in_mm(f"as the plans of dataset {store.plans_from}") for size in sizes]


def _store_dataset(
    store: StoreSettings,
    folder_name: str,
    folders: Folders,
    identity: Mapping[str, Any],
    spacings: Mapping[str, SpacingUm],
    channels: int,
) -> StagedDataset:
    from nnunet_selma.conversion.preprocessed_dataset import PreprocessedDataset

    plans = store_plans(store.plans_from, folder_name, folders, **store.choice)
    _check_channels(channels, plans)
    (configuration,) = plans["configurations"].values()
    check_voxel_sizes(plans, configuration, spacings)
    return PreprocessedDataset(folders.preprocessed, folder_name, plans, identity)


def _write_slabs(
    slabs: Sequence[TileSlab], workers: int, scheduler: str | None, progress: Progress[Any]
) -> dict[str, set[str]]:
    """Write all slabs; returns volume to the names of its interpolated slices."""
    small = sum(slab.bytes for slab in slabs) < _WORTH_PROCESSES
    interpolated = run_tasks(
        write_slab,
        slabs,
        steps=sum(slab.steps for slab in slabs),
        workers=1 if small else workers,
        label="converting slices",
        progress=progress,
        scheduler=scheduler,
    )
    repaired: dict[str, set[str]] = {}
    for slab, names in zip(slabs, interpolated, strict=True):
        repaired.setdefault(slab.volume.name, set()).update(names)
    return repaired


def _check_channels(count: int, plans: Plans) -> None:
    (configuration,) = plans["configurations"].values()
    planned = len(configuration["normalization_schemes"])
    if planned != count:
        raise SelmaError(
            f"the plans are for {counted(planned, 'input channel')}, the volumes have {count}; "
            "convert both datasets with the same --vessel-channels"
        )


def _open_images(
    volumes: Sequence[UnlabelledVolume], settings: UnannotatedSettings, progress: Progress[Any]
) -> tuple[list[UnlabelledVolume], list[list[Volume]], list[Entry]]:
    """The volumes that are images, their open channels, and the volumes that are masks.

    Raises:
        SelmaError: volumes differ in the number of channels, channels of one volume differ in shape, or all volumes are masks.
    """
    check_equal_counts(volume.channels for volume in volumes)
    images, opened, masks = [], [], []
    for volume in progress(volumes, "opening volumes"):
        channels = [settings.open(*channel) for channel in numbered_within(volume.channels)]
        check_equal_shapes(channels, "choose --vessel-channels separate")
        if is_mask(channels[0]):
            masks.append(Entry(volume.channels[0], "mask", MASK_BY_VALUES))
        else:
            images.append(volume)
            opened.append(channels)
    if not images:
        raise SelmaError(f"{masks[0].path}: {MASK_BY_VALUES}; give images to learn from")
    return images, opened, masks


def _plan_tiles(staged: StagedFolder, volume: UnlabelledVolume, first: Volume, settings: TileSettings) -> TilePlan:
    """Tiles of a volume, chosen in this run or in one that was killed."""
    note: dict[str, Any] | None = staged.read_note(f"plan_{volume.name}")
    if note is not None:
        return TilePlan.from_json(note)
    # the volume's name goes into the seed, so that equal volumes do not give the same tiles
    seed = int.from_bytes(hashlib.blake2b(f"{settings.seed} {volume.name}".encode(), digest_size=4).digest(), "big")
    tissue = tissue_map(first, settings.tile)
    tiles = tuple(choose_tiles(tissue, replace(settings, seed=seed)))
    plan = TilePlan(tiles=tiles, log_threshold=tissue.log_threshold, unit=tissue.unit)
    staged.note(f"plan_{volume.name}", plan.as_json())
    return plan


def _volume_facts(volume: UnlabelledVolume, channels: Sequence[Volume], tiles: int) -> dict[str, Any]:
    return {
        "files": [str(path) for path in volume.channels],
        "shape_zyx": list(channels[0].shape),
        "dtype": str(channels[0].dtype),
        "header_spacing_um_zyx": channels[0].spacing_um_zyx,
        "tiles": tiles,
        "interpolated_slices": sorted({name for channel in channels for name in channel.repaired}),
        "warnings": [
            *(lost for channel in channels if (lost := lost_chunks(channel))),
            *([channels[0].spacing_guess] if channels[0].spacing_guess else []),
            *([] if tiles else ["no tile holds enough tissue; the volume gave no case"]),
        ],
    }
