"""Tables of a challenge in miniature, as tables 4 and 6 of the paper, and how much seeds differ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nnunet_selma.evaluation import EvaluationSettings, evaluate, tables, write_evaluation
from nnunet_selma.evaluation.comparison import compare
from nnunet_selma.evaluation.metrics.editions import Edition
from nnunet_selma.evaluation.scoring import CaseScore
from nnunet_selma.evaluation.tables import Table, as_markdown
from nnunet_selma.running.json_files import write_text
from nnunet_selma.structures import named

SCRATCH = "-scratch"
"""Behind the name of an arm whose network starts from random weights."""


def write_results(
    output: Path,
    arms: Sequence[str],
    references: Path,
    budgets: Mapping[str, Mapping[str, int]],
    say: Callable[[str], None],
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Path:
    """Judge all arms, and write `results.md` and the evaluation it is made from; returns the page.

    Args:
        output: folder of the challenge; the predictions of an arm lie in `cases/<arm>`.
        arms: names of the arms.
        references: truth, `<case>_seed<n>.nii.gz`.
        budgets: arm to steps and voxels.
        say: prints a line.
        pairs: arms to compare; by default each with its own from random weights.
    """
    say("\n# judging")
    whole = evaluate(
        references,
        {arm: output / "cases" / arm for arm in arms},
        EvaluationSettings(year=2024, corrected=True),
        output=output / "evaluation",
        sheets=False,
    )
    write_evaluation(whole, output / "evaluation")
    scores, rules = over_seeds(whole.scores), whole.rules
    parts = ["# The challenge in miniature", "Each case counts once, with the mean of its scores over the seeds."]
    parts += ["## Table 4: all arms", *(as_markdown(table) for table in tables.means(scores, rules, corrected=True))]
    parts += [tables.case_counts(scores), *tables.without_value(scores)]
    parts += [
        "## Seeds",
        "Mean over seeds of the mean over cases, and the lowest and highest seed.",
        as_markdown(of_seeds(whole.scores, rules)),
    ]
    pairs = [(arm, f"{arm}{SCRATCH}") for arm in arms if f"{arm}{SCRATCH}" in arms] if pairs is None else pairs
    parts += ["## Table 6: with and without pretraining"] if pairs else []
    for arm, other in pairs:
        parts += [
            f"### {arm}, and {other}",
            as_markdown(tables.paired(compare(scores, arm, other, rules), arm, other, rules)),
        ]
    parts += ["## Budget", as_markdown(_budget_table(budgets))]
    page = output / "results.md"
    write_text(page, "\n\n".join(parts) + "\n")
    return page


def over_seeds(scores: Sequence[CaseScore]) -> list[CaseScore]:
    """Each case of each arm once, with the mean of its scores over the seeds: runs on one case are no further cases."""
    gathered: dict[tuple[str, str], list[CaseScore]] = {}
    for score in scores:
        gathered.setdefault((score.method, score.case.rpartition("_seed")[0]), []).append(score)
    return [
        replace(
            of[0],
            case=case,
            official=_means([one.official for one in of]),
            corrected=_means([{**one.official, **one.corrected} for one in of]),
            extra={},
            warnings=(),
        )
        for (_, case), of in gathered.items()
    ]


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in values])) for key in values[0]}


def of_seeds(scores: Sequence[CaseScore], rules: Edition) -> Table:
    """For each arm and metric the mean over seeds of the mean over cases, with the lowest and the highest seed."""
    columns = [(s, m) for s in dict.fromkeys(score.structure for score in scores) for m in rules.metrics_of(named(s))]
    head = ["arm", *(f"{named(s).title}: {m.title} {'↑' if m.higher_is_better else '↓'}" for s, m in columns)]
    rows = []
    for arm in dict.fromkeys(score.method for score in scores):
        cells = []
        for structure, metric in columns:
            by_seed: dict[str, list[float]] = {}
            for score in scores:
                if (score.method, score.structure) == (arm, structure):
                    value = score.corrected.get(metric.key, score.official[metric.key])
                    by_seed.setdefault(score.case.rpartition("_seed")[2], []).append(
                        value * (100 if metric.percent else 1)
                    )
            means = [float(np.mean(values)) for values in by_seed.values()]
            cells.append(f"{np.mean(means):.1f} ({min(means):.1f} to {max(means):.1f})")
        rows.append([arm, *cells])
    return Table(head=head, rows=rows, names=1)


def _budget_table(budgets: Mapping[str, Mapping[str, int]]) -> Table:
    names = list(next(iter(budgets.values())))
    rows = [[arm, *(f"{budget[name]:,}" for name in names)] for arm, budget in budgets.items()]
    return Table(head=["arm", *names], rows=rows, names=1)
