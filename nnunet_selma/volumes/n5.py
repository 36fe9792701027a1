"""N5 in folders, read block by block and decoded with imagecodecs.

Source: "File-system specification" of github.com/saalfeldlab/n5, and for LZ4 the stream of blocks of github.com/lz4/lz4-java. A folder is a
group, and `attributes.json` in it holds its attributes; those of a dataset name its shape, its blocks and their compression, axes (x, y, z). A
block is the file `x/y/z` below the dataset, numbers of the block along the axes: a header of big-endian numbers (mode, number of axes, shape),
then the compressed voxels, big-endian, the neighbours along x together. Blocks at the end may be cut off there. Blocks without a file hold 0.

tensorstore reads N5 too, but ends every process that reads after a fork of one that has read, and has no LZ4.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from itertools import product as combinations
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.cores import compute_threads
from nnunet_selma.running.parallel import in_threads
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume, by_times, damaged_file

_ATTRIBUTES = "attributes.json"
_DECODERS = {
    "gzip": "gzip_decode",
    "zlib": "zlib_decode",
    "bzip2": "bz2_decode",
    "xz": "lzma_decode",
    "zstd": "zstd_decode",
    "blosc": "blosc_decode",
}
"""Name of a compression to that of its decoder in imagecodecs, which takes the number of decoded bytes as `out`."""
_READ = (*_DECODERS, "raw", "lz4")
_LISTED = 5
"""Datasets of a foreign folder that are named."""
_LISTED_DEPTH = 4
"""Groups below a foreign folder in which its first datasets are looked for."""


def is_n5(path: Path) -> bool:
    """True for a folder with the ending of N5, and for one with the attributes of a group."""
    return path.is_dir() and (path.suffix.lower() == ".n5" or (path / _ATTRIBUTES).is_file())


def n5_attributes(group: Path) -> dict[str, Any]:
    """The attributes of a group or dataset, empty where it has none; raises `SelmaError` for a damaged file."""
    file = group / _ATTRIBUTES
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise damaged_file(file) from error
    if not isinstance(content, dict):
        raise damaged_file(file)
    return content


def numbered(group: Path, name: str) -> list[int]:
    """Numbers of the groups in a group whose names are a word and a number, as `setup0`."""
    names = (re.fullmatch(rf"{name}(\d+)", member.name) for member in (group.iterdir() if group.is_dir() else ()))
    return sorted(int(fit[1]) for fit in names if fit)


def other_n5(path: Path) -> SelmaError:
    """The error for N5 that is not laid out as BigDataViewer does it; names its first datasets."""
    try:
        inside = list(islice(_datasets(path, path, _LISTED_DEPTH), _LISTED))
    except SelmaError as error:
        return error
    return SelmaError(
        f"{path}: is N5 of another layout than BigDataViewer's (setup0/timepoint0/s0), with {', '.join(inside) or 'no dataset'}; axes and "
        "voxel size of such a folder are not known. Save the image as TIFF or OME-Zarr and give that"
    )


def _datasets(root: Path, group: Path, depth: int) -> Iterator[str]:
    """Name, shape and type of the datasets in a group, and in those below it to a depth."""
    attributes = n5_attributes(group)
    if isinstance(attributes.get("dimensions"), list):
        shape = by_times(reversed(attributes["dimensions"]))
        yield f"{group.relative_to(root).as_posix()} ({shape} of {attributes.get('dataType')})"
    elif depth:
        for member in sorted(member for member in group.iterdir() if member.is_dir()):
            yield from _datasets(root, member, depth - 1)


class N5Volume(Volume):
    """A dataset of three axes (x, y, z in the file) that is read box by box; the blocks of a box are decoded once, in several threads.

    Args:
        path: the file or folder that errors name.
        dataset: folder of the dataset.

    Raises:
        SelmaError: the dataset is missing or damaged, is no grey-value image of three axes, or its compression is not read.
    """

    plane_wise = False
    spacing_um_zyx = None

    def __init__(self, path: Path, dataset: Path) -> None:
        self.path, self.dataset = path, dataset
        attributes = n5_attributes(dataset)
        if not attributes:
            fault = "has no attributes.json" if dataset.is_dir() else "is missing"
            raise SelmaError(f"{path}: a part of it lies in {dataset}, which {fault}; copy it there")
        try:
            shape, blocks = (tuple(map(int, attributes[name][::-1])) for name in ("dimensions", "blockSize"))
            stored = str(attributes["dataType"])
            named = attributes.get("compression") or {"type": attributes.get("compressionType", "raw")}
            self._compression = "zlib" if named.get("useZlib") else str(named["type"])
            numeric = re.fullmatch(r"u?int(8|16|32|64)|float(32|64)", stored)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged_file(dataset / _ATTRIBUTES) from error
        if len(shape) != 3 or not numeric:
            raise SelmaError(
                f"{path}: {dataset} has the shape {by_times(shape)} and the type {stored}; grey values along z, y and x are needed"
            )
        if len(blocks) != 3 or min(*shape, *blocks) < 1:
            raise damaged_file(dataset / _ATTRIBUTES)
        if self._compression not in _READ:
            raise SelmaError(
                f"{path}: is compressed by {self._compression}, which is not read; save it again with gzip or zstd"
            )
        self.dtype = np.dtype(stored)
        self.shape: ShapeZYX = (shape[0], shape[1], shape[2])
        z, y, x = map(min, blocks, shape)
        self.chunk_zyx: ShapeZYX = (z, y, x)
        self._block_zyx = blocks

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        box = (z, y, x)
        voxels = np.zeros([bounds.stop - bounds.start for bounds in box], self.dtype)
        if not voxels.size:
            return voxels

        def fill(number: tuple[int, ...]) -> None:
            """Decode a block and put the part of it that lies in the box into its place."""
            block = self._block(number)
            if block is None:
                return
            here, there = [], []
            for index, edge, bounds, length in zip(number, self._block_zyx, box, self.shape, strict=True):
                start = max(index * edge, bounds.start)
                stop = min((index + 1) * edge, bounds.stop, length)
                here.append(slice(start - bounds.start, stop - bounds.start))
                there.append(slice(start - index * edge, stop - index * edge))
            voxels[tuple(here)] = block[tuple(there)]

        blocks = [range(b.start // edge, -(-b.stop // edge)) for b, edge in zip(box, self._block_zyx, strict=True)]
        in_threads(fill, list(combinations(*blocks)), compute_threads())
        return voxels

    def _block(self, number: tuple[int, ...]) -> Array | None:
        """The voxels of a block (z, y, x); None for one without a file, which holds 0."""
        file = self.dataset.joinpath(*map(str, reversed(number)))
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._damaged(file) from error
        if len(data) < 16:
            raise self._damaged(file)
        mode, axes = np.frombuffer(data, ">u2", 2).tolist()
        shape = np.frombuffer(data, ">u4", 3, 4)[::-1].tolist()
        needed = [
            min(edge, length - index * edge)
            for index, edge, length in zip(number, self._block_zyx, self.shape, strict=True)
        ]
        inside = all(least <= edge <= most for least, edge, most in zip(needed, shape, self._block_zyx, strict=True))
        if mode != 0 or axes != 3 or not inside:
            raise self._damaged(file)
        size = int(np.prod(shape)) * self.dtype.itemsize
        try:
            decoded = _decoded(self._compression, data[16:], size)
        except MemoryError:
            raise
        except Exception as error:  # each codec has exceptions of its own
            raise self._damaged(file) from error
        if len(decoded) != size:
            raise self._damaged(file)
        return np.frombuffer(decoded, self.dtype.newbyteorder(">")).reshape(shape)

    def _damaged(self, file: Path) -> SelmaError:
        """The error for a block that cannot be read."""
        return SelmaError(f"{self.path}: its block {file} cannot be read, it is cut short or damaged; copy it again")


def _decoded(compression: str, data: bytes, size: int) -> bytes:
    """The decoded bytes of a block, of which there are `size`; raises any exception, or returns fewer, for damaged ones."""
    if compression == "raw":
        return data[:size]
    if compression == "lz4":
        return _lz4(data)
    if compression == "blosc" and (len(data) < 16 or int.from_bytes(data[12:16], "little") != len(data)):
        raise ValueError("a block is cut short")  # its decoder reads on
    return bytes(getattr(imagecodecs, _DECODERS[compression])(data, out=size))


def _lz4(data: bytes) -> bytes:
    """The decoded bytes of lz4-java's stream of blocks: magic, method, and sizes before each; an empty block ends it."""
    parts, place = [], 0
    while place < len(data):
        magic, method = data[place : place + 8], data[place + 8] & 0xF0
        packed, size = np.frombuffer(data, "<i4", 2, place + 9).tolist()
        content = data[place + 21 : place + 21 + packed]
        if magic != b"LZ4Block" or method not in (0x10, 0x20) or len(content) != packed:
            raise ValueError("a block is cut short or damaged")
        if not size:
            break
        parts.append(content if method == 0x10 else bytes(imagecodecs.lz4_decode(content, out=size)))
        place += 21 + packed
    return b"".join(parts)
