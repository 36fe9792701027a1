"""Where a run puts its results, whether they are there already, and what may be replaced."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.settings import VolumePrediction
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes.ome_zarr import is_zarr
from nnunet_selma.volumes.ome_zarr_writing import image_version
from nnunet_selma.volumes.segmented import has_image


def resolved(settings: VolumePrediction) -> VolumePrediction:
    """The same with whole paths, which workers elsewhere understand, and in the version of an input that gets the labels.

    Raises:
        SelmaError: the output cannot be called so, or is an input that takes no labels.
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


def complete(settings: VolumePrediction) -> dict[str, Any] | None:
    """The record of the same prediction, where it is complete."""
    *_, labels = settings.products.values()
    if settings.staging.exists() or not settings.record.is_file() or not labels.exists():
        return None
    known = read_json(settings.record)
    settings.model.check_complete()
    asked = {
        **settings.as_json(),
        "max_memory": known.get("settings", {}).get("max_memory"),
    }  # has no part in the result
    same = known.get("settings") == asked and known["facts"]["model"] == settings.model.fingerprint()
    return known if same else None


def check_place(settings: VolumePrediction, *, tiff: bool, overwrite: bool) -> None:
    """Raise `SelmaError` where nothing can be written, or something is there that is not to be replaced."""
    parent = settings.output.parent
    if not parent.is_dir():
        raise SelmaError(f"{parent}: there is no such folder; make it, or choose another -o")
    for place in (parent, settings.output):
        if place.exists() and not os.access(place, os.W_OK):
            raise SelmaError(f"{place}: cannot be written to; choose another -o")
    if settings.staging.exists() and not overwrite:
        return
    unwanted = {"probabilities": not settings.probabilities, "tiff": not tiff}
    for part, place in settings.products.items():
        if not place.exists() or (unwanted.get(part) and not overwrite):
            continue
        if not overwrite:
            raise SelmaError(
                f"{place}: exists already, and is of another run; choose another -o{' or --name' if settings.beside_input else ''}, or add --overwrite"
            )
        if not (_is_slices(place, settings.name) if part == "tiff" else is_zarr(place)):
            raise SelmaError(
                f"{place}: is nothing that this command wrote, and is not overwritten; remove it, or choose another -o"
            )
    for path in settings.inputs:
        if settings.output in path.resolve().parents:
            raise SelmaError(f"{settings.output}: holds the input {path}; choose another -o")


def _is_slices(folder: Path, name: str) -> bool:
    """True if a folder holds nothing but slices that `write_slices` wrote."""
    return folder.is_dir() and all(re.fullmatch(rf"{re.escape(name)}_\d+\.tif", one.name) for one in folder.iterdir())
