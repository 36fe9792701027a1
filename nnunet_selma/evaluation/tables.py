"""Tables of scores: every case (CSV), means per structure in the layout of the challenge paper, ranks, comparisons of two methods."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, isnan, log10, nan

import numpy as np

from nnunet_selma.evaluation.comparison import PairedDifference, Ranks
from nnunet_selma.evaluation.metrics.editions import Edition, Metric
from nnunet_selma.evaluation.scoring import CaseScore, Group
from nnunet_selma.evaluation.sections import Table
from nnunet_selma.structures import named

_MOST_COLUMNS = 6
"""Columns of one table, as in tables 4 and 5 of the paper; further structures go into further tables."""
_FEWEST_FOR_WILCOXON = 6
_DIGITS = 4


@dataclass(frozen=True)
class Summary:
    """One metric over the cases of a structure."""

    mean: float
    standard_deviation: float
    cases: int
    without_value: tuple[str, ...]
    """Cases in which the metric is NaN."""

    @classmethod
    def over(cls, values: Mapping[str, float], *, ddof: int, leave_out_nan: bool = False) -> "Summary":
        """Summarize the values of some cases.

        Args:
            values: case to value; one NaN makes the mean NaN, as it does in the official evaluators.
            ddof: 0 or 1: the standard deviation divides by the number of cases minus this; NaN where that is 0.
            leave_out_nan: take the mean over the cases that have a value.
        """
        without = tuple(case for case, value in values.items() if isnan(value))
        numbers = np.array([value for value in values.values() if not (leave_out_nan and isnan(value))])
        return cls(
            mean=float(numbers.mean()) if len(numbers) else nan,
            standard_deviation=float(numbers.std(ddof=ddof)) if len(numbers) > ddof else nan,
            cases=len(values),
            without_value=without,
        )

    def cell(self, *, percent: bool) -> str:
        """Mean ± standard deviation with the same number of decimals, as in the paper, and the number of cases without value."""
        scale = 100 if percent else 1
        lacking = f" ({len(self.without_value)} of {self.cases} NaN)" if self.without_value else ""
        if isnan(self.mean):
            return f"NaN{lacking}"
        digits = _decimals(self.mean * scale, percent=percent)
        spread = "–" if isnan(self.standard_deviation) else f"{self.standard_deviation * scale:.{digits}f}"
        return f"{self.mean * scale:.{digits}f} ± {spread}{lacking}"


def _decimals(value: float, *, percent: bool) -> int:
    """Digits after the point, as in the paper: two for percentages; for other numbers, as many as make four digits count."""
    if percent or not value or isnan(value):
        return 2 if percent else 3
    leading = floor(log10(float(f"{abs(value):.{_DIGITS - 1}e}")))
    return min(max(_DIGITS - 1 - leading, 0), _DIGITS)


@dataclass(frozen=True)
class Column:
    """A metric of a structure, or of a class of it."""

    group: Group
    metric: Metric
    corrected: bool

    @property
    def title(self) -> str:
        """Name of the metric in a table, with an arrow in the better direction."""
        return f"{self.metric.title}, corrected {self.metric.arrow}" if self.corrected else self.metric.heading

    def cell(self, scores: Sequence[CaseScore], method: str, *, ddof: int) -> str:
        """Mean ± standard deviation over the cases of a method."""
        values = {
            score.case: (score.corrected if self.corrected else score.official)[self.metric.key]
            for score in scores
            if score.method == method and score.group == self.group
        }
        return Summary.over(values, ddof=ddof).cell(percent=self.metric.percent)


def columns(scores: Sequence[CaseScore], rules: Edition, *, corrected: bool) -> list[list[Column]]:
    """The columns of each table; with `corrected`, a metric stands twice where its official and corrected values differ in a case."""
    tables: list[list[Column]] = []
    for group in dict.fromkeys(score.group for score in scores):
        of_group = []
        for metric in rules.metrics_of(named(group.structure)):
            of_group.append(Column(group, metric, corrected=False))
            if corrected and any(_differs(score, metric.key) for score in scores if score.group == group):
                of_group.append(Column(group, metric, corrected=True))
        if not tables or len(tables[-1]) + len(of_group) > _MOST_COLUMNS:
            tables.append([])
        tables[-1].extend(of_group)
    return tables


def _differs(score: CaseScore, key: str) -> bool:
    """True if the official value differs from the corrected one, NaN included."""
    return key in score.corrected and score.official[key] != score.corrected[key]


def means(scores: Sequence[CaseScore], rules: Edition, *, corrected: bool) -> list[Table]:
    """Methods in rows, structures and their metrics in columns, mean ± standard deviation: the paper's tables 4 and 5."""
    methods = list(dict.fromkeys(score.method for score in scores))
    tables = []
    for of_table in columns(scores, rules, corrected=corrected):
        groups = [column.group for column in of_table]
        rows = [[method, *(column.cell(scores, method, ddof=rules.ddof) for column in of_table)] for method in methods]
        heads = [(group.title, groups.count(group)) for group in dict.fromkeys(groups)]
        tables.append(Table(head=["method", *(column.title for column in of_table)], rows=rows, groups=heads))
    return tables


