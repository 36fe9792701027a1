"""Annotated patches below a source: those of SELMA3D and DELiVR by their numbers, all others by their names.

Recognised are `raw` and `gt`, `images` and `masks` or `labels`, nnU-Net's `imagesTr` and `labelsTr`, and labels beside their images whose
names end in `_mask`, `_label`, `_seg` or `_gt`. Other folders are named by the user.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from nnunet_selma.conversion.layouts import FoundPatches, numbered_patches, structure_above
from nnunet_selma.conversion.pairs import labels_beside, names_below, paired_by_name
from nnunet_selma.conversion.walk import Entry, label_folder, passed_by, walk
from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import Structure, find_structure, of_case
from nnunet_selma.volumes import check_exists, stem

_DATASET = re.compile(r"Dataset\d{3}_")


def find_patches(
    source: Path,
    *,
    layout: str | None = None,
    structures: Sequence[str] = (),
    structure: Structure | None = None,
    entries: Sequence[Entry] | None = None,
) -> FoundPatches:
    """Find the annotated patches below a folder.

    Args:
        source: the download, or any folder of it.
        layout: name of SELMA3D's or DELiVR's layout; None for the one that leaves the fewest files unexplained.
        structures: prefixes to keep; empty for all.
        structure: structure of all patches, whatever their folders are called; None takes it from folders and names.
        entries: the result of `walk`, if it is there already.

    Raises:
        SelmaError: there is no such folder, or there are no patches.
    """
    if not source.is_dir():
        raise SelmaError(f"{source}: there is no such folder")
    entries = walk(source) if entries is None else entries
    images = [entry.path for entry in entries if entry.fate == "annotated"]
    labels = [entry.path for entry in entries if entry.fate == "mask"]
    numbered = {path.parent for path in (*images, *labels) if _is_numbered(path, structure)}
    parts = [
        _numbered(source, images, labels, numbered, layout, structures),
        *_folders_of_pairs(source, [p for p in images if p.parent not in numbered], labels, structure),
        _beside(source, [entry.path for entry in entries if entry.fate == "volume"], labels, structure),
    ]
    result = _joined([part for part in parts if part is not None])
    if structures:
        kept = [patch for patch in result.patches if patch.prefix in structures]
        result = replace(result, patches=kept)
    if not (result.patches or result.problems or result.unpaired):
        kinds = f" of {', '.join(structures)}" if structures else ""
        raise SelmaError(
            f"{source}: holds no annotated patches{kinds} that are recognised; name their folders raw and gt, images and masks, or imagesTr "
            "and labelsTr",
            option="give them with --images DIR --labels DIR",
        )
    used = {path for patch in result.patches for path in (*patch.images.values(), patch.label)}
    return replace(result, passed_by=passed_by([_unlabelled(entry) for entry in entries if entry.path not in used]))


def _unlabelled(entry: Entry) -> Entry:
    """An entry that is no part of a patch, with its fate when annotated patches are converted."""
    if entry.fate != "volume":
        return entry
    return replace(entry, fate="passed by", reason="volumes without a label, which convert unannotated takes")


def patches_of_folders(images: Path, labels: Path, *, structure: Structure | None = None) -> FoundPatches:
    """Pair the images of a folder with the labels of another, or of the same, folder; two single volumes are a pair.

    Raises:
        SelmaError: there is no such folder, or no image has a label.
    """
    for path in (images, labels):
        check_exists(path)
    same = images.resolve() == labels.resolve()
    entries = [walk(images), [] if same else walk(labels)]
    image_files, label_files = (_volumes(of_folder) for of_folder in entries)
    if image_files == [images] and label_files == [labels]:
        names = {images: stem(images)}, {labels: stem(images)}
    else:
        if same:
            label_files = [label for label, image in labels_beside(image_files, image_files).items() if label != image]
        labelled = {*label_files}
        image_files = [p for p in image_files if p not in labelled and (same or not p.is_relative_to(labels))]
        names = names_below(image_files, images), names_below(label_files, labels)
    result = paired_by_name(*names, {path: _structure(path, structure) for path in names[0]})
    if not result.patches and not result.problems:
        raise SelmaError(
            f"{images}: holds no image that has the name of a label in {labels}; an image mouse07_left.tif needs a label "
            "mouse07_left.tif or mouse07_left_mask.tif"
        )
    return replace(
        result, passed_by=passed_by(entry for of_folder in entries for entry in of_folder if entry.fate == "passed by")
    )


def _volumes(entries: Sequence[Entry]) -> list[Path]:
    """The volumes among entries, images and masks alike; raises `SelmaError` where a folder leaves a question."""
    for entry in entries:
        if entry.fate == "question":
            raise SelmaError(entry.reason)
    return [entry.path for entry in entries if entry.fate in ("volume", "annotated", "mask")]


def _is_numbered(path: Path, structure: Structure | None) -> bool:
    """True for `<structure>/raw/patchvolume_…` and `<structure>/gt/patchvolume_…`, unless the user says that it shows something else."""
    known = structure_above(path)
    return (
        path.parent.name.lower() in ("raw", "gt")
        and re.match(r"patchvolume_\d", path.name) is not None
        and known is not None
        and structure in (None, known)
    )


def _numbered(
    source: Path,
    images: Sequence[Path],
    labels: Sequence[Path],
    folders: Collection[Path],
    layout: str | None,
    structures: Sequence[str],
) -> FoundPatches | None:
    """Patches in the layouts of SELMA3D and DELiVR; None where there are none."""
    images, labels = (
        [path for path in paths if path.parent in folders and (not structures or _prefix(path) in structures)]
        for paths in (images, labels)
    )
    absent = set(structures) - {_prefix(path) for path in (*images, *labels)}
    if folders and absent:
        raise SelmaError(f"{source}: holds no patches of {', '.join(sorted(absent))}")
    return numbered_patches(images, labels, layout) if images or labels else None


def _prefix(path: Path) -> str | None:
    structure = structure_above(path)
    return structure.prefix if structure else None


def _folders_of_pairs(
    source: Path, images: Sequence[Path], labels: Sequence[Path], structure: Structure | None
) -> Iterator[FoundPatches]:
    """Patches of each folder of images that has a folder of labels beside it."""
    by_folder: dict[Path, list[Path]] = {}
    for path in images:
        folder = next((above for above in (path, *path.parents) if label_folder(above) is not None), path.parent)
        by_folder.setdefault(folder, []).append(path)
    for folder, files in by_folder.items():
        beside = label_folder(folder)
        of_folder = [path for path in labels if beside is not None and path.is_relative_to(beside)]
        before = _names_above(folder.parent, source)
        names = [
            # a folder that is one stack has no name below itself
            {
                path: "/".join([*before, *([] if path == root else [name])]) or "patch"
                for path, name in names_below(paths, root).items()
            }
            for paths, root in ((files, folder), (of_folder, beside or folder))
        ]
        yield paired_by_name(names[0], names[1], {path: _structure(path, structure) for path in files})


def _beside(
    source: Path, volumes: Sequence[Path], labels: Sequence[Path], structure: Structure | None
) -> FoundPatches | None:
    """Patches whose labels lie beside them; None where there are none."""
    pairs = labels_beside(volumes, labels)
    if not pairs:
        return None
    folders = {image.parent for image in pairs.values()}
    names = names_below((path for path in volumes if path.parent in folders), source)
    return paired_by_name(names, names_below(pairs, source), {path: _structure(path, structure) for path in names})


def _names_above(folder: Path, source: Path) -> list[str]:
    """Folders between the source and a folder that belong into the names of cases."""
    parts = folder.relative_to(source).parts if folder.is_relative_to(source) else ()
    return [part for part in parts if find_structure(part) is None and not _DATASET.match(part)]


def _structure(path: Path, chosen: Structure | None) -> Structure | None:
    """The structure that an image shows: as chosen, or named by the nearest folder that names one, or by its name."""
    around = reversed(path.absolute().parent.parts)
    by_folder = next((structure for part in around if (structure := find_structure(part)) is not None), None)
    return chosen or by_folder or of_case(stem(path))


def _joined(parts: Sequence[FoundPatches]) -> FoundPatches:
    """The parts as one; patches of the same name become problems."""
    patches = sorted((patch for part in parts for patch in part.patches), key=lambda patch: patch.name)
    problems = [problem for part in parts for problem in part.problems]
    if len(parts) > 1:
        problems += [
            f"{second.label}: a second patch named {second.name}; convert the two folders separately"
            for first, second in pairwise(patches)
            if first.name == second.name
        ]
    return FoundPatches(
        layout=" and ".join(dict.fromkeys(part.layout for part in parts)),
        patches=patches,
        problems=problems,
        unpaired=[sentence for part in parts for sentence in part.unpaired],
    )
