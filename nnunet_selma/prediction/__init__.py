"""Predicting a volume of any size with any nnU-Net v2 model, in memory that does not grow with the volume.

Slabs are read, blocks are predicted and written, coarser levels are made, and the results get their names. Each piece is done once, so that a
killed run continues where it stopped.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.block_prediction import BlockToPredict, open_predictor, predict_block
from nnunet_selma.prediction.finishing import complete_run, write_slices
from nnunet_selma.prediction.place import check_place, complete_result, resolve_output
from nnunet_selma.prediction.records import PredictionResult
from nnunet_selma.prediction.run import Run, remove_leftovers
from nnunet_selma.prediction.slab_reading import SlabToRead, scan_slab
from nnunet_selma.prediction.start import start_run
from nnunet_selma.prediction.tiling import lengths
from nnunet_selma.prediction.volume_prediction import VolumePrediction
from nnunet_selma.running.cluster import connect_cluster, submit_tasks
from nnunet_selma.running.progress import Meter, Progress, silent, silent_meter

__all__ = ["Execution", "PredictionResult", "VolumePrediction", "predict_volume"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Execution options. None changes the result, except that a GPU computes in half precision."""

    device: str = "cpu"
    """Device of the network: cpu, cuda or mps."""
    scheduler: str | None = None
    """Address of a Dask cluster; None: this process does the work."""
    share: tuple[int, int] = (0, 1)
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
) -> PredictionResult | None:
    """Predict a volume; returns the result in numbers, or None if other shares are not done yet.

    Raises:
        SelmaError: a file cannot be read, the model does not fit, the output exists, or an interrupted run had other settings.
    """
    settings = resolve_output(settings)
    remove_leftovers(settings.staging)
    if execution.overwrite and execution.share[1] > 1:
        raise SelmaError(
            "--overwrite: shares would remove what others have done; remove the output first, or overwrite without shares"
        )
    earlier = None if execution.overwrite else complete_result(settings)
    if earlier is not None:
        say(f"{settings.output}: is complete already")
        if execution.also_tiff:
            write_slices(settings, progress)
        return earlier
    check_place(settings, tiff=execution.also_tiff, overwrite=execution.overwrite)
    started = time.monotonic()
    run = start_run(settings, execution.device, overwrite=execution.overwrite)
    facts = run.facts
    say(f"{'×'.join(map(str, facts.shape))} voxels, blocks of {'×'.join(map(str, facts.block))}: {run.folder}")
    if run.raw is not None and run.raw != run.output:
        size = prod(facts.shape) * facts.channels * np.dtype(facts.dtype).itemsize / 10**9
        say(
            f"the image is copied into chunks that blocks can read, at most {size:.1f} GB of disk until the run is complete: {run.raw}"
        )
    if facts.in_voxels:
        say("the model was trained in units of voxels: the volume is taken as it is, whatever its voxel size")
    with connect_cluster(execution.scheduler, threads=2) if execution.scheduler else nullcontext() as client:
        _read_slabs(run, execution, client, meter)
        for name in run.repaired:
            say(f"interpolated: {name}")
        say(f"tissue: {run.tissue.share:.0%} of the volume, the rest is not predicted")
        _predict_blocks(run, execution, client, meter)
    left = _blocks_left(run)
    if left:
        say(f"this share is done; {left} blocks of others are not. The last one completes {settings.output}")
        return None
    result = complete_run(run, time.monotonic() - started, progress=progress)
    if result is None:
        say(f"this share is done; another one completes {settings.output}")
    elif execution.also_tiff:
        write_slices(settings, progress)
    return result


def _blocks_left(run: Run) -> int:
    """Number of blocks that are not written yet."""
    try:
        return len(run.blocks_to_do())
    except FileNotFoundError:  # another share has completed the run
        return 0


def _read_slabs(run: Run, execution: Execution, client: Any, meter: Meter) -> None:
    """Read the slabs of this share, then those that other shares have not read yet."""
    share, shares = execution.share
    to_do = run.slabs_to_do()
    order = [index for index in to_do if index % shares == share]
    order += [index for index in reversed(to_do) if index % shares != share]
    tasks = [SlabToRead(run.folder, run.id, index) for index in order]
    _, height, width = run.facts.shape
    voxels = {index: (run.slabs[index].stop - run.slabs[index].start) * height * width for index in to_do}
    done = (
        _read_here(run, tasks)
        if client is None
        else (order[number] for number, *_ in submit_tasks(client, scan_slab, tasks))
    )
    _show(done, voxels, meter, "reading", "slabs")


def _read_here(run: Run, tasks: Sequence[SlabToRead]) -> Iterator[int]:
    """Read slabs in this process; yields the number of each."""
    for task in tasks:
        if task.index in run.slabs_to_do():  # or another share was faster
            for _ in scan_slab(task):
                pass
        yield task.index


def _predict_blocks(run: Run, execution: Execution, client: Any, meter: Meter) -> None:
    """Predict the blocks of this share."""
    share, shares = execution.share
    to_do = [index for index in run.blocks_to_do() if index % shares == share]
    voxels = {index: prod(lengths(run.blocks[index])) for index in to_do}
    if client is None:
        done: Iterable[int] = open_predictor(run.folder, run.id, execution.device).predict_all(to_do)
    else:
        tasks = [BlockToPredict(run.folder, run.id, index, execution.device) for index in to_do]
        done = (to_do[number] for number, *_ in submit_tasks(client, predict_block, tasks))
    _show(done, voxels, meter, "predicting", "blocks")


def _show(done: Iterable[int], voxels: dict[int, int], meter: Meter, label: str, pieces: str) -> None:
    """Do the work of an iterator, which yields the numbers of pieces that are done, and show how far it is."""
    with meter(sum(voxels.values()), label, "voxel") as step:
        for count, index in enumerate(done, 1):
            step(voxels[index], f"{count}/{len(voxels)} {pieces}")
