"""Tables: every case (CSV), and means per structure in the layout of the challenge paper, ranks and comparisons (Markdown, LaTeX)."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, isnan, log10, nan

import numpy as np

from nnunet_selma.evaluation.comparison import PairedDifference, Ranks
from nnunet_selma.evaluation.metrics.editions import Edition, Metric
from nnunet_selma.evaluation.scoring import CaseScore
from nnunet_selma.structures import named

_MOST_COLUMNS = 6
"""As many as tables 4 and 5 of the paper have; more structures go into further tables."""
_FEWEST_FOR_WILCOXON = 6
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text; the first `names` columns are names, the rest numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    groups: Sequence[tuple[str, int]] = ()
    """Common heads of columns of numbers, from left to right, and how many columns each is for."""
    notes: Sequence[str] = ()
    """Sentences below it."""


def as_markdown(table: Table) -> str:
    """Markdown; a common head stands before the head of each of its columns."""
    above = [group for group, width in table.groups for _ in range(width)] or [""] * (len(table.head) - table.names)
    heads = [
        f"{group}: {head}" if group else head for group, head in zip(above, table.head[table.names :], strict=True)
    ]
    lines = [[*table.head[: table.names], *heads], ["---"] * table.names + ["---:"] * len(heads), *table.rows]
    text = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return "\n\n".join([text, *table.notes])


def as_latex(table: Table) -> str:
    """LaTeX with booktabs; notes are comments."""
    numbers = len(table.head) - table.names
    lines = [rf"\begin{{tabular}}{{{'l' * table.names}{'c' * numbers}}}", r"\toprule"]
    if table.groups:
        heads = [rf"\multicolumn{{{width}}}{{c}}{{{_escaped(group)}}}" for group, width in table.groups]
        ends = np.cumsum([table.names, *(width for _, width in table.groups)])
        lines += [" & ".join([""] * table.names + heads).lstrip() + r" \\"]
        lines += [" ".join(rf"\cmidrule(lr){{{a + 1}-{b}}}" for a, b in pairwise(ends))]
    body = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in (table.head, *table.rows)]
    lines += [body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, *(f"% {note}" for note in table.notes)])


_LATEX = {
    **{character: "\\" + character for character in "&%_#${}"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "β": r"$\beta$",
    "β0": r"$\beta_0$",
    "β1": r"$\beta_1$",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
}
_TO_ESCAPE = re.compile("|".join(re.escape(text) for text in sorted(_LATEX, key=len, reverse=True)))


def _escaped(text: str) -> str:
    return _TO_ESCAPE.sub(lambda found: _LATEX[found[0]], text)


@dataclass(frozen=True)
class Summary:
    """One metric over the cases of a structure."""

    mean: float
    deviation: float
    cases: int
    without_value: tuple[str, ...]
    """Cases in which it is NaN."""

    @classmethod
    def of(cls, values: Mapping[str, float], *, sample: bool, leave_out_nan: bool = False) -> "Summary":
        """From case to value.

        Args:
            values: case to value; one NaN makes the mean NaN, as it does in the official evaluators.
            sample: take n - 1 for the standard deviation, which is NaN for a single case then.
            leave_out_nan: take the mean over the cases that have a value.
        """
        without = tuple(case for case, value in values.items() if isnan(value))
        numbers = np.array([value for value in values.values() if not (leave_out_nan and isnan(value))])
        enough = len(numbers) > int(sample)
        return cls(
            mean=float(numbers.mean()) if len(numbers) else nan,
            deviation=float(numbers.std(ddof=int(sample))) if enough else nan,
            cases=len(values),
            without_value=without,
        )

    def cell(self, *, percent: bool) -> str:
        """Mean ± deviation with as many decimals, as in the paper, and how many cases have no value."""
        scale = 100 if percent else 1
        lacking = f" ({len(self.without_value)} of {self.cases} NaN)" if self.without_value else ""
        if isnan(self.mean):
            return f"NaN{lacking}"
        digits = decimals(self.mean * scale, percent=percent)
        deviation = "–" if isnan(self.deviation) else f"{self.deviation * scale:.{digits}f}"
        return f"{self.mean * scale:.{digits}f} ± {deviation}{lacking}"


def decimals(value: float, *, percent: bool) -> int:
    """Digits after the point: two for percentages, for the rest so many that four digits count, as in the paper."""
    if percent or not value or isnan(value):
        return 2 if percent else 3
    leading = floor(log10(float(f"{abs(value):.{_DIGITS - 1}e}")))
    return min(max(_DIGITS - 1 - leading, 0), _DIGITS)


@dataclass(frozen=True)
class Column:
    """A metric of a structure."""

    structure: str
    metric: Metric
    corrected: bool

    @property
    def title(self) -> str:
        """Name of the metric in a table, with an arrow in the better direction."""
        return f"{self.metric.title}{', corrected' if self.corrected else ''} {'↑' if self.metric.higher_is_better else '↓'}"

    def cell(self, scores: Sequence[CaseScore], method: str, *, sample: bool) -> str:
        """Over the cases of a method."""
        values = {
            score.case: (score.corrected if self.corrected else score.official)[self.metric.key]
            for score in scores
            if score.method == method and score.structure == self.structure
        }
        return Summary.of(values, sample=sample).cell(percent=self.metric.percent)


def columns(scores: Sequence[CaseScore], rules: Edition, *, corrected: bool) -> list[list[Column]]:
    """The columns of each table; with `corrected`, a metric stands twice where a case met one of its corners."""
    tables: list[list[Column]] = []
    for structure in dict.fromkeys(score.structure for score in scores):
        group = []
        for metric in rules.metrics_of(named(structure)):
            group.append(Column(structure, metric, corrected=False))
            if corrected and any(_corner(score, metric.key) for score in scores if score.structure == structure):
                group.append(Column(structure, metric, corrected=True))
        if not tables or len(tables[-1]) + len(group) > _MOST_COLUMNS:
            tables.append([])
        tables[-1].extend(group)
    return tables


def _corner(score: CaseScore, key: str) -> bool:
    """True if the official value differs from the corrected one, NaN included."""
    return key in score.corrected and score.official[key] != score.corrected[key]


def means(scores: Sequence[CaseScore], rules: Edition, *, corrected: bool) -> list[Table]:
    """Methods in rows, structures and their metrics in columns, mean ± standard deviation: the paper's tables 4 and 5."""
    methods = list(dict.fromkeys(score.method for score in scores))
    found = []
    for of_table in columns(scores, rules, corrected=corrected):
        structures = [column.structure for column in of_table]
        rows = [
            [method, *(column.cell(scores, method, sample=rules.sample_deviation) for column in of_table)]
            for method in methods
        ]
        groups = [(named(structure).title, structures.count(structure)) for structure in dict.fromkeys(structures)]
        found.append(Table(head=["method", *(column.title for column in of_table)], rows=rows, groups=groups))
    return found


