"""Images and labels of a laboratory, paired by their names whatever these are."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nnunet_selma.conversion.channel_files import NNUNET_CHANNEL
from nnunet_selma.conversion.layouts import FoundPatches, Patch
from nnunet_selma.conversion.walk import LABEL_WORDS
from nnunet_selma.structures import Structure
from nnunet_selma.volumes import stem

_IMAGE_WORDS = "images?|img|raw|signal|scan"


def without_label_word(name: str) -> str:
    """A name without the word that marks labels, at its beginning or end: `mouse07_left_mask` and `mask-mouse07_left` give `mouse07_left`."""
    return _without(LABEL_WORDS, name)


def _without(words: str, name: str) -> str:
    """A name without one of these words at its beginning or end, unless nothing would remain."""
    return re.sub(rf"^(?:{words})[-_. ]+(?=.)|(?<=.)[-_. ]+(?:{words})$", "", name, count=1, flags=re.IGNORECASE)


def paired_by_name(
    images: Mapping[Path, str], labels: Mapping[Path, str], structures: Mapping[Path, Structure | None]
) -> FoundPatches:
    """Pair images with labels that have the same name.

    Names are equal without the number of a channel (`_0000`), or else without the words that mark labels (`_mask`, `_gt`, …) and images
    (`_raw`, …).

    Args:
        images: file to its name, which may have folders before a slash.
        labels: file to its name, likewise.
        structures: image to the structure it shows.
    """
    problems, unpaired = [], []
    label_names = {*labels.values(), *map(without_label_word, labels.values())}
    channels: dict[str, dict[int, Path]] = {}
    for path, name in images.items():
        match = None if name in label_names else NNUNET_CHANNEL.match(name)
        case, channel = (match["case"], int(match["channel"])) if match else (name, 0)
        of_case = channels.setdefault(case, {})
        if channel in of_case:
            problems.append(f"{path} and {of_case[channel]} are one image and channel; keep one of them")
        of_case[channel] = path
    bare = {_without(_IMAGE_WORDS, case): case for case in channels}
    patches: dict[str, Patch] = {}
    for path, name in labels.items():
        words_removed = without_label_word(name)
        candidates = (name, words_removed, bare.get(name), bare.get(words_removed))
        case = next((candidate for candidate in candidates if candidate in channels), None)
        if case is None:
            unpaired.append(f"{path}: no image of this name")
        elif case in patches:
            problems.append(f"{path} and {patches[case].label} label one image; keep one of them")
        else:
            files = dict(sorted(channels[case].items()))
            structure = structures[next(iter(files.values()))]
            case_name = _case_name(case, structure)
            patches[case] = Patch(name=case_name, group=case_name, structure=structure, images=files, label=path)
    unpaired += [
        f"{path}: no label of this name"
        for case in channels.keys() - patches.keys()
        for path in channels[case].values()
    ]
    names: dict[str, Patch] = {}
    for patch in patches.values():
        if (other := names.setdefault(patch.name, patch)) is not patch:
            problems.append(
                f"{patch.label} and {other.label} would both become the case {patch.name}, whose name has letters, digits, - and _ only; "
                "rename one of them"
            )
    return FoundPatches(layout="pairs", patches=list(patches.values()), problems=problems, unpaired=sorted(unpaired))


def _case_name(name: str, structure: Structure | None) -> str:
    """Name of a case in nnU-Net's format: the structure's prefix, and the name with dashes for what file names should not have."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_") or "patch"
    return plain if structure is None or plain.startswith(f"{structure.prefix}_") else f"{structure.prefix}_{plain}"


def names_below(paths: Iterable[Path], root: Path) -> dict[Path, str]:
    """File to its name without ending, with the folders between the root and the file before it."""
    return {path: "/".join([*path.relative_to(root).parts[:-1], stem(path)]) for path in paths}


def labels_beside(images: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Mask to the image in the same folder that has its name without the word that marks labels."""
    by_name = {(path.parent, NNUNET_CHANNEL.sub(r"\g<case>", stem(path))): path for path in images}
    by_name |= {(path.parent, stem(path)): path for path in images}
    pairs = {mask: by_name.get((mask.parent, without_label_word(stem(mask)))) for mask in masks}
    return {mask: image for mask, image in pairs.items() if image is not None}
