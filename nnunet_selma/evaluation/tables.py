"""Tables: every case (CSV), and mean ± standard deviation per structure in the layout of the challenge paper (Markdown, LaTeX)."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan, nan
from pathlib import Path

import numpy as np

from nnunet_selma.evaluation.comparison import PairedDifference, Ranks
from nnunet_selma.evaluation.scoring import CaseScore
from nnunet_selma.metrics.editions import Edition, Metric
from nnunet_selma.structures import named

_EQUAL = 1e-3
"""A corrected value that is as near in every case is no other value: the smoothing of 2024 moves clDice a little everywhere."""
_FEWEST_FOR_WILCOXON = 6
_MOST_COLUMNS = 6
"""As many as tables 4 and 5 of the paper have; more structures go into further tables."""


@dataclass(frozen=True)
class Summary:
    """One metric over the cases of a structure."""

    mean: float
    deviation: float
    cases: int
    without_value: tuple[str, ...]
    """Cases in which it is NaN; one is enough to make the mean NaN, as it does in the official evaluators."""

    @classmethod
    def of(cls, values: Mapping[str, float], *, sample: bool) -> "Summary":
        """From case to value; `sample` takes n - 1 for the standard deviation, which is NaN for a single case then."""
        numbers = np.array(list(values.values()))
        lone = sample and len(numbers) < 2
        return cls(
            mean=float(numbers.mean()),
            deviation=nan if lone else float(numbers.std(ddof=int(sample))),
            cases=len(numbers),
            without_value=tuple(case for case, value in values.items() if isnan(value)),
        )


@dataclass(frozen=True)
class Column:
    """One column of a table: a metric of a structure."""

    structure: str
    metric: Metric
    corrected: bool

    @property
    def title(self) -> str:
        """As Markdown has it."""
        return f"{self.metric.title}{', corrected' if self.corrected else ''} {'↑' if self.metric.higher_is_better else '↓'}"

    @property
    def latex(self) -> str:
        """As LaTeX has it."""
        arrow = r"$\uparrow$" if self.metric.higher_is_better else r"$\downarrow$"
        return f"{self.metric.latex}{', corrected' if self.corrected else ''} {arrow}"

    def summary(self, scores: Sequence[CaseScore], method: str, *, sample: bool) -> Summary | None:
        """Over the cases of a method, or None if it has none."""
        values = {
            score.case: (score.corrected if self.corrected else score.official)[self.metric.key]
            for score in scores
            if score.method == method and score.structure == self.structure
        }
        return Summary.of(values, sample=sample) if values else None


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
    """Whether the official value is another than the corrected one, NaN included."""
    return key in score.corrected and not abs(score.official[key] - score.corrected[key]) < _EQUAL


def markdown(scores: Sequence[CaseScore], rules: Edition, *, corrected: bool) -> str:
    """Methods in rows, structures and their metrics in columns, mean ± standard deviation; then the cases without a value."""
    methods = list(dict.fromkeys(score.method for score in scores))
    parts = []
    for table in columns(scores, rules, corrected=corrected):
        lines = [
            f"| method | {' | '.join(f'{named(c.structure).title}: {c.title}' for c in table)} |",
            "|---|" + "---:|" * len(table),
        ]
        lines += [
            f"| {method} | {' | '.join(_cell(c, c.summary(scores, method, sample=rules.sample_deviation), ' ± ') for c in table)} |"
            for method in methods
        ]
        parts.append("\n".join(lines))
    counted = [f"{title} has {n} case{'s' * (n != 1)}" for title, n in _counts(scores).items()]
    return "\n\n".join([*parts, f"Mean ± standard deviation over cases: {', '.join(counted)}.", *without_value(scores)])


def _counts(scores: Sequence[CaseScore]) -> dict[str, int]:
    cases = {(named(score.structure).title, score.case) for score in scores}
    titles = sorted(title for title, _ in cases)
    return {title: titles.count(title) for title in titles}


def without_value(scores: Sequence[CaseScore]) -> list[str]:
    """A sentence for each method and metric that is NaN for some cases, with their names."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for score in scores:
        for key, value in [*score.official.items(), *score.extra.items()]:
            if isnan(value):
                lacking.setdefault((score.method, key), []).append(score.case)
    return [
        f"{method}: {key} has no value (NaN) in {len(cases)} case{'s' * (len(cases) != 1)}: {', '.join(cases)}."
        for (method, key), cases in lacking.items()
    ]


