"""Whole-brain volumes in a download: files, structure, sample and channel of each.

Sources: SELMA3D's tree of 2024, `…/<structure>/sampleN/C00|C01/*.tif`, its top folder doubled by unzipping, and its patches of 2026,
`…/<structure>/patchvolume_<id>`. Anything else is read as single volumes, named after their folders and files.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_selma.conversion.channel_files import SELMA3D_CHANNEL
from nnunet_selma.conversion.channels import VesselChannels, channel_sets, stained_files
from nnunet_selma.conversion.walk import Entry, passed_by, walk
from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import Structure, find_structure
from nnunet_selma.volumes import check_exists, stem


@dataclass(frozen=True, kw_only=True)
class UnlabelledVolume:
    """A volume that tiles are taken from."""

    structure: Structure | None
    name: str
    """`<structure prefix or "volume">_<sample>_<channel>`, with which the names of its cases begin."""
    channels: tuple[Path, ...]
    """Files of the channels, in order; a file that holds all channels stands there for each."""
    in_layout: bool = False
    """True if it lies as in a download of SELMA3D or DELiVR, so that the structure table knows its voxel size."""

    @property
    def tabled(self) -> Structure | None:
        """The structure, if the structure table knows the voxel size."""
        return self.structure if self.in_layout else None


@dataclass(frozen=True)
class _VolumeFile:
    """A file or folder of slices, and the meaning of the folders above it."""

    path: Path
    structure: Structure | None
    sample: str
    channel: int | None
    in_layout: bool

    @property
    def prefix(self) -> str:
        """Beginning of the name of its volume."""
        return f"{self.structure.prefix if self.structure else 'volume'}_{self.sample}"


class NothingFoundError(SelmaError):
    """There is no volume below a folder."""


def find_volumes(
    source: Path,
    *,
    structures: Sequence[str] = (),
    structure: Structure | None = None,
    vessel_channels: VesselChannels = "separate",
    stains: Sequence[str] = (),
    scene: str | None = None,
    entries: Sequence[Entry] | None = None,
) -> list[UnlabelledVolume]:
    """Find the volumes of SELMA3D's tree `…/<structure>/sampleN/C00|C01/*.tif`, or single volumes, below a path.

    Args:
        source: the download, any folder of it, or one volume.
        structures: prefixes to keep; empty for all.
        structure: structure of all volumes, whatever their folders are called; None takes it from the folders.
        vessel_channels: treatment of stains with two channels: one of them, both as two input channels, or each as a volume.
        stains: names of the channels that every volume has, in folders `C00`, `C01`, … or inside its file; empty for one channel, or for
            those of the structure.
        scene: scene of files with several, whose channels count.
        entries: the result of `walk`, if it is there already.

    Raises:
        NothingFoundError: there is no volume.
        SelmaError: the path does not exist, a folder leaves a question, a chosen channel is missing, or two volumes would have one name.
    """
    check_exists(source)
    entries = walk(source) if entries is None else entries
    question = next((entry for entry in entries if entry.fate == "question"), None)
    if question is not None:
        raise SelmaError(question.reason)
    files = [_identify(entry.path, source, structure) for entry in entries if entry.fate == "volume"]
    if structures:
        files = [file for file in files if file.structure is not None and file.structure.prefix in structures]
    if not files:
        kinds = f" of {', '.join(structures)}" if structures else ""
        instead = (
            "; ".join(map(str, passed_by(entries))) or "give folders of TIFF slices, TIFF, NIfTI, NRRD, MHA or OME-Zarr"
        )
        raise NothingFoundError(f"{source}: holds no volumes{kinds} to learn from; {instead}")
    volumes: dict[str, UnlabelledVolume] = {}
    for volume in _stained_volumes(files, stains, scene) if stains else _volumes_of(files, vessel_channels):
        if volume.name in volumes:
            raise SelmaError(
                f"{volumes[volume.name].channels[0]} and {volume.channels[0]} would both be named {volume.name}; "
                "convert them from separate folders with separate ids"
            )
        volumes[volume.name] = volume
    return list(volumes.values())


def _identify(path: Path, source: Path, chosen: Structure | None) -> _VolumeFile:
    """Structure, sample and channel from the folders above a volume; the nearest folder that names a structure counts."""
    absolute = path.resolve()
    inside = path.relative_to(source).parts
    around = absolute.parts if path == source else (*source.resolve().parts, *inside)
    by_folder = next((s for part in reversed(around) if (s := find_structure(part)) is not None), None)
    channel = next((int(m[1]) for part in reversed(around[-3:]) if (m := SELMA3D_CHANNEL.match(part))), None)
    name = absolute.parent.name if path == source and channel is not None else stem(path)
    parts = [*inside[:-1], name]
    kept = [
        part
        for part in dict.fromkeys(parts)
        if find_structure(part) is None
        and not SELMA3D_CHANNEL.match(part)
        and part.lower() != "raw"
        and "microscopy_image" not in part
    ] or [source.resolve().name]
    return _VolumeFile(
        path,
        chosen or by_folder,
        re.sub(r"[^A-Za-z0-9-]+", "-", "-".join(kept)).strip("-"),
        channel,
        in_layout=by_folder is not None and chosen in (None, by_folder) and _in_layout(around),
    )


def _in_layout(around: Sequence[str]) -> bool:
    """True for `<structure>/<sample>/C00`, and for `<structure>/patchvolume_<id>` with or without a folder `raw` between."""
    if SELMA3D_CHANNEL.match(around[-1]):
        return len(around) > 2 and find_structure(around[-3]) is not None
    folders = [part for part in around[-3:-1] if part.lower() != "raw"]
    return re.match(r"patchvolume_\d", around[-1]) is not None and find_structure(folders[-1]) is not None


def _stained_volumes(
    files: Sequence[_VolumeFile], stains: Sequence[str], scene: str | None
) -> Iterator[UnlabelledVolume]:
    """Volumes that all have these stains as input channels."""
    samples: dict[str, list[_VolumeFile]] = {}
    for file in files:
        samples.setdefault(file.prefix, []).append(file)
    for prefix, stained in samples.items():
        if len(stained) > 1 and len({file.channel for file in stained} - {None}) < len(stained):
            raise SelmaError(
                f"{stained[0].path} and {stained[1].path} would both be {prefix}; channels of a volume lie in folders C00, C01, … or in one file"
            )
        stained.sort(key=lambda file: file.channel or 0)
        channels = stained_files([file.path for file in stained], stains, scene)
        yield UnlabelledVolume(
            structure=stained[0].structure, name=prefix, channels=channels, in_layout=stained[0].in_layout
        )


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
                yield UnlabelledVolume(
                    structure=structure, name=prefix + suffix, channels=(file.path,), in_layout=file.in_layout
                )
            continue
        by_channel = {file.channel: file.path for file in stained if file.channel is not None}
        for channels in channel_sets(stains, by_channel, vessel_channels):
            for channel in channels:
                if channel not in by_channel:
                    raise SelmaError(
                        f"{stained[0].path.parent}: the folder C{channel:02d} ({stains[channel]}) is missing; add it",
                        option="choose --vessel-channels separate",
                    )
            yield UnlabelledVolume(
                structure=structure,
                name=prefix + (f"_{stains[channels[0]]}" if len(channels) == 1 else ""),
                channels=tuple(by_channel[channel] for channel in channels),
                in_layout=stained[0].in_layout,
            )
