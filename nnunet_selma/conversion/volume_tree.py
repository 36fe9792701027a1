"""Whole-brain volumes in a download: files, structure, sample and channel of each.

Sources: SELMA3D's tree of 2024, `…/<structure>/sampleN/C00|C01/*.tif`, its top folder doubled by unzipping. Anything else is read as single
volumes, named after their folders and files.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_selma.conversion.channels import VesselChannels, channel_sets
from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import Structure, find_structure, named
from nnunet_selma.volumes import check_exists, is_volume, stem
from nnunet_selma.volumes.tiff import has_many_pages, tiff_slices

_CHANNEL = re.compile(r"^C(\d{2})$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class UnlabelledVolume:
    """A volume that tiles are taken from."""

    structure: Structure | None
    name: str
    """`<structure prefix or "volume">_<sample>_<channel>`, with which the names of its cases begin."""
    channels: tuple[Path, ...]
    """Files of the channels, in order."""


@dataclass(frozen=True)
class _VolumeFile:
    """A file or folder of slices, and the meaning of the folders above it."""

    path: Path
    structure: Structure | None
    sample: str
    channel: int | None

    @property
    def prefix(self) -> str:
        """Beginning of the name of its volume."""
        return f"{self.structure.prefix if self.structure else 'volume'}_{self.sample}"


def _volume_paths(folder: Path) -> Iterator[Path]:
    """Every volume below a folder, without annotated patches: `gt` holds labels, `raw` the images of `convert annotated`."""
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
        structure: name of the structure of volumes whose folders do not name one.
        vessel_channels: treatment of stains with two channels: one of them, both as two input channels, or each as a volume.

    Raises:
        NothingFoundError: there is no volume.
        SelmaError: the path does not exist, the structure is unknown, a chosen channel is missing, or two volumes would have one name.
    """
    check_exists(source)
    default = named(structure) if structure else None
    files = [_identify(path, source, default) for path in _volume_paths(source)]
    if structures:
        files = [file for file in files if file.structure is not None and file.structure.prefix in structures]
    if not files:
        kinds = f" of {', '.join(structures)}" if structures else ""
        raise NothingFoundError(
            f"{source}: no volumes{kinds} found; give folders of TIFF slices, TIFF, NIfTI, NRRD, MHA or OME-Zarr"
        )
    volumes: dict[str, UnlabelledVolume] = {}
    for volume in _volumes_of(files, vessel_channels):
        if volume.name in volumes:
            raise SelmaError(
                f"{volumes[volume.name].channels[0]} and {volume.channels[0]} would both be named {volume.name}; "
                "convert them from separate folders with separate ids"
            )
        volumes[volume.name] = volume
    return list(volumes.values())


def _identify(path: Path, source: Path, default: Structure | None) -> _VolumeFile:
    """Structure, sample and channel from the folders above a volume; the nearest folder that names one counts."""
    absolute = path.resolve()
    inside = path.relative_to(source).parts
    around = absolute.parts if path == source else (*source.resolve().parts, *inside)
    structure = next((s for part in reversed(around) if (s := find_structure(part)) is not None), None) or default
    channel = next((int(m[1]) for part in reversed(around[-3:]) if (m := _CHANNEL.match(part))), None)
    name = absolute.parent.name if path == source and channel is not None else stem(path)
    parts = [*inside[:-1], name]
    kept = [
        part
        for part in dict.fromkeys(parts)
        if find_structure(part) is None
        and not _CHANNEL.match(part)
        and part.lower() != "raw"
        and "microscopy_image" not in part
    ] or ["volume"]
    return _VolumeFile(path, structure, re.sub(r"[^A-Za-z0-9-]+", "-", "-".join(kept)).strip("-"), channel)


def _volumes_of(files: Sequence[_VolumeFile], vessel_channels: VesselChannels) -> Iterator[UnlabelledVolume]:
    """The volumes to convert, after the choice of vessel channels."""
    samples: dict[str, list[_VolumeFile]] = {}
    for file in files:
        samples.setdefault(file.prefix, []).append(file)
    for prefix, stained in samples.items():
        structure = stained[0].structure
        stains = structure.channels if structure else {0: "signal"}
        if len(stains) == 1 or any(file.channel is None for file in stained):
            for file in stained:
                suffix = f"_C{file.channel:02d}" if len(stained) > 1 and file.channel is not None else ""
                yield UnlabelledVolume(structure=structure, name=prefix + suffix, channels=(file.path,))
            continue
        by_channel = {file.channel: file.path for file in stained if file.channel is not None}
        for channels in channel_sets(stains, by_channel, vessel_channels):
            for channel in channels:
                if channel not in by_channel:
                    raise SelmaError(
                        f"{stained[0].path.parent}: the folder C{channel:02d} ({stains[channel]}) is missing; add it, or choose --vessel-channels separate"
                    )
            yield UnlabelledVolume(
                structure=structure,
                name=prefix + (f"_{stains[channels[0]]}" if len(channels) == 1 else ""),
                channels=tuple(by_channel[channel] for channel in channels),
            )
