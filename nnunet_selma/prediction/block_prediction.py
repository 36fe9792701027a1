"""Predicting a block, independently of all others: read, normalise, resample, predict, write."""

import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from nnunet_selma.prediction.grids import BoxWork, Grids, make_grids, spacing_in_plans
from nnunet_selma.prediction.intensities import Normalisation, configured_normalisation
from nnunet_selma.prediction.model import Model
from nnunet_selma.prediction.records import BlockRecord
from nnunet_selma.prediction.resampling import Limits
from nnunet_selma.prediction.run import Run
from nnunet_selma.prediction.slab_reading import close_input, open_channels
from nnunet_selma.prediction.tiling import intersection, lengths, within
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Array, Volume
from nnunet_selma.volumes.ome_zarr_writing import write_box
from nnunet_selma.volumes.pyramids import level_array


@dataclass(frozen=True)
class BlockInput:
    """Input of the network for one block."""

    index: int
    """Number of the block."""
    work: BoxWork
    image: torch.Tensor
    """Normalised, resampled and padded voxels of `work.around`, (c, z, y, x) with network axes."""


@dataclass(frozen=True)
class BlockOutput:
    """Output of the network for one block."""

    index: int
    """Number of the block."""
    work: BoxWork
    logits: Array
    """Mean over the folds on the network's grid, (head, z, y, x) with network axes."""
    seconds: float
    """Time that the network took."""


