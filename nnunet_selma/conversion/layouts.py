"""File trees of annotated patches, and the pairing of raw images with ground truths by number.

Sources: BioImage Archive S-BIAD1196 (raw and gt side by side, `patchvolume_000_0000.nii.gz` with `patchvolume_000.nii.gz`), the zips of
the challenge page (the same files, raw and gt under different top folders, folders doubled by unzipping), and DELiVR's released patches
(`patchvolume_<cube>_<octant>.nii.gz`, eight octants of one 200³ cube).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import Structure, find_structure
from nnunet_selma.volumes import is_volume, stem

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
    side_by_side: bool
    """True if raw and gt lie in one folder; otherwise files are matched by structure across the tree."""


_NUMBERED = r"^patchvolume_(?P<number>\d+)"
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="bioimage_archive",
        raw_name=re.compile(_NUMBERED + r"(?:_(?P<channel>\d{4}))?$"),
        gt_name=re.compile(_NUMBERED + "$"),
        side_by_side=True,
    ),
    Layout(
        name="challenge_zip",
        raw_name=re.compile(_NUMBERED + r"(?:_(?P<channel>\d{4}))?$"),
        gt_name=re.compile(_NUMBERED + "$"),
        side_by_side=False,
    ),
    Layout(
        name="delivr",
        raw_name=re.compile(_NUMBERED + r"_(?P<octant>[0-7])(?:_(?P<channel>\d{4}))?$"),
        gt_name=re.compile(_NUMBERED + r"_(?P<octant>[0-7])$"),
        side_by_side=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """An annotated patch and its files."""

    structure: Structure
    number: int
    octant: int | None
    """Octant of a 200³ cube, 0 to 7; None for patches that are no octants."""
    images: dict[int, Path]
    """Channel number to file."""
    label: Path

    @property
    def group(self) -> str:
        """Name of the group that must stay in one fold: the channels of a patch, the octants of a cube."""
        return f"{self.structure.prefix}_{self.number:03d}"

    @property
    def name(self) -> str:
        """`<structure prefix>_<number>`, with the octant where there is one."""
        return self.group if self.octant is None else f"{self.group}_{self.octant}"


@dataclass(frozen=True, kw_only=True)
class FoundPatches:
    """Patches in a folder, with file names read as one layout."""

    layout: str
    patches: list[Patch]
    problems: list[str]
    """Sentences about files that fit nowhere; a conversion stops at them."""
    unpaired: list[str]
    """Sentences about raw files without ground truth, and ground truths without raw file; a conversion stops at them, or leaves them out."""


@dataclass(frozen=True)
class _PatchFile:
    path: Path
    structure: Structure
    channel: int
    key: _Key


def _folders(source: Path, name: str) -> Iterator[Path]:
    """All folders of that name (in any case) in the tree, without hidden ones and those of macOS."""
    for folder in sorted([source, *source.rglob("*")]):
        inside = folder.relative_to(source).parts
        if (
            folder.name.lower() == name
            and folder.is_dir()
            and not any(p.startswith(".") or p == "__MACOSX" for p in inside)
        ):
            yield folder


def find_patches(source: Path, layout: str | None = None, structures: Sequence[str] = ()) -> FoundPatches:
    """Find raw and gt files under a folder and pair them by number.

    Args:
        source: the download, or any folder of it.
        layout: name of the layout; None for the one that leaves the fewest files unexplained.
        structures: prefixes to keep; empty for all.

    Raises:
        SelmaError: there are no patches, a folder names no known structure, or the layout is unknown.
    """
    if not source.is_dir():
        raise SelmaError(f"{source}: there is no such folder")
    images, labels = (_volumes(_folders(source, name)) for name in ("raw", "gt"))
    if not images and not labels:
        raise SelmaError(
            f"{source}: no annotated patches found; expected folders like "
            "VessAP_vessel/raw with patchvolume_000_0000.nii.gz and VessAP_vessel/gt with patchvolume_000.nii.gz"
        )
    if structures:
        images, labels = ([path for path in paths if _prefix(path) in structures] for paths in (images, labels))
        absent = set(structures) - {_prefix(path) for path in (*images, *labels)}
        if absent:
            raise SelmaError(f"{source}: holds no patches of {', '.join(sorted(absent))}")
    for path in (*images, *labels):
        if _prefix(path) is None:
            raise SelmaError(
                f"{path.parent.parent}: unknown structure; name the folder above raw and gt as in the download, "
                "for example VessAP_vessel, cFos-Active_Neurons, shannel_cells, AD_plaques or microglia"
            )
    candidates = [candidate for candidate in LAYOUTS if layout in (None, candidate.name)]
    if not candidates:
        raise SelmaError(f"unknown layout {layout!r}: choose one of {', '.join(known.name for known in LAYOUTS)}")
    pairings = [_pair_files(candidate, images, labels) for candidate in candidates]
    return min(pairings, key=lambda pairing: len(pairing.problems) + len(pairing.unpaired))


def _structure(path: Path) -> Structure | None:
    """The structure of a file in raw or gt, named by the folder above."""
    return find_structure(path.parent.parent.resolve().name)


def _prefix(path: Path) -> str | None:
    structure = _structure(path)
    return structure.prefix if structure else None


def _volumes(folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.iterdir()) if is_volume(path)]


def _pair_files(layout: Layout, image_paths: list[Path], label_paths: list[Path]) -> FoundPatches:
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
            structure=label.structure,
            number=number,
            octant=octant,
            images={channel: file.path for channel, file in sorted(images[key].items())},
            label=label.path,
        )
        for key, label in labels.items()
        if key in images
        for _, _, number, octant in [key]
    ]
    patches.sort(key=lambda patch: patch.name)
    problems += [
        f"{second.label}: a second patch named {second.name}; convert the two folders separately"
        for first, second in pairwise(patches)
        if first.name == second.name
    ]
    return FoundPatches(layout=layout.name, patches=patches, problems=problems, unpaired=unpaired)


def _patch_files(
    paths: list[Path], pattern: re.Pattern[str], layout: Layout, problems: list[str]
) -> Iterator[_PatchFile]:
    """Files whose names fit the layout; for the others a sentence is added to the problems."""
    for path in paths:
        match, structure = pattern.match(stem(path)), _structure(path)
        if match is None:
            problems.append(f"{path}: is not named as layout {layout.name} names its files ({pattern.pattern})")
        elif structure is not None:
            groups = match.groupdict()
            folder = path.parent.parent if layout.side_by_side else None
            octant = None if groups.get("octant") is None else int(groups["octant"])
            key = (structure.prefix, folder, int(groups["number"]), octant)
            yield _PatchFile(path, structure, int(groups.get("channel") or 0), key)
