"""Predicting a volume of any size with any nnU-Net v2 model, in memory that does not grow with the volume.

Slabs are read, blocks are predicted and written, coarser levels are made, and the results get their names. Each piece is done once, so that a
killed run continues where it stopped.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from threading import Event
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.prediction.block_prediction import BlocksToPredict, open_predictor, predict_blocks
from nnunet_selma.prediction.channel_order import channel_line, resolve_channels
from nnunet_selma.prediction.columns import columns, share_of, tasks_of
from nnunet_selma.prediction.finishing import complete_run, fill_image_levels, write_also
from nnunet_selma.prediction.model import Model
from nnunet_selma.prediction.place import (
    check_place,
    complete_result,
    recorded_facts,
    resolve_output,
    uncertain_sources,
)
from nnunet_selma.prediction.records import PredictionResult
from nnunet_selma.prediction.run import Run, remove_leftovers
from nnunet_selma.prediction.slab_reading import SlabToRead, scan_slab
from nnunet_selma.prediction.sources import Sources
from nnunet_selma.prediction.start import StartedRun, start_run
from nnunet_selma.prediction.tiling import lengths
from nnunet_selma.prediction.tissue_map import report_tissue
from nnunet_selma.prediction.volume_prediction import TISSUE_MAP, AlsoFormat, VolumePrediction
from nnunet_selma.running.cluster import connect_cluster, submit_tasks
from nnunet_selma.running.json_files import read_json
from nnunet_selma.running.progress import Meter, Progress, silent, silent_meter
from nnunet_selma.volumes.lost_chunks import lost_chunks
from nnunet_selma.volumes.ome_zarr import is_zarr

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
    also: tuple[AlsoFormat, ...] = ()
    """Write the labels in these formats too: TIFF slices, or a NIfTI that lies over the input."""
    overwrite: bool = False
    """Start again, and replace an output that is there."""


def predict_volume(
    settings: VolumePrediction,
    execution: Execution,
    *,
    progress: Progress[Any] = silent,
    meter: Meter = silent_meter,
    say: Callable[[str], None] = lambda _: None,
    model: Model | None = None,
) -> PredictionResult | None:
    """Predict a volume; returns the result in numbers, or None if other shares are not done yet.

    Args:
        settings: settings of the prediction.
        execution: execution options.
        progress: shows coarser levels and slices.
        meter: shows slabs and blocks.
        say: receives sentences about what is done.
        model: the model of the settings, where it is open already.

    Raises:
        ValueError: the open model is another one than that of the settings.
        SelmaError: a file cannot be read, the model does not fit, the output exists, or an interrupted run had other settings.
    """
    if model is not None and model.settings != settings.model:
        raise ValueError(f"{model.settings}: is open, and the settings name another model, {settings.model}")
    settings = resolve_channels(resolve_output(settings))
    remove_leftovers(settings.staging)
    if execution.overwrite and execution.share[1] > 1:
        raise SelmaError(
            "--overwrite: shares would remove what others have done; remove the output first, or overwrite without shares"
        )
    sources = Sources(settings)
    earlier = None if execution.overwrite else complete_result(settings, sources)
    if earlier is not None:
        say(f"{settings.output}: is complete already")
        for line in uncertain_sources(recorded_facts(read_json(settings.record)), sources):
            say(line)
        write_also(settings, execution.also, progress)
        return earlier
    check_place(settings, sources, also=execution.also, overwrite=execution.overwrite)
    started = time.monotonic()
    begun = start_run(settings, execution.device, overwrite=execution.overwrite, sources=sources, model=model)
    run = begun.run
    for line in [*_description(begun), *uncertain_sources(run.facts, sources)]:
        say(line)
    try:
        _read_and_predict(begun, execution, meter, say)
    except FileNotFoundError:
        if run.folder.is_dir():
            raise
        say(f"another share has completed {settings.output}")
        return None
    left = _blocks_left(run)
    if left:
        say(f"this share is done; {left} blocks of others are not. The last one completes {settings.output}")
        return None
    result = complete_run(run, time.monotonic() - started, progress=progress)
    if result is None:
        say(f"this share is done; another one completes {settings.output}")
        return None
    if result.blocks_in_single_precision:
        say(
            f"logits are too large for half precision in {counted(result.blocks_in_single_precision, 'block')} of {result.blocks}, "
            "which were computed again in single precision; nnUNetv2_predict would end with an error"
        )
    say(f"tissue map: {settings.products[TISSUE_MAP]}")
    write_also(settings, execution.also, progress)
    return result


def _description(begun: StartedRun) -> Iterator[str]:
    """Sentences about a run that begins or goes on."""
    run, facts = begun.run, begun.run.facts
    yield f"{'×'.join(map(str, facts.shape))} voxels, blocks of {'×'.join(map(str, facts.block))}: {run.folder}"
    if line := channel_line(run.settings, begun.model.channels):
        yield line
    if run.raw is not None and run.raw != run.output:
        size = prod(facts.shape) * facts.channels * np.dtype(facts.dtype).itemsize / 10**9
        yield f"the image is copied into chunks that blocks can read, at most {size:.1f} GB of disk until the run is complete: {run.raw}"
    if facts.in_voxels:
        yield "the model was trained in units of voxels: the volume is taken as it is, whatever its voxel size"


def _read_and_predict(begun: StartedRun, execution: Execution, meter: Meter, say: Callable[[str], None]) -> None:
    """Do this process's part of a run: slabs, the tissue map, blocks, and meanwhile coarser levels of the image."""
    run = begun.run
    with connect_cluster(execution.scheduler) if execution.scheduler else nullcontext() as client:
        _read_slabs(begun, execution, client, meter)
        for name in run.repaired:
            say(f"interpolated: {name}")
        report_tissue(run, say)
        for volume in begun.volumes if any(map(is_zarr, run.settings.inputs)) else ():
            if lost := lost_chunks(volume, run.tissue.boxes, run.tissue.box):
                say(f"warning: {lost}")
        if run.raw is not None:  # blocks are read from there, and some files are in memory whole
            begun = replace(begun, volumes=())
        with ThreadPoolExecutor(1, "levels") as background:
            predicted = Event()
            levels = background.submit(fill_image_levels, run, predicted)
            try:
                _predict_blocks(begun, execution, client, meter)
            finally:
                predicted.set()
        levels.result()


