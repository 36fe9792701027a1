"""Reading a volume slab by slab, each slab once, by one process or many.

The intensities that nnU-Net's normalisation needs and the brightness of grid boxes are measured. A stack of slices is copied into chunks, from
which blocks are read.
"""

from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.morphology.tissue import grid_box, grid_means, intensity_unit
from nnunet_selma.prediction.intensities import Intensities, box_moments, join_parts
from nnunet_selma.prediction.run import Run
from nnunet_selma.prediction.volume_prediction import VolumePrediction
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Volume
from nnunet_selma.volumes.ome_zarr_writing import write_box
from nnunet_selma.volumes.segmented import channel_count


def open_channels(settings: VolumePrediction, channels: int) -> list[Volume]:
    """Open the volume of each channel of the model.

    Raises:
        SelmaError: too few or too many volumes, or volumes of different shapes.
    """
    chosen = settings.channels
    if chosen is None and len(settings.inputs) == 1 < channels and channel_count(settings.inputs[0]) > 1:
        chosen = tuple(range(channels))
    paths: list[tuple[Path, int | None]] = [(path, None) for path in settings.inputs]
    if chosen is not None:
        for path in settings.inputs:
            if channel_count(path) == 1:
                raise SelmaError(f"--channel: {path} holds one channel only; leave the option out")
        paths = [(path, channel) for path in settings.inputs for channel in chosen]
    if len(paths) != channels:
        raise SelmaError(
            f"the model was trained on {counted(channels, 'channel')}, and {counted(len(paths), 'volume')} came; give one volume for each, in their order"
        )
    volumes = [
        open_volume(
            path,
            channel=channel,
            level=settings.level,
            on_bad_slice=settings.on_bad_slice,
            slice_pattern=settings.slice_pattern,
        )
        for path, channel in paths
    ]
    for other in volumes[1:]:
        if other.shape != volumes[0].shape:
            raise SelmaError(
                f"{other.path}: has {other.shape} voxels and {volumes[0].path} {volumes[0].shape} (z, y, x); channels are of one shape"
            )
    return volumes


def stored_dtype(volumes: list[Volume]) -> np.dtype[Any]:
    """Type in which the image is kept: that of the files if it is an integer of at most 32 bits, else float32."""
    dtype = np.result_type(*(volume.dtype for volume in volumes))
    if dtype == np.bool_:
        return np.dtype(np.uint8)
    return dtype if dtype.kind in "ui" and dtype.itemsize <= 4 else np.dtype(np.float32)


@dataclass(frozen=True)
class SlabToRead:
    """One slab of a run, for a process on any machine that sees the folder."""

    folder: Path
    run_id: str
    index: int


@lru_cache(maxsize=1)
def _open_input(folder: Path, run_id: str, volumes: tuple[Volume, ...]) -> tuple[Run, list[Volume], float]:
    """The run of a folder, its channels, and the unit of their intensities; opened once in each process."""
    run = Run(folder)
    run.check_current(run_id)
    channels = list(volumes) or open_channels(run.settings, run.facts.channels)
    return run, channels, max(intensity_unit(volume) for volume in channels)


def close_input() -> None:
    """Release the memory of the input after it has been read: some files stay in memory whole."""
    _open_input.cache_clear()


_READING = Lock()
"""Lock for reading: a worker of a cluster may have several threads, and the memory is planned for one slab."""


def scan_slab(task: SlabToRead, volumes: tuple[Volume, ...] = ()) -> Generator[int, None, None]:
    """Read one slab, record its intensities and, if the image is to be copied, write it in chunks; volumes are opened unless they are given."""
    with _READING:
        _scan_slab(task, volumes)
    yield 1


def _scan_slab(task: SlabToRead, opened: tuple[Volume, ...]) -> None:
    run, volumes, unit = _open_input(task.folder, task.run_id, opened)
    planes, facts = run.slabs[task.index], run.facts
    depth, height, _ = facts.shape
    parts, means, moments = [], [], []
    for y in range(0, height, facts.rows):
        rows = slice(y, min(y + facts.rows, height))
        slab = np.stack([volume.read(planes, rows) for volume in volumes]).astype(facts.dtype, copy=False)
        try:
            parts.append(Intensities.measure(slab))
        except ValueError as error:
            raise SelmaError(
                f"{volumes[0].path}: holds {error} in slices {planes.start} to {planes.stop - 1}; replace them (the background's value will "
                "do) and run the command again, which goes on from here"
            ) from error
        means.append(grid_means(slab, planes.start, depth, unit, grid_box(facts.shape)))
        if run.settings.statistics == "tissue":
            moments.append(box_moments(slab, planes.start, facts.shape))
        if run.raw is not None:
            run.check_current()
            write_box(run.raw, (planes.start, 0, 0), slab if len(volumes) > 1 else slab[0])  # whole planes
    brightness: NDArray[np.float32] = np.concatenate(means, axis=1)
    repaired = [name for volume in volumes for name in volume.repaired]
    in_boxes = np.concatenate(moments, axis=2) if moments else None
    run.record_slab(task.index, join_parts(parts, axis=1), brightness, repaired, in_boxes)
