"""Annotated patches in the layouts of SELMA3D and DELiVR: raw images and ground truths are paired by the numbers in their names.

Sources: BioImage Archive S-BIAD1196 (raw and gt side by side, `patchvolume_000_0000.nii.gz` with `patchvolume_000.nii.gz`), the zips of
the challenge page (the same files, raw and gt under different top folders, folders doubled by unzipping), and DELiVR's released patches
(`patchvolume_<cube>_<octant>.nii.gz`, eight octants of one 200³ cube).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from nnunet_selma.conversion.walk import PassedBy
from nnunet_selma.structures import Structure, find_structure
from nnunet_selma.volumes import stem

_Key = tuple[str, Path | None, int, int | None]
"""Structure, folder (None where files are matched across folders), number and octant, which raw image and ground truth share."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names and places of the files in one kind of download."""

    name: str
    raw_name: re.Pattern[str]
    """Name of a raw image without its ending; groups: number, and optionally octant and channel."""
    gt_name: re.Pattern[str]
    """Name of a ground truth without its ending; groups: number, and optionally octant."""
    example: str
    """Names of a raw image and its ground truth, for errors."""
    side_by_side: bool
    """True if raw and gt lie in one folder; otherwise files are matched by structure across the tree."""


_NUMBERED = r"^patchvolume_(?P<number>\d+)"
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="bioimage_archive",
        raw_name=re.compile(_NUMBERED + r"(?:_(?P<channel>\d{4}))?$"),
        gt_name=re.compile(_NUMBERED + "$"),
        example="raw/patchvolume_007_0000.nii.gz and gt/patchvolume_007.nii.gz",
        side_by_side=True,
    ),
    Layout(
        name="challenge_zip",
        raw_name=re.compile(_NUMBERED + r"(?:_(?P<channel>\d{4}))?$"),
        gt_name=re.compile(_NUMBERED + "$"),
        example="raw/patchvolume_007_0000.nii.gz and gt/patchvolume_007.nii.gz",
        side_by_side=False,
    ),
    Layout(
        name="delivr",
        raw_name=re.compile(_NUMBERED + r"_(?P<octant>[0-7])(?:_(?P<channel>\d{4}))?$"),
        gt_name=re.compile(_NUMBERED + r"_(?P<octant>[0-7])$"),
        example="raw/patchvolume_695_0.nii.gz and gt/patchvolume_695_0.nii.gz",
        side_by_side=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """An annotated patch and its files."""

    name: str
    """Name of its case; begins with the structure's prefix, where the structure is known."""
    group: str
    """Name of the group that must stay in one fold: the channels of a patch, the octants of a cube."""
    structure: Structure | None
    images: dict[int, Path]
    """Channel number to file."""
    label: Path
    in_layout: bool = False
    """True for SELMA3D's and DELiVR's layouts, so that the structure table knows the voxel size."""

    @property
    def prefix(self) -> str:
        """The structure's prefix; empty where the structure is not known."""
        return self.structure.prefix if self.structure else ""

    @property
    def tabled(self) -> Structure | None:
        """The structure, if the structure table knows the voxel size."""
        return self.structure if self.in_layout else None


@dataclass(frozen=True, kw_only=True)
class FoundPatches:
    """Patches in a folder, with file names read as one layout."""

    layout: str
    patches: list[Patch]
    problems: list[str]
    """Sentences about files that fit nowhere; a conversion stops at them."""
    unpaired: list[str]
    """Sentences about raw files without ground truth, and ground truths without raw file; a conversion stops at them, or leaves them out."""
    passed_by: list[PassedBy] = field(default_factory=list)
    """Entries of the source that are no part of a patch."""


@dataclass(frozen=True)
class _PatchFile:
    path: Path
    structure: Structure
    channel: int
    key: _Key


def numbered_patches(images: Sequence[Path], labels: Sequence[Path], layout: str | None = None) -> FoundPatches:
    """Pair raw images and ground truths, whose folders name a structure, by number.

    Args:
        images: files in folders `raw`.
        labels: files in folders `gt`.
        layout: name of the layout; None for the one that leaves the fewest files unexplained.
    """
    candidates = [candidate for candidate in LAYOUTS if layout in (None, candidate.name)]
    pairings = [_pair_files(candidate, images, labels) for candidate in candidates]
    return min(pairings, key=lambda pairing: len(pairing.problems) + len(pairing.unpaired))


def structure_above(path: Path) -> Structure | None:
    """The structure of a file in raw or gt, named by the folder above."""
    return find_structure(path.parent.parent.resolve().name)


def _pair_files(layout: Layout, image_paths: Sequence[Path], label_paths: Sequence[Path]) -> FoundPatches:
    """Read the names as one layout and pair raw images with ground truths; files without a place become problems."""
    problems: list[str] = []
    images: dict[_Key, dict[int, _PatchFile]] = {}
    labels: dict[_Key, _PatchFile] = {}
    for file in _patch_files(image_paths, layout.raw_name, layout, problems):
        channels = images.setdefault(file.key, {})
        if file.channel in channels:
            problems.append(
                f"{file.path} and {channels[file.channel].path} are one patch and channel; keep one of them"
            )
        if file.channel not in file.structure.channels:
            problems.append(f"{file.path}: {file.structure.title} has no channel {file.channel}")
        channels[file.channel] = file
    for file in _patch_files(label_paths, layout.gt_name, layout, problems):
        if file.key in labels:
            problems.append(f"{file.path} and {labels[file.key].path} label one patch; keep one of them")
        labels[file.key] = file
    unpaired = [
        f"{next(iter(channels.values())).path}: no ground truth with this number"
        for key, channels in images.items()
        if key not in labels
    ]
    unpaired += [f"{file.path}: no raw image with this number" for key, file in labels.items() if key not in images]
    patches = [
        Patch(
            name=group if octant is None else f"{group}_{octant}",
            group=group,
            structure=label.structure,
            images={channel: file.path for channel, file in sorted(images[key].items())},
            label=label.path,
            in_layout=True,
        )
        for key, label in labels.items()
        if key in images
        for prefix, _, number, octant in [key]
        for group in [f"{prefix}_{number:03d}"]
    ]
    patches.sort(key=lambda patch: patch.name)
    problems += [
        f"{second.label}: a second patch named {second.name}; convert the two folders separately"
        for first, second in pairwise(patches)
        if first.name == second.name
    ]
    return FoundPatches(layout=layout.name, patches=patches, problems=problems, unpaired=unpaired)


def _patch_files(
    paths: Sequence[Path], pattern: re.Pattern[str], layout: Layout, problems: list[str]
) -> Iterator[_PatchFile]:
    """Files whose names fit the layout; for the others a sentence is added to the problems."""
    for path in paths:
        match, structure = pattern.match(stem(path)), structure_above(path)
        if match is None:
            problems.append(
                f"{path}: is not named as layout {layout.name} names its files, for example {layout.example}"
            )
        elif structure is not None:
            groups = match.groupdict()
            folder = path.parent.parent if layout.side_by_side else None
            octant = None if groups.get("octant") is None else int(groups["octant"])
            key = (structure.prefix, folder, int(groups["number"]), octant)
            yield _PatchFile(path, structure, int(groups.get("channel") or 0), key)
