"""Checks of the paths that a run writes to: whether a result is there already, and what may be replaced."""

import os
import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.records import PredictionResult, RunFacts, first_difference
from nnunet_selma.prediction.run import Run
from nnunet_selma.prediction.sources import Sources
from nnunet_selma.prediction.volume_prediction import AlsoFormat, VolumePrediction, identity
from nnunet_selma.prediction.written import Manifest, check_replaceable, manifests_from_json
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes.ome_zarr_writing import image_version
from nnunet_selma.volumes.segmented import has_image

_NAME = r"[\w-]([\w.-]*[\w-])?"
_METADATA = ("zarr.json",)
"""Names that a label image cannot have, because a file of that name lies beside it."""


def resolve_output(settings: VolumePrediction) -> VolumePrediction:
    """The same settings with an absolute output path; labels that go into the input get the input's OME-Zarr version.

    Raises:
        SelmaError: the output has a name that is not allowed, or is an input that cannot hold labels.
    """
    settings = replace(settings, output=settings.output.resolve())
    if not re.fullmatch(_NAME, settings.name) or settings.name in _METADATA:
        raise SelmaError(
            f"--name {settings.name}: use letters, digits, ., - and _ only, without a . at the beginning or the end"
        )
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


def complete_result(settings: VolumePrediction, sources: Sources) -> PredictionResult | None:
    """The result of the same prediction, from the same contents of all files, if it is complete already; else None."""
    *_, labels = settings.products.values()
    if settings.staging.exists() or not settings.record.is_file() or not labels.exists():
        return None
    record = read_json(settings.record)
    if recorded_facts(record) is None or _difference(record, settings, sources):
        return None
    return PredictionResult.from_json(record["result"])


def uncertain_sources(facts: RunFacts | None, sources: Sources) -> list[str]:
    """Sentences about files of a result or run that are too large to be compared whole, and were changed or copied since."""
    return [
        f"{path}: was changed or copied since, and the bytes that were compared are the same; add --overwrite if it holds something else now"
        for path in (sources.uncertain(facts.files) if facts else ())
    ]


def recorded_facts(record: dict[str, Any]) -> RunFacts | None:
    """The facts in a record of this command; None for other files, and records of earlier versions with other facts."""
    try:
        return RunFacts.from_json(record["facts"]) if {"settings", "result"} <= record.keys() else None
    except (KeyError, TypeError, AttributeError):
        return None


def _difference(record: dict[str, Any], settings: VolumePrediction, sources: Sources) -> str | None:
    """Words for the first setting or file that differs from those of a record."""
    changed = first_difference(identity(record["settings"]), identity(settings.as_json()))
    facts = recorded_facts(record)
    assert facts is not None
    return changed or sources.changed(facts.model, facts.files)


def check_place(settings: VolumePrediction, sources: Sources, *, also: Collection[AlsoFormat], overwrite: bool) -> None:
    """Raise `SelmaError` if the output cannot be written, or a file is in its place that must not be replaced."""
    parent = settings.output.parent
    if not parent.is_dir():
        raise SelmaError(f"{parent}: there is no such folder; make it, or choose another -o")
    for place in (parent, settings.output):
        if place.exists() and not os.access(place, os.W_OK):
            raise SelmaError(f"{place}: cannot be written to; choose another -o")
    for path in settings.paths_read:
        for place in settings.products.values():
            if path.resolve().is_relative_to(place):
                holds = "is" if path.resolve() == place else "holds"
                raise SelmaError(f"{place}: {holds} the input {path}; choose another -o")
    known = settings.record.is_file() and recorded_facts(read_json(settings.record)) is not None
    if settings.record.exists() and not known:
        raise SelmaError(
            f"{settings.record}: was not written by this command, and would be lost; move it, or choose another -o"
        )
    if overwrite:
        replaceable(settings)
        return
    if settings.staging.exists():
        return
    unwanted = {"probabilities": not settings.probabilities, "tiff": "tiff" not in also, "nifti": "nifti" not in also}
    for part, place in settings.products.items():
        if place.exists() and not unwanted.get(part):
            difference = _difference(read_json(settings.record), settings, sources) if known else None
            raise SelmaError(
                f"{place}: exists already, and is of another {difference or 'run'}; choose another "
                f"-o{' or --name' if settings.beside_input else ''}, or add --overwrite"
            )


def replaceable(settings: VolumePrediction) -> dict[str, Manifest]:
    """Manifest of each product that is there and may be deleted.

    Raises:
        SelmaError: a product was not written by this program, or somebody has added to it or changed it.
    """
    written = [Run(settings.staging).replaced] if settings.staging.exists() else []
    if settings.record.is_file():
        written.insert(0, manifests_from_json(read_json(settings.record).get("written", {})))
    return {
        part: check_replaceable(place, [known[part] for known in written if part in known])
        for part, place in settings.products.items()
        if place.exists() or place.is_symlink()
    }
