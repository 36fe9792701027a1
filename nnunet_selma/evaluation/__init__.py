"""Folders in, tables and pictures out: predictions against ground truth, by the rules of a SELMA3D edition."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation import pictures, tables
from nnunet_selma.evaluation.cases import Case, Missing, find_cases, listed
from nnunet_selma.evaluation.comparison import PairedDifference, Ranks, class_means, compare, rank
from nnunet_selma.evaluation.metrics.editions import Edition, edition
from nnunet_selma.evaluation.metrics.extras import Extras
from nnunet_selma.evaluation.scoring import CaseScore, ScoreTask, score_case
from nnunet_selma.evaluation.tables import Table
from nnunet_selma.running.json_files import without_nan, write_json, write_text
from nnunet_selma.running.parallel import run_tasks
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm, named

__all__ = ["Evaluation", "EvaluationSettings", "evaluate", "write_evaluation"]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Options of an evaluation."""

    year: int
    """Edition whose rules count: 2024 or 2026."""
    corrected: bool = False
    """Show the corrected value beside a metric that the official evaluator computes wrongly (docs/metrics.md)."""
    structure: str | None = None
    """Structure of all cases whose names do not begin with one."""
    missing: Missing = "error"
    """Treatment of cases that one side lacks."""
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size, µm; None: that of the header, or of the structure."""
    extras: Extras = field(default_factory=Extras)
    """Measurements beyond the official metrics."""
    against: str | None = None
    """Method that every other one is compared with, case by case."""


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation."""

    settings: EvaluationSettings
    reference: Path
    predictions: Mapping[str, Path]
    scores: list[CaseScore]
    """Method by method, by structure in the order of the structure table, then by name."""
    warnings: list[str]

    @property
    def rules(self) -> Edition:
        """The edition's."""
        return edition(self.settings.year)

    @cached_property
    def ranks(self) -> Ranks | None:
        """Ranks of the methods; None if there is only one."""
        return rank(class_means(self.scores, self.rules), self.rules) if len(self.predictions) > 1 else None

    @cached_property
    def compared(self) -> dict[str, list[PairedDifference]]:
        """Every other method to its comparison with `settings.against`, case by case; empty if that is None."""
        other = self.settings.against
        return {m: compare(self.scores, m, other, self.rules) for m in self.predictions if m != other} if other else {}

    def markdown(self) -> str:
        """All tables."""
        parts = [f"## SELMA3D {self.settings.year}"]
        parts += [tables.as_markdown(table) for table in self._means()]
        parts += [tables.case_counts(self.scores), *tables.without_value(self.scores)]
        for title, table in self._further_tables():
            parts += [f"## {title}", tables.as_markdown(table)]
        if self.warnings:
            parts += ["## Warnings", "\n".join(f"- {warning}" for warning in self.warnings)]
        return "\n\n".join(parts) + "\n"

    def latex(self) -> str:
        """All tables, for a paper (needs the package booktabs)."""
        parts = [tables.as_latex(table) for table in self._means()]
        parts += [f"% {sentence}" for sentence in (tables.case_counts(self.scores), *tables.without_value(self.scores))]
        parts += [f"% {title}\n{tables.as_latex(table)}" for title, table in self._further_tables()]
        return "\n\n".join(parts) + "\n"

    def _means(self) -> list[Table]:
        return tables.means(self.scores, self.rules, corrected=self.settings.corrected)

    def _further_tables(self) -> list[tuple[str, Table]]:
        found = []
        rule = self.settings.extras.objects
        if extras := tables.extras(self.scores, sample=self.rules.sample_deviation, rule=str(rule) if rule else None):
            found.append(("Beyond the official metrics", extras))
        if self.ranks:
            found.append(("Mean ranks", tables.ranks(self.ranks)))
        for method, rows in self.compared.items():
            other = str(self.settings.against)
            found.append((f"{method} against {other}", tables.paired(rows, method, other, self.rules)))
        return found


