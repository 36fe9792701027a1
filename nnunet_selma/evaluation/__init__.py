"""Folders in, tables and pictures out: predictions against ground truth, by the rules of a SELMA3D edition."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_selma import figures
from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation import tables
from nnunet_selma.evaluation.cases import Case, Missing, find_cases, listed
from nnunet_selma.evaluation.comparison import PairedDifference, Ranks, class_means, compare, rank
from nnunet_selma.evaluation.scoring import CaseScore, ScoreTask, score_case
from nnunet_selma.evaluation.tables import Table
from nnunet_selma.json_files import without_nan, write_json, write_text
from nnunet_selma.metrics.editions import Edition, edition
from nnunet_selma.metrics.extras import Extras
from nnunet_selma.parallel import run_tasks
from nnunet_selma.progress import Progress, silent
from nnunet_selma.structures import PREFIXES, SpacingUm, named

__all__ = ["Evaluation", "EvaluationSettings", "evaluate", "write_evaluation"]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is asked for."""

    year: int
    """Edition whose rules count: 2024 or 2026."""
    corrected: bool = False
    """Show what a metric should say beside what the official evaluator says."""
    structure: str | None = None
    """Structure of all cases, where their names do not begin with it."""
    missing: Missing = "error"
    """What to do about cases that one side lacks."""
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size, µm, where headers and structure table are not to be believed."""
    extras: Extras = field(default_factory=Extras)
    """What to measure beyond the official metrics."""


@dataclass(frozen=True)
class Evaluation:
    """What came out."""

    settings: EvaluationSettings
    scores: list[CaseScore]
    """Method by method, by structure in the order of the structure table, then by name."""
    warnings: list[str]

    @property
    def rules(self) -> Edition:
        """The edition's."""
        return edition(self.settings.year)

    @property
    def methods(self) -> list[str]:
        """In the order they were given."""
        return list(dict.fromkeys(score.method for score in self.scores))

    def ranks(self) -> Ranks | None:
        """Ranks of the methods; None if there is only one."""
        return rank(class_means(self.scores, self.rules), self.rules) if len(self.methods) > 1 else None

    def against(self, other: str) -> dict[str, list[PairedDifference]]:
        """Every other method to its comparison with that one, case by case."""
        if other not in self.methods:
            raise SelmaError(f"{other!r} is none of the methods: {', '.join(self.methods)}")
        return {m: compare(self.scores, m, other, self.rules) for m in self.methods if m != other}

    def markdown(self, other: str | None = None) -> str:
        """All tables."""
        parts = [f"## SELMA3D {self.settings.year}"]
        parts += [tables.as_markdown(table) for table in self._means()]
        parts += [tables.case_counts(self.scores), *tables.without_value(self.scores)]
        for title, table in self._further_tables(other):
            parts += [f"## {title}", tables.as_markdown(table)]
        if self.warnings:
            parts += ["## Warnings", "\n".join(f"- {warning}" for warning in self.warnings)]
        return "\n\n".join(parts) + "\n"

    def latex(self, other: str | None = None) -> str:
        """All tables, for a paper (needs the package booktabs)."""
        parts = [tables.as_latex(table) for table in self._means()]
        parts += [f"% {sentence}" for sentence in (tables.case_counts(self.scores), *tables.without_value(self.scores))]
        parts += [f"% {title}\n{tables.as_latex(table)}" for title, table in self._further_tables(other)]
        return "\n\n".join(parts) + "\n"

    def _means(self) -> list[Table]:
        return tables.means(self.scores, self.rules, corrected=self.settings.corrected)

    def _further_tables(self, other: str | None) -> list[tuple[str, Table]]:
        found = []
        if extras := tables.extras(self.scores, sample=self.rules.sample_deviation):
            found.append(("Beyond the official metrics", extras))
        if ranks := self.ranks():
            found.append(("Mean ranks", tables.ranks(ranks)))
        for method, rows in self.against(other).items() if other else ():
            found.append((f"{method} against {other}", tables.paired(rows, method, str(other), self.rules)))
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
    cases, warnings = _cases(reference, predictions, settings, images)
    tasks = [
        ScoreTask(
            cases={method: of_method[number] for method, of_method in cases.items()}, year=settings.year,
            extras=settings.extras, output=output, sheets=sheets,
        )
        for number in range(len(next(iter(cases.values()))))
    ]  # fmt: skip
    if output:
        output.mkdir(parents=True, exist_ok=True)
    steps = len(tasks) * len(cases)
    by_case = run_tasks(
        score_case, tasks, steps=steps, workers=workers, label=f"scoring {steps} masks", progress=progress
    )
    scores = [score for number in range(len(cases)) for score in (of_case[number] for of_case in by_case)]
    warnings += [warning for score in scores for warning in score.warnings]
    return Evaluation(settings, scores, list(dict.fromkeys(warnings)))


