"""Fingerprints by which a later run notices that a file was changed, though its name and size are as before."""

import hashlib
from glob import escape
from pathlib import Path

import numpy as np

_HEADERS = (".mhd", ".nhdr")
_SAMPLED_FILES = 16
_SAMPLED_BYTES = 2**16
"""Bytes that are looked at, at the beginning, in the middle and at the end of a file."""


def fingerprint(path: Path) -> str:
    """A hash of the names, sizes and times of change of a file, or of all files in a folder, and of sampled bytes of a few of them.

    Headers of MetaImage and NRRD have their voxels in a file of the same name beside them, which counts with them.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    elif path.suffix.lower() in _HEADERS:
        files = sorted(path.parent.glob(f"{escape(path.stem)}.*"))
    else:
        files = [path]
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        facts = file.stat()
        digest.update(repr((str(file.relative_to(path.parent)), facts.st_size, facts.st_mtime_ns)).encode())
    for number in np.unique(np.linspace(0, len(files) - 1, _SAMPLED_FILES).astype(int)) if files else ():
        digest.update(_sample(files[number]))
    return digest.hexdigest()


def _sample(file: Path) -> bytes:
    """The first, middle and last bytes of a file."""
    size = file.stat().st_size
    parts = []
    with file.open("rb") as stream:
        for start in (0, size // 2, size - _SAMPLED_BYTES):
            stream.seek(max(0, start))
            parts.append(stream.read(_SAMPLED_BYTES))
    return b"".join(parts)
