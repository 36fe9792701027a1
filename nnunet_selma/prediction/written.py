"""Manifests of written results, by which a later call knows that nobody has added to them or changed them before they are deleted."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.fingerprints import Contents, contents_of, files_of
from nnunet_selma.volumes.ome_zarr import is_zarr

Manifest = Mapping[str, Contents]
"""Piece of a folder to its fingerprint: each file and folder at its top, each label image, and the slices of a stack as one."""
_LIST_OF_LABELS = ("labels/zarr.json", "labels/.zgroup", "labels/.zattrs")
"""Metadata that change when a label image is added; the label image itself counts."""
_WHOLE = "the file itself"
"""Name of the only piece of a product that is a file."""
_MOST_NAMED = 5


def manifest(folder: Path) -> Manifest:
    """Manifest of a folder, or of a file, as it is now."""
    if folder.is_file():
        return {_WHOLE: contents_of({_WHOLE: folder})}  # whatever its name, which changes when it gets its place
    pieces: dict[str, dict[str, Path]] = {}
    chunked = is_zarr(folder)
    for file in files_of(folder):
        name = file.relative_to(folder).as_posix()
        if not (chunked and name in _LIST_OF_LABELS):
            pieces.setdefault(_piece(name, chunked=chunked), {})[name] = file
    return {piece: contents_of(files) for piece, files in pieces.items()}


def _piece(name: str, *, chunked: bool) -> str:
    """Name of the piece that a file belongs to."""
    if not chunked:
        return "slices" if re.fullmatch(r".+_\d+\.tif", name) else name.split("/")[0]
    parts = name.split("/")
    return "/".join(parts[:2] if parts[0] == "labels" else parts[:1])


def check_replaceable(place: Path, manifests: Sequence[Manifest]) -> Manifest:
    """The manifest that a written result still has.

    Args:
        place: a file or folder that would be deleted.
        manifests: those that the result may have, by the records.

    Raises:
        SelmaError: the result was not written by this program, or something was added or changed, which would be lost.
    """
    if not manifests or not place.exists():
        raise SelmaError(
            f"{place}: was not written by this command, or has no record of what was written, and is not overwritten; remove it, or choose "
            "another -o"
        )
    now = manifest(place)
    losses = [_lost(now, before) for before in manifests]
    if all(losses):
        raise SelmaError(
            f"{place}: would be overwritten, and {losses[0]} would be lost; move that elsewhere, or choose another -o"
        )
    return manifests[losses.index("")]


def _lost(now: Manifest, before: Manifest) -> str:
    """Words for what was added or changed; empty if nothing was."""
    added = sorted(piece for piece in now if piece not in before)
    changed = sorted(piece for piece in now if piece in before and now[piece].may_differ(before[piece]))
    words = ((added, "added"), (changed, "changed"))
    return " and ".join(f"{_listed(pieces)} ({how} since it was written)" for pieces, how in words if pieces)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def manifests_as_json(manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Manifest of each product, for a JSON file."""
    return {part: {name: piece.as_json() for name, piece in pieces.items()} for part, pieces in manifests.items()}


def manifests_from_json(content: Mapping[str, Any]) -> dict[str, Manifest]:
    """Manifest of each product, from the content of a JSON file."""
    return {
        part: {name: Contents.from_json(piece) for name, piece in pieces.items()} for part, pieces in content.items()
    }
