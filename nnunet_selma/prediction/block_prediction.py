"""Predicting a block, by one process or many: read, normalised, resampled, predicted, and written. Blocks know nothing of each other."""

import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from nnunet_selma.prediction.geometry import BoxWork, Geometry, geometry, spacing_in_plans
from nnunet_selma.prediction.intensities import Normalisation, normalisation
from nnunet_selma.prediction.model import Model
from nnunet_selma.prediction.resampling import Limits
from nnunet_selma.prediction.run import Run
from nnunet_selma.prediction.slabs import forget_source, open_channels
from nnunet_selma.prediction.tiling import common, lengths, within
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Array, Volume
from nnunet_selma.volumes.ome_zarr_writing import write_box
from nnunet_selma.volumes.pyramids import level_array


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
        """Volumes of the channels."""
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
        """Normalisation of this volume."""
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
        """Work that a block takes; None where there is nothing to predict."""
        if self.geometry is None:
            return None
        box = common(self.run.blocks[index], self.geometry.crop)
        if min(lengths(box)) < 1 or not self.run.tissue.touches(box):
            return None
        return self.geometry.work(box, self.run.tissue.touches)

    def image(self, work: BoxWork) -> torch.Tensor:
        """Input of the network for a block, (c, z, y, x) with network axes: read, normalised, resampled, padded."""
        assert self.geometry is not None
        voxels = np.stack([volume.read(*work.source) for volume in self.volumes])
        normalised = self.normalisation.apply(self.geometry.turn(voxels))
        resampled = self.geometry.forward.apply(normalised, work.image, self.limits)
        if work.image == work.around:
            return torch.from_numpy(np.ascontiguousarray(resampled))
        padded = np.zeros((len(resampled), *lengths(work.around)), np.float32)
        padded[(slice(None), *within(work.image, work.around))] = resampled
        return torch.from_numpy(padded)

    def logits(self, work: BoxWork, image: torch.Tensor) -> Array:
        """Logits of a block on the network's grid, mean over the folds, (head, z, y, x) with network axes."""
        return self.model.logits(image, work.around, work.tiles, work.logits, self.tiles_at_once).numpy()

    @cached_property
    def tiles_at_once(self) -> int:
        """Tiles that go through the network together."""
        return self.run.tiles_at_once(self.model.batch)

    def answer(self, index: int, work: BoxWork, logits: Array) -> tuple[Array, Array | None]:
        """Labels of a block (z, y, x), and its probabilities (class, z, y, x) if they are wanted."""
        assert self.geometry is not None
        resampled = self.geometry.backward.apply(logits, work.result)
        box = self.run.blocks[index]
        inner = common(box, self.geometry.crop)
        tissue, inside = self.run.tissue.mask(inner), within(inner, box)
        labels = np.zeros(lengths(box), self.model.label_dtype)
        labels[inside] = self.geometry.turn_back(self.model.labels(resampled)) * tissue
        if not self.run.settings.probabilities:
            return labels, None
        probable = self.geometry.turn_back(self.model.probabilities(resampled)) * tissue
        whole = np.zeros((len(probable), *labels.shape), np.uint8)
        whole[(slice(None), *inside)] = probable
        return labels, whole

    def store(self, index: int, work: BoxWork, logits: Array, seconds: float) -> None:
        """Turn logits into labels, write them, and say that the block is whole; `seconds` were spent on its tiles."""
        labels, probable = self.answer(index, work, logits)
        self.run.check_current()
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
def open_blocks(folder: Path, run_id: str, device: str) -> Prepared:
    """Open the run of a folder, once per process; another run in the same folder has another id."""
    level_array.cache_clear()
    forget_source()
    run = Run(folder)
    run.check_current(run_id)
    return Prepared(run, device)


_READING, _PREDICTING, _WRITING = Lock(), Lock(), Lock()
"""A worker of a cluster may have several threads. The model is one, and so is the memory: one block is read, one predicted, one written."""


@dataclass(frozen=True)
class BlockTask:
    """One block of a run, for a process on any machine that sees the folder."""

    folder: Path
    run_id: str
    index: int
    device: str


def predict_block(task: BlockTask) -> Generator[int, None, None]:
    """Predict one block and write it."""
    with _READING:
        own = open_blocks(task.folder, task.run_id, task.device)
        work = own.work(task.index)
        image = None if work is None else own.image(work)
    if work is None or image is None:
        own.note_empty(task.index)
    else:
        with _PREDICTING:
            begun = time.monotonic()
            logits = own.logits(work, image)
            seconds = time.monotonic() - begun
        del image
        with _WRITING:
            own.store(task.index, work, logits, seconds)
    yield 1