def latex(scores: Sequence[CaseScore], rules: Edition, *, corrected: bool) -> str:
    """The same as `markdown`, for a paper (needs the package booktabs)."""
    methods = list(dict.fromkeys(score.method for score in scores))
    parts = []
    for table in columns(scores, rules, corrected=corrected):
        groups = list(dict.fromkeys(column.structure for column in table))
        widths = [sum(column.structure == group for column in table) for group in groups]
        heads = " & ".join(
            rf"\multicolumn{{{width}}}{{c}}{{{_escaped(named(group).title)}}}"
            for group, width in zip(groups, widths, strict=True)
        )
        ends = np.cumsum([1, *widths])
        rules_below = " ".join(rf"\cmidrule(lr){{{a + 1}-{b}}}" for a, b in pairwise(ends))
        rows = [
            " & ".join(
                [
                    _escaped(method),
                    *(_cell(c, c.summary(scores, method, sample=rules.sample_deviation), r" $\pm$ ") for c in table),
                ]
            )
            + r" \\"
            for method in methods
        ]
        parts.append(
            "\n".join(
                [
                    rf"\begin{{tabular}}{{l{'c' * len(table)}}}",
                    r"\toprule",
                    rf" & {heads} \\",
                    rules_below,
                    " & ".join(["Method", *(column.latex for column in table)]) + r" \\",
                    r"\midrule",
                    *rows,
                    r"\bottomrule",
                    r"\end{tabular}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    for character in "&%_#":
        text = text.replace(character, "\\" + character)
    return text.replace("β", r"$\beta$").replace("⁺", "$^+$")


def _cell(column: Column, summary: Summary | None, between: str) -> str:
    if summary is None:
        return "–"
    if isnan(summary.mean):
        return f"NaN ({len(summary.without_value)} of {summary.cases})"
    scale = 100 if column.metric.percent else 1
    deviation = "–" if isnan(summary.deviation) else number(summary.deviation * scale, percent=column.metric.percent)
    return f"{number(summary.mean * scale, percent=column.metric.percent)}{between}{deviation}"


def number(value: float, *, percent: bool) -> str:
    """Two digits after the point for percentages, four that count for the rest, as in the paper."""
    if percent:
        return f"{value:.2f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def extras_markdown(scores: Sequence[CaseScore]) -> str:
    """Mean ± standard deviation of what was measured beyond the official metrics; empty if nothing was."""
    names = list(dict.fromkeys(key for score in scores for key in score.extra))
    if not names:
        return ""
    lines = [f"| structure | method | {' | '.join(names)} |", "|---|---|" + "---:|" * len(names)]
    for structure, method in dict.fromkeys((score.structure, score.method) for score in scores):
        of = [s.extra for s in scores if s.structure == structure and s.method == method]
        cells = []
        for name in names:
            values = [extra[name] for extra in of if name in extra and not isnan(extra[name])]
            cells.append(f"{np.mean(values):.4g} ± {np.std(values):.4g}" if values else "–")
        lines.append(f"| {named(structure).title} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ranks_markdown(ranks: Ranks) -> str:
    """Mean rank per class of structures, and overall; best method first."""
    names = list(next(iter(ranks.classes.values())))
    lines = [f"| place | method | {' | '.join(names)} | overall |", "|---:|---|" + "---:|" * (len(names) + 1)]
    for method, place in ranks.overall.items():
        ahead = sum(other < place for other in ranks.overall.values())
        of = " | ".join(f"{ranks.classes[method][name]:.3f}" for name in names)
        lines.append(f"| {ahead + 1} | {method} | {of} | {place:.3f} |")
    return "\n".join(lines)


def paired_markdown(rows: Sequence[PairedDifference], method: str, other: str, rules: Edition) -> str:
    """Two methods case by case, in the layout of the paper's table 6 turned on its side."""
    lines = [
        f"| structure | metric | cases | {method} | {other} | difference | 95 % interval | better / worse | p (Wilcoxon) |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        metric = next(m for m in rules.metrics_of(named(row.structure)) if m.key == row.metric)
        scale = 100 if metric.percent else 1
        shown = [
            "–" if isnan(value) else number(value * scale, percent=metric.percent)
            for value in (row.mean, row.other_mean, row.difference, row.low, row.high)
        ]
        left_out = f" ({row.without_value} NaN)" if row.without_value else ""
        arrow = "↑" if metric.higher_is_better else "↓"
        lines.append(
            f"| {named(row.structure).title} | {metric.title} {arrow} | {row.cases}{left_out} | {shown[0]} | {shown[1]} | {shown[2]} "
            f"| {shown[3]} to {shown[4]} | {row.better} / {row.worse} | {'–' if isnan(row.p) else f'{row.p:.3g}'} |"
        )
    fewest = min((row.cases for row in rows), default=_FEWEST_FOR_WILCOXON)
    note = "\n\nWith fewer than six cases the Wilcoxon test cannot fall below 0.05, whatever they say."
    return "\n".join(lines) + (note if fewest < _FEWEST_FOR_WILCOXON else "")


def write_csv(path: Path, scores: Sequence[CaseScore], *, corrected: bool) -> None:
    """One row for each case and method; empty where a metric is not of the structure, nan where it has no value."""
    official = list(dict.fromkeys(key for score in scores for key in score.official))
    fixed = list(dict.fromkeys(key for score in scores for key in score.corrected)) if corrected else []
    extra = list(dict.fromkeys(key for score in scores for key in score.extra))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
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
