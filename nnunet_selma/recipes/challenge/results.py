"""Results of a challenge in miniature: tables like 4 and 6 of the challenge paper, and the spread over seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nnunet_selma.evaluation import EvaluationSettings, evaluate, tables, write_evaluation
from nnunet_selma.evaluation.comparison import compare
from nnunet_selma.evaluation.metrics.editions import Edition
from nnunet_selma.evaluation.scoring import CaseScore
from nnunet_selma.evaluation.sections import PageSection, Table, as_markdown
from nnunet_selma.running.json_files import write_text
from nnunet_selma.structures import named

SCRATCH = "-scratch"
"""Ending of the name of an arm whose network starts from random weights."""


def write_results(
    output: Path,
    arms: Sequence[str],
    references: Path,
    budgets: Mapping[str, Mapping[str, int]],
    say: Callable[[str], None],
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Path:
    """Score all arms; write `results.md` and the evaluation behind it; return the page.

    Args:
        output: folder of the challenge; the predictions of an arm lie in `cases/<arm>`.
        arms: names of the arms.
        references: folder of the ground truths, `<case>_seed<n>.nii.gz`.
        budgets: arm to its numbers of steps and voxels.
        say: prints a line.
        pairs: arms to compare; by default each with the same arm from random weights.
    """
    say("\n# judging")
    evaluation = evaluate(
        references,
        {arm: output / "cases" / arm for arm in arms},
        EvaluationSettings(year=2024, corrected=True),
        output=output / "evaluation",
        sheets=False,
    )
    write_evaluation(evaluation, output / "evaluation")
    scores, rules = mean_over_seeds(evaluation.scores), evaluation.rules
    once = "Each case counts once, with the mean of its scores over the seeds."
    means = tables.means(scores, rules, corrected=True)
    spread = "Mean over seeds of the mean over cases, and the lowest and highest seed."
    sections = [
        PageSection("The challenge in miniature", [once], level=1),
        PageSection("Table 4: all arms", [*means, tables.case_counts(scores), *tables.without_value(scores)]),
        PageSection("Seeds", [spread, seed_table(evaluation.scores, rules)]),
    ]
    pairs = [(arm, f"{arm}{SCRATCH}") for arm in arms if f"{arm}{SCRATCH}" in arms] if pairs is None else pairs
    if pairs:
        sections.append(PageSection("Table 6: with and without pretraining", []))
    for arm, other in pairs:
        table = tables.paired(compare(scores, arm, other, rules), arm, other, rules)
        sections.append(PageSection(f"{arm}, and {other}", [table], level=3))
    sections.append(PageSection("Budget", [_budget_table(budgets)]))
    page = output / "results.md"
    write_text(page, as_markdown(sections))
    return page


def mean_over_seeds(scores: Sequence[CaseScore]) -> list[CaseScore]:
    """Each case of each arm once, with the mean of its scores over the seeds, because runs on one case are no further cases."""
    gathered: dict[tuple[str, str], list[CaseScore]] = {}
    for score in scores:
        gathered.setdefault((score.method, score.case.rpartition("_seed")[0]), []).append(score)
    return [
        replace(
            seeds[0],
            case=case,
            official=_means([seed.official for seed in seeds]),
            corrected=_means([{**seed.official, **seed.corrected} for seed in seeds]),
            extra={},
            warnings=(),
        )
        for (_, case), seeds in gathered.items()
    ]


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([seed[key] for seed in values])) for key in values[0]}


def seed_table(scores: Sequence[CaseScore], rules: Edition) -> Table:
    """For each arm and metric, the mean over seeds of the mean over cases, with the lowest and the highest seed."""
    columns = [(s, m) for s in dict.fromkeys(score.structure for score in scores) for m in rules.metrics_of(named(s))]
    rows = []
    for arm in dict.fromkeys(score.method for score in scores):
        cells = []
        for structure, metric in columns:
            by_seed: dict[str, list[float]] = {}
            for score in scores:
                if (score.method, score.structure) == (arm, structure):
                    value = score.corrected.get(metric.key, score.official[metric.key])
                    by_seed.setdefault(score.case.rpartition("_seed")[2], []).append(value * metric.scale)
            means = [float(np.mean(values)) for values in by_seed.values()]
            cells.append(f"{np.mean(means):.1f} ({min(means):.1f} to {max(means):.1f})")
        rows.append([arm, *cells])
    return Table(head=["arm", *(f"{named(s).title}: {metric.heading}" for s, metric in columns)], rows=rows)


def _budget_table(budgets: Mapping[str, Mapping[str, int]]) -> Table:
    names = list(next(iter(budgets.values())))
    rows = [[arm, *(f"{budget[name]:,}" for name in names)] for arm, budget in budgets.items()]
    return Table(head=["arm", *names], rows=rows)
