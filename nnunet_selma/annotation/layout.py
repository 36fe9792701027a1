"""Names of the files in a folder of cubes that people annotate, and hashes that say whether they changed."""

import hashlib
import re
from pathlib import Path

import numpy as np

from nnunet_selma.conversion.checks import open_label
from nnunet_selma.conversion.walk import CUBE
from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array
from nnunet_selma.volumes.labels import label_values

__all__ = [
    "CONTEXT",
    "CUBE",
    "IMAGE",
    "LABEL",
    "NOT_ANNOTATED",
    "RECORD",
    "UNSAVED",
    "file_hash",
    "label_hash",
    "numbered_files",
    "unsaved_files",
    "values_hash",
]

RECORD = "selma_cubes.json"
"""Record of the cubes of all rounds, which marks a folder of cubes."""
LABEL, IMAGE, CONTEXT = "label.nii.gz", "image.ome.zarr", "context.ome.zarr"
UNSAVED = "unsaved"
"""Name, before the number, of files beside a label that hold what was painted and not saved."""
NOT_ANNOTATED = 255
"""Value in a label of voxels that nobody annotated."""


def numbered_files(folder: Path, name: str) -> list[tuple[int, Path]]:
    """The files `NAME_0001.nii.gz`, … of a folder with their numbers, in order; copies with other names do not count."""
    matches = ((re.fullmatch(rf"{name}_(\d+)\.nii\.gz", path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def unsaved_files(folder: Path) -> list[Path]:
    """Files beside a label that hold what was painted and not saved, also in windows that were killed or are open."""
    # a kill leaves an empty file before the first stroke is in it
    return [path for _, path in numbered_files(folder, UNSAVED) if path.stat().st_size]


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    return digest.hexdigest()


def label_hash(path: Path) -> str:
    """SHA-256 of the shape and the values of a label file, which stays as it is where another program saves the file without a change.

    Of a file that holds no labels, it is the hash of the file.
    """
    try:
        return values_hash(label_values(open_label(path).read(), path))
    except SelmaError:
        return file_hash(path)


def values_hash(labels: Array) -> str:
    """SHA-256 of the shape and the values of labels, (z, y, x), whatever their type."""
    digest = hashlib.sha256(repr(tuple(map(int, labels.shape))).encode())
    digest.update(np.ascontiguousarray(labels, dtype="<u4").tobytes())
    return digest.hexdigest()
