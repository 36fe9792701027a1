"""HDF5 files, read box by box with h5py (an extra: `pip install nnunet-selma[hdf5]`).

Files are opened read-only and without file locks, because shared file systems often refuse locks, and once in each process. A chunk is
decoded once for a box; chunks that a box cuts stay in memory for the next box, up to `CACHE_BYTES` a volume. A layer of chunks that is larger
is decoded again for each slice or slab that cuts it, so slabs should be as deep as chunks (`Volume.chunk_zyx`). h5py reads with one thread.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume, by_times, cut_short, damaged_file

CACHE_BYTES = 256 * 2**20
"""Most memory for decoded chunks of a volume, in each process: a layer of chunks of 4000 × 4000 voxels, 8 deep, of 16 bits. Deeper or wider
layers are cut off there, because blocks cut only the chunks at their faces, and several processes may read at once."""
_LEAST_CACHE_BYTES = 2**20
_SLOTS = 100
"""Places in the table of kept chunks for each chunk of a layer; chunks that meet in one place displace each other."""
_LISTED = 5
"""Datasets of a foreign file that are named."""
_DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""Exceptions of h5py, and of groups and attributes that are missing or of another kind."""


def hdf5_library(path: Path) -> Any:
    """The h5py module; raises `SelmaError`, which names the file, where it is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise SelmaError(
            f"{path}: is HDF5, which needs h5py; install it with: pip install 'nnunet-selma[hdf5]'"
        ) from error
    return h5py


def missing_h5py(path: Path) -> str | None:
    """The reason why no HDF5 file can be read, for a sentence; None where h5py is installed."""
    try:
        hdf5_library(path)
    except SelmaError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _opened(path: Path) -> Any:
    """The open HDF5 file; raises `SelmaError` for a file that is empty, cut short, damaged, still being written, or no HDF5."""
    library = hdf5_library(path)
    try:
        try:
            return library.File(path, "r", locking=False)
        except OSError as error:
            if "locking flag" not in str(error):
                raise
            return library.File(path, "r")  # this process has opened it with locks
    except OSError as error:
        if path.is_file() and not path.stat().st_size:
            raise SelmaError(f"{path}: the file is empty; copy it again") from error
        if "open for write" in str(error):
            raise SelmaError(
                f"{path}: was not closed by the program that writes it; wait until it has, or copy the file again"
            ) from error
        raise (cut_short if "truncated" in str(error) else damaged_file)(path) from error


@contextmanager
def hdf5_file(path: Path) -> Iterator[Any]:
    """The open HDF5 file, to read headers from; groups and attributes that are missing become a `SelmaError` for a damaged file."""
    with _opened(path) as file:
        try:
            yield file
        except SelmaError:
            raise
        except _DAMAGE as error:
            raise damaged_file(path) from error


def external_file(file: Any, place: str) -> Path | None:
    """The other file that holds an object, or a group above it, by an external link; None for an object in the file itself."""
    library, folder, group = import_module("h5py"), Path(file.filename).parent, file
    for name in place.split("/"):
        link = group.get(name, getlink=True)
        if isinstance(link, library.ExternalLink):
            linked = Path(link.filename)
            # HDF5 also looks beside the file for a link to another folder
            return next((way for way in (folder / linked, folder / linked.name) if way.is_file()), folder / linked)
        group = group[name]
    return None


def hdf5_object(file: Any, place: str) -> Any:
    """The group or dataset at a place; raises `SelmaError` if the other file that holds it is missing or damaged, else `KeyError`."""
    try:
        return file[place]
    except (KeyError, OSError) as error:
        part = None
        with suppress(*_DAMAGE):
            part = external_file(file, place)
        if part is None:
            raise
        fault = "cannot be read; copy it again" if part.is_file() else "is missing; copy it there"
        raise SelmaError(f"{file.filename}: a part of it lies in {part}, which {fault}") from error


def other_hdf5(path: Path) -> SelmaError:
    """The error for an HDF5 file that is neither Imaris nor BigDataViewer; names its first datasets."""
    try:
        with hdf5_file(path) as file:
            inside = _first_datasets(file)
    except SelmaError as error:
        return error
    return SelmaError(
        f"{path}: is an HDF5 file of another program, with {', '.join(inside) or 'no dataset'}; axes and voxel size of such a file are not "
        "known. Save the image as TIFF or OME-Zarr and give that"
    )


def _first_datasets(group: Any) -> list[str]:
    """Name, shape and type of the first datasets below a group."""
    library, listed = import_module("h5py"), list[str]()

    def visit(name: str, node: Any) -> bool | None:
        if isinstance(node, library.Dataset):
            listed.append(f"{name} ({by_times(node.shape or ())} of {node.dtype})")
        return True if len(listed) == _LISTED else None

    group.visititems(visit)
    return listed


class Hdf5Volume(Volume):
    """A dataset of three axes (z, y, x), or its front part, that is read box by box.

    A subclass calls `_use` with the dataset once its header is read.
    """

    plane_wise = False

    def _use(self, file: Any, place: str, *, shape: ShapeZYX | None = None, unsigned: bool = False) -> None:
        """Set shape, dtype and chunks from a dataset.

        Args:
            file: the open file.
            place: name of the dataset in it.
            shape: part of the dataset that is the image, from its first voxel; None: all of it.
            unsigned: True to read signed integers of 16 bits as unsigned ones.

        Raises:
            SelmaError: the dataset is no grey-value image of three axes, is smaller than the shape, or is compressed by a filter that is not
                installed.
        """
        dataset = hdf5_object(file, place)
        stored = dataset.dtype
        if len(dataset.shape) != 3 or stored.kind not in "uif":
            raise SelmaError(
                f"{self.path}: {place} has the shape {by_times(dataset.shape)} and the type {stored}; grey values along z, y and x are needed"
            )
        z, y, x = shape or dataset.shape
        self.shape = (int(z), int(y), int(x))
        if any(not 0 < edge <= length for edge, length in zip(self.shape, dataset.shape, strict=True)):
            raise damaged_file(self.path)
        self._check_filters(dataset)
        self._file, self._place = Path(file.filename), place
        self._stored = stored.newbyteorder("=")
        self.dtype = np.dtype(np.uint16) if unsigned and self._stored == np.int16 else self._stored
        self.chunk_zyx = dataset.chunks
        self.kept_bytes = self._cache_bytes if self.chunk_zyx else 0
        self._handles: tuple[int, Any, Any] | None = None

    @property
    def _chunks_in_layer(self) -> int:
        """Number of chunks that lie side by side in a layer of the image."""
        assert self.chunk_zyx is not None
        return prod(ceil(n / edge) for n, edge in zip(self.shape[1:], self.chunk_zyx[1:], strict=True))

    @property
    def _cache_bytes(self) -> int:
        """Bytes for decoded chunks: those of a layer, within bounds."""
        assert self.chunk_zyx is not None
        layer: int = self._chunks_in_layer * prod(self.chunk_zyx) * self._stored.itemsize
        return min(max(layer, _LEAST_CACHE_BYTES), CACHE_BYTES)

    def _check_filters(self, dataset: Any) -> None:
        """Raise `SelmaError` if the chunks are compressed by a filter that is not installed."""
        library, properties = import_module("h5py"), dataset.id.get_create_plist()
        for number in range(properties.get_nfilters()):
            code, _, _, name = properties.get_filter(number)
            if not library.h5z.filter_avail(code):
                with suppress(ImportError):
                    import_module("hdf5plugin")  # registers further filters
            if not library.h5z.filter_avail(code):
                named = name.decode("utf-8", "replace") or "without a name"
                raise SelmaError(
                    f"{self.path}: is compressed by HDF5's filter {code} ({named}), which is not installed; install it with: pip install hdf5plugin"
                )

    def _dataset(self) -> Any:
        """The dataset, opened in this process: a handle from before a fork would share its place in the file with the parent."""
        if self._handles is None or self._handles[0] != os.getpid():
            library, file = hdf5_library(self.path), _opened(self._file)
            access = library.h5p.create(library.h5p.DATASET_ACCESS)
            if self.chunk_zyx:
                kept = max(
                    1, min(self._chunks_in_layer, self._cache_bytes // (prod(self.chunk_zyx) * self._stored.itemsize))
                )
                access.set_chunk_cache(kept * _SLOTS + 1, self._cache_bytes, 0.75)
            dataset = library.Dataset(library.h5d.open(file.id, self._place.encode(), access))
            self._handles = (os.getpid(), file, dataset)
        return self._handles[2]

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        try:
            voxels = np.asarray(self._dataset()[z, y, x])
        except SelmaError:
            raise
        except _DAMAGE as error:
            raise cut_short(self.path) from error
        return voxels.astype(self._stored, copy=False).view(self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": None}
