"""Chunks of an OME-Zarr that were lost, for example by a copy that broke off: they read as empty, and zarr reports nothing.

A missing chunk alone is no fault, because programs write no chunk that is empty. It was lost if the image goes on there: a coarser level
holds values at its place, or, where that level has no file either, the chunks beside it hold values up to the common face. Tissue ends
within a chunk, hardly ever at its face. Of very many missing chunks only some are looked at.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume
from nnunet_selma.volumes.ome_zarr import OmeZarrVolume

_MOST_CHUNKS = 100
"""Greatest number of missing chunks with the same number of stored neighbours that are looked at."""
_LEAST_EDGE = 8
"""Shortest edge of a chunk in the coarser level, voxels; values of its neighbours reach less than a quarter into it."""
_FACE = 64
"""Longest edge of the part of a face that is read, voxels."""


class _Coarse(NamedTuple):
    """A coarser level of an image."""

    volume: OmeZarrVolume
    stored: NDArray[np.bool_]
    """True for each of its chunks that has a file."""


def lost_chunks(
    volume: Volume, tissue: NDArray[np.bool_] | None = None, tissue_box: ShapeZYX = (1, 1, 1)
) -> str | None:
    """A sentence about chunks of an OME-Zarr that were lost; None for an image without any, and for other formats.

    In shards, whole shards count as chunks.

    Args:
        volume: the image.
        tissue: True for each box of a grid, (z, y, x), that is tissue; only chunks with such a box in them or beside them are judged and
            counted, because a lost chunk itself reads as empty. None: all chunks.
        tissue_box: shape of the grid's boxes, voxels; they begin at the first voxel.
    """
    if not isinstance(volume, OmeZarrVolume):
        return None
    stored = volume.stored_files()
    judged = ~stored if tissue is None else ~stored & _chunks_in(tissue, tissue_box, volume.file_zyx, stored.shape)
    if not judged.any():
        return None
    place = "" if tissue is None else " in or beside tissue"
    missing = f"{volume.path}: {int(judged.sum())} of {stored.size} chunks{place} have no file and read as empty"
    if not stored.any():
        return f"{missing}; the image is empty, or was not copied"
    coarse = _coarser_level(volume)
    lost = [chunk for chunk in _candidates(stored, judged) if _is_lost(volume, stored, coarse, chunk)]
    if not lost:
        return None
    first = ", ".join(f"{i * edge}" for i, edge in zip(lost[0], volume.file_zyx, strict=True))
    return f"{missing}; the image goes on at {len(lost)} of them or more, the first at voxel {first} (z, y, x). Copy the OME-Zarr again"


def _chunks_in(
    tissue: NDArray[np.bool_], tissue_box: ShapeZYX, chunk: ShapeZYX, grid: tuple[int, ...]
) -> NDArray[np.bool_]:
    """True for each chunk of a grid with a box in it, or directly beside it, that is True."""
    for axis, count in enumerate(grid):
        starts = np.arange(count) * chunk[axis]
        first = np.maximum(starts // tissue_box[axis] - 1, 0)
        stop = np.minimum(-(-(starts + chunk[axis]) // tissue_box[axis]) + 1, tissue.shape[axis])
        before = np.insert(np.cumsum(tissue, axis, dtype=np.int32), 0, 0, axis)
        tissue = before.take(stop, axis) > before.take(first, axis)
    return tissue


def _candidates(stored: NDArray[np.bool_], judged: NDArray[np.bool_]) -> list[ShapeZYX]:
    """Missing chunks that are judged, those with most stored neighbours first; of very many with the same number of neighbours, some."""
    padded = np.pad(stored, 1).astype(np.uint8)
    beside = [np.roll(padded, step, axis) for axis, step in product(range(3), (1, -1))]
    neighbours = np.sum(beside, axis=0)[1:-1, 1:-1, 1:-1]
    candidates: list[ShapeZYX] = []
    for number in range(6, -1, -1):
        places = np.argwhere(judged & (neighbours == number))
        every = max(1, -(-len(places) // _MOST_CHUNKS))
        candidates += [(int(z), int(y), int(x)) for z, y, x in places[::every]]
    return candidates


def _coarser_level(volume: OmeZarrVolume) -> _Coarse | None:
    """The coarsest level in which the chunks of the volume are still wide enough; None without such a level."""
    for level in range(volume.levels - 1, volume.choice.level, -1):
        try:
            coarse = OmeZarrVolume(volume.path, replace(volume.choice, level=level))
        except SelmaError:
            continue  # the level itself was lost
        edges = zip(volume.file_zyx, volume.shape, coarse.shape, strict=True)
        if all(fine == length or edge * length / fine >= _LEAST_EDGE for edge, fine, length in edges):
            return _Coarse(coarse, coarse.stored_files())
    return None


def _is_lost(volume: OmeZarrVolume, stored: NDArray[np.bool_], coarse: _Coarse | None, chunk: ShapeZYX) -> bool:
    if coarse is not None:
        ratios = [m / n for m, n in zip(coarse.volume.shape, volume.shape, strict=True)]
        edges = [edge * ratio for edge, ratio in zip(volume.file_zyx, ratios, strict=True)]
        centre = [(i + 0.5) * edge for i, edge in zip(chunk, edges, strict=True)]
        middle = [slice(int(c - edge / 4), int(np.ceil(c + edge / 4))) for c, edge in zip(centre, edges, strict=True)]
        if _holds_values(coarse.volume, middle).any():
            return True
        place = [
            min(int(c // edge), n - 1)
            for c, edge, n in zip(centre, coarse.volume.file_zyx, coarse.stored.shape, strict=True)
        ]
        if coarse.stored[tuple(place)]:
            return False  # the coarser level says that there is nothing
    return any(_holds_values(volume, face).mean() > 0.5 for face in _faces(volume, stored, chunk))


def _faces(volume: OmeZarrVolume, stored: NDArray[np.bool_], chunk: ShapeZYX) -> list[list[slice]]:
    """Boxes, one voxel thick, of the stored chunks around a missing one, at the middle of the common faces."""
    starts = [i * edge for i, edge in zip(chunk, volume.file_zyx, strict=True)]
    ends = [min(start + edge, n) for start, edge, n in zip(starts, volume.file_zyx, volume.shape, strict=True)]
    middle = []
    for start, end in zip(starts, ends, strict=True):
        margin = max(0, (end - start - _FACE) // 2)
        middle.append(slice(start + margin, end - margin))
    faces = []
    for axis, step in product(range(3), (-1, 1)):
        beside = [i + step * (axis == other) for other, i in enumerate(chunk)]
        if 0 <= beside[axis] < stored.shape[axis] and stored[tuple(beside)]:
            voxel = starts[axis] - 1 if step < 0 else ends[axis]
            faces.append([slice(voxel, voxel + 1) if other == axis else b for other, b in enumerate(middle)])
    return faces


def _holds_values(volume: OmeZarrVolume, box: Sequence[slice]) -> NDArray[np.bool_]:
    """True for the voxels of a box that differ from the value of missing chunks."""
    voxels: Array = volume.read(*box)
    empty = volume.fill_value
    return np.asarray((voxels != empty) & ~(np.isnan(voxels) & np.isnan(empty)))
