"""Predicting blocks: read, normalise, resample, predict, write.

Each block can be predicted without any other one. Where a block follows the one before it in its column, what both need is kept: the image
that their tiles share, and the sums of tiles that reach into both, so that each tile of a column is computed once.
"""

import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from math import prod
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from nnunetv2.utilities.helpers import empty_cache

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.prediction.columns import column_boxes
from nnunet_selma.prediction.grids import BlockWork, Column, Grids, Layer, make_grids, spacing_in_plans
from nnunet_selma.prediction.intensities import Normalisation, configured_normalisation
from nnunet_selma.prediction.memory import READ_PLANES
from nnunet_selma.prediction.model import Model, Window, all_finite
from nnunet_selma.prediction.records import BlockRecord
from nnunet_selma.prediction.resampling import Limits
from nnunet_selma.prediction.run import Run
from nnunet_selma.prediction.slab_reading import close_input, open_channels
from nnunet_selma.prediction.sums import CACHED_PLANES, Sums
from nnunet_selma.prediction.tiling import intersection, lengths, within
from nnunet_selma.running.cores import compute_threads
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Array, Volume
from nnunet_selma.volumes.ome_zarr_writing import write_box
from nnunet_selma.volumes.pyramids import level_array

_PLANES = 32
"""Planes that are read and normalised together, where they are not resampled; `READ_PLANES` at most where chunks are deeper."""


@dataclass(frozen=True)
class BlockInput:
    """Input of the network for one block."""

    index: int
    """Number of the block."""
    column: Column
    work: BlockWork
    layers: tuple[Layer, ...]
    """Layers of tiles that are to be computed."""
    window: Window
    """Image around them."""
    follows: bool
    """True if the layers before these were computed for the block before this one."""


@dataclass(frozen=True)
class Answer:
    """Labels and probabilities of a block, network axes, on the device where they were computed: the writing thread waits for them."""

    labels: torch.Tensor
    """(z, y, x)."""
    probabilities: torch.Tensor | None
    """(class, z, y, x); None if they are not asked for."""


