"""Names of the files in a folder of cubes that people annotate."""

import hashlib
from pathlib import Path

from nnunet_selma.conversion.walk import CUBE

__all__ = ["CONTEXT", "CUBE", "IMAGE", "LABEL", "NOT_ANNOTATED", "RECORD", "file_hash"]

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
