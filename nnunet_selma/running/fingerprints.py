"""Fingerprints by which a later run notices that a file was changed, though its name and size are as before."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

_HEADERS = (".mhd", ".nhdr")
_SAMPLED_FILES = 16
_SAMPLED_BYTES = 2**16
"""Bytes that are looked at, at the beginning, in the middle and at the end of a file."""
_WHOLE_BYTES = 2**28
"""Bytes up to which contents are hashed whole: some tenths of a second."""
_MOST_FILES = 2**11
"""Files of which bytes are sampled; the names and sizes of all count."""
_PIECES = 8
"""Pieces of a file that are sampled, spread evenly from its first byte to its last."""
_PIECE_BYTES = 2**12
_OF_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Fingerprint of the contents of files, the same for a copy and after a touch."""

    hash: str
    """Hash of names within the folder, of sizes, and of all bytes or of samples of them."""
    whole: bool
    """True if every byte counts; False for contents so large that they are sampled."""
    times: str
    """Hash of the times of change."""

    def differs(self, other: "Contents") -> bool:
        """True if the contents are not the same."""
        return self.hash != other.hash

    def may_differ(self, other: "Contents") -> bool:
        """True if the contents are not the same, or were only sampled and have other times of change."""
        return self.differs(other) or (not self.whole and self.times != other.times)

    def as_json(self) -> dict[str, Any]:
        """Content for a JSON file."""
        return asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Contents":
        """Fingerprint from the content of a JSON file."""
        return Contents(**content)


def contents(path: Path) -> Contents:
    """Fingerprint of the contents of a file, or of all files in a folder; takes seconds for a brain.

    Headers of MetaImage and NRRD have their voxels in a file of the same name beside them, which counts with them.
    """
    files = files_of(path)
    if path.is_dir():
        return contents_of({str(file.relative_to(path)): file for file in files})
    return contents_of({file.name.removeprefix(path.stem): file for file in files})


def contents_of(files: Mapping[str, Path]) -> Contents:
    """Fingerprint of files by their names."""
    digest, times = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=8)
    total, names = 0, sorted(files)
    for name in names:
        facts = files[name].stat()
        total += facts.st_size
        digest.update(repr((name, facts.st_size)).encode())
        times.update(repr((name, facts.st_mtime_ns)).encode())
    whole = total <= _WHOLE_BYTES
    for name in names if whole else _evenly(names, _MOST_FILES):
        for piece in _pieces(files[name], whole=whole):
            digest.update(piece)
    return Contents(hash=digest.hexdigest(), whole=whole, times=times.hexdigest())


def files_of(path: Path) -> list[Path]:
    """The file itself, the files with the voxels of a header, or all files below a folder but those that systems leave there; sorted."""
    if path.is_dir():
        return sorted(
            Path(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if name not in _OF_SYSTEMS and not name.startswith(("._", ".nfs"))
        )
    if path.suffix.lower() in _HEADERS:
        return sorted(path.parent.glob(f"{escape(path.stem)}.*"))
    return [path]


def fingerprint(*paths: Path) -> str:
    """A hash of the names, sizes and times of change of files, or of all files in folders, and of sampled bytes of a few of them.

    Headers of MetaImage and NRRD have their voxels in a file of the same name beside them, which counts with them.
    """
    files = [(file, path.parent) for path in paths for file in files_of(path)]
    digest = hashlib.blake2b(digest_size=16)
    for file, parent in files:
        facts = file.stat()
        digest.update(repr((str(file.relative_to(parent)), facts.st_size, facts.st_mtime_ns)).encode())
    for file, _ in _evenly(files, _SAMPLED_FILES):
        digest.update(_sample(file))
    return digest.hexdigest()


def _evenly(items: list[Any], count: int) -> list[Any]:
    """At most so many of the items, spread evenly, the first and the last among them."""
    return [items[number] for number in np.unique(np.linspace(0, len(items) - 1, count).astype(int))] if items else []


def _pieces(file: Path, *, whole: bool) -> Iterable[bytes]:
    """All bytes of a file, or pieces spread over it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if whole or size <= _PIECES * _PIECE_BYTES:
            while part := stream.read(2**22):
                yield part
            return
        for start in np.linspace(0, size - _PIECE_BYTES, _PIECES).astype(int):
            stream.seek(int(start))
            yield stream.read(_PIECE_BYTES)


def _sample(file: Path) -> bytes:
    """The first, middle and last bytes of a file."""
    size = file.stat().st_size
    parts = []
    with file.open("rb") as stream:
        for start in (0, size // 2, size - _SAMPLED_BYTES):
            stream.seek(max(0, start))
            parts.append(stream.read(_SAMPLED_BYTES))
    return b"".join(parts)
