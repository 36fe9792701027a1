"""What a challenge in miniature writes: the tables of the paper (4 and 6), and how much seeds differ."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_selma.evaluation import EvaluationSettings, evaluate, write_evaluation
from nnunet_selma.evaluation.scoring import CaseScore
from nnunet_selma.evaluation.tables import Table, as_markdown
from nnunet_selma.json_files import write_text
from nnunet_selma.metrics.editions import Edition
from nnunet_selma.recipes import RECIPES
from nnunet_selma.structures import named


def write_results(
    output: Path,
    arms: Sequence[str],
    references: Path,
    budgets: Mapping[str, Mapping[str, int]],
    say: Callable[[str], None],
) -> Path:
    """Judge all arms, and write `results.md` and the evaluations it shows; returns the page.

    Args:
        output: folder of the challenge; the predictions of an arm lie in `cases/<arm>`.
        arms: names of the arms.
        references: truth, `<case>_seed<n>.nii.gz`.
        budgets: arm to steps and voxels.
        say: prints a line.
    """
    predictions = {arm: output / "cases" / arm for arm in arms}
    say("\n# judging")
    whole = evaluate(
        references,
        predictions,
        EvaluationSettings(year=2024, corrected=True),
        output=output / "evaluation",
        sheets=False,
    )
    write_evaluation(whole, output / "evaluation")
    parts = [
        "# The challenge in miniature",
        "Cases are counted once for each seed.",
        "## Table 4: all arms",
        whole.markdown(),
    ]
    parts += ["## Seeds", as_markdown(of_seeds(whole.scores, whole.rules))]
    parts += ["## Budget", as_markdown(_budget_table(budgets))]
    for scratch in [arm for arm in arms if arm.endswith("-scratch")]:
        network = RECIPES[scratch.removesuffix("-scratch")].network
        others = [arm for arm in arms if arm in RECIPES and RECIPES[arm].network == network]
        compared = evaluate(
            references, {arm: predictions[arm] for arm in (*others, scratch)}, EvaluationSettings(year=2024, corrected=True, against=scratch),
            output=output / "evaluation", sheets=False,
        )  # fmt: skip
        write_evaluation(compared, output / f"evaluation_{network}")
        parts += [f"## Table 6: with and without pretraining, {network}", compared.markdown()]
    page = output / "results.md"
    write_text(page, "\n\n".join(parts) + "\n")
    return page


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
