"""Reading files of microscopes slab by slab, beside plain reading of the same slabs with the library of each format."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile

from benchmarks.pairs import Comparison, Measure, Side
from benchmarks.whole_volume import scratch, volume
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Array

_EDGE, _QUICK = 384, 64
_SLAB = 64
"""Slices that are read together, as `predict-volume` does."""
_CHUNK = (16, 128, 128)
_PINNED = {"OMP_NUM_THREADS": "2"}
"""zarr decodes on all cores, whatever this says."""


def comparisons(quick: bool = False) -> list[Comparison]:
    """A row for each format."""
    return [
        Comparison(
            name=f"microscopes_{name}",
            what=f"reading {_QUICK if quick else _EDGE}³ voxels of {each.words}, slabs of {_SLAB} slices",
            ours=Side(label="open_volume", start=start_ours, arguments=_arguments(name, quick), environment=_PINNED),
            other=Side(label=each.library, start=start_library, arguments=_arguments(name, quick), environment=_PINNED),
            target=0.8,
            repetitions=1 if quick else 9,
        )
        for name, each in _FORMATS.items()
    ]


def _arguments(name: str, quick: bool) -> dict[str, Any]:
    return {"name": name, "edge": _QUICK if quick else _EDGE}


def start_ours(name: str, edge: int) -> Measure:
    """Seconds for the whole volume, by way of the project."""
    path = _written(name, edge)
    return _timed(lambda: _through(open_volume(path).read, edge))


def start_library(name: str, edge: int) -> Measure:
    """Seconds for the whole volume, with the library alone."""
    path = _written(name, edge)
    return _timed(lambda: _FORMATS[name].read_all(path, edge))


def _timed(work: Callable[[], None]) -> Measure:
    def measure() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    measure()  # the files come into the system's cache
    return measure


def _through(read: Callable[[slice], Array], edge: int) -> None:
    """Read slab after slab."""
    for z in range(0, edge, _SLAB):
        read(slice(z, z + _SLAB))


def _written(name: str, edge: int) -> Path:
    """A file of blobs."""
    return _FORMATS[name].write(scratch() / name, volume(edge, empty=False))


def _write_imaris(path: Path, voxels: Array) -> Path:
    import h5py

    path = path.with_suffix(".ims")
    with h5py.File(path, "w") as file:
        file.attrs["DataSetDirectoryName"], file.attrs["DataSetInfoDirectoryName"] = b"DataSet", b"DataSetInfo"
        image = file.create_group("DataSetInfo/Image")
        for number, (axis, length) in enumerate(zip("XYZ", voxels.shape[::-1], strict=True)):
            image.attrs[axis], image.attrs[f"ExtMin{number}"] = str(length).encode(), b"0"
            image.attrs[f"ExtMax{number}"] = str(2 * length).encode()
        image.attrs["Unit"] = b"um"
        channel = file.create_group("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0")
        for axis, length in zip("ZYX", voxels.shape, strict=True):
            channel.attrs[f"ImageSize{axis}"] = str(length).encode()
        channel.create_dataset("Data", data=voxels, chunks=_chunk(voxels), compression="gzip", compression_opts=2)
    return path


def _read_hdf5(place: str) -> Callable[[Path, int], None]:
    def read_all(path: Path, edge: int) -> None:
        import h5py

        with h5py.File(path, "r", locking=False) as file:
            _through(file[place].__getitem__, edge)

    return read_all


def _write_bigdataviewer(path: Path, voxels: Array) -> Path:
    import h5py

    path = path.with_suffix(".h5")
    with h5py.File(path, "w") as file:
        file["s00/resolutions"], file["s00/subdivisions"] = np.ones((1, 3)), [_chunk(voxels)[::-1]]
        file.create_dataset("t00000/s00/0/cells", data=voxels.view(np.int16), chunks=_chunk(voxels), compression="gzip")
    return path


def _write_czi(path: Path, voxels: Array) -> Path:
    from pylibCZIrw import czi

    path = path.with_suffix(".czi")
    with czi.create_czi(str(path)) as file:
        for z, plane in enumerate(voxels):
            file.write(plane[..., None], plane={"Z": z, "C": 0, "T": 0}, scene=0)
        file.write_metadata(document_name="brain")
    return path


def _read_czi(path: Path, edge: int) -> None:
    from pylibCZIrw import czi

    with czi.open_czi(str(path)) as file:

        def planes(slab: slice) -> Array:
            return np.stack([file.read(plane={"Z": z}, scene=0)[..., 0] for z in range(slab.start, slab.stop)])

        _through(planes, edge)


def _write_zarr(path: Path, voxels: Array) -> Path:
    import zarr

    array: Any = zarr.create_array(str(path), shape=voxels.shape, chunks=_chunk(voxels), dtype=voxels.dtype)
    array[:] = voxels
    return path


def _read_zarr(path: Path, edge: int) -> None:
    import zarr

    array: Any = zarr.open_array(str(path), mode="r")
    _through(array.__getitem__, edge)


def _write_tiff(path: Path, voxels: Array) -> Path:
    path = path.with_suffix(".ome.tif")
    tifffile.imwrite(path, voxels, metadata={"axes": "ZYX"}, compression="zlib")
    return path


def _read_tiff(path: Path, edge: int) -> None:
    with tifffile.TiffFile(path) as tif:
        _through(lambda slab: np.stack([page.asarray() for page in tif.pages[slab]]), edge)


def _chunk(voxels: Array) -> tuple[int, int, int]:
    z, y, x = (min(edge, length) for edge, length in zip(_CHUNK, voxels.shape, strict=True))
    return z, y, x


class _Format(NamedTuple):
    """A format, and how its library writes and reads it."""

    words: str
    library: str
    write: Callable[[Path, Array], Path]
    """Writes voxels to a path, to which the ending is added; returns the file."""
    read_all: Callable[[Path, int], None]
    """Reads a volume of an edge slab by slab."""


_FORMATS = {
    "imaris": _Format(
        "Imaris", "h5py", _write_imaris, _read_hdf5("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data")
    ),
    "bigdataviewer": _Format("BigDataViewer's HDF5", "h5py", _write_bigdataviewer, _read_hdf5("t00000/s00/0/cells")),
    "czi": _Format("CZI", "pylibCZIrw", _write_czi, _read_czi),
    "zarr": _Format("a zarr array", "zarr", _write_zarr, _read_zarr),
    "tiff": _Format("a compressed OME-TIFF", "tifffile", _write_tiff, _read_tiff),
}