@dataclass(frozen=True)
class BlockPredictor:
    """A run whose slabs are read, with its model and volumes opened in this process."""

    run: Run
    device: str
    opened_model: Model | None = None
    """The model, where this process has opened it already."""
    opened_volumes: tuple[Volume, ...] = ()
    """The volumes, where this process has opened them already."""

    @cached_property
    def model(self) -> Model:
        """The model on the device."""
        return (self.opened_model or Model(self.run.settings.model, "cpu")).to(self.device)

    @cached_property
    def _volumes(self) -> list[Volume]:
        """The volume of each channel."""
        count = self.run.facts.channels
        if self.run.raw is not None:
            return [open_volume(self.run.raw, channel=channel if count > 1 else None) for channel in range(count)]
        return list(self.opened_volumes) or open_channels(self.run.settings, count)

    @cached_property
    def _grids(self) -> Grids | None:
        """The grids of the volume; None if all voxels are 0."""
        crop = self.run.intensities.box
        if crop is None:
            return None
        model = self.model
        spacing = spacing_in_plans(self.run.facts.spacing_um_zyx, model.plans)
        return make_grids(model.configuration, model.transpose, crop, spacing, model.tile, model.settings.step_size)

    @cached_property
    def _normalisation(self) -> Normalisation:
        model = self.model
        return configured_normalisation(model.configuration, model.intensity_properties, self.run.intensities)

    @cached_property
    def _limits(self) -> Limits | None:
        """Lowest and highest normalised value of the volume, or of each plane if planes are resampled apart."""
        assert self._grids is not None
        forward, crop = self._grids.forward, self._grids.crop
        if not forward.changes or forward.order < 2:
            return None
        axis = 0 if forward.across is None else self._grids.transpose[forward.across]
        low, high = self.run.intensities.limits(crop, axis)
        if forward.across is None:
            low, high = low.min(axis=1, keepdims=True), high.max(axis=1, keepdims=True)
        return Limits(self._normalisation.apply(low), self._normalisation.apply(high))

    @cached_property
    def _tiles_at_once(self) -> int:
        return self.run.tiles_at_once(self.model.batch)

    def read(self, index: int) -> BlockInput | None:
        """Read the input of a block; None if no tissue is in it."""
        work = self._work(index)
        if work is None or self._grids is None:
            return None
        voxels = np.stack([volume.read(*work.source) for volume in self._volumes])
        normalised = self._normalisation.apply(self._grids.array_to_network(voxels))
        resampled = self._grids.forward.apply(normalised, work.image, self._limits)
        if work.image == work.around:
            return BlockInput(index, work, torch.from_numpy(np.ascontiguousarray(resampled)))
        padded = np.zeros((len(resampled), *lengths(work.around)), np.float32)
        padded[(slice(None), *within(work.image, work.around))] = resampled
        return BlockInput(index, work, torch.from_numpy(padded))

    def _work(self, index: int) -> BoxWork | None:
        if self._grids is None:
            return None
        box = intersection(self.run.blocks[index], self._grids.crop)
        if min(lengths(box)) < 1 or not self.run.tissue.touches(box):
            return None
        return self._grids.work(box, self.run.tissue.touches)

    def predict(self, block: BlockInput) -> BlockOutput:
        """Compute the logits of a block."""
        started = time.monotonic()
        logits = self.model.logits(block.image, block.work, self._tiles_at_once)
        return BlockOutput(block.index, block.work, logits.numpy(), time.monotonic() - started)

    def write(self, block: BlockOutput) -> int:
        """Write the labels of a block, and its probabilities if they are asked for, and record that it is written; returns its number."""
        labels, probabilities = self._answer(block)
        self.run.check_current()
        z, y, x = (bounds.start for bounds in self.run.blocks[block.index])
        write_box(self.run.labels, (z, y, x), labels)
        if probabilities is not None:
            write_box(self.run.probabilities, (z, y, x), probabilities)
        foreground = int(np.count_nonzero(labels))
        record = BlockRecord(tiles=len(block.work.tiles), foreground=foreground, seconds=round(block.seconds, 3))
        self.run.record_block(block.index, record)
        return block.index

    def _answer(self, block: BlockOutput) -> tuple[Array, Array | None]:
        """Labels of a block (z, y, x), and its probabilities (class, z, y, x) or None."""
        assert self._grids is not None
        resampled = self._grids.backward.apply(block.logits, block.work.result)
        box = self.run.blocks[block.index]
        inner = intersection(box, self._grids.crop)
        tissue, inside = self.run.tissue.mask(inner), within(inner, box)
        labels = np.zeros(lengths(box), self.model.label_dtype)
        labels[inside] = self._grids.array_to_volume(self.model.labels(resampled)) * tissue
        if not self.run.settings.probabilities:
            return labels, None
        predicted = self._grids.array_to_volume(self.model.probabilities(resampled)) * tissue
        probabilities = np.zeros((len(predicted), *labels.shape), np.uint8)
        probabilities[(slice(None), *inside)] = predicted
        return labels, probabilities

    def predict_all(self, indices: Sequence[int]) -> Generator[int, None, None]:
        """Predict blocks one by one; yields the number of each when it is written.

        While a block is predicted, the next one is read and the last one written, by threads of their own.
        """
        if not indices:
            return
        with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
            reading, writing = reader.submit(self.read, indices[0]), None
            for index, following in zip(indices, [*indices[1:], None], strict=True):
                block = reading.result()
                if following is not None:
                    reading = reader.submit(self.read, following)
                if block is None:
                    self.run.record_block(index, BlockRecord())
                    yield index
                    continue
                output = self.predict(block)
                del block  # frees its image
                if writing is not None:
                    yield writing.result()
                writing = writer.submit(self.write, output)
                del output
            if writing is not None:
                yield writing.result()


@lru_cache(maxsize=1)
def open_predictor(
    folder: Path, run_id: str, device: str, model: Model | None = None, volumes: tuple[Volume, ...] = ()
) -> BlockPredictor:
    """Open a run for predicting blocks, once in each process; the model and the volumes are opened unless they are given.

    Raises:
        SelmaError: the folder holds another run by now.
    """
    level_array.cache_clear()
    close_input()
    run = Run(folder)
    run.check_current(run_id)
    return BlockPredictor(run, device, model, volumes)


_READING, _PREDICTING, _WRITING = Lock(), Lock(), Lock()
"""Locks for the threads of a cluster's worker: memory is planned for one block that is read, one predicted and one written."""


@dataclass(frozen=True)
class BlockToPredict:
    """One block of a run, for a process on any machine that sees the folder."""

    folder: Path
    run_id: str
    index: int
    device: str


def predict_block(task: BlockToPredict) -> Generator[int, None, None]:
    """Predict one block and write it."""
    with _READING:
        predictor = open_predictor(task.folder, task.run_id, task.device)
        block = predictor.read(task.index)
    if block is None:
        predictor.run.record_block(task.index, BlockRecord())
    else:
        with _PREDICTING:
            output = predictor.predict(block)
        del block  # frees its image
        with _WRITING:
            predictor.write(output)
    yield 1
