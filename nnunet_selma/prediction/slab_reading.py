"""Reading a slab, by one process or many: each once, in order.

What nnU-Net's preprocessing asks of the whole volume is gathered, and where the input is a stack of slices its voxels go into chunks, from
which blocks are cut.
"""

from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.conversion.tiles import intensity_unit
from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.intensities import Intensities, joined
from nnunet_selma.prediction.run import Run
from nnunet_selma.prediction.settings import VolumePrediction
from nnunet_selma.prediction.tissue import cell_means
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Volume
from nnunet_selma.volumes.ome_zarr import is_zarr
from nnunet_selma.volumes.ome_zarr_writing import write_box


def open_channels(settings: VolumePrediction, channels: int) -> list[Volume]:
    """The volume of each channel of the model.

    Raises:
        SelmaError: too few or too many, or of different shapes.
    """
    chosen = settings.channels
    if chosen is None and len(settings.inputs) == 1 < channels and _holds_several(settings.inputs[0], settings.level):
        chosen = tuple(range(channels))
    paths: list[tuple[Path, int | None]] = [(path, None) for path in settings.inputs]
    if chosen is not None:
        for path in settings.inputs:
            if not _holds_several(path, settings.level):
                raise SelmaError(f"--channel: {path} holds one channel only; leave the option out")
        paths = [(path, channel) for path in settings.inputs for channel in chosen]
    if len(paths) != channels:
        raise SelmaError(
            f"{len(paths)} volume(s) given, and the model was trained on {channels} channel(s); give one volume for each, in their order"
        )
    volumes = [
        open_volume(
            path,
            channel=channel,
            level=settings.level if is_zarr(path) else 0,
            on_bad_slice=settings.on_bad_slice,
        )
        for path, channel in paths
    ]
    for other in volumes[1:]:
        if other.shape != volumes[0].shape:
            raise SelmaError(
                f"{other.path}: has {other.shape} voxels and {volumes[0].path} {volumes[0].shape} (z, y, x); channels are of one shape"
            )
    return volumes


def _holds_several(path: Path, level: int) -> bool:
    """True if a reader needs the number of a channel for this file."""
    try:
        open_volume(path, level=level if is_zarr(path) else 0)
    except SelmaError:
        return True
    return False


def stored_dtype(volumes: list[Volume]) -> np.dtype[Any]:
    """A type that holds the values of all channels: their own, or float32 where files have doubles or other types."""
    dtype = np.result_type(*(volume.dtype for volume in volumes))
    if dtype == np.bool_:
        return np.dtype(np.uint8)
    return dtype if dtype.kind in "ui" and dtype.itemsize <= 4 else np.dtype(np.float32)


@dataclass(frozen=True)
class SlabTask:
    """One slab of a run."""

    folder: Path
    run_id: str
    index: int


@lru_cache(maxsize=1)
def _source(folder: Path, run_id: str) -> tuple[Run, list[Volume], float]:
    run = Run(folder)
    run.check_current(run_id)
    volumes = open_channels(run.settings, int(run.facts["channels"]))
    return run, volumes, max(intensity_unit(volume) for volume in volumes)


def forget_source() -> None:
    """Let go of the input once it has been read: some files stay in memory whole."""
    _source.cache_clear()


_READING = Lock()
"""A worker of a cluster may have several threads; the memory is for one slab."""


def read_slab(task: SlabTask) -> Generator[int, None, None]:
    """Read one slab; note its intensities, and copy it where the input is a stack of slices."""
    with _READING:
        _read(task)
    yield 1


def _read(task: SlabTask) -> None:
    run, volumes, unit = _source(task.folder, task.run_id)
    planes = run.slabs[task.index]
    height = run.shape[1]
    step = int(run.facts["rows"])
    parts, means = [], []
    for y in range(0, height, step):
        rows = slice(y, min(y + step, height))
        slab = np.stack([volume.read(planes, rows) for volume in volumes]).astype(run.facts["dtype"], copy=False)
        try:
            parts.append(Intensities.of(slab))
        except ValueError as error:
            raise SelmaError(
                f"{volumes[0].path}: holds {error} in slices {planes.start} to {planes.stop - 1}; replace them (the background's value will "
                "do) and run the command again, which goes on from here"
            ) from error
        means.append(cell_means(slab, planes.start, run.shape[0], unit))
        if run.raw is not None:
            run.check_current()
            write_box(run.raw, (planes.start, 0, 0), slab if len(volumes) > 1 else slab[0])  # whole planes
    brightness: NDArray[np.float32] = np.concatenate(means, axis=1)
    repaired = [name for volume in volumes for name in volume.repaired]
    run.note_slab(task.index, joined(parts, axis=1), brightness, repaired)
