"""Markdown tables of the pretraining study, and their places in docs/results.md."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TypeVar

from benchmarks.pretraining.arms import BASELINE
from benchmarks.pretraining.intervals import (
    Interval,
    Run,
    difference,
    last_common_step,
    mean_interval,
    mean_over_cubes,
    of_arm,
    read_runs,
    spread,
)
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import write_text

PRIMARY_STEPS = 512
"""Steps of fine-tuning after which arms are compared, as was fixed before the study."""
STRUCTURES = {"cfos_neuron": "c-Fos", "microglia": "microglia"}
"""Structures as result files and as readers name them."""
_NO_VALUE = "–"
Column = TypeVar("Column")
INTERVALS = (
    "95 % interval in brackets: bootstrap over seeds, cubes, and octants within cubes. Bold: the interval excludes zero. "
    "With so few seeds and cubes the intervals are rough, and rather too narrow; nothing is corrected for the number of "
    "comparisons."
)
"""Explains the intervals of a table."""


@dataclass(frozen=True)
class Measure:
    """A column: a metric of a structure."""

    structure: str
    metric: str
    title: str
    percent: bool = True

    @property
    def heading(self) -> str:
        """Structure and metric in words, with the direction that is better."""
        return f"{STRUCTURES[self.structure]}: {self.title} {'(%) ↑' if self.percent else '↓'}"

    @property
    def points(self) -> str:
        """The heading of a difference, which has percentage points where the metric has per cent."""
        return self.heading.replace("(%)", "(points)")

    @property
    def scale(self) -> int:
        """Factor from the unit of the result files to that of the tables."""
        return 100 if self.percent else 1


AVERAGE_PRECISION, CALIBRATED_DICE, DICE = "average_precision", "dice_calibrated", "dice"
_MAIN_METRICS = {AVERAGE_PRECISION: "average precision", CALIBRATED_DICE: "Dice, calibrated"}
_DICE_AT_HALF = tuple(Measure(structure, DICE, "Dice at 0.5") for structure in STRUCTURES)
MAIN = tuple(Measure(structure, metric, title) for structure in STRUCTURES for metric, title in _MAIN_METRICS.items())
"""Average precision and calibrated Dice of both structures."""
SECONDARY = tuple(
    measure
    for structure, dice in zip(STRUCTURES, _DICE_AT_HALF, strict=True)
    for measure in (
        dice,
        Measure(structure, "cldice", "clDice"),
        Measure(structure, "betti_0", "β0 error", percent=False),
        Measure(structure, "betti_1", "β1 error", percent=False),
    )
)
"""Dice at the threshold 0.5, clDice and Betti errors of both structures."""


def screening_table(runs: Sequence[Run]) -> str:
    """Every arm, those that lost too, best average precision of microglia first, at the last common step."""
    steps = last_common_step(runs)
    rows = []
    for arm in _best_first(runs, steps):
        runs_of_arm = of_arm(runs, arm)
        ratios = (mean_over_cubes(runs_of_arm, steps, "predicted_over_true", structure) for structure in STRUCTURES)
        cells = [_mean_and_spread(runs_of_arm, steps, measure) for measure in (*MAIN, *_DICE_AT_HALF)]
        rows.append([arm, *cells, ", ".join(_number(ratio, digits=2) for ratio in ratios), str(len(runs_of_arm))])
    headings = [measure.heading for measure in (*MAIN, *_DICE_AT_HALF)]
    shown = "Mean over cubes and seeds ± standard deviation over seeds, where there are several."
    return _with_text(
        f"After {steps} steps of fine-tuning. {shown}",
        markdown(["arm", *headings, "predicted ÷ true: c-Fos, microglia", "seeds"], rows),
    )


def confirmation_table(runs: Sequence[Run], baseline: str, steps: int) -> str:
    """Means with lowest and highest seed, and differences to the baseline with intervals; main measures, then others.

    Args:
        runs: fine-tuning runs of all arms, with the same number of annotated patches.
        baseline: name of the arm that the others are compared with.
        steps: steps of fine-tuning.
    """
    captions = {
        MAIN: (
            f"After {steps} steps of fine-tuning: mean, and in brackets lowest and highest seed.",
            f"Difference to “{baseline}”. {INTERVALS}",
        ),
        SECONDARY: (
            "Further measures, in the same way; clDice and β errors at the calibrated threshold.",
            f"Difference of the further measures to “{baseline}”.",
        ),
    }
    return "\n\n".join(
        part
        for measures, (of_means, of_differences) in captions.items()
        for part in (
            _with_text(of_means, _means(runs, baseline, steps, measures)),
            _with_text(of_differences, _differences(runs, baseline, steps, measures)),
        )
    )


def curve_table(runs: Sequence[Run], baseline: str) -> str:
    """The difference to the baseline at each step of the fine-tuning curve, in percentage points with intervals."""
    curve = sorted({steps for run in runs for steps in run.points})

    def cell(arm: str, measure: Measure, steps: int) -> str:
        return difference_cell(of_arm(runs, arm), of_arm(runs, baseline), steps, measure)

    rows = _arm_and_measure_rows(_arms(runs, baseline)[1:], curve, cell)
    return _with_text(
        f"Difference to “{baseline}” after so many steps of fine-tuning. {INTERVALS}",
        markdown(["arm", "measure", *(str(steps) for steps in curve)], rows, left=2),
    )


def labels_table(runs: Sequence[Run], baseline: str, steps: int) -> str:
    """The difference to the baseline with 1, 2, 5, 10 and all annotated patches, in percentage points with intervals.

    Args:
        runs: fine-tuning runs of all arms and numbers of annotated patches.
        baseline: name of the arm that the others are compared with, each with as many patches.
        steps: steps of fine-tuning.
    """
    patches = numbers_of_patches(runs)

    def cell(arm: str, measure: Measure, labels: int | None) -> str:
        with_patches = [run for run in runs if run.labels == labels]
        return difference_cell(of_arm(with_patches, arm), of_arm(with_patches, baseline), steps, measure)

    rows = _arm_and_measure_rows(_arms(runs, baseline)[1:], patches, cell)
    titles = ("all patches" if labels is None else f"{labels} patch{'es' * (labels > 1)}" for labels in patches)
    return _with_text(
        f"Difference to “{baseline}” with so many annotated patches, after {steps} steps of fine-tuning. {INTERVALS}",
        markdown(["arm", "measure", *titles], rows, left=2),
    )


def numbers_of_patches(runs: Sequence[Run]) -> list[int | None]:
    """Numbers of annotated patches in ascending order, None (all) last."""
    return sorted({run.labels for run in runs}, key=lambda labels: (labels is None, labels or 0))


def write_page(results_folder: Path, page: Path, baseline: str = BASELINE) -> None:
    """Put the tables between the markers of the page, and leave tables without runs, and all other text, as they are.

    Args:
        results_folder: holds a folder of result files for each stage: screening, confirmation, labels.
        page: Markdown with `<!-- begin: NAME -->` and `<!-- end: NAME -->` for screening, confirmation, curves, labels.
        baseline: name of the arm without pretraining.

    Raises:
        SelmaError: the page lacks the markers of a table that has runs.
    """
    screening, confirmation = (read_runs(results_folder / stage) for stage in ("screening", "confirmation"))
    labels = read_runs(results_folder / "labels")
    text = page.read_text(encoding="utf-8")
    if screening:
        text = replaced(text, "screening", screening_table(screening))
    if confirmation:
        table = confirmation_table(confirmation, baseline, PRIMARY_STEPS)
        text = replaced(text, "confirmation", table)
        text = replaced(text, "curves", curve_table(confirmation, baseline))
    if labels:
        text = replaced(text, "labels", labels_table(labels, baseline, last_common_step(labels)))
    write_text(page, text)


def replaced(text: str, name: str, table: str) -> str:
    """The text with a table between the markers of that name; raises `SelmaError` if it lacks them."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise SelmaError(f"the page of results lacks the lines {begin} and {end}")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def _means(runs: Sequence[Run], baseline: str, steps: int, measures: Sequence[Measure]) -> str:
    arms = _arms(runs, baseline)
    rows = [
        [arm, *(mean_cell(of_arm(runs, arm), steps, measure) for measure in measures), str(len(of_arm(runs, arm)))]
        for arm in arms
    ]
    return markdown(["arm", *(measure.heading for measure in measures), "seeds"], rows)


