"""Unannotated whole-brain volumes to a nnU-Net dataset of tiles, with the tissue as their label.

The label makes nnU-Net's fingerprint, foreground sampling and preprocessing work on unlabelled data as they are.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.checks import as_json, image_facts
from nnunet_selma.conversion.layouts import VesselChannels, stem
from nnunet_selma.conversion.raw_dataset import RawDataset, dataset_folder_name, demand_free_id
from nnunet_selma.conversion.spacing import Spacing, default_spacing, spacing_of
from nnunet_selma.errors import SelmaError
from nnunet_selma.folders import Folders
from nnunet_selma.progress import Progress, silent
from nnunet_selma.structures import SpacingUm, Structure, from_name, named
from nnunet_selma.tiles import Tile, TileSettings, choose_tiles, foreground_mask, read_tiles, tissue_map
from nnunet_selma.volumes import OnBadSlice, Volume, is_volume, open_volume, to_intensities
from nnunet_selma.volumes.base import Array
from nnunet_selma.volumes.tiff import has_many_pages, tiff_slices

_CHANNEL = re.compile(r"^C(\d{2})$", re.IGNORECASE)


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


@dataclass(frozen=True, kw_only=True)
class UnlabelledVolume:
    """One volume to take tiles from: its files in channel order."""

    structure: Structure | None
    name: str
    """`<structure prefix or "volume">_<sample>_<channel>`: the cases' names begin with it."""
    channels: tuple[Path, ...]


@dataclass(frozen=True)
class _Found:
    path: Path
    structure: Structure | None
    sample: str
    channel: int | None


def _volume_paths(folder: Path) -> Iterator[Path]:
    """Every volume below a folder; annotated patches are left out: `gt` holds labels, `raw` what `convert annotated` takes."""
    if is_volume(folder) and not _is_folder_of_volumes(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if path.is_dir() and (path.name.lower() == "gt" or is_raw_of_patches(path)):
            continue
        if path.is_dir() or is_volume(path):
            yield from _volume_paths(path)


def is_raw_of_patches(folder: Path) -> bool:
    """True for a folder `raw` of annotated patches."""
    return folder.name.lower() == "raw" and any(path.name.startswith("patchvolume_") for path in folder.iterdir())


def _is_folder_of_volumes(folder: Path) -> bool:
    """True for a folder whose TIFF files have many pages each, so that it is no stack of slices."""
    return folder.is_dir() and any(has_many_pages(file) for file in sorted(tiff_slices(folder))[:1])


class NothingFoundError(SelmaError):
    """There is no volume below a folder."""


def find_volumes(source: Path, settings: UnannotatedSettings) -> list[UnlabelledVolume]:
    """Find the volumes of SELMA3D's tree `…/<structure>/sampleN/C00|C01/*.tif`, or single volumes, below a path.

    Raises:
        SelmaError: nothing there, an unknown structure, or a channel that was asked for is missing.
    """
    if not source.exists():
        raise SelmaError(f"{source}: there is no such file or folder")
    default = named(settings.structure) if settings.structure else None
    found = [_identified(path, source, default) for path in _volume_paths(source)]
    if settings.structures:
        found = [f for f in found if f.structure is not None and f.structure.prefix in settings.structures]
    if not found:
        wanted = f" of {', '.join(settings.structures)}" if settings.structures else ""
        raise NothingFoundError(
            f"{source}: no volumes{wanted} found; give folders of TIFF slices, TIFF, NIfTI, NRRD, MHA or OME-Zarr"
        )
    volumes = list(_grouped(found, settings.vessel_channels))
    names = [volume.name for volume in volumes]
    for i, name in enumerate(names):
        if name in names[:i]:
            first, second = volumes[names.index(name)].channels[0], volumes[i].channels[0]
            raise SelmaError(
                f"{first} and {second} would both be named {name}; convert them from separate folders with separate ids"
            )
    return volumes


def _identified(path: Path, source: Path, default: Structure | None) -> _Found:
    """Structure, sample and channel from the folders above a volume, the nearest first."""
    absolute = path.resolve()
    inside = path.relative_to(source).parts
    around = absolute.parts if path == source else (*source.resolve().parts, *inside)
    structure = next((s for part in reversed(around) if (s := from_name(part)) is not None), None) or default
    channel = next((int(m[1]) for part in reversed(around[-3:]) if (m := _CHANNEL.match(part))), None)
    own = [stem(path) if path.is_file() or path.suffix == ".zarr" else path.name]
    parts = [*(inside[:-1] or ()), *own] if path != source else own if channel is None else [absolute.parent.name]
    kept = [p for p in dict.fromkeys(parts) if from_name(p) is None and not _CHANNEL.match(p) and p.lower() != "raw"]
    kept = [p for p in kept if "microscopy_image" not in p] or ["volume"]
    return _Found(path, structure, re.sub(r"[^A-Za-z0-9-]+", "-", "-".join(kept)).strip("-"), channel)


def _grouped(found: Sequence[_Found], mode: VesselChannels) -> Iterator[UnlabelledVolume]:
    """The volumes to convert, after the choice of vessel channels."""
    samples: dict[tuple[str, str], list[_Found]] = {}
    for one in found:
        samples.setdefault((one.structure.prefix if one.structure else "volume", one.sample), []).append(one)
    for (prefix, sample), stains in samples.items():
        table = stains[0].structure.channels if stains[0].structure else {0: "signal"}
        if len(table) == 1 or any(one.channel is None for one in stains):
            for one in stains:
                suffix = f"_C{one.channel:02d}" if len(stains) > 1 and one.channel is not None else ""
                yield UnlabelledVolume(structure=one.structure, name=f"{prefix}_{sample}{suffix}", channels=(one.path,))
            continue
        by_channel = {one.channel: one.path for one in stains}
        wanted = {"separate": [c for c in table if c in by_channel], "both": list(table)}.get(
            mode, [c for c, s in table.items() if s == mode]
        )
        for channel in wanted:
            if channel not in by_channel:
                raise SelmaError(
                    f"{stains[0].path.parent}: the folder C{channel:02d} ({table[channel]}) is missing; add it, or choose --vessel-channels separate"
                )
        for group in [wanted] if mode == "both" else [[c] for c in wanted]:
            name = f"{prefix}_{sample}" + (f"_{table[group[0]]}" if len(group) == 1 else "")
            yield UnlabelledVolume(
                structure=stains[0].structure, name=name, channels=tuple(by_channel[c] for c in group)
            )


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
    volumes = find_volumes(source, settings)
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