def _cases(
    reference: Path, predictions: Mapping[str, Path], settings: EvaluationSettings, images: Path | None
) -> tuple[dict[str, list[Case]], list[str]]:
    """The cases of each method, the same for all, by structure and name; and warnings."""
    cases, warnings = {}, []
    for method, folder in predictions.items():
        cases[method], found = find_cases(
            reference, folder, structure=settings.structure, missing=settings.missing, images=images,
            spacing_um_zyx=settings.spacing_um_zyx,
        )  # fmt: skip
        warnings += found
    common = set.intersection(*({case.name for case in of_method} for of_method in cases.values()))
    for method, of_method in cases.items():
        alone = [case.name for case in of_method if case.name not in common]
        if alone:
            warnings.append(f"{method}: left out, because not all methods have them: {listed(alone)}")
        cases[method] = sorted(
            (case for case in of_method if case.name in common),
            key=lambda case: (PREFIXES.index(case.structure.prefix), case.name),
        )
    if not common:
        raise SelmaError(f"{', '.join(predictions)}: have no case in common")
    every = [case for of_method in cases.values() for case in of_method]
    unknown = {
        case.name for case in every if case.spacing_um_zyx is None and settings.extras.of(case.structure).need_spacing
    }
    if unknown:
        raise SelmaError(
            f"{listed(sorted(unknown))}: neither the header nor the structure says the voxel size, which distances need; give --spacing "
            "Z,Y,X in µm"
        )
    for name in ("objects", "size"):
        if getattr(settings.extras, name) and not any(getattr(settings.extras.of(c.structure), name) for c in every):
            warnings.append(f"--{name}: nothing to measure, no case shows a structure that it is for")
    return cases, warnings


def write_evaluation(evaluation: Evaluation, output: Path, *, other: str | None = None) -> None:
    """Write `cases.csv`, `evaluation.json`, `tables.md`, `tables.tex`, and pictures over all cases, into a folder."""
    rules, scores, corrected = evaluation.rules, evaluation.scores, evaluation.settings.corrected
    output.mkdir(parents=True, exist_ok=True)
    ranks = evaluation.ranks()
    compared = evaluation.against(other) if other else {}
    write_text(output / "cases.csv", tables.cases_csv(scores, corrected=corrected))
    write_text(output / "tables.md", evaluation.markdown(other))
    write_text(output / "tables.tex", evaluation.latex(other))
    write_json(
        output / "evaluation.json",
        without_nan(
            {
                "settings": asdict(evaluation.settings),
                "cases": [score.as_json() for score in scores],
                "means": class_means(scores, rules),
                "ranks": asdict(ranks) if ranks else None,
                "against": {method: [asdict(row) for row in rows] for method, rows in compared.items()},
                "warnings": evaluation.warnings,
            }
        ),
    )
    figures.score_boxes(output / "scores.png", _panels(evaluation))
    (output / "ranks.png").unlink(missing_ok=True)  # of an earlier run with more methods
    if ranks:
        figures.rank_plot(output / "ranks.png", ranks.classes, ranks.overall)


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
                for method in evaluation.methods
            }
            panels.append((f"{metric.title} {'↑' if metric.higher_is_better else '↓'}", values))
        rows.append((structure.title, panels))
    return rows