def case_counts(scores: Sequence[CaseScore]) -> str:
    """A sentence that says how many cases each structure has, and each class of it."""
    cases = dict.fromkeys((score.group.title, score.case) for score in scores)
    titles = [title for title, _ in cases]
    counted = [f"{title} {titles.count(title)}" for title in dict.fromkeys(titles)]
    return f"Mean ± standard deviation over cases ({', '.join(counted)})."


def without_value(scores: Sequence[CaseScore]) -> list[str]:
    """A sentence for each method and metric that is NaN for some cases, with their names."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for score in scores:
        for key, value in [*score.official.items(), *score.extra.items()]:
            if isnan(value):
                lacking.setdefault((score.method, key), []).append(
                    f"{score.case} ({score.label})" if score.label else score.case
                )
    return [f"{method}: {key} has no value (NaN) in {', '.join(cases)}." for (method, key), cases in lacking.items()]


def extras(scores: Sequence[CaseScore], *, ddof: int, rule: str | None = None) -> Table | None:
    """Table of the measurements beyond the official metrics, over the cases that have a value; None if nothing was measured.

    Args:
        scores: every case of every method.
        ddof: as of `Summary.over`.
        rule: the rule by which objects were matched, for the note.
    """
    names = list(dict.fromkeys(key for score in scores for key in score.extra))
    if not names:
        return None
    rows = []
    for group, method in dict.fromkeys((score.group, score.method) for score in scores):
        members = [score for score in scores if (score.group, score.method) == (group, method)]
        cells = []
        for name in names:
            values = {score.case: score.extra[name] for score in members if name in score.extra}
            cells.append(Summary.over(values, ddof=ddof, leave_out_nan=True).cell(percent=False) if values else "–")
        rows.append([group.title, method, *cells])
    notes = [f"Objects match by {rule}."] if rule else []
    return Table(head=["structure", "method", *names], rows=rows, names=2, notes=notes)


def ranks(ranks: Ranks) -> Table:
    """Mean rank per class of structures, and overall; best method first."""
    names = list(next(iter(ranks.classes.values())))
    rows = []
    for method, overall in ranks.overall.items():
        place = 1 + sum(other < overall for other in ranks.overall.values())
        numbers = [*(ranks.classes[method][name] for name in names), overall]
        rows.append([str(place), method, *(f"{number:.3f}" for number in numbers)])
    return Table(head=["place", "method", *names, "overall"], rows=rows, names=2)


def paired(differences: Sequence[PairedDifference], method: str, other: str, rules: Edition) -> Table:
    """Two methods case by case: the paper's table 6, with intervals and tests."""
    rows = []
    for row in differences:
        metric = next(m for m in rules.metrics_of(named(row.structure)) if m.key == row.metric)
        mean, other_mean, difference, low, high = (
            "–"
            if isnan(value)
            else f"{value * metric.scale:.{_decimals(value * metric.scale, percent=metric.percent)}f}"
            for value in (row.mean, row.other_mean, row.difference, row.low, row.high)
        )
        rows.append(
            [
                row.group.title,
                metric.heading,
                f"{row.cases} ({row.without_value} NaN)" if row.without_value else str(row.cases),
                mean,
                other_mean,
                difference,
                f"{low} to {high}",
                f"{row.better} / {row.worse}",
                "–" if isnan(row.p) else f"{row.p:.3g}",
            ]
        )
    few = any(row.better + row.worse < _FEWEST_FOR_WILCOXON for row in differences)
    note = f"Where fewer than {_FEWEST_FOR_WILCOXON} cases differ, the Wilcoxon test cannot fall below 0.05, whatever they say."
    numbers = ["cases", method, other, "difference", "95 % interval", "better / worse", "p (Wilcoxon)"]
    return Table(head=["structure", "metric", *numbers], rows=rows, names=2, notes=[note] if few else [])


def cases_csv(scores: Sequence[CaseScore], *, corrected: bool) -> str:
    """One row for each case, method, and class where these are scored apart; a cell is empty where the structure has no such metric, and nan where the metric has no value."""
    official = list(dict.fromkeys(key for score in scores for key in score.official))
    fixed = list(dict.fromkeys(key for score in scores for key in score.corrected)) if corrected else []
    extra = list(dict.fromkeys(key for score in scores for key in score.extra))
    classes = ["class"] if any(score.label for score in scores) else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["method", "case", "structure", *classes, *official, *(f"{key}_corrected" for key in fixed), *extra, "warnings"]
    )
    for score in scores:
        values = [
            *(score.official.get(key) for key in official),
            *(score.corrected.get(key) for key in fixed),
            *(score.extra.get(key) for key in extra),
        ]
        cells = ["" if value is None else f"{value:.10g}" for value in values]
        writer.writerow(
            [
                score.method,
                score.case,
                score.structure,
                *[score.label for _ in classes],
                *cells,
                "; ".join(score.warnings),
            ]
        )
    return text.getvalue()
