"""Checks of the paths that a run writes to: whether a result is there already, and what may be replaced."""

import os
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.records import PredictionResult
from nnunet_selma.prediction.volume_prediction import AlsoFormat, VolumePrediction
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes.nifti_writing import is_label_nifti
from nnunet_selma.volumes.ome_zarr import is_zarr
from nnunet_selma.volumes.ome_zarr_writing import image_version
from nnunet_selma.volumes.segmented import has_image


def resolve_output(settings: VolumePrediction) -> VolumePrediction:
    """The same settings with an absolute output path; labels that go into the input get the input's OME-Zarr version.

    Raises:
        SelmaError: the output has a name that is not allowed, or is an input that cannot hold labels.
    """
    settings = replace(settings, output=settings.output.resolve())
    if not re.fullmatch(r"[\w.-]+", settings.name):
        raise SelmaError(f"--name {settings.name}: use letters, digits, ., - and _ only")
    if settings.beside_input:
        version = image_version(settings.output)
        if version is None or not has_image(settings.output):
            raise SelmaError(
                f"{settings.output}: is the input and no OME-Zarr image that could take labels; choose another -o"
            )
        return replace(settings, version=version)
    if settings.output.suffix != ".zarr":
        raise SelmaError(f"{settings.output}: the output is an OME-Zarr; call it {settings.output.name}.ome.zarr")
    return settings


def complete_result(settings: VolumePrediction) -> PredictionResult | None:
    """The result of the same prediction if it is complete already, else None."""
    *_, labels = settings.products.values()
    if settings.staging.exists() or not settings.record.is_file() or not labels.exists():
        return None
    record = read_json(settings.record)
    settings.model.check_complete()
    # the memory does not change the result
    asked = {**settings.as_json(), "max_memory": record.get("settings", {}).get("max_memory")}
    if record.get("settings") != asked or record["facts"]["model"] != settings.model.fingerprint():
        return None
    return PredictionResult.from_json(record["result"])


def check_place(settings: VolumePrediction, *, also: Collection[AlsoFormat], overwrite: bool) -> None:
    """Raise `SelmaError` if the output cannot be written, or a file is in its place that must not be replaced."""
    parent = settings.output.parent
    if not parent.is_dir():
        raise SelmaError(f"{parent}: there is no such folder; make it, or choose another -o")
    for place in (parent, settings.output):
        if place.exists() and not os.access(place, os.W_OK):
            raise SelmaError(f"{place}: cannot be written to; choose another -o")
    if settings.staging.exists() and not overwrite:
        return
    unwanted = {"probabilities": not settings.probabilities, "tiff": "tiff" not in also, "nifti": "nifti" not in also}
    for part, place in settings.products.items():
        if not place.exists() or (unwanted.get(part) and not overwrite):
            continue
        if not overwrite:
            raise SelmaError(
                f"{place}: exists already, and is of another run; choose another -o{' or --name' if settings.beside_input else ''}, or add --overwrite"
            )
        if not _is_written(part, place, settings.name):
            raise SelmaError(
                f"{place}: was not written by this command, and is not overwritten; remove it, or choose another -o"
            )
    for path in settings.inputs:
        if settings.output in path.resolve().parents:
            raise SelmaError(f"{settings.output}: holds the input {path}; choose another -o")


def _is_written(part: str, place: Path, name: str) -> bool:
    """True if a product is of a kind that this program writes."""
    if part == "nifti":
        return is_label_nifti(place)
    return _is_slices(place, name) if part == "tiff" else is_zarr(place)


def _is_slices(folder: Path, name: str) -> bool:
    """True if a folder holds nothing but slices of labels."""
    pattern = rf"{re.escape(name)}_\d+\.tif"
    return folder.is_dir() and all(re.fullmatch(pattern, path.name) for path in folder.iterdir())