def _differences(runs: Sequence[Run], baseline: str, steps: int, measures: Sequence[Measure]) -> str:
    rows = [
        [arm, *(difference_cell(of_arm(runs, arm), of_arm(runs, baseline), steps, measure) for measure in measures)]
        for arm in _arms(runs, baseline)[1:]
    ]
    return markdown(["arm", *(measure.points for measure in measures)], rows)


def _arm_and_measure_rows(
    arms: Sequence[str], columns: Sequence[Column], cell: Callable[[str, Measure, Column], str]
) -> list[list[str]]:
    return [
        [arm, measure.points, *(cell(arm, measure, column) for column in columns)] for arm in arms for measure in MAIN
    ]


def _arms(runs: Sequence[Run], baseline: str) -> list[str]:
    """Names of all arms, the baseline first, the others in the order of the alphabet."""
    return [baseline, *sorted({run.arm for run in runs} - {baseline})]


def _best_first(runs: Sequence[Run], steps: int) -> list[str]:
    def rank(arm: str) -> tuple[bool, float, str]:
        precision = mean_over_cubes(of_arm(runs, arm), steps, AVERAGE_PRECISION, "microglia")
        return isnan(precision), 0.0 if isnan(precision) else -precision, arm

    return sorted({run.arm for run in runs}, key=rank)


