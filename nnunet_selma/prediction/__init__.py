"""Predicting a volume of any size with any nnU-Net v2 model, in memory that does not grow with it.

Order of work, each piece once, so that a killed run goes on: slabs read; blocks predicted and written; the coarser levels; the name given.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.blocks import BlockTask, Prepared, open_blocks, predict_block
from nnunet_selma.prediction.finishing import finish, write_slices
from nnunet_selma.prediction.place import check_place, complete, resolved
from nnunet_selma.prediction.run import Run, sweep
from nnunet_selma.prediction.settings import VolumePrediction
from nnunet_selma.prediction.slabs import SlabTask, read_slab
from nnunet_selma.prediction.start import start_run
from nnunet_selma.prediction.tiling import lengths
from nnunet_selma.running.cluster import connect_cluster, submit_tasks
from nnunet_selma.running.progress import Meter, Progress, Work, silent, silent_meter

__all__ = ["Execution", "VolumePrediction", "predict_volume"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Execution options. None changes the result, except that a GPU computes in half precision."""

    device: str = "cpu"
    scheduler: str | None = None
    """Address of a Dask cluster."""
    shard: tuple[int, int] = (0, 1)
    """This process does the i-th of n shares, from 0."""
    also_tiff: bool = False
    """Write the labels as TIFF slices too."""
    overwrite: bool = False
    """Start again, and replace an output that is there."""


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
    settings = resolved(settings)
    sweep(settings.staging)
    if execution.overwrite and execution.shard[1] > 1:
        raise SelmaError(
            "--overwrite: shares would remove what others have done; remove the output first, or overwrite without shares"
        )
    known = None if execution.overwrite else complete(settings)
    if known is not None:
        say(f"{settings.output}: is complete already")
        if execution.also_tiff:
            write_slices(settings, progress)
        return known
    check_place(settings, tiff=execution.also_tiff, overwrite=execution.overwrite)
    started = time.monotonic()
    run = start_run(settings, execution.device, overwrite=execution.overwrite)
    say(f"{'×'.join(map(str, run.shape))} voxels, blocks of {'×'.join(map(str, run.facts['block']))}: {run.folder}")
    if run.facts["in voxels"]:
        say("the model was trained in units of voxels: the volume is taken as it is, whatever its voxel size")
    with connect_cluster(execution.scheduler, threads=2) if execution.scheduler else nullcontext() as client:
        _read(run, execution, client, meter)
        for name in run.repaired:
            say(f"interpolated: {name}")
        say(f"tissue: {run.tissue.share:.0%} of the volume, the rest is not predicted")
        _predict(run, execution, client, meter)
    left = _left(run)
    if left:
        say(f"this share is done; {left} blocks of others are not. The last one completes {settings.output}")
        return None
    record = finish(run, time.monotonic() - started, progress=progress)
    if record is None:
        say(f"this share is done; another one completes {settings.output}")
    elif execution.also_tiff:
        write_slices(settings, progress)
    return record


def _left(run: Run) -> int:
    """Blocks that are not whole yet."""
    try:
        return len(run.blocks_to_do())
    except FileNotFoundError:  # another share has completed it
        return 0


def _read(run: Run, execution: Execution, client: Any, meter: Meter) -> None:
    """Read all slabs: those of this share first, then whatever others have not read yet."""
    share, shares = execution.shard
    to_do = run.slabs_to_do()
    own_first = [index for index in to_do if index % shares == share]
    own_first += [index for index in reversed(to_do) if index % shares != share]
    boxes = {i: (run.slabs[i], slice(0, run.shape[1]), slice(0, run.shape[2])) for i in to_do}
    done = 0
    with meter(sum(prod(lengths(box)) for box in boxes.values()), "reading", "voxel") as step:
        for index in _each(read_slab, [SlabTask(run.folder, run.id, i) for i in own_first], client):
            done += 1
            step(prod(lengths(boxes[index])), f"{done}/{len(to_do)} slabs")


def _each(work: Work[Any, None], tasks: Sequence[Any], client: Any) -> Iterator[int]:
    """Do tasks, here or on a cluster; yields their numbers as they are done."""
    if client is not None:
        for number, _, _ in submit_tasks(client, work, tasks):
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
    with meter(sum(prod(lengths(run.blocks[i])) for i in to_do), "predicting", "voxel") as step:
        tasks = [BlockTask(run.folder, run.id, i, execution.device) for i in to_do]
        here = client is None
        for index in (
            _overlapped(open_blocks(run.folder, run.id, execution.device), to_do)
            if here
            else _each(predict_block, tasks, client)
        ):
            done += 1
            step(prod(lengths(run.blocks[index])), f"{done}/{len(to_do)} blocks")


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
                own.note_empty(index)
                yield index
                continue
            begun = time.monotonic()
            logits = own.logits(work, image)
            seconds = time.monotonic() - begun
            del image
            if written is not None:
                yield written.result()
            written = writer.submit(_stored, own, index, work, logits, seconds)
            del logits
        if written is not None:
            yield written.result()


def _stored(own: Prepared, index: int, work: Any, logits: Any, seconds: float) -> int:
    own.store(index, work, logits, seconds)
    return index
