"""Completing a run: coarser levels, the record, TIFF slices, and the final names. Every step can be repeated after a kill."""

import platform
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from math import prod
from pathlib import Path
from threading import Event
from typing import Any

import tifffile

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.records import PredictionResult
from nnunet_selma.prediction.run import Run, remove_run
from nnunet_selma.prediction.volume_prediction import AlsoFormat, VolumePrediction
from nnunet_selma.prediction.written import Manifest, check_replaceable, manifest, manifests_as_json
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.running.locks import exclusive
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes import Volume, open_volume
from nnunet_selma.volumes.nifti_writing import write_label_nifti
from nnunet_selma.volumes.ome_zarr_writing import create_labels, fill_pyramid, remove_partial_writes

_IMAGE_LEVELS, _LEVELS_LOCK = "image_levels.json", "image_levels.lock"
"""Files in the folder of a run: number of levels of the image that are complete, and the lock of the process that fills them."""
_WAIT = 0.2
"""Seconds between two attempts to get that lock."""
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

    Raises:
        SelmaError: somebody has added to an earlier result, or put something into the place of the new one.
    """
    with exclusive(run.folder / "lock") as locked:
        if not locked:
            return None
        settings = run.settings
        _check_nothing_is_lost(run)
        result = _result(run, seconds)
        remove_partial_writes(run.folder)
        for image in (run.output if run.raw == run.output else None, run.labels, run.probabilities):
            if image is not None and image.is_dir():  # if not, it has been moved already
                _fill_levels(run, image, progress)
        write_json(settings.record, _record(run, result))
        for part, place in settings.products.items():
            if (run.folder / part).exists():
                place.parent.mkdir(exist_ok=True)
                _move(run.folder / part, place)
            elif _is_removed(run, part):
                _set_aside(place)  # of the run that is replaced
            _remove(_old(place))
        list_labels(settings)
        remove_run(run.folder)
        return result


def fill_image_levels(run: Run, stop: Event) -> None:
    """Write coarser levels of the image, whose voxels are all there once the slabs are read, until an event is set; `complete_run` goes on."""
    with exclusive(run.folder / _LEVELS_LOCK) as locked:
        if locked and run.output == run.raw and run.output.is_dir():
            fill_pyramid(run.output, record=run.folder / _IMAGE_LEVELS, stop=stop)


def _fill_levels(run: Run, image: Path, progress: Progress[Any]) -> None:
    """Write the coarser levels of an image of the run; another process that fills those of the image ends before."""
    if image != run.output:
        fill_pyramid(image, progress)
        return
    while run.folder.is_dir():
        with exclusive(run.folder / _LEVELS_LOCK) as locked:
            if locked:
                fill_pyramid(image, progress, record=run.folder / _IMAGE_LEVELS)
                return
        time.sleep(_WAIT)


def _check_nothing_is_lost(run: Run) -> None:
    """Raise `SelmaError` if a result is in the way that the run must not replace; a run takes long, and others work meanwhile."""
    for part, place in run.settings.products.items():
        if place.exists() and ((run.folder / part).exists() or _is_removed(run, part)):
            check_replaceable(place, [run.replaced[part]] if part in run.replaced else [])


def _is_removed(run: Run, part: str) -> bool:
    """True if a run that overwrites another one does not write a product that the other one may have."""
    return run.overwrite and (part in ("tiff", "nifti") or (part == "probabilities" and not run.settings.probabilities))


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
        blocks_without_tissue=sum(not block.predicted for block in blocks),
        tiles=sum(block.tiles for block in blocks),
        seconds_of_prediction=round(sum(block.seconds for block in blocks), 1),
        seconds_of_the_last_call=round(seconds, 1),
        blocks_in_single_precision=sum(not block.half for block in blocks),
    )


def _written(run: Run) -> dict[str, Any]:
    """Manifest of each product of a run; after a kill that of the record, because products may have their final names already."""
    record = read_json(run.settings.record) if run.settings.record.is_file() else {}
    if record.get("run") == run.id:
        return dict(record["written"])
    parts = {part: run.folder / part for part in run.settings.products}
    return manifests_as_json({part: manifest(folder) for part, folder in parts.items() if folder.exists()})


def _record(run: Run, result: PredictionResult) -> dict[str, Any]:
    labels = open_volume(run.labels) if run.labels.is_dir() else _labels(run.settings)
    return {
        "run": run.id,
        "settings": run.settings.as_json(),
        "facts": run.facts.as_json(),
        "place": {
            "origin_um_zyx": labels.origin_um_zyx,
            "affine": None if labels.affine is None else labels.affine.tolist(),
        },
        "interpolated slices": run.repaired,
        "result": result.as_json(),
        "written": _written(run),
        "machine": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "zarr")},
        },
    }


def write_also(settings: VolumePrediction, formats: Sequence[AlsoFormat], progress: Progress[Any] = silent) -> None:
    """Write the labels of a complete run in more formats, unless they are there already, and note them in the record."""
    record = read_json(settings.record)
    known = record.get("written", {})
    written: dict[str, Manifest] = {}
    for part in formats:
        target = settings.products[part]
        if target.exists() and part not in known:
            raise SelmaError(f"{target}: is there, and is not in {settings.record}; move it, and repeat the command")
        if not target.exists():
            if part == "tiff":
                _write_slices(settings, progress)
            else:
                write_label_nifti(target, _labels(settings), settings.inputs[0], progress)
            written[part] = manifest(target)
    if written:
        write_json(settings.record, record | {"written": known | manifests_as_json(written)})


def _labels(settings: VolumePrediction) -> Volume:
    return open_volume(settings.output / "labels" / settings.name)


def _write_slices(settings: VolumePrediction, progress: Progress[Any]) -> None:
    """Write TIFF slices; the folder is whole or absent."""
    target = settings.products["tiff"]
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    labels = _labels(settings)
    depth, height, width = labels.shape
    step, digits = max(1, _SLICES_BYTES // (height * width * labels.dtype.itemsize)), max(4, len(str(depth - 1)))
    for z in progress(range(0, depth, step), "writing TIFF slices"):
        for offset, plane in enumerate(labels.read(slice(z, min(z + step, depth)))):
            tifffile.imwrite(partial / f"{settings.name}_{z + offset:0{digits}}.tif", plane, compression="zlib")
    partial.rename(target)


def _move(source: Path, target: Path) -> None:
    """Rename a folder; an existing one of that name is renamed first, and deleted later."""
    _set_aside(target)
    source.rename(target)


def _set_aside(target: Path) -> None:
    """Give a folder the name under which it is deleted, whole, so that no part of it is left under its name."""
    if target.exists():
        _remove(_old(target))
        target.rename(_old(target))


def _remove(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    if path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