def _mean_and_spread(runs: Sequence[Run], steps: int, measure: Measure) -> str:
    mean = measure.scale * mean_over_cubes(runs, steps, measure.metric, measure.structure)
    deviation = measure.scale * spread(runs, steps, measure.metric, measure.structure)
    return _number(mean) if isnan(deviation) else f"{_number(mean)} ± {_number(deviation)}"


def mean_cell(runs: Sequence[Run], steps: int, measure: Measure) -> str:
    """The mean over seeds and cubes, with the lowest and highest seed in brackets; a dash where nothing was scored."""
    interval = mean_interval(runs, steps, measure.metric, measure.structure, draws=0)
    if isnan(interval.mean):
        return _NO_VALUE
    seeds = interval.per_seed.values()
    mean, low, high = (_number(measure.scale * value) for value in (interval.mean, min(seeds), max(seeds)))
    return f"{mean} ({low} to {high})"


def difference_cell(runs: Sequence[Run], against: Sequence[Run], steps: int, measure: Measure) -> str:
    """The difference between two arms with its interval in brackets, bold if that excludes zero; a dash where nothing was scored."""
    return _signed(difference(runs, against, steps, measure.metric, measure.structure), measure.scale)


def _signed(interval: Interval, scale: int) -> str:
    if isnan(interval.mean):
        return _NO_VALUE
    mean, low, high = (_number(scale * value, sign="+") for value in (interval.mean, interval.low, interval.high))
    text = f"{mean} ({low} to {high})"
    return f"**{text}**" if interval.excludes_zero else text


def _number(value: float, digits: int = 1, sign: str = "") -> str:
    return _NO_VALUE if isnan(value) else f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no "-0.0"


def _with_text(text: str, table: str) -> str:
    return f"{text}\n\n{table}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first columns are aligned to the left, and the others to the right."""
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return "\n".join(
        [f"| {' | '.join(headings)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)]
    )
