"""The two steps of a run that are done piece by piece, by one process or many: reading a slab, predicting a block.

Slabs are read once, in order: what nnU-Net's preprocessing asks of the whole volume is gathered, and where the input is a stack of slices
its voxels go into chunks, from which blocks are cut. Blocks know nothing of each other.
"""

import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.metrics.blocks import Box
from nnunet_selma.tiles import intensity_unit
from nnunet_selma.volume_prediction.geometry import BoxWork, Geometry, geometry, spacing_in_plans
from nnunet_selma.volume_prediction.intensities import Intensities, Normalisation, joined, normalisation
from nnunet_selma.volume_prediction.model import Model
from nnunet_selma.volume_prediction.resampling import Limits
from nnunet_selma.volume_prediction.run import Run
from nnunet_selma.volume_prediction.settings import VolumePrediction
from nnunet_selma.volume_prediction.tiling import common, within
from nnunet_selma.volume_prediction.tissue import cell_means
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Array, Volume
from nnunet_selma.volumes.ome_zarr import is_zarr
from nnunet_selma.volumes.ome_zarr_writing import write_box
from nnunet_selma.volumes.pyramids import level_array


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
    """Whether a file wants to be told which of its channels to read."""
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
class Prepared:
    """Everything that blocks need of the run, opened in this process."""

    run: Run
    device: str

    @cached_property
    def model(self) -> Model:
        """On this process' device."""
        return Model(self.run.settings.model, self.device)

    @cached_property
    def volumes(self) -> list[Volume]:
        """Of each channel."""
        count = int(self.run.facts["channels"])
        if self.run.raw is not None:
            return [open_volume(self.run.raw, channel=channel if count > 1 else None) for channel in range(count)]
        return open_channels(self.run.settings, count)

    @cached_property
    def geometry(self) -> Geometry | None:
        """The two grids; None where the volume is 0 everywhere."""
        crop = self.run.intensities.box
        if crop is None:
            return None
        model, spacing = self.model, self.run.facts["spacing_um_zyx"]
        unit = spacing_in_plans(None if spacing is None else tuple(spacing), model.plans)
        return geometry(model.configuration, model.transpose, crop, unit, model.tile, model.settings.step_size)

    @cached_property
    def normalisation(self) -> Normalisation:
        """Of this volume."""
        return normalisation(self.model.configuration, self.model.intensity_properties, self.run.intensities)

    @cached_property
    def limits(self) -> Limits | None:
        """Lowest and highest normalised value, of the volume or of the planes that are resampled apart."""
        assert self.geometry is not None
        forward, crop = self.geometry.forward, self.geometry.crop
        if not forward.changes or forward.order < 2:
            return None
        axis = 0 if forward.across is None else self.geometry.transpose[forward.across]
        low, high = self.run.intensities.limits(crop, axis)
        if forward.across is None:
            low, high = low.min(axis=1, keepdims=True), high.max(axis=1, keepdims=True)
        return Limits(self.normalisation.apply(low), self.normalisation.apply(high))

    def work(self, index: int) -> BoxWork | None:
        """What predicting a block takes; None where there is nothing to predict."""
        if self.geometry is None:
            return None
        box = common(self.run.blocks[index], self.geometry.crop)
        if any(bounds.start >= bounds.stop for bounds in box) or not self.run.tissue.touches(box):
            return None
        return self.geometry.work(box, self.run.tissue.touches)

    def image(self, work: BoxWork) -> torch.Tensor:
        """What the network sees of a block, (c, z, y, x) with network axes: read, normalised, resampled, padded."""
        assert self.geometry is not None
        voxels = np.stack([volume.read(*work.source) for volume in self.volumes])
        normalised = self.normalisation.apply(self.geometry.turn(voxels))
        resampled = self.geometry.forward.apply(normalised, work.image, self.limits)
        if work.image == work.around:
            return torch.from_numpy(np.ascontiguousarray(resampled))
        padded = np.zeros((len(resampled), *(bounds.stop - bounds.start for bounds in work.around)), np.float32)
        padded[(slice(None), *within(work.image, work.around))] = resampled
        return torch.from_numpy(padded)

    def answer(self, index: int, work: BoxWork, image: torch.Tensor) -> tuple[Array, Array | None]:
        """Labels of a block (z, y, x), and its probabilities (class, z, y, x) if they are wanted."""
        assert self.geometry is not None
        logits = self.model.logits(image, work.around, work.tiles, work.logits, self.model.batch).numpy()
        resampled = self.geometry.backward.apply(logits, work.result)
        box = self.run.blocks[index]
        inner = common(box, self.geometry.crop)
        tissue, inside = self.run.tissue.mask(inner), within(inner, box)
        labels = np.zeros([bounds.stop - bounds.start for bounds in box], self.model.label_dtype)
        labels[inside] = self.geometry.turn_back(self.model.labels(resampled)) * tissue
        if not self.run.settings.probabilities:
            return labels, None
        probable = self.geometry.turn_back(self.model.probabilities(resampled)) * tissue
        whole = np.zeros((len(probable), *labels.shape), np.uint8)
        whole[(slice(None), *inside)] = probable
        return labels, whole

    def store(self, index: int, work: BoxWork, answer: tuple[Array, Array | None], seconds: float) -> None:
        """Write a block and say that it is whole."""
        labels, probable = answer
        start = tuple(bounds.start for bounds in self.run.blocks[index])
        write_box(self.run.labels, start, labels)  # type: ignore[arg-type]
        if probable is not None:
            write_box(self.run.probabilities, start, probable)  # type: ignore[arg-type]
        self.run.note_block(
            index, {"tiles": len(work.tiles), "foreground": int(np.count_nonzero(labels)), "seconds": round(seconds, 3)}
        )

    def note_empty(self, index: int) -> None:
        """Say of a block without tissue that it is whole."""
        self.run.note_block(index, {"tiles": 0, "foreground": 0, "seconds": 0.0})