@dataclass(frozen=True)
class BlockOutput:
    """Output of the network for one block."""

    index: int
    """Number of the block."""
    work: BlockWork
    answer: Answer | torch.Tensor
    """On the grid of the volume; or, if it differs from the network's, the logits on that one, (head, z, y, x)."""
    record: BlockRecord


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
        facts = self.run.facts
        return make_grids(
            model.configuration, facts.axes, facts.flips, crop, spacing, model.tile, model.settings.step_size
        )

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
        if self._grids.flips[axis]:
            low, high = low[:, ::-1], high[:, ::-1]
        if forward.across is None:
            low, high = low.min(axis=1, keepdims=True), high.max(axis=1, keepdims=True)
        return Limits(self._normalisation.apply(low), self._normalisation.apply(high))

    @cached_property
    def _tiles_at_once(self) -> int:
        return self.run.tiles_at_once(self.model.batch)

    @cached_property
    def _column_of(self) -> dict[int, Box]:
        """Number of each block to the box of its column."""
        facts = self.run.facts
        return column_boxes(self.run.blocks, facts.axes[0])

    @lru_cache(maxsize=2)  # noqa: B019  the predictor lives as long as the process works on the run
    def _column(self, start: tuple[int, ...], stop: tuple[int, ...]) -> Column | None:
        assert self._grids is not None
        z, y, x = map(slice, start, stop)
        return self._grids.column(intersection((z, y, x), self._grids.crop), self.run.tissue.touches)

    def read(self, index: int, before: BlockInput | None = None) -> BlockInput | None:
        """Read the input of a block; None if no tissue is in it.

        Args:
            index: number of the block.
            before: input of the block that was read before; what both need is not read again if they follow each other in a column.
        """
        grids = self._grids
        if grids is None:
            return None
        box = intersection(self.run.blocks[index], grids.crop)
        if min(lengths(box)) < 1 or not self.run.tissue.touches(box):
            return None
        around = self._column_of[index]
        column = self._column(tuple(b.start for b in around), tuple(b.stop for b in around))
        work = None if column is None else grids.work(column, box)
        if column is None or work is None:
            return None
        follows = before is not None and before.column is column and before.work.result[0].stop == work.result[0].start
        earlier = before if follows else None
        layers = work.after(None if earlier is None else earlier.work.layers[-1].planes.start)
        window = self._window(column, layers, None if earlier is None else earlier.window)
        return BlockInput(index, column, work, layers, window, follows)

    def _window(self, column: Column, layers: Sequence[Layer], before: Window | None) -> Window:
        """The image around layers; planes that the window before it holds are copied from there."""
        assert self._grids is not None
        if not layers and before is not None:
            return before
        planes = slice(layers[0].planes.start, layers[-1].planes.stop)
        voxels = torch.zeros(
            (len(self._volumes), *lengths((planes, *column.across))), pin_memory=self.model.device.type == "cuda"
        )
        known = planes.start
        if before is not None and before.box[0].start <= planes.start < before.box[0].stop:
            known = min(before.box[0].stop, planes.stop)
            kept = slice(planes.start - before.box[0].start, known - before.box[0].start)
            voxels[:, : known - planes.start] = before.voxels[:, kept]
        window = Window((planes, *column.across), voxels)
        for piece in self._pieces(slice(known, planes.stop)):
            image = self._grids.image_box(column, piece)
            if min(lengths(image)) > 0:
                target = voxels[(slice(None), *within(image, window.box))]
                target.copy_(torch.from_numpy(np.ascontiguousarray(self._image(image))))
        return window

    def _pieces(self, planes: slice) -> list[slice]:
        """Planes in pieces that are read together: all of them where they are resampled, else as chunks lie, so that none is decoded twice."""
        grids = self._grids
        assert grids is not None
        if grids.forward.changes:
            return [planes] if planes.start < planes.stop else []
        axis = grids.transpose[0]
        deepest = max(volume.chunk_zyx[axis] if volume.chunk_zyx else 1 for volume in self._volumes)
        step = deepest * max(1, _PLANES // deepest) if deepest <= READ_PLANES else _PLANES
        # planes of the volume that begin a chunk, counted along the network's axis
        offset = -grids.crop[axis].stop if grids.flips[axis] else grids.crop[axis].start
        first = planes.start + -(planes.start + offset) % step
        bounds = sorted({planes.start, *range(first, planes.stop, step), planes.stop})
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    def _image(self, image: Box) -> Array:
        """Normalised and resampled voxels of a box of the network's grid, (c, z, y, x) with network axes."""
        assert self._grids is not None
        voxels = self._voxels(self._grids.source(image))
        normalised = self._normalisation.apply(self._grids.array_to_network(voxels))
        del voxels  # its memory is planned for what follows
        return self._grids.forward.apply(normalised, image, self._limits, threads=compute_threads())

    def _voxels(self, box: Box) -> Array:
        """Voxels of a box of the volume, (c, z, y, x)."""
        read = [volume.read(*box) for volume in self._volumes]
        return read[0][None] if len(read) == 1 else np.stack(read)

    def predict(self, block: BlockInput, sums: Sums | None) -> tuple[BlockOutput, Sums | None]:
        """Predict a block.

        Args:
            block: the block.
            sums: sums of the block before it, if it follows one; they are changed.

        Returns:
            The output, and the sums for the block that follows; None if that one has to be computed without.

        Raises:
            SelmaError: logits are NaN or infinite also in single precision, or a tile does not fit into the device's memory.
        """
        started = time.monotonic()
        if block.follows and sums is None:
            block = self._anew(block)
        tiles = sum(len(layer.tiles) for layer in block.layers)
        failure, answer, carried = None, None, None
        try:
            carried = self._sums(block, sums if block.follows else None)
            answer = self._outcome(block, carried)
        except (
            RuntimeError
        ) as error:  # as in nnU-Net: cuDNN and cuBLAS have errors of their own for memory that runs out
            if self.model.device.type == "cpu":
                raise
            failure = str(error).partition("\n")[0]
        half = failure is not None or answer is not None
        if failure is not None or answer is None:
            for held in (sums, carried):  # also of the caller, whose memory is needed now
                if held is not None:
                    held.release()
            again, carried = self._anew(block), None
            tiles += sum(len(layer.tiles) for layer in again.layers)
            if failure is not None:
                empty_cache(self.model.device)
                answer = self._outcome(again, self._sums_with_little_memory(again, failure))
            else:  # nnU-Net ends here: sums in half precision end at 65504
                answer = self._outcome(again, self._sums(again, None, half=False))
        if answer is None:
            raise SelmaError(
                f"{self.model.settings.folder}: the network computes NaN or infinite numbers, as it does after a training that diverged; train again"
            )
        record = BlockRecord(tiles=tiles, seconds=round(time.monotonic() - started, 3), half=half, predicted=True)
        return BlockOutput(block.index, block.work, answer, record), carried

    def _anew(self, block: BlockInput) -> BlockInput:
        """The same block with all its tiles, as if no block had been predicted before it."""
        read = self.read(block.index) if block.follows else block
        assert read is not None
        return read

    def _sums(self, block: BlockInput, sums: Sums | None, *, half: bool = True) -> Sums:
        """Sums of all tiles of a block, on the device as its memory allows; those of the block before it are changed."""
        model = self.model
        box = _summed(block.work)
        if sums is None:
            size = prod(lengths(box)) * (2 if half else 4) * (model.heads * (len(model.settings.folds) + 1) + 1)
            sums = model.empty_sums(box, half=half, device=model.device if model.fits(size) else torch.device("cpu"))
        else:
            sums.move(box[0])
        window = block.window
        if model.fits(window.voxels.nbytes):
            window = Window(window.box, window.voxels.to(model.device, non_blocking=True))
        model.add_tiles(sums, block.layers, window, batch=self._tiles_at_once, half=half)
        return sums

    def _sums_with_little_memory(self, block: BlockInput, failure: str) -> Sums:
        """Sums of all tiles of a block on the CPU, tile by tile, for a device whose memory ran out, as nnU-Net does."""
        model = self.model
        sums = model.empty_sums(_summed(block.work), device=torch.device("cpu"))
        try:
            model.add_tiles(sums, block.layers, block.window, batch=1)
        except RuntimeError as error:
            raise SelmaError(
                f"{model.settings.folder}: one tile of this model could not be computed on {model.device}, most likely for want of its memory "
                f"({failure}); take --device cpu"
            ) from error
        return sums

    def _outcome(self, block: BlockInput, sums: Sums) -> Answer | torch.Tensor | None:
        """The answer for a block, or its logits where they have to be resampled, on the device of the sums; None if logits are not finite."""
        assert self._grids is not None
        resampled = self._grids.backward.changes
        answers, logits = [], []
        for mean in sums.means(block.work.logits):
            if not all_finite(mean):
                return None
            if resampled:
                logits.append(mean)
            else:
                answers.append(self._answer(mean))
        return torch.cat(logits, dim=1) if resampled else _joined(answers)

    def _answer(self, logits: torch.Tensor) -> Answer:
        """Labels and probabilities from logits on any device."""
        asked = self.run.settings.probabilities
        return Answer(self.model.labels(logits), self.model.probabilities(logits) if asked else None)

    def write(self, block: BlockOutput) -> int:
        """Write the labels of a block, and its probabilities if they are asked for, and record that it is written; returns its number."""
        assert self._grids is not None
        answer = block.answer
        if not isinstance(answer, Answer):
            logits = torch.from_numpy(
                self._grids.backward.apply(answer.cpu().numpy(), block.work.result, threads=compute_threads())
            )
            answer = _joined([self._answer(piece) for piece in torch.split(logits, CACHED_PLANES, dim=1)])
        box = self.run.blocks[block.index]
        inner = intersection(box, self._grids.crop)
        tissue, inside = self.run.tissue.mask(inner), within(inner, box)
        labels = np.zeros(lengths(box), self.model.label_dtype)
        labels[inside] = self._grids.array_to_volume(answer.labels.cpu().numpy()) * tissue
        self.run.check_current()
        z, y, x = (bounds.start for bounds in box)
        write_box(self.run.labels, (z, y, x), labels)
        if answer.probabilities is not None:
            probabilities = np.zeros((len(answer.probabilities), *labels.shape), np.uint8)
            probabilities[(slice(None), *inside)] = (
                self._grids.array_to_volume(answer.probabilities.cpu().numpy()) * tissue
            )
            write_box(self.run.probabilities, (z, y, x), probabilities)
        self.run.record_block(block.index, replace(block.record, foreground=int(np.count_nonzero(labels))))
        return block.index

    def predict_all(self, indices: Sequence[int]) -> Generator[int, None, None]:
        """Predict blocks one by one; yields the number of each when it is written.

        While a block is predicted, the next one is read and the last one written, by threads of their own.

        Args:
            indices: numbers of the blocks, those of a column one behind the other.
        """
        if not indices:
            return
        with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
            reading, writing, sums = reader.submit(self.read, indices[0]), None, None
            for index, following in zip(indices, [*indices[1:], None], strict=True):
                block = reading.result()
                if following is not None:
                    reading = reader.submit(self.read, following, block)
                if block is None:
                    sums = None
                    self.run.record_block(index, BlockRecord())
                    yield index
                    continue
                output, sums = self.predict(block, sums)
                del block  # frees its image
                if writing is not None:
                    yield writing.result()
                writing = writer.submit(self.write, output)
                del output
            if writing is not None:
                yield writing.result()


def _summed(work: BlockWork) -> Box:
    """Box of the sums of a block: its logits, and what its tiles reach beyond them along the column."""
    first, *across = work.logits
    return slice(first.start, max(first.stop, work.layers[-1].planes.stop)), across[0], across[1]


def _joined(answers: Sequence[Answer]) -> Answer:
    """Answers of pieces that lie one behind the other along the first axis."""
    probabilities = [answer.probabilities for answer in answers if answer.probabilities is not None]
    return Answer(
        torch.cat([answer.labels for answer in answers]),
        torch.cat(probabilities, dim=1) if probabilities else None,
    )


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


_PREDICTING = Lock()
"""Lock for the threads of a cluster's worker: the memory is planned for one block that is read, one predicted and one written."""


@dataclass(frozen=True)
class BlocksToPredict:
    """Blocks of a run, those of a column one behind the other, for a process on any machine that sees the folder."""

    folder: Path
    run_id: str
    indices: tuple[int, ...]
    device: str


def predict_blocks(task: BlocksToPredict) -> Generator[int, None, None]:
    """Predict blocks and write them; yields 1 for each."""
    with _PREDICTING:
        for _ in open_predictor(task.folder, task.run_id, task.device).predict_all(task.indices):
            yield 1
