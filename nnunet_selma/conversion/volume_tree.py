"""Finding whole-brain volumes in a download: which files, which structure, which sample, which channel.

Sources: SELMA3D's tree of 2024, `…/<structure>/sampleN/C00|C01/*.tif`, its top folder doubled by unzipping; anything else is taken as single
volumes, named after their folders and files.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_selma.conversion.layouts import VesselChannels
from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import Structure, from_name, named
from nnunet_selma.volumes import is_volume, stem
from nnunet_selma.volumes.tiff import has_many_pages, tiff_slices

_CHANNEL = re.compile(r"^C(\d{2})$", re.IGNORECASE)


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


def find_volumes(
    source: Path,
    *,
    structures: Sequence[str] = (),
    structure: str | None = None,
    vessel_channels: VesselChannels = "separate",
) -> list[UnlabelledVolume]:
    """Find the volumes of SELMA3D's tree `…/<structure>/sampleN/C00|C01/*.tif`, or single volumes, below a path.

    Args:
        source: the download, any folder of it, or one volume.
        structures: prefixes to keep; empty for all.
        structure: what volumes show whose folders do not say it.
        vessel_channels: of stains with two channels: one, both as two input channels, or each as a volume of its own.

    Raises:
        SelmaError: nothing there, an unknown structure, or a channel that was asked for is missing.
    """
    if not source.exists():
        raise SelmaError(f"{source}: there is no such file or folder")
    default = named(structure) if structure else None
    found = [_identified(path, source, default) for path in _volume_paths(source)]
    if structures:
        found = [f for f in found if f.structure is not None and f.structure.prefix in structures]
    if not found:
        wanted = f" of {', '.join(structures)}" if structures else ""
        raise NothingFoundError(
            f"{source}: no volumes{wanted} found; give folders of TIFF slices, TIFF, NIfTI, NRRD, MHA or OME-Zarr"
        )
    volumes = list(_grouped(found, vessel_channels))
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
    own = [stem(path)]
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
