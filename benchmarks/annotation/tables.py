"""Markdown tables of the simulated annotation loops, and their place in docs/results.md."""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.annotation.brains import BUDGETS
from benchmarks.annotation.running import STARTS, STEPS
from benchmarks.annotation.strategies import BASELINE, STRATEGIES
from benchmarks.pretraining.intervals import Run, of_arm, read_runs
from benchmarks.pretraining.tables import (
    AVERAGE_PRECISION,
    CALIBRATED_DICE,
    DICE,
    INTERVALS,
    STRUCTURES,
    Measure,
    difference_cell,
    markdown,
    mean_cell,
    replaced,
)
from nnunet_selma.running.json_files import write_text

_MEASURES = {DICE: "Dice at 0.5", AVERAGE_PRECISION: "average precision", CALIBRATED_DICE: "Dice, calibrated"}


def loops_table(runs: Sequence[Run], structure: str) -> str:
    """Means by number of annotated cubes, and differences to the baseline and between the starts, for one structure."""
    budgets = BUDGETS[structure]
    measures = [Measure(structure, metric, title) for metric, title in _MEASURES.items()]

    def rows(cell: Callable[[str, str, Measure, int], str], strategies: Sequence[str]) -> list[list[str]]:
        return [
            [start, strategy, measure.title, *(cell(start, strategy, measure, budget) for budget in budgets)]
            for measure in measures
            for start in STARTS
            for strategy in strategies
        ]

    seeds = {start: _complete_seeds(runs, start, budgets) for start in STARTS}

    def finished(start: str, strategy: str, budget: int) -> list[Run]:
        loops = of_arm(runs, f"{strategy}, {start}")
        return [run for run in loops if run.labels == budget and run.seed in seeds[start]]

    def mean(start: str, strategy: str, measure: Measure, budget: int) -> str:
        return mean_cell(finished(start, strategy, budget), STEPS, measure)

    def difference(start: str, strategy: str, measure: Measure, budget: int) -> str:
        return difference_cell(finished(start, strategy, budget), finished(start, BASELINE, budget), STEPS, measure)

    def gain(strategy: str, measure: Measure, budget: int) -> str:
        pretrained, random_weights = (finished(start, strategy, budget) for start in ("pretrained", "random weights"))
        return difference_cell(pretrained, random_weights, STEPS, measure)

    gains = [
        [strategy, measure.title, *(gain(strategy, measure, budget) for budget in budgets)]
        for measure in measures
        for strategy in STRATEGIES
    ]
    headings = ["network", "cubes chosen by", "measure", *(f"{budget} cubes" for budget in budgets)]
    others = [strategy for strategy in STRATEGIES if strategy != BASELINE]
    name = STRUCTURES[structure][0].upper() + STRUCTURES[structure][1:]
    counts = ", ".join(f"{start} {len(seeds[start])}" for start in STARTS)
    return "\n\n".join(
        [
            f"{name}, %: mean over unseen cubes and seeds, in brackets lowest and highest seed "
            f"(seeds that all strategies finished: {counts}).",
            markdown(headings, rows(mean, list(STRATEGIES)), left=3),
            f"{name}, points: difference to “{BASELINE}” with the same start. {INTERVALS}",
            markdown(headings, rows(difference, others), left=3),
            f"{name}, points: pretrained minus random weights, by the same strategy.",
            markdown(headings[1:], gains, left=2),
        ]
    )


def _complete_seeds(runs: Sequence[Run], start: str, budgets: Sequence[int]) -> set[int]:
    """Seeds whose loops with a start have all ended, so that cells can be compared."""
    done = {(run.arm, run.labels, run.seed) for run in runs}
    return {
        run.seed
        for run in runs
        if all((f"{strategy}, {start}", budget, run.seed) in done for strategy in STRATEGIES for budget in budgets)
    }


def write_page(results: Path, page: Path) -> None:
    """Put the tables of all structures that have runs between the markers of the page, and leave all other text as it is."""
    tables = [loops_table(runs, structure) for structure in BUDGETS if (runs := read_runs(results / structure))]
    if tables:
        text = page.read_text(encoding="utf-8")
        write_text(page, replaced(text, "annotation", "\n\n".join(tables)))
