"""Completing a run: coarser levels, the record, TIFF slices, and the final names. Every step can be repeated after a kill."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import tifffile

from nnunet_selma.prediction.records import PredictionResult
from nnunet_selma.prediction.run import Run, remove_run
from nnunet_selma.prediction.volume_prediction import VolumePrediction
from nnunet_selma.running.json_files import write_json
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.ome_zarr_writing import create_labels, fill_pyramid, remove_partial_writes

_SLICES_BYTES = 2**28
"""Bytes of slices that are read together."""


def complete_run(run: Run, seconds: float, *, progress: Progress[Any] = silent) -> PredictionResult | None:
    """Complete a run whose blocks are written, and move its results into place.

    Args:
        run: the run.
        seconds: that the call took so far.
        progress: shows the coarser levels.

    Returns:
        The result, or None if another process is completing or has completed the run.
    """
    with _lock(run.folder) as locked:
        if not locked:
            return None
        settings = run.settings
        result = _result(run, seconds)
        remove_partial_writes(run.folder)
        for image in (run.output if run.raw == run.output else None, run.labels, run.probabilities):
            if image is not None and image.is_dir():  # if not, it has been moved already
                fill_pyramid(image, progress)
        write_json(settings.record, _record(run, result))
        for part, place in settings.products.items():
            if (run.folder / part).is_dir():
                place.parent.mkdir(exist_ok=True)
                _move(run.folder / part, place)
            elif run.overwrite and (part == "tiff" or (part == "probabilities" and not settings.probabilities)):
                shutil.rmtree(place, ignore_errors=True)  # of the run that was replaced
            shutil.rmtree(_old(place), ignore_errors=True)
        list_labels(settings)
        remove_run(run.folder)
        return result


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Yield True if this process holds the lock of a run; the system releases the lock of a process that is killed."""
    try:
        import fcntl
    except ImportError:  # Windows has other locks
        yield folder.is_dir()
        return
    try:
        file = (folder / "lock").open("w")
    except FileNotFoundError:
        yield False  # completed already
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            same = os.path.samestat(os.fstat(file.fileno()), (folder / "lock").stat())
        except FileNotFoundError:
            same = False  # another process has completed it just before
        yield same


def list_labels(settings: VolumePrediction) -> None:
    """Add labels that were written into the input to the list of labels in its metadata."""
    if settings.beside_input:
        create_labels(settings.output, [settings.name], settings.version)


def _result(run: Run, seconds: float) -> PredictionResult:
    blocks = run.block_records()
    return PredictionResult(
        voxels=prod(run.facts.shape),
        foreground=sum(block.foreground for block in blocks),
        tissue_share=round(run.tissue.share, 4),
        blocks=len(blocks),
        blocks_without_tissue=sum(not block.tiles for block in blocks),
        tiles=sum(block.tiles for block in blocks),
        seconds_of_prediction=round(sum(block.seconds for block in blocks), 1),
        seconds_of_the_last_call=round(seconds, 1),
    )


def _record(run: Run, result: PredictionResult) -> dict[str, Any]:
    return {
        "settings": run.settings.as_json(),
        "facts": run.facts.as_json(),
        "interpolated slices": run.repaired,
        "result": result.as_json(),
        "machine": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "zarr")},
        },
    }


def write_slices(settings: VolumePrediction, progress: Progress[Any] = silent) -> None:
    """Write the labels of a complete run as TIFF slices, unless they are there already; the folder is whole or absent."""
    target = settings.products["tiff"]
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    labels = open_volume(settings.output / "labels" / settings.name)
    depth, height, width = labels.shape
    step, digits = max(1, _SLICES_BYTES // (height * width * labels.dtype.itemsize)), max(4, len(str(depth - 1)))
    for z in progress(range(0, depth, step), "writing TIFF slices"):
        for offset, plane in enumerate(labels.read(slice(z, min(z + step, depth)))):
            tifffile.imwrite(partial / f"{settings.name}_{z + offset:0{digits}}.tif", plane, compression="zlib")
    partial.rename(target)


def _move(source: Path, target: Path) -> None:
    """Rename a folder; an existing one of that name is renamed first, and deleted later."""
    shutil.rmtree(_old(target), ignore_errors=True)
    if target.exists():
        target.rename(_old(target))
    source.rename(target)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
