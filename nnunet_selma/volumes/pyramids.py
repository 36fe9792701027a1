"""Resolution levels of an OME-Zarr: their shapes, their voxels from those of the level before, and writing them shard by shard."""

import itertools
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.parallel import run_tasks
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes.base import Array, ShapeZYX
from nnunet_selma.volumes.ome_zarr import ome_metadata, zarr_library

Reduction = Literal["mean", "mode", "nearest"]
"""The way a level is made from the level before: mean for grey values and probabilities, mode for labels, nearest for numbers of instances."""

_SMALL = 256  # voxels along the longest axis of the last level: a viewer draws it at once
_UNSHARDED = 256  # voxels along an axis that are made in one go where there are no shards


@dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution of a pyramid."""

    shape: ShapeZYX
    factors_zyx: ShapeZYX
    """Voxels of level 0 along each axis that a voxel of this level covers."""


def pyramid_levels(shape: ShapeZYX, spacing_zyx: tuple[float, float, float]) -> list[Level]:
    """The levels from the volume itself to the first whose longest axis has 256 voxels or fewer.

    A step halves an axis, rounded up, if its voxels are less than twice as long as the shortest edge: an axis of coarse
    spacing waits until the others have caught up. Axes of one voxel stay as they are.
    """
    levels = [Level(shape=shape, factors_zyx=(1, 1, 1))]
    while max(levels[-1].shape) > _SMALL:
        last = levels[-1]
        edges = [spacing * factor for spacing, factor in zip(spacing_zyx, last.factors_zyx, strict=True)]
        shortest = min(edge for edge, length in zip(edges, last.shape, strict=True) if length > 1)
        steps = [2 if n > 1 and edge < 2 * shortest else 1 for edge, n in zip(edges, last.shape, strict=True)]
        z, y, x = (-(-n // step) for n, step in zip(last.shape, steps, strict=True))
        fz, fy, fx = (factor * step for factor, step in zip(last.factors_zyx, steps, strict=True))
        levels.append(Level(shape=(z, y, x), factors_zyx=(fz, fy, fx)))
    return levels


def reduced(voxels: Array, steps_zyx: Sequence[int], reduction: Reduction) -> Array:
    """The same box with one voxel for each window of 1 or 2 voxels along each of the last three axes, in the same dtype.

    A window that hangs over the end of an odd axis counts only voxels of the box. The mean of integers is rounded, halves up; the mode is
    the most frequent value, the largest where several are equally frequent, so that foreground wins against background; nearest is the
    window's first voxel.
    """
    if reduction == "nearest":
        z, y, x = (slice(None, None, step) for step in steps_zyx)
        return voxels[..., z, y, x]
    overhang = [(0, -n % step) for n, step in zip(voxels.shape[-3:], steps_zyx, strict=True)]
    if any(after for _, after in overhang):
        # a voxel that stands twice changes neither mean nor mode, because every other one of its window does too
        voxels = np.pad(voxels, [(0, 0)] * (voxels.ndim - 3) + overhang, mode="edge")
    windows = [
        np.ascontiguousarray(voxels[..., z :: steps_zyx[0], y :: steps_zyx[1], x :: steps_zyx[2]])
        for z, y, x in itertools.product(*(range(step) for step in steps_zyx))
    ]
    return _rounded_mean(windows) if reduction == "mean" else _most_frequent(windows)


def fill_pyramid(path: Path, progress: Progress[Any] = silent, *, workers: int = 1) -> None:
    """Write the levels above level 0, each from the level before; the result does not depend on shards or workers.

    Level 0 must be complete. After a kill it can be run again: it replaces levels that exist. Memory is that of a few shards a worker.

    Raises:
        SelmaError: the image was not made by `create_image`, or a worker ended.
    """
    multiscale = ome_metadata(open_zarr_group(path)).get("multiscales", [{}])[0]
    reduction = multiscale.get("type")
    if reduction not in ("mean", "mode", "nearest"):
        raise SelmaError(f"{path}: does not state how its levels are made; only images that nnunet-selma created do")
    for level in range(1, len(multiscale["datasets"])):
        boxes = _boxes(level_array(path, level))
        tasks = [_LevelBox(path=path, level=level, box=box, reduction=reduction) for box in boxes]
        run_tasks(_fill_box, tasks, steps=len(tasks), workers=workers, label=f"level {level}", progress=progress)


def open_zarr_group(path: Path) -> Any:
    """A zarr group as it is on disk, for reading and writing; consolidated metadata are not used."""
    return zarr_library().open_group(str(path), mode="r+", use_consolidated=False)


@lru_cache(maxsize=256)
def level_array(path: Path, level: int) -> Any:
    """The zarr array of a level, for reading and writing; opened once a process."""
    return zarr_library().open_array(str(path / str(level)), mode="r+")


def one_thread() -> AbstractContextManager[Any]:
    """A context in which zarr compresses chunks one after another, because each process of a prediction may use one core."""
    context: AbstractContextManager[Any] = zarr_library().config.set({"async.concurrency": 1})
    return context


@dataclass(frozen=True, kw_only=True)
class _LevelBox:
    """A box of a level above 0 that is written in one go, with the axis of channels, if there is one."""

    path: Path
    level: int
    box: tuple[slice, ...]
    reduction: Reduction


def _boxes(array: Any) -> list[tuple[slice, ...]]:
    """Boxes of an array: its shards, or whole chunks of about 256 voxels an axis where it has none; one channel each."""
    zyx = array.shards or tuple(chunk * max(1, _UNSHARDED // chunk) for chunk in array.chunks)
    units = (*(1 for _ in array.shape[:-3]), *zyx[-3:])
    axes = ([slice(a, min(a + unit, n)) for a in range(0, n, unit)] for n, unit in zip(array.shape, units, strict=True))
    return list(itertools.product(*axes))


def _fill_box(task: _LevelBox) -> Generator[int, None, None]:
    source, target = level_array(task.path, task.level - 1), level_array(task.path, task.level)
    steps = [1 if n == m else 2 for n, m in zip(source.shape, target.shape, strict=True)]
    made = np.zeros([b.stop - b.start for b in task.box], target.dtype)
    pieces = [-(-n // step) for n, step in zip(made.shape, steps, strict=True)]  # of at most a shard of the source
    with one_thread():
        for corner in itertools.product(*(range(0, n, piece) for n, piece in zip(made.shape, pieces, strict=True))):
            ends = [min(a + piece, n) for a, piece, n in zip(corner, pieces, made.shape, strict=True)]
            voxels = source[
                tuple(
                    slice((b.start + start) * step, (b.start + end) * step)
                    for b, start, end, step in zip(task.box, corner, ends, steps, strict=True)
                )
            ]
            if voxels.any():
                made[tuple(map(slice, corner, ends))] = reduced(voxels, steps[-3:], task.reduction)
        target[task.box] = made
    yield 1


def _rounded_mean(windows: Sequence[Array]) -> Array:
    dtype = windows[0].dtype
    wide = np.promote_types(dtype, np.float32) if dtype.kind == "f" else np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
    total = windows[0].astype(wide)
    for voxels in windows[1:]:
        total += voxels
    mean = total / len(windows) if dtype.kind == "f" else (total + len(windows) // 2) // len(windows)
    return mean.astype(dtype)


def _most_frequent(windows: Sequence[Array]) -> Array:
    best, most = windows[0], np.zeros(windows[0].shape, np.uint8)
    for candidate in windows:
        votes = np.zeros(candidate.shape, np.uint8)
        for voxels in windows:
            votes += candidate == voxels
        wins = (votes > most) | ((votes == most) & (candidate > best))
        best, most = np.where(wins, candidate, best), np.maximum(votes, most)
    return best
