"""Names of the files in a folder of cubes that people annotate, and hashes that say whether they changed."""

import hashlib
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
    "file_hash",
    "label_hash",
    "values_hash",
]

RECORD = "selma_cubes.json"
"""Record of the cubes of all rounds, which marks a folder of cubes."""
LABEL, IMAGE, CONTEXT = "label.nii.gz", "image.ome.zarr", "context.ome.zarr"
NOT_ANNOTATED = 255
"""Value in a label of voxels that nobody annotated."""


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
