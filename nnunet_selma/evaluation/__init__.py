"""Predictions compared with ground truth by the rules of a SELMA3D edition: folders in, tables and pictures out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation import pictures, tables
from nnunet_selma.evaluation.cases import CaseFiles, Missing, find_cases, listed
from nnunet_selma.evaluation.classes import LabelClass, find_classes, ignored_value
from nnunet_selma.evaluation.comparison import PairedDifference, Ranks, class_means, compare, rank
from nnunet_selma.evaluation.metrics.editions import Edition, edition
from nnunet_selma.evaluation.metrics.extras import Extras
from nnunet_selma.evaluation.metrics.matching import MatchingRule
from nnunet_selma.evaluation.scoring import CaseScore, ScoreTask, score_case
from nnunet_selma.evaluation.sections import PageSection, as_latex, as_markdown
from nnunet_selma.running.json_files import read_json, without_nan, write_json, write_text
from nnunet_selma.running.parallel import run_tasks
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import PREFIXES, SpacingUm, Structure, chosen_structure, find_structure, named

__all__ = ["Evaluation", "EvaluationSettings", "evaluate", "read_evaluation", "write_evaluation"]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Options of an evaluation."""

    year: int
    """Edition whose rules count: 2024 or 2026."""
    corrected: bool = False
    """Show the corrected value beside a metric that the official evaluator computes wrongly (docs/metrics.md)."""
    structure: str | None = None
    """Structure of all cases, one of SELMA3D's or a new name with its kind; None: that with which their names begin."""
    kind: Literal["spot", "tree"] | None = None
    """Shape of a new structure, which decides the metrics."""
    foreground: int | None = None
    """Value of the objects in the ground truths; None: every value above 0."""
    per_class: bool = False
    """Score each class of the label files on its own: those that dataset.json or the OME-Zarr names, else each value above 0."""
    missing: Missing = "error"
    """Treatment of cases that one side lacks."""
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size, µm; None: that of the header, or of the structure."""
    extras: Extras = field(default_factory=Extras)
    """Measurements beyond the official metrics."""
    against: str | None = None
    """Method with which every other one is compared, case by case."""


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation."""

    settings: EvaluationSettings
    reference: Path
    predictions: Mapping[str, Path]
    scores: list[CaseScore]
    """One for each method and case, and class with `per_class`: by method, then by structure in the order of the structure table, then by name."""
    warnings: list[str]

    @property
    def rules(self) -> Edition:
        """Rules of the edition."""
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

    def sections(self) -> list[PageSection]:
        """All tables, the sentences that belong to them, and the warnings."""
        scores, rules, rule = self.scores, self.rules, self.settings.extras.objects
        means = tables.means(scores, rules, corrected=self.settings.corrected)
        sections = [
            PageSection(
                f"SELMA3D {self.settings.year}", [*means, tables.case_counts(scores), *tables.without_value(scores)]
            )
        ]
        if extras := tables.extras(scores, ddof=rules.ddof, rule=str(rule) if rule else None):
            sections.append(PageSection("Beyond the official metrics", [extras]))
        if self.ranks:
            sections.append(PageSection("Mean ranks", [tables.ranks(self.ranks)]))
        for method, differences in self.compared.items():
            other = str(self.settings.against)
            table = tables.paired(differences, method, other, rules)
            sections.append(PageSection(f"{method} against {other}", [table]))
        if self.warnings:
            sections.append(PageSection("Warnings", [self.warnings]))
        return sections

    def markdown(self) -> str:
        """All sections in Markdown."""
        return as_markdown(self.sections())

    def latex(self) -> str:
        """All tables in LaTeX, for a paper; needs the package booktabs."""
        return as_latex(self.sections())


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
        reference: folder of ground truths, or one volume.
        predictions: method to its folder of predictions, or to one volume.
        settings: edition, structure, further measurements.
        output: folder for the pictures and for the scores of single cases, which a later run does not compute again; None keeps nothing.
        images: folder of raw images, for the pictures.
        sheets: draw a picture of each case, if there is an output folder.
        workers: greatest number of processes; each holds one case in memory.
        progress: shows the cases.

    Raises:
        SelmaError: there are no such rules, or the files cannot be compared; the message says which.
    """
    edition(settings.year)
    if settings.against is not None and (settings.against not in predictions or len(predictions) < 2):
        raise SelmaError(
            f"{settings.against}: there is no other method to compare with it; methods are {', '.join(predictions)}"
        )
    if settings.per_class and settings.foreground is not None:
        raise SelmaError("--per-class scores every class; leave --foreground out")
    cases, warnings = find_cases(
        reference,
        predictions,
        structure=_chosen(settings),
        missing=settings.missing,
        images=images if output and sheets else None,
        spacing_um_zyx=settings.spacing_um_zyx,
    )
    of_one_method = next(iter(cases.values()))
    classes: tuple[LabelClass, ...] = ()
    if settings.per_class:
        every = [case for of_method in cases.values() for case in of_method]
        classes = find_classes(reference, predictions.values(), every, workers=workers, progress=progress)
    ignored, unapplied = ignored_value(reference, predictions.values())
    warnings += unapplied
    _check_spacing(of_one_method, settings.extras)
    warnings += _warnings_of_useless(of_one_method, settings.extras)
    tabled = [
        c.name for c in of_one_method if c.spacing_from_table and settings.extras.suited_to(c.structure).need_spacing
    ]
    if tabled:
        warnings.append(f"distances in voxels of SELMA3D's table, because no header says their size: {listed(tabled)}")
    tasks = [
        ScoreTask(
            cases={method: of_method[number] for method, of_method in cases.items()},
            year=settings.year,
            foreground=settings.foreground,
            extras=settings.extras,
            output=output,
            sheets=sheets,
            classes=classes,
            ignored=ignored,
        )
        for number in range(len(of_one_method))
    ]
    if output:
        output.mkdir(parents=True, exist_ok=True)
    steps = len(tasks) * len(cases) * max(1, len(classes))
    by_case = run_tasks(
        score_case, tasks, steps=steps, workers=workers, label=f"scoring {steps} masks", progress=progress
    )
    scores = [score for method in cases for of_case in by_case for score in of_case if score.method == method]
    warnings += [warning for score in scores for warning in score.warnings]
    return Evaluation(settings, reference, dict(predictions), scores, list(dict.fromkeys(warnings)))


def _chosen(settings: EvaluationSettings) -> Structure | None:
    """The structure of all cases; None takes it from their names."""
    if settings.structure is None:
        if settings.kind is not None:
            raise SelmaError("a kind says what shape a new structure has; name the structure with --structure")
        return None
    if find_structure(settings.structure) is None and settings.kind is None:
        raise SelmaError(
            f"{settings.structure}: is no structure of SELMA3D; say with --kind whether it is judged as spots or as a tree, or choose one "
            f"of {', '.join(PREFIXES)}"
        )
    return chosen_structure(settings.structure, settings.kind)


def _check_spacing(cases: Iterable[CaseFiles], extras: Extras) -> None:
    unknown = {c.name for c in cases if c.spacing_um_zyx is None and extras.suited_to(c.structure).need_spacing}
    if unknown:
        raise SelmaError(
            f"{listed(sorted(unknown))}: neither the header nor the structure says the voxel size, which distances need; give --spacing "
            "Z,Y,X in µm"
        )


def _warnings_of_useless(cases: Sequence[CaseFiles], extras: Extras) -> list[str]:
    """A warning for each measurement that fits the structure of no case."""
    return [
        f"--{name}: nothing to measure, no case shows a structure that it is for"
        for name in ("objects", "size")
        if getattr(extras, name) and not any(getattr(extras.suited_to(case.structure), name) for case in cases)
    ]


_RESULTS = "evaluation.json"


def write_evaluation(evaluation: Evaluation, output: Path) -> None:
    """Write `cases.csv`, `evaluation.json`, `tables.md`, `tables.tex`, and pictures over all cases, into a folder."""
    rules, scores = evaluation.rules, evaluation.scores
    output.mkdir(parents=True, exist_ok=True)
    ranks, compared = evaluation.ranks, evaluation.compared
    write_text(output / "cases.csv", tables.cases_csv(scores, corrected=evaluation.settings.corrected))
    write_text(output / "tables.md", evaluation.markdown())
    write_text(output / "tables.tex", evaluation.latex())
    write_json(
        output / _RESULTS,
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


def read_evaluation(folder: Path) -> Evaluation:
    """Restore the evaluation that `write_evaluation` wrote into a folder."""
    content = read_json(folder / _RESULTS)
    settings, extras = content["settings"], content["settings"]["extras"]
    rule, spacing = extras["objects"], settings["spacing_um_zyx"]
    settings["extras"] = Extras(**{**extras, "objects": MatchingRule(**rule) if rule else None})
    settings["spacing_um_zyx"] = tuple(spacing) if spacing else None
    return Evaluation(
        settings=EvaluationSettings(**settings),
        reference=Path(content["reference"]),
        predictions={method: Path(path) for method, path in content["predictions"].items()},
        scores=[CaseScore.from_json(case) for case in content["cases"]],
        warnings=content["warnings"],
    )


def _panels(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, dict[str, list[float]]]]]]:
    """Rows of `pictures.score_boxes`."""
    rows = []
    for group in dict.fromkeys(score.group for score in evaluation.scores):
        panels = []
        for metric in evaluation.rules.metrics_of(named(group.structure)):
            values: dict[str, list[float]] = {method: [] for method in evaluation.predictions}
            for score in evaluation.scores:
                if score.group == group:
                    values[score.method].append(metric.scale * score.official[metric.key])
            panels.append((metric.heading, values))
        rows.append((group.title, panels))
    return rows
