"""Scores and a picture of one case, for each method, and each class where classes are scored apart."""

import json
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation import pictures
from nnunet_selma.evaluation.cases import CaseFiles, open_header
from nnunet_selma.evaluation.classes import LabelClass, class_mask, ignored_mask
from nnunet_selma.evaluation.metrics.editions import edition
from nnunet_selma.evaluation.metrics.extras import Extras, measure
from nnunet_selma.evaluation.metrics.mistakes import mistakes
from nnunet_selma.evaluation.metrics.pair import Pair, Segmentation
from nnunet_selma.morphology.blocks import Mask
from nnunet_selma.running.fingerprints import fingerprint
from nnunet_selma.running.json_files import read_json, without_nan, write_json
from nnunet_selma.structures import named
from nnunet_selma.volumes import Volume, open_volume, parts_of
from nnunet_selma.volumes.base import Array
from nnunet_selma.volumes.labels import read_mask
from nnunet_selma.volumes.orientation import placement
from nnunet_selma.volumes.segmented import open_labels

_FORM = 2
"""Version of the files that keep scores; files of another version are not read."""


@dataclass(frozen=True, kw_only=True)
class ScoreTask:
    """One case of every method, scored against the same reference."""

    cases: Mapping[str, CaseFiles]
    """Method to its case."""
    year: int
    foreground: int | None
    """Value of the objects in the reference; None takes every value above 0."""
    extras: Extras
    """Measurements beyond the official metrics; those that do not fit the structure are left out."""
    output: Path | None
    """Folder for pictures and for scores, which a later run does not compute again; None keeps nothing."""
    sheets: bool
    """True if a picture of the case is drawn for each method."""
    classes: tuple[LabelClass, ...] = ()
    """Classes that are scored apart; empty takes every value above 0 as one."""
    chosen: LabelClass | None = None
    """The class to score; None scores all of them, one after the other."""
    ignored: int | None = None
    """Value of voxels in the reference that nobody annotated, which are background on both sides; None if there is none."""

    def file_name(self, method: str) -> str:
        """Name of a method's files, without ending."""
        return self.cases[method].name + (f"_class_{self.chosen.key}" if self.chosen else "")

    def kept(self, method: str) -> Path | None:
        """File for the scores of a method."""
        return self.output and self.output / "scores" / method / f"{self.file_name(method)}.json"

    def sheet(self, method: str) -> Path | None:
        """File for the picture of a method."""
        return (
            self.output / "sheets" / method / f"{self.file_name(method)}.png" if self.output and self.sheets else None
        )


class Group(NamedTuple):
    """Key of the scores that are averaged: a structure, and a class of it where classes are scored apart."""

    structure: str
    label: str

    @property
    def title(self) -> str:
        """Name in tables and pictures."""
        return f"{named(self.structure).title}, {self.label}" if self.label else named(self.structure).title


@dataclass(frozen=True, kw_only=True)
class CaseScore:
    """Scores of one case of one method; NaN where a metric has no value."""

    method: str
    case: str
    structure: str
    """Prefix of the structure."""
    official: dict[str, float]
    corrected: dict[str, float]
    """Corrected values of metrics with corner cases; equal to the official value elsewhere."""
    extra: dict[str, float]
    warnings: tuple[str, ...] = ()
    label: str = ""
    """Name of the class; empty where classes are not scored apart."""

    @property
    def group(self) -> Group:
        """Structure and class."""
        return Group(self.structure, self.label)

    def as_json(self) -> dict[str, Any]:
        """The fields, with null for NaN, which JSON does not know."""
        content: dict[str, Any] = without_nan(asdict(self))
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "CaseScore":
        """Restore from the result of `as_json`."""
        parts = {
            part: {key: nan if value is None else value for key, value in content[part].items()}
            for part in ("official", "corrected", "extra")
        }
        return cls(**{**content, **parts, "warnings": tuple(content["warnings"])})


def score_case(task: ScoreTask) -> Generator[int, None, list[CaseScore]]:
    """Score one case of every method; scores that an earlier run kept for the same files and settings are read instead.

    The work of `run_tasks`, with one step for each method and class. For each class, the reference is read, labelled and thinned once for all
    methods; without classes, once.
    """
    if task.classes and task.chosen is None:
        scores = []
        for label_class in task.classes:
            scores += yield from score_case(replace(task, chosen=label_class))
        return scores
    scores, reference = [], _Reference(task)
    for method in task.cases:
        made_from = _made_from(task, method)
        score = _kept_score(task, method, made_from)
        if score is None:
            score = _score(task, method, reference)
            _keep(task, method, {"made_from": made_from, "sheet": task.sheets, "score": score.as_json()})
        scores.append(score)
        yield 1
    return scores


def _kept_score(task: ScoreTask, method: str, made_from: dict[str, Any]) -> CaseScore | None:
    kept, sheet = task.kept(method), task.sheet(method)
    if kept is None or not kept.is_file():
        return None
    content = read_json(kept)
    if content.get("made_from") != made_from or (sheet is not None and not (content["sheet"] and sheet.is_file())):
        return None
    return CaseScore.from_json(content["score"])