def case_counts(scores: Sequence[CaseScore]) -> str:
    """A sentence that says how many cases each structure has."""
    cases = dict.fromkeys((named(score.structure).title, score.case) for score in scores)
    titles = [title for title, _ in cases]
    counted = [f"{title} {titles.count(title)}" for title in dict.fromkeys(titles)]
    return f"Mean ± standard deviation over cases ({', '.join(counted)})."


def without_value(scores: Sequence[CaseScore]) -> list[str]:
    """A sentence for each method and metric that is NaN for some cases, with their names."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for score in scores:
        for key, value in [*score.official.items(), *score.extra.items()]:
            if isnan(value):
                lacking.setdefault((score.method, key), []).append(score.case)
    return [f"{method}: {key} has no value (NaN) in {', '.join(cases)}." for (method, key), cases in lacking.items()]


def extras(scores: Sequence[CaseScore], *, sample: bool, rule: str | None = None) -> Table | None:
    """Table of the measurements beyond the official metrics, over the cases that have a value; None if there is none. `rule` matched the objects."""
    names = list(dict.fromkeys(key for score in scores for key in score.extra))
    if not names:
        return None
    rows = []
    for structure, method in dict.fromkeys((score.structure, score.method) for score in scores):
        of = {s.case: s.extra for s in scores if s.structure == structure and s.method == method}
        cells = []
        for name in names:
            values = {case: extra[name] for case, extra in of.items() if name in extra}
            cells.append(Summary.of(values, sample=sample, leave_out_nan=True).cell(percent=False) if values else "–")
        rows.append([named(structure).title, method, *cells])
    notes = [f"Objects match by {rule}."] if rule else []
    return Table(head=["structure", "method", *names], rows=rows, names=2, notes=notes)


def ranks(found: Ranks) -> Table:
    """Mean rank per class of structures, and overall; best method first."""
    names = list(next(iter(found.classes.values())))
    rows = [
        [
            str(1 + sum(other < place for other in found.overall.values())),
            method,
            *(f"{found.classes[method][name]:.3f}" for name in names),
            f"{place:.3f}",
        ]
        for method, place in found.overall.items()
    ]
    return Table(head=["place", "method", *names, "overall"], rows=rows, names=2)


def paired(rows: Sequence[PairedDifference], method: str, other: str, rules: Edition) -> Table:
    """Two methods case by case; the paper's table 6 on its side, with what is needed to believe it."""
    lines = []
    for row in rows:
        metric = next(m for m in rules.metrics_of(named(row.structure)) if m.key == row.metric)
        scale = 100 if metric.percent else 1
        mean, other_mean, difference, low, high = (
            "–" if isnan(value) else f"{value * scale:.{decimals(value * scale, percent=metric.percent)}f}"
            for value in (row.mean, row.other_mean, row.difference, row.low, row.high)
        )
        cases = f"{row.cases} ({row.without_value} NaN)" if row.without_value else str(row.cases)
        title = f"{metric.title} {'↑' if metric.higher_is_better else '↓'}"
        verdict = [f"{row.better} / {row.worse}", "–" if isnan(row.p) else f"{row.p:.3g}"]
        lines.append(
            [named(row.structure).title, title, cases, mean, other_mean, difference, f"{low} to {high}", *verdict]
        )
    few = any(row.better + row.worse < _FEWEST_FOR_WILCOXON for row in rows)
    note = f"Where fewer than {_FEWEST_FOR_WILCOXON} cases differ, the Wilcoxon test cannot fall below 0.05, whatever they say."
    head = [
        "structure",
        "metric",
        "cases",
        method,
        other,
        "difference",
        "95 % interval",
        "better / worse",
        "p (Wilcoxon)",
    ]
    return Table(head=head, rows=lines, names=2, notes=[note] if few else [])


def cases_csv(scores: Sequence[CaseScore], *, corrected: bool) -> str:
    """One row for each case and method; empty where a metric is not of the structure, nan where it has no value."""
    official = list(dict.fromkeys(key for score in scores for key in score.official))
    fixed = list(dict.fromkeys(key for score in scores for key in score.corrected)) if corrected else []
    extra = list(dict.fromkeys(key for score in scores for key in score.extra))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["method", "case", "structure", *official, *(f"{key}_corrected" for key in fixed), *extra, "warnings"]
    )
    for score in scores:
        values = [
            *(score.official.get(key) for key in official),
            *(score.corrected.get(key) for key in fixed),
            *(score.extra.get(key) for key in extra),
        ]
        cells = ["" if value is None else f"{value:.10g}" for value in values]
        writer.writerow([score.method, score.case, score.structure, *cells, "; ".join(score.warnings)])
    return text.getvalue()
