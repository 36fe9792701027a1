"""One case: two files in, numbers and a picture out."""

import json
from collections.abc import Generator
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma import __version__, figures
from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation.cases import Case
from nnunet_selma.json_files import read_json, without_nan, write_json
from nnunet_selma.metrics.blocks import Mask
from nnunet_selma.metrics.editions import edition
from nnunet_selma.metrics.extras import Extras, measure
from nnunet_selma.metrics.mistakes import mistakes
from nnunet_selma.metrics.pair import Pair
from nnunet_selma.volumes import open_volume


@dataclass(frozen=True, kw_only=True)
class ScoreTask:
    """What to do with one case of one method."""

    method: str
    case: Case
    year: int
    extras: Extras
    folder: Path | None
    """Where the scores are kept for a run that goes on, or None."""
    sheet: Path | None
    """Where the picture goes, or None."""


@dataclass(frozen=True, kw_only=True)
class CaseScore:
    """What came out for one case of one method; NaN where a metric has no value."""

    method: str
    case: str
    structure: str
    """Prefix of the structure."""
    official: dict[str, float]
    corrected: dict[str, float]
    """What metrics with corners should say; equal to the official value away from them."""
    extra: dict[str, float]
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything, with null for NaN, which JSON does not know."""
        content: dict[str, Any] = without_nan(asdict(self))
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "CaseScore":
        """What `as_json` gave."""
        parts = {
            part: {key: nan if value is None else value for key, value in content[part].items()}
            for part in ("official", "corrected", "extra")
        }
        return cls(**{**content, **parts, "warnings": tuple(content["warnings"])})


def score_case(task: ScoreTask) -> Generator[int, None, CaseScore]:
    """Score one case, or read its scores where an earlier run left them for the same files and settings; a task of `run_tasks`."""
    made_from = _made_from(task)
    kept = task.folder / f"{task.case.name}.json" if task.folder else None
    if kept is not None and kept.is_file() and (task.sheet is None or task.sheet.is_file()):
        content = read_json(kept)
        if content["made_from"] == made_from:
            yield 1
            return CaseScore.from_json(content["score"])
    score = _score(task)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"made_from": made_from, "score": score.as_json()})
    yield 1
    return score


def _score(task: ScoreTask) -> CaseScore:
    case, rules = task.case, edition(task.year)
    pair, warnings = _read_pair(case)
    score = CaseScore(
        method=task.method, case=case.name, structure=case.structure.prefix,
        official=rules.score(pair, case.structure), corrected=rules.corrected(pair, case.structure),
        extra=measure(pair, case.structure, task.extras, case.spacing_um_zyx), warnings=warnings,
    )  # fmt: skip
    if task.sheet is not None:
        task.sheet.parent.mkdir(parents=True, exist_ok=True)
        shown = " · ".join(
            f"{m.title} {score.official[m.key] * (100 if m.percent else 1):.4g}"
            for m in rules.metrics_of(case.structure)
        )
        figures.evaluation_sheet(
            task.sheet, title=f"{case.name} ({case.structure.title}), {task.method}\n{shown}",
            raw=open_volume(case.image).read() if case.image else None,
            truth=pair.reference, prediction=pair.prediction, mistakes=mistakes(pair),
        )  # fmt: skip
    return score


def _read_pair(case: Case) -> tuple[Pair, tuple[str, ...]]:
    masks = {
        side: read_mask(path) for side, path in (("p", case.prediction), ("r", case.reference)) if path is not None
    }
    empty = np.zeros_like(next(iter(masks.values()))[0])
    prediction, reference = (masks.get(side, (empty, ()))[0] for side in "pr")
    return Pair(prediction, reference), tuple(warning for _, found in masks.values() for warning in found)


def read_mask(path: Path) -> tuple[Mask, tuple[str, ...]]:
    """The mask `> 0` of a file, (z, y, x), and what is odd about its values.

    Raises:
        SelmaError: it holds NaN or fractions, as probabilities are.
    """
    values = open_volume(path).read()
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise SelmaError(f"{path}: holds NaN or infinite values; labels are 0 and 1")
        if not (values == np.rint(values)).all():
            raise SelmaError(
                f"{path}: holds fractions ({values.min():.3g} to {values.max():.3g}), as probabilities are; threshold it, or give the labels"
            )
    other = int(np.count_nonzero((values != 0) & (values != 1)))
    warnings: tuple[str, ...] = ()
    if other:
        shown = ", ".join(f"{v:g}" for v in np.unique(values)[:8])
        warnings = (
            f"{path}: {other} voxels hold other values than 0 and 1 (values {shown}); > 0 counts as foreground",
        )
    return values > 0, warnings


def _made_from(task: ScoreTask) -> dict[str, Any]:
    """What the scores depend on, as it comes back from JSON."""
    files = {
        side: None if path is None else [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
        for side, path in (("prediction", task.case.prediction), ("reference", task.case.reference))
    }
    settings = {
        "version": __version__, "year": task.year, "structure": task.case.structure.prefix, "spacing": task.case.spacing_um_zyx,
        "extras": asdict(task.extras), "method": task.method,
    }  # fmt: skip
    content: dict[str, Any] = json.loads(json.dumps({**files, **settings}))
    return content