def _blocks_left(run: Run) -> int:
    """Number of blocks that are not written yet."""
    try:
        return len(run.blocks_to_do())
    except FileNotFoundError:  # another share has completed the run
        return 0


def _read_slabs(begun: StartedRun, execution: Execution, client: Any, meter: Meter) -> None:
    """Read the slabs of this share, then those that other shares have not read yet."""
    run, (share, shares) = begun.run, execution.share
    to_do = run.slabs_to_do()
    order = [index for index in to_do if index % shares == share]
    order += [index for index in reversed(to_do) if index % shares != share]
    tasks = [SlabToRead(run.folder, run.id, index) for index in order]
    _, height, width = run.facts.shape
    voxels = {index: (run.slabs[index].stop - run.slabs[index].start) * height * width for index in to_do}
    done = (
        _read_here(begun, tasks)
        if client is None
        else (order[number] for number, *_ in submit_tasks(client, scan_slab, tasks))
    )
    _show(done, voxels, meter, "reading", "slabs")


def _read_here(begun: StartedRun, tasks: Sequence[SlabToRead]) -> Iterator[int]:
    """Read slabs in this process; yields the number of each."""
    for task in tasks:
        if task.index in begun.run.slabs_to_do():  # or another share was faster
            for _ in scan_slab(task, begun.volumes):
                pass
        yield task.index


def _predict_blocks(begun: StartedRun, execution: Execution, client: Any, meter: Meter) -> None:
    """Predict the blocks of this share, column by column."""
    run = begun.run
    facts, blocks = run.facts, run.blocks
    in_columns = columns(blocks, facts.axes[0], backwards=facts.flips[facts.axes[0]])
    order = [index for column in in_columns for index in column]
    costs = [float(run.tissue.touches(blocks[index])) for index in order]
    mine = set(share_of(order, costs, *execution.share)) & set(run.blocks_to_do())
    to_do = [index for index in order if index in mine]
    voxels = {index: prod(lengths(blocks[index])) for index in to_do}
    if client is None:
        predictor = open_predictor(run.folder, run.id, execution.device, begun.model, begun.volumes)
        done: Iterable[int] = predictor.predict_all(to_do)
    else:
        pieces = tasks_of([[index for index in column if index in mine] for column in in_columns])
        tasks = [BlocksToPredict(run.folder, run.id, piece, execution.device) for piece in pieces]
        done = (index for number, *_ in submit_tasks(client, predict_blocks, tasks) for index in pieces[number])
    _show(done, voxels, meter, "predicting", "blocks")


def _show(done: Iterable[int], voxels: dict[int, int], meter: Meter, label: str, pieces: str) -> None:
    """Do the work of an iterator, which yields the numbers of pieces that are done, and show how far it is."""
    with meter(sum(voxels.values()), label, "voxel") as step:
        for count, index in enumerate(done, 1):
            step(voxels[index], f"{count}/{len(voxels)} {pieces}")
