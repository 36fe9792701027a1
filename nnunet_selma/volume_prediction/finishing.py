"""How a run ends: coarser levels, TIFF slices, a record, and the name."""

import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from nnunet_selma.json_files import write_json
from nnunet_selma.progress import Progress, silent
from nnunet_selma.volume_prediction.run import Run
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.ome_zarr_writing import create_labels, fill_pyramid, remove_partial_writes


def finish(
    run: Run, seconds: float, *, tiff: bool, overwrite: bool, progress: Progress[Any] = silent
) -> dict[str, Any] | None:
    """Complete a run whose blocks are whole, and give it its name; returns its record, or None where another process does it.

    Every step can be done again after a kill.
    """
    settings = run.settings
    try:
        run.folder.rename(settings.finishing)
    except FileNotFoundError:
        return None
    run = Run(settings.finishing)
    remove_partial_writes(run.folder)
    if settings.raw and run.raw is not None:
        fill_pyramid(run.raw, progress)
    fill_pyramid(run.labels, progress)
    if run.probabilities.is_dir():
        fill_pyramid(run.probabilities, progress)
    if tiff and (overwrite or not settings.products["tiff"].exists()):
        _write_slices(run, progress)
    record = _record(run, seconds)
    write_json(settings.record, record)
    for part, place in settings.products.items():
        if (run.folder / part).is_dir():
            place.parent.mkdir(exist_ok=True)
            _move(run.folder / part, place)
    if settings.beside_input:
        create_labels(settings.output, [settings.name], settings.version)
    shutil.rmtree(run.folder, ignore_errors=True)
    return record


def _record(run: Run, seconds: float) -> dict[str, Any]:
    blocks = run.block_records()
    predicted = [one for one in blocks if one["tiles"]]
    voxels = int(np.prod(run.shape))
    return {
        "settings": run.settings.as_json(), "facts": run.facts,
        "result": {
            "voxels": voxels, "foreground": sum(one["foreground"] for one in blocks), "tissue share": round(run.tissue.share, 4),
            "blocks": len(blocks), "blocks without tissue": len(blocks) - len(predicted), "tiles": sum(one["tiles"] for one in blocks),
            "seconds of prediction": round(sum(one["seconds"] for one in blocks), 1), "seconds of the last call": round(seconds, 1),
        },
        "machine": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy", "zarr")}},
    }  # fmt: skip


def _write_slices(run: Run, progress: Progress[Any]) -> None:
    """Labels as TIFF slices, a slab of a block's height at a time."""
    folder = run.folder / "tiff"
    folder.mkdir(exist_ok=True)
    labels = open_volume(run.labels)
    depth, step = labels.shape[0], max(1, min(run.facts["chunk"], 2**28 // (labels.shape[1] * labels.shape[2])))
    digits = max(4, len(str(depth - 1)))
    for z in progress(range(0, depth, step), "writing TIFF slices"):
        for offset, plane in enumerate(labels.read(slice(z, min(z + step, depth)))):
            tifffile.imwrite(folder / f"{run.settings.name}_{z + offset:0{digits}}.tif", plane, compression="zlib")


def _move(source: Path, target: Path) -> None:
    """Give a folder its name; what has it already, to be overwritten, goes last."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)