def evaluate(
    reference: Path,
    predictions: Mapping[str, Path],
    settings: EvaluationSettings,
    *,
    output: Path | None = None,
    images: Path | None = None,
    sheets: bool = True,
    workers: int = 1,
    progress: Progress[Any] = silent,
) -> Evaluation:
    """Score predictions against ground truth, case by case, in several processes.

    Args:
        reference: folder of ground truths, or one file.
        predictions: method to its folder of predictions, or file.
        settings: rules, structure, what else to measure.
        output: folder for scores of single cases, from which a run that was killed goes on, and for pictures; None keeps nothing.
        images: folder of raw images, for the pictures.
        sheets: whether to draw a picture of each case (with an output folder).
        workers: most processes at a time; each holds a case.
        progress: shows the cases.

    Raises:
        SelmaError: the rules or the files cannot be used; the message says which.
    """
    edition(settings.year)
    if settings.against is not None and (settings.against not in predictions or len(predictions) < 2):
        raise SelmaError(
            f"{settings.against}: there is no other method to compare with it; methods are {', '.join(predictions)}"
        )
    cases, warnings = find_cases(
        reference,
        predictions,
        structure=settings.structure,
        missing=settings.missing,
        images=images if output and sheets else None,
        spacing_um_zyx=settings.spacing_um_zyx,
    )
    one = next(iter(cases.values()))
    _check_spacing(one, settings.extras)
    warnings += _useless(one, settings.extras)
    tasks = [
        ScoreTask(
            cases={method: of_method[number] for method, of_method in cases.items()},
            year=settings.year,
            extras=settings.extras,
            output=output,
            sheets=sheets,
        )
        for number in range(len(one))
    ]
    if output:
        output.mkdir(parents=True, exist_ok=True)
    steps = len(tasks) * len(cases)
    by_case = run_tasks(
        score_case, tasks, steps=steps, workers=workers, label=f"scoring {steps} masks", progress=progress
    )
    scores = [score for number in range(len(cases)) for score in (of_case[number] for of_case in by_case)]
    warnings += [warning for score in scores for warning in score.warnings]
    return Evaluation(settings, reference, dict(predictions), scores, list(dict.fromkeys(warnings)))


def _check_spacing(cases: Iterable[Case], extras: Extras) -> None:
    unknown = {c.name for c in cases if c.spacing_um_zyx is None and extras.of(c.structure).need_spacing}
    if unknown:
        raise SelmaError(
            f"{listed(sorted(unknown))}: neither the header nor the structure says the voxel size, which distances need; give --spacing "
            "Z,Y,X in µm"
        )


def _useless(cases: Sequence[Case], extras: Extras) -> list[str]:
    """A warning for each measurement that fits no case."""
    return [
        f"--{name}: nothing to measure, no case shows a structure that it is for"
        for name in ("objects", "size")
        if getattr(extras, name) and not any(getattr(extras.of(case.structure), name) for case in cases)
    ]


def write_evaluation(evaluation: Evaluation, output: Path) -> None:
    """Write `cases.csv`, `evaluation.json`, `tables.md`, `tables.tex`, and pictures over all cases, into a folder."""
    rules, scores, corrected = evaluation.rules, evaluation.scores, evaluation.settings.corrected
    output.mkdir(parents=True, exist_ok=True)
    ranks, compared = evaluation.ranks, evaluation.compared
    write_text(output / "cases.csv", tables.cases_csv(scores, corrected=corrected))
    write_text(output / "tables.md", evaluation.markdown())
    write_text(output / "tables.tex", evaluation.latex())
    write_json(
        output / "evaluation.json",
        without_nan(
            {
                "version": __version__,
                "reference": str(evaluation.reference),
                "predictions": {method: str(folder) for method, folder in evaluation.predictions.items()},
                "settings": asdict(evaluation.settings),
                "cases": [score.as_json() for score in scores],
                "means": class_means(scores, rules),
                "ranks": asdict(ranks) if ranks else None,
                "against": {method: [asdict(row) for row in rows] for method, rows in compared.items()},
                "warnings": evaluation.warnings,
            }
        ),
    )
    pictures.score_boxes(output / "scores.png", _panels(evaluation))
    (output / "ranks.png").unlink(missing_ok=True)  # of an earlier run with more methods
    if ranks:
        pictures.rank_plot(output / "ranks.png", ranks.classes, ranks.overall)


def _panels(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, dict[str, list[float]]]]]]:
    rows = []
    for prefix in dict.fromkeys(score.structure for score in evaluation.scores):
        structure = named(prefix)
        panels = []
        for metric in evaluation.rules.metrics_of(structure):
            scale = 100 if metric.percent else 1
            values = {
                method: [
                    scale * score.official[metric.key]
                    for score in evaluation.scores
                    if score.method == method and score.structure == prefix
                ]
                for method in evaluation.predictions
            }
            panels.append((f"{metric.title} {'↑' if metric.higher_is_better else '↓'}", values))
        rows.append((structure.title, panels))
    return rows