def _keep(task: ScoreTask, method: str, content: dict[str, Any]) -> None:
    kept = task.kept(method)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, content)


class _Reference:
    """Ground truth of a case, read when a method first needs it."""

    def __init__(self, task: ScoreTask) -> None:
        self.path, self._task = next(iter(task.cases.values())).reference, task

    @cached_property
    def content(self) -> tuple[Segmentation, tuple[str, ...]] | None:
        """Segmentation and warnings; None without a file."""
        if self.path is None:
            return None
        mask, warnings = _objects(self._task, open_labels(self.path), truth=True)
        return Segmentation(mask), warnings

    @cached_property
    def ignored(self) -> Mask | None:
        """Voxels that nobody annotated; None where there is no file, or no value for them."""
        return None if self.path is None else ignored_mask(open_labels(self.path), self._task.ignored)


def _objects(task: ScoreTask, volume: Volume, *, truth: bool) -> tuple[Mask, tuple[str, ...]]:
    """Mask of the objects, or of the chosen class, in a label file, and warnings."""
    if task.chosen is not None:
        return class_mask(volume, task.chosen, task.classes), ()
    mask, _, warnings = read_mask(
        volume, task.foreground if truth else None, truth=truth, ignored=task.ignored if truth else None
    )
    return mask, tuple(f"{volume.path}: {warning}" for warning in warnings)


def _score(task: ScoreTask, method: str, reference: _Reference) -> CaseScore:
    case, rules = task.cases[method], edition(task.year)
    pair, warnings = _read_pair(task, case, reference)
    score = CaseScore(
        method=method,
        case=case.name,
        structure=case.structure.key,
        official=rules.score(pair, case.structure),
        corrected=rules.corrected(pair, case.structure),
        extra=measure(pair, task.extras.suited_to(case.structure), case.spacing_um_zyx),
        warnings=warnings,
        label=task.chosen.name if task.chosen else "",
    )
    if (sheet := task.sheet(method)) is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        raw, unreadable = _raw(case)
        score = replace(score, warnings=(*score.warnings, *unreadable))
        values = " · ".join(
            f"{m.title} {score.official[m.key] * m.scale:.4g}" for m in rules.metrics_of(case.structure)
        )
        pictures.evaluation_sheet(
            sheet,
            title=f"{case.name} ({score.group.title}), {method}\n{values}",
            raw=raw,
            truth=pair.reference.mask,
            prediction=pair.prediction.mask,
            mistakes=mistakes(pair),
        )
    return score


def _raw(case: CaseFiles) -> tuple[Array | None, tuple[str, ...]]:
    """The raw image, or None and a warning: the scores of a case do not depend on its image."""
    labels = case.reference or case.prediction
    if case.image is None or labels is None:
        return None, ()
    try:
        image = open_volume(case.image)
        return placement(image, open_header(labels)).apply(image.read()), ()
    except SelmaError as error:
        return None, (f"{error} (not shown in the picture)",)


def _read_pair(task: ScoreTask, case: CaseFiles, reference: _Reference) -> tuple[Pair, tuple[str, ...]]:
    """Both sides of a case, and warnings; a side without file is empty."""
    if case.prediction is None:
        if reference.content is None:
            raise ValueError(f"{case.name}: neither a prediction nor a reference")
        truth, warnings = reference.content
        return Pair(np.zeros_like(truth.mask), truth), warnings
    prediction = open_labels(case.prediction)
    mask, warnings = _objects(task, prediction, truth=False)
    if reference.path is not None:
        mask = placement(prediction, open_header(reference.path)).apply(mask)
    if reference.content is None:
        return Pair(mask, np.zeros_like(mask)), warnings
    truth, more = reference.content
    pair = Pair(mask, truth)
    if reference.ignored is not None:
        pair = Pair(mask & ~reference.ignored, truth)
    return pair, (*warnings, *more)


def _made_from(task: ScoreTask, method: str) -> dict[str, Any]:
    """Files and settings on which scores and picture depend, as JSON reads them."""
    case = task.cases[method]
    files = {name: _stamp(getattr(case, name)) for name in ("prediction", "reference", "image")}
    settings = {
        "form": _FORM,
        "version": __version__,
        "year": task.year,
        "structure": case.structure.key,
        "foreground": task.foreground,
        "spacing": case.spacing_um_zyx,
        "extras": asdict(task.extras),
        "class": task.chosen and asdict(task.chosen),
        "ignored": task.ignored,
    }
    content: dict[str, Any] = json.loads(json.dumps({**files, **settings}))
    return content


def _stamp(path: Path | None) -> list[Any] | None:
    """Path of a volume, and the fingerprint of its files."""
    if path is None:
        return None
    return [str(path.resolve()), fingerprint(*parts_of(path))]
