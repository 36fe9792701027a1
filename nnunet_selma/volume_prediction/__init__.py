"""Predicting a volume of any size with any nnU-Net v2 model, in memory that does not grow with it.

Order of work, each piece once, so that a killed run goes on: slabs read; blocks predicted and written; the coarser levels; the name given.
"""

import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from nnunet_selma.cluster import connected, finished
from nnunet_selma.errors import SelmaError
from nnunet_selma.json_files import read_json
from nnunet_selma.parallel import Work
from nnunet_selma.progress import Meter, Progress, silent, silent_meter
from nnunet_selma.volume_prediction.finishing import finish
from nnunet_selma.volume_prediction.run import Run
from nnunet_selma.volume_prediction.settings import VolumePrediction
from nnunet_selma.volume_prediction.start import begun
from nnunet_selma.volume_prediction.work import (
    BlockTask,
    Prepared,
    SlabTask,
    box_voxels,
    predict_block,
    prepared,
    read_slab,
)

__all__ = ["Execution", "VolumePrediction", "predict_volume"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where the work is done; none of it changes the result."""

    device: str = "cpu"
    scheduler: str | None = None
    """Of a Dask cluster."""
    shard: tuple[int, int] = (0, 1)
    """This process does the i-th of n shares, from 0."""
    also_tiff: bool = False
    """Write the labels as TIFF slices too."""
    overwrite: bool = False


def predict_volume(
    settings: VolumePrediction,
    execution: Execution,
    *,
    progress: Progress[Any] = silent,
    meter: Meter = silent_meter,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Predict a volume; returns the run's record, or None where other shares are not done yet.

    Raises:
        SelmaError: a file cannot be read, the model does not fit, the output exists, or an interrupted run had other settings.
    """
    known = None if execution.overwrite else _complete(settings)
    if known is not None:
        say(f"{settings.output}: is complete already")
        return known
    _demand_place(settings, overwrite=execution.overwrite)
    started = time.monotonic()
    share, _ = execution.shard
    run = begun(settings, execution.device, overwrite=execution.overwrite and share == 0)
    say(f"{'×'.join(map(str, run.shape))} voxels, blocks of {'×'.join(map(str, run.facts['block']))}: {run.folder}")
    with connected(execution.scheduler) if execution.scheduler else nullcontext() as client:
        _read(run, execution, client, meter)
        say(f"tissue: {run.tissue.share:.0%} of the volume, the rest is not predicted")
        _predict(run, execution, client, meter)
    left = len(run.blocks_to_do()) if run.folder.is_dir() else 0
    if left:
        say(f"this share is done; {left} blocks of others are not. The last one completes {settings.output}")
        return None
    seconds = time.monotonic() - started
    record = finish(run, seconds, tiff=execution.also_tiff, overwrite=execution.overwrite, progress=progress)
    if record is None:
        say(f"this share is done; another one completes {settings.output}")
    return record


def _complete(settings: VolumePrediction) -> dict[str, Any] | None:
    """The record of the same prediction, where it is complete."""
    *_, labels = settings.products.values()
    if not settings.record.is_file() or not labels.exists():
        return None
    known = read_json(settings.record)
    settings.model.demand_complete()
    if known["settings"] != settings.as_json() or known["facts"]["model"] != settings.model.fingerprint():
        return None
    shutil.rmtree(settings.finishing, ignore_errors=True)
    return known


def _demand_place(settings: VolumePrediction, *, overwrite: bool) -> None:
    """Raise `SelmaError` where nothing can be written, or something else is there."""
    parent = settings.output.parent
    if not parent.is_dir():
        raise SelmaError(f"{parent}: there is no such folder; make it, or choose another -o")
    if not os.access(parent, os.W_OK):
        raise SelmaError(f"{parent}: cannot be written to; choose another -o")
    if overwrite or settings.staging.exists() or settings.finishing.exists():
        return
    for place in settings.products.values():
        if place.exists():
            raise SelmaError(
                f"{place}: exists already, and is of another run; choose another -o or --name, or add --overwrite"
            )


def _read(run: Run, execution: Execution, client: Any, meter: Meter) -> None:
    """Read all slabs: those of this share first, then whatever others have not read yet."""
    share, shares = execution.shard
    to_do = run.slabs_to_do()
    own_first = [index for index in to_do if index % shares == share]
    own_first += [index for index in reversed(to_do) if index % shares != share]
    boxes = {i: (run.slabs[i], slice(0, run.shape[1]), slice(0, run.shape[2])) for i in to_do}
    done = 0
    with meter(sum(map(box_voxels, boxes.values())), "reading", "voxel") as step:
        for index in _each(read_slab, [SlabTask(run.folder, i) for i in own_first], client):
            done += 1
            step(box_voxels(boxes[index]), f"{done}/{len(to_do)} slabs")


def _each(work: Work[Any, None], tasks: Sequence[Any], client: Any) -> Iterator[int]:
    """Do tasks, here or on a cluster; yields their numbers as they are done."""
    if client is not None:
        for number, _, _ in finished(client, work, tasks):
            yield tasks[number].index
        return
    for task in tasks:
        if isinstance(task, SlabTask) and task.index not in Run(task.folder).slabs_to_do():
            yield task.index  # another share was faster
            continue
        for _ in work(task):
            pass
        yield task.index


def _predict(run: Run, execution: Execution, client: Any, meter: Meter) -> None:
    """Predict the blocks of this share."""
    share, shares = execution.shard
    to_do = [index for index in run.blocks_to_do() if index % shares == share]
    done = 0
    with meter(sum(box_voxels(run.blocks[i]) for i in to_do), "predicting", "voxel") as step:
        tasks = [BlockTask(run.folder, i, execution.device) for i in to_do]
        here = client is None
        for index in (
            _overlapped(prepared(run.folder, execution.device), to_do) if here else _each(predict_block, tasks, client)
        ):
            done += 1
            step(box_voxels(run.blocks[index]), f"{done}/{len(to_do)} blocks")


def _overlapped(own: Prepared, to_do: Sequence[int]) -> Generator[int, None, None]:
    """Predict blocks one by one, while the next one is read and the last one written; yields their numbers."""
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:

        def read(index: int) -> Any:
            work = own.work(index)
            return work, None if work is None else own.image(work)

        coming = reader.submit(read, to_do[0]) if to_do else None
        written = None
        for place, index in enumerate(to_do):
            assert coming is not None
            work, image = coming.result()
            coming = reader.submit(read, to_do[place + 1]) if place + 1 < len(to_do) else None
            if work is None:
                own.run.note_block(index, {"tiles": 0, "foreground": 0, "seconds": 0.0})
                yield index
                continue
            begun = time.monotonic()
            answer = own.answer(index, work, image)
            del image
            if written is not None:
                yield written.result()
            written = writer.submit(_stored, own, index, work, answer, time.monotonic() - begun)
        if written is not None:
            yield written.result()


def _stored(own: Prepared, index: int, work: Any, answer: Any, seconds: float) -> int:
    own.store(index, work, answer, seconds)
    return index
