"""Reading a volume slab by slab, each slab once, by one process or many.

The intensities that nnU-Net's normalisation needs and the brightness of grid boxes are measured. A stack of slices is copied into chunks, from
which blocks are read. The cores share the work on one slab, so that memory is that of one; what is recorded does not depend on their number.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.morphology.tissue import GRID_BOX, grid_box, grid_means, intensity_unit
from nnunet_selma.prediction.intensities import Intensities, box_moments, join_parts
from nnunet_selma.prediction.run import Run
from nnunet_selma.prediction.volume_prediction import VolumePrediction
from nnunet_selma.running.cores import compute_threads
from nnunet_selma.running.parallel import in_threads
from nnunet_selma.volumes import inventory, open_volume
from nnunet_selma.volumes.base import Array, Volume
from nnunet_selma.volumes.ome_zarr_writing import write_box


def open_channels(settings: VolumePrediction, channels: int) -> list[Volume]:
    """Open the volume of each channel of the model.

    Raises:
        SelmaError: too few or too many volumes, or volumes of different shapes.
    """
    chosen = settings.channels
    paths: list[tuple[Path, int | None]] = [(path, None) for path in settings.inputs]
    if chosen is not None:
        for path in settings.inputs:
            if inventory(path, settings.scene).channels == 1:
                raise SelmaError(f"--channel: {path} holds one channel only; leave the option out")
        paths = [(path, channel) for path in settings.inputs for channel in chosen]
    if len(paths) != channels:
        raise SelmaError(
            f"the model was trained on {counted(channels, 'channel')}, and {counted(len(paths), 'volume')} came; give one volume for each, in their order"
        )
    volumes = [
        open_volume(
            path,
            scene=settings.scene,
            channel=channel,
            time=settings.time,
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
    threads, boxes = compute_threads(), grid_box(facts.shape)
    depth, height, _ = facts.shape
    parts, means, moments = [], [], []
    for y in range(0, height, facts.rows):
        slab = _read(volumes, planes, slice(y, min(y + facts.rows, height)), np.dtype(facts.dtype), threads)

        def measure(bounds: slice, slab: Array = slab) -> tuple[Intensities, NDArray[np.float32]]:
            piece = slab[:, bounds.start - planes.start : bounds.stop - planes.start]
            try:
                return Intensities.measure(piece), grid_means(piece, bounds.start, depth, unit, boxes)
            except ValueError as error:
                raise SelmaError(
                    f"{volumes[0].path}: holds {error} in slices {bounds.start} to {bounds.stop - 1}; replace them (the background's value will "
                    "do) and run the command again, which goes on from here"
                ) from error

        measured = in_threads(measure, _pieces(planes, GRID_BOX[0]), threads)
        parts.append(join_parts((intensities for intensities, _ in measured), axis=0))
        means.append(np.concatenate([brightness for _, brightness in measured]))
        if run.settings.statistics == "tissue":
            moments.append(box_moments(slab, planes.start, facts.shape))
        if run.raw is not None:
            run.check_current()
            write_box(run.raw, (planes.start, y, 0), slab if len(volumes) > 1 else slab[0])
    brightness: NDArray[np.float32] = np.concatenate(means, axis=1)
    repaired = [name for volume in volumes for name in volume.repaired]
    in_boxes = np.concatenate(moments, axis=2) if moments else None
    run.record_slab(task.index, join_parts(parts, axis=1), brightness, repaired, in_boxes)


def _read(volumes: Sequence[Volume], planes: slice, rows: slice, dtype: np.dtype[Any], threads: int) -> Array:
    """Rows of some slices of all channels, (c, z, y, x)."""
    depth: int = planes.stop - planes.start
    slab = np.empty((len(volumes), depth, rows.stop - rows.start, volumes[0].shape[2]), dtype)
    share = -(-depth // (2 * threads))  # not one by one: a file of many pages is opened for each

    def read(piece: tuple[int, slice]) -> None:
        channel, bounds = piece
        slab[channel, bounds.start - planes.start : bounds.stop - planes.start] = volumes[channel].read(bounds, rows)

    pieces = [
        (channel, bounds)
        for channel, volume in enumerate(volumes)
        for bounds in (_pieces(planes, share) if volume.read_in_threads else [planes])
    ]
    in_threads(read, pieces, threads if all(volume.read_in_threads for volume in volumes) else 1)
    return slab


def _pieces(planes: slice, length: int) -> list[slice]:
    """Slices in pieces of a length; the last one may be shorter."""
    return [slice(z, min(z + length, planes.stop)) for z in range(planes.start, planes.stop, length)]
