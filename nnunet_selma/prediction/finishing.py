"""How a run ends: coarser levels, TIFF slices, a record, and the name. Every step can be done again after a kill."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from nnunet_selma.prediction.run import Run, remove
from nnunet_selma.prediction.settings import VolumePrediction
from nnunet_selma.running.json_files import write_json
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.ome_zarr_writing import create_labels, fill_pyramid, remove_partial_writes

_SLICES_BYTES = 2**28


def finish(run: Run, seconds: float, *, progress: Progress[Any] = silent) -> dict[str, Any] | None:
    """Complete a run whose blocks are whole, and give it its name; returns its record, or None where another process does it."""
    with _alone(run.folder) as alone:
        if not alone:
            return None
        settings = run.settings
        record = _record(run, seconds)
        remove_partial_writes(run.folder)
        for image in (run.output if settings.raw and run.facts["copied"] else None, run.labels, run.probabilities):
            if image is not None and image.is_dir():  # or it has its name already
                fill_pyramid(image, progress)
        write_json(settings.record, record)
        for part, place in settings.products.items():
            if (run.folder / part).is_dir():
                place.parent.mkdir(exist_ok=True)
                _move(run.folder / part, place)
            elif run.overwrite and (part == "tiff" or (part == "probabilities" and not settings.probabilities)):
                shutil.rmtree(place, ignore_errors=True)  # of the run that was replaced
            shutil.rmtree(_old(place), ignore_errors=True)
        list_labels(settings)
        remove(run.folder)
        return record


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Yield True if this process alone completes a run; the system takes the lock from a process that is killed."""
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
    """List labels that went into an input's OME-Zarr in it."""
    if settings.beside_input:
        create_labels(settings.output, [settings.name], settings.version)


def _record(run: Run, seconds: float) -> dict[str, Any]:
    blocks = run.block_records()
    predicted = [one for one in blocks if one["tiles"]]
    voxels = int(np.prod(run.shape))
    return {
        "settings": run.settings.as_json(),
        "facts": run.facts,
        "interpolated slices": run.repaired,
        "result": {
            "voxels": voxels,
            "foreground": sum(one["foreground"] for one in blocks),
            "tissue share": round(run.tissue.share, 4),
            "blocks": len(blocks),
            "blocks without tissue": len(blocks) - len(predicted),
            "tiles": sum(one["tiles"] for one in blocks),
            "seconds of prediction": round(sum(one["seconds"] for one in blocks), 1),
            "seconds of the last call": round(seconds, 1),
        },
        "machine": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "zarr")},
        },
    }


def write_slices(settings: VolumePrediction, progress: Progress[Any] = silent) -> None:
    """The labels of a complete run as TIFF slices, whole or absent; nothing is done where they are."""
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
    """Give a folder its name; what has it already, to be overwritten, gets another."""
    shutil.rmtree(_old(target), ignore_errors=True)
    if target.exists():
        target.rename(_old(target))
    source.rename(target)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