@lru_cache(maxsize=1)
def prepared(folder: Path, run_id: str, device: str) -> Prepared:
    """The run of a folder, opened once in a process; another run in the same folder has another id."""
    level_array.cache_clear()
    return Prepared(Run(folder), device)


_one_block_at_a_time = Lock()
"""Workers of a cluster may have several threads; the model is one, and so is the memory."""


@dataclass(frozen=True)
class BlockTask:
    """One block of a run, for a process on any machine that sees the folder."""

    folder: Path
    run_id: str
    index: int
    device: str


def predict_block(task: BlockTask) -> Generator[int, None, None]:
    """Predict one block and write it."""
    with _one_block_at_a_time:
        own = prepared(task.folder, task.run_id, task.device)
        begun = time.monotonic()
        work = own.work(task.index)
        if work is None:
            own.note_empty(task.index)
        else:
            own.store(task.index, work, own.answer(task.index, work, own.image(work)), time.monotonic() - begun)
    yield 1


@dataclass(frozen=True)
class SlabTask:
    """One slab of a run."""

    folder: Path
    run_id: str
    index: int


@lru_cache(maxsize=1)
def _source(folder: Path, _run_id: str) -> tuple[Run, list[Volume], float]:
    run = Run(folder)
    volumes = open_channels(run.settings, int(run.facts["channels"]))
    return run, volumes, max(intensity_unit(volume) for volume in volumes)


def read_slab(task: SlabTask) -> Generator[int, None, None]:
    """Read one slab; note its intensities, and copy it where the input is a stack of slices."""
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
            write_box(run.raw, (planes.start, 0, 0), slab if len(volumes) > 1 else slab[0])  # whole planes
    brightness: NDArray[np.float32] = np.concatenate(means, axis=1)
    repaired = [name for volume in volumes for name in volume.repaired]
    run.note_slab(task.index, joined(parts, axis=1), brightness, repaired)
    yield 1


def box_voxels(box: Box) -> int:
    """Voxels of a box."""
    return int(np.prod([bounds.stop - bounds.start for bounds in box]))
