"""Resolution levels of an OME-Zarr: their shapes, their voxels from those of the level before, and writing them shard by shard."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal, get_args

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.cores import compute_threads
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.running.parallel import in_threads
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes.base import Array, ShapeZYX
from nnunet_selma.volumes.ome_zarr import ome_metadata, zarr_library

Reduction = Literal["mean", "mode", "nearest", "any"]
"""The way a level is made from the level before: mean for grey values and probabilities, any for labels and numbers of instances, in which small
objects stay visible. Mode and nearest lose them, and are those of images that earlier versions wrote."""

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
    the most frequent value, the largest where several are equally frequent, so that foreground wins against background; any is the mode of
    the voxels that are not 0, if there are some; nearest is the window's first voxel.
    """
    if reduction == "nearest":
        z, y, x = (slice(None, None, step) for step in steps_zyx)
        return voxels[..., z, y, x]
    lengths = [-(-n // step) for n, step in zip(voxels.shape[-3:], steps_zyx, strict=True)]
    made = np.empty((*voxels.shape[:-3], *lengths), voxels.dtype)
    for image, result in zip(voxels.reshape(-1, *voxels.shape[-3:]), made.reshape(-1, *lengths), strict=True):
        for first, plane in zip(
            range(0, image.shape[0], steps_zyx[0]), result, strict=True
        ):  # a few planes at a time stay in the processor's cache
            plane[...] = _reduced_plane(image[first : first + steps_zyx[0]], steps_zyx[1:], reduction)
    return made


def _reduced_plane(planes: Array, steps_yx: Sequence[int], reduction: Reduction) -> Array:
    """The plane (y, x) that is made from one or two planes (z, y, x)."""
    overhang = [(0, -n % step) for n, step in zip(planes.shape[1:], steps_yx, strict=True)]
    if any(after for _, after in overhang):
        # a voxel that stands twice changes neither mean nor mode, because every other one of its window does too
        planes = np.pad(planes, [(0, 0), *overhang], mode="edge")
    if reduction == "mean" and planes.dtype.kind == "u" and steps_yx[1] == 2:
        return _mean_of_pairs(planes, steps_yx[0])
    windows = [
        np.ascontiguousarray(plane[y :: steps_yx[0], x :: steps_yx[1]])
        for plane, y, x in itertools.product(planes, *(range(step) for step in steps_yx))
    ]
    return _rounded_mean(windows) if reduction == "mean" else _most_frequent(windows, foreground=reduction == "any")


def fill_pyramid(
    path: Path, progress: Progress[Any] = silent, *, record: Path | None = None, stop: Event | None = None
) -> None:
    """Write the levels above level 0, each from the level before, on all cores; the result does not depend on their number or on shards.

    Level 0 must be complete, and may be read meanwhile, by this process and others. After a kill it can be run again: it replaces levels
    that exist. Memory is that of a shard and, for each core, of the chunks along one edge of a shard.

    Args:
        path: the image.
        progress: shows the parts of each level.
        record: JSON file that names the levels that are complete, which are not made again; None: all are made.
        stop: when it is set, the call returns after the part at hand, without the levels that are left.

    Raises:
        SelmaError: the image was not made by `create_image`.
    """
    multiscale = ome_metadata(open_zarr_group(path)).get("multiscales", [{}])[0]
    reduction = multiscale.get("type")
    if reduction not in get_args(Reduction):
        raise SelmaError(f"{path}: does not state how its levels are made; only images that nnunet-selma created do")
    complete = read_json(record)["levels"] if record is not None and record.is_file() else 0
    for level in range(complete + 1, len(multiscale["datasets"])):
        for box in progress(_boxes(level_array(path, level)), f"level {level}"):
            if stop is not None and stop.is_set():
                return
            _fill_box(path, level, box, reduction)
        if record is not None:
            write_json(record, {"levels": level})


def open_zarr_group(path: Path) -> Any:
    """A zarr group as it is on disk, for reading and writing; consolidated metadata are not used."""
    return zarr_library().open_group(str(path), mode="r+", use_consolidated=False)


@functools.lru_cache(maxsize=256)
def level_array(path: Path, level: int) -> Any:
    """The zarr array of a level, for reading and writing; opened once a process."""
    return zarr_library().open_array(str(path / str(level)), mode="r+")


def _boxes(array: Any) -> list[tuple[slice, ...]]:
    """Boxes of an array: its shards, or whole chunks of about 256 voxels an axis where it has none; one channel each."""
    zyx = array.shards or tuple(chunk * max(1, _UNSHARDED // chunk) for chunk in array.chunks)
    units = (*(1 for _ in array.shape[:-3]), *zyx[-3:])
    axes = ([slice(a, min(a + unit, n)) for a in range(0, n, unit)] for n, unit in zip(array.shape, units, strict=True))
    return list(itertools.product(*axes))


def _fill_box(path: Path, level: int, box: Sequence[slice], reduction: Reduction) -> None:
    """Write a box of a level above 0 in one go, with the axis of channels, if there is one."""
    source, target = level_array(path, level - 1), level_array(path, level)
    steps = [1 if n == m else 2 for n, m in zip(source.shape, target.shape, strict=True)]
    made = np.zeros([b.stop - b.start for b in box], target.dtype)
    pieces = [-(-n // step) for n, step in zip(made.shape, steps, strict=True)]  # of at most a shard of the source
    pieces[-3] = max(1, source.chunks[-3] // steps[-3])

    def fill(corner: Sequence[int]) -> None:
        ends = [min(a + piece, n) for a, piece, n in zip(corner, pieces, made.shape, strict=True)]
        voxels = source[
            tuple(
                slice((b.start + start) * step, (b.start + end) * step)
                for b, start, end, step in zip(box, corner, ends, steps, strict=True)
            )
        ]
        if voxels.any():
            made[tuple(map(slice, corner, ends))] = reduced(voxels, steps[-3:], reduction)

    corners = itertools.product(*(range(0, n, piece) for n, piece in zip(made.shape, pieces, strict=True)))
    in_threads(fill, list(corners), compute_threads())
    target[tuple(box)] = made


def _mean_of_pairs(planes: Array, step_y: int) -> Array:
    """Rounded mean of windows of unsigned integers that have two voxels along x; such a pair is read as one number of twice the bits."""
    dtype = planes.dtype
    bits = 8 * dtype.itemsize
    pairs = np.ascontiguousarray(planes).view(f"u{2 * dtype.itemsize}")
    total = (pairs & np.iinfo(dtype).max) + (pairs >> bits)
    total = total.sum(axis=0, dtype=total.dtype) if len(total) > 1 else total[0]
    if step_y == 2:
        total = total[0::2] + total[1::2]
    count = 2 * step_y * len(planes)
    mean: Array = ((total + count // 2) // count).astype(dtype)
    return mean


def _rounded_mean(windows: Sequence[Array]) -> Array:
    dtype = windows[0].dtype
    wide = np.promote_types(dtype, np.float32) if dtype.kind == "f" else np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
    total = windows[0].astype(wide)
    for voxels in windows[1:]:
        total += voxels
    mean = total / len(windows) if dtype.kind == "f" else (total + len(windows) // 2) // len(windows)
    return mean.astype(dtype)


def _most_frequent(windows: Sequence[Array], *, foreground: bool) -> Array:
    """The most frequent value, the largest of several; with `foreground` among those that are not 0.

    Votes are counted only where a window holds several values, which is at the borders of objects.
    """
    best = functools.reduce(np.maximum, windows)
    several = np.zeros(best.shape, np.bool_)
    for voxels in windows:
        several |= (voxels != best) & (voxels != 0) if foreground else voxels != best
    if several.any():
        mixed = np.stack([voxels[several] for voxels in windows])
        votes = np.stack([(mixed == candidate).sum(axis=0) for candidate in mixed])
        if foreground:
            votes[mixed == 0] = 0
        winners = votes == votes.max(axis=0)
        best[several] = np.where(winners, mixed, mixed.min(axis=0)).max(axis=0)
    return best
