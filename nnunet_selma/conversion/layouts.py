"""The file trees that annotated patches come in, and the pairing of raw with ground truth by number.

Sources: BioImage Archive S-BIAD1196 (raw and gt side by side, `patchvolume_000_0000.nii.gz` with `patchvolume_000.nii.gz`), the zips of
the challenge page (the same files, raw and gt under different top folders, folders doubled by unzipping), and DELiVR's released patches
(`patchvolume_<cube>_<octant>.nii.gz`, eight octants of one 200³ cube).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import Structure, from_name
from nnunet_selma.volumes import is_volume, stem

VesselChannels = Literal["wga", "eb", "both", "separate"]
"""Channels of stains that have two: a single channel, both as two input channels, or each as a case."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one kind of download names and places its files."""

    name: str
    raw_name: re.Pattern[str]
    gt_name: re.Pattern[str]
    side_by_side: bool
    """raw and gt lie in one folder; otherwise they are matched by structure across the tree."""


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
    """One annotated patch: its files, and what it belongs to."""

    structure: Structure
    number: int
    octant: int | None
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
    """Files of a folder, read as one layout."""

    layout: str
    patches: list[Patch]
    problems: list[str]
    """Sentences about files that fit nowhere; a conversion stops at them."""
    unpaired: list[str]
    """Sentences about raw files without ground truth and the reverse; a conversion stops at them unless told to leave them out."""


@dataclass(frozen=True)
class _File:
    path: Path
    structure: Structure
    folder: Path
    """The structure's folder above raw or gt."""
    match: re.Match[str]

    @property
    def key(self) -> tuple[int, int | None]:
        octant = self.match.groupdict().get("octant")
        return int(self.match["number"]), None if octant is None else int(octant)


def _folders(source: Path, name: str) -> Iterator[Path]:
    """All folders of that name (any case) in the tree, hidden ones and macOS droppings left out."""
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
        layout: name of the layout, or None to take the first one that explains every file.
        structures: prefixes to keep; empty for all.

    Raises:
        SelmaError: nothing there, an unknown structure folder, or no layout fits.
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
    candidates = [one for one in LAYOUTS if layout in (None, one.name)]
    if not candidates:
        raise SelmaError(f"unknown layout {layout!r}: choose one of {', '.join(one.name for one in LAYOUTS)}")
    found = [_paired(one, images, labels) for one in candidates]
    return min(found, key=lambda f: len(f.problems) + len(f.unpaired))


def _structure(path: Path) -> Structure | None:
    """The structure of a file in raw or gt: the folder above says it."""
    return from_name(path.parent.parent.resolve().name)


def _prefix(path: Path) -> str | None:
    structure = _structure(path)
    return structure.prefix if structure else None


def _volumes(folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.iterdir()) if is_volume(path)]


def _paired(layout: Layout, image_paths: list[Path], label_paths: list[Path]) -> FoundPatches:
    """Read the names as one layout and pair what belongs together; whatever does not is a problem."""
    problems: list[str] = []
    images = list(_named(image_paths, layout.raw_name, layout, problems))
    labels = list(_named(label_paths, layout.gt_name, layout, problems))
    by_key: dict[tuple[str, Path | None, int, int | None], dict[int, _File]] = {}
    label_of: dict[tuple[str, Path | None, int, int | None], _File] = {}
    for file in images:
        channel = int(file.match["channel"] or 0)
        channels = by_key.setdefault(_key(file, layout), {})
        if channel in channels:
            problems.append(f"{file.path} and {channels[channel].path} are one patch and channel; keep one of them")
        channels[channel] = file
    for file in labels:
        if _key(file, layout) in label_of:
            problems.append(f"{file.path} and {label_of[_key(file, layout)].path} label one patch; keep one of them")
        label_of[_key(file, layout)] = file
    unpaired = [
        f"{next(iter(c.values())).path}: no ground truth with this number"
        for key, c in by_key.items()
        if key not in label_of
    ]
    unpaired += [f"{file.path}: no raw image with this number" for key, file in label_of.items() if key not in by_key]
    for channels in by_key.values():
        for channel, file in channels.items():
            if channel not in file.structure.channels:
                problems.append(f"{file.path}: {file.structure.title} has no channel {channel}")
    patches = [
        Patch(
            structure=label_of[key].structure,
            number=key[2],
            octant=key[3],
            images={channel: file.path for channel, file in sorted(channels.items())},
            label=label_of[key].path,
        )
        for key, channels in by_key.items()
        if key in label_of
    ]
    names = [patch.name for patch in patches]
    problems += [
        f"{p.label}: a second patch named {p.name}; convert the two folders separately"
        for i, p in enumerate(patches)
        if p.name in names[:i]
    ]
    patches.sort(key=lambda p: p.name)
    return FoundPatches(layout=layout.name, patches=patches, problems=problems, unpaired=unpaired)


def _key(file: _File, layout: Layout) -> tuple[str, Path | None, int, int | None]:
    number, octant = file.key
    return file.structure.prefix, file.folder if layout.side_by_side else None, number, octant


def _named(paths: list[Path], pattern: re.Pattern[str], layout: Layout, problems: list[str]) -> Iterator[_File]:
    for path in paths:
        match = pattern.match(stem(path))
        structure = _structure(path)
        if match is None:
            problems.append(f"{path}: is not named as layout {layout.name} names its files ({pattern.pattern})")
        elif structure is not None:
            yield _File(path, structure, path.parent.parent, match)
