"""Validation of a published model, from the scores that `nnunet-selma evaluate` wrote: mean, number of cases and interval."""

from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path

import numpy as np

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.evaluation import Evaluation, read_evaluation
from nnunet_selma.evaluation.comparison import interval_of_mean
from nnunet_selma.sharing.results import ResultFacts
from nnunet_selma.structures import named

_EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Row:
    """One metric of one structure over the cases that have a value."""

    structure: str
    metric: str
    cases: int
    without_value: int
    """Cases in which the metric is NaN, which the mean leaves out."""
    mean: float
    low: float
    high: float
    """Bootstrap interval of the mean, 95 %; NaN with fewer than two cases."""
    percent: bool = False
    """True if the table states the numbers in percent, as the title of the metric says."""

    def cells(self) -> list[str]:
        """The row of a table."""
        lacking = f" ({self.without_value} more without a value)" if self.without_value else ""
        interval = "–" if isnan(self.low) else f"{self._number(self.low)} to {self._number(self.high)}"
        mean = "–" if isnan(self.mean) else self._number(self.mean)
        return [self.structure, self.metric, f"{self.cases}{lacking}", mean, interval]

    def _number(self, value: float) -> str:
        return f"{100 * value:.2f}" if self.percent else f"{value:.3f}"


@dataclass(frozen=True)
class Validation:
    """Scores of a model by the rules of an edition of SELMA3D."""

    year: int
    rows: tuple[Row, ...]
    cases: frozenset[str]
    trained_on: int | None
    """Cases among them with the name of a training case of a published fold; None where the folds of the data are not known."""


def read_validation(file: Path, method: str | None, facts: ResultFacts) -> Validation:
    """The scores of one method of an evaluation.

    Args:
        file: evaluation.json, or its folder.
        method: name of the method that is this model; None where there is only one.
        facts: the model, whose training cases are compared.

    Raises:
        SelmaError: there is no evaluation, or no such method in it.
    """
    folder = file if file.is_dir() else file.parent
    if not (folder / _EVALUATION).is_file() or not (file.is_dir() or file.name == _EVALUATION):
        raise SelmaError(f"{file}: is no {_EVALUATION} of nnunet-selma evaluate -o; give that file, or its folder")
    try:
        evaluation = read_evaluation(folder)
    except (KeyError, TypeError) as error:
        raise SelmaError(
            f"{folder / _EVALUATION}: was not written by this version of nnunet-selma evaluate ({type(error).__name__}: {error}); evaluate again"
        ) from error
    methods = list(evaluation.predictions)
    if method is None and len(methods) > 1:
        raise SelmaError(f"{file}: holds several methods, {', '.join(methods)}; choose this model with --method")
    chosen = method or methods[0]
    if chosen not in methods:
        raise SelmaError(f"--method {chosen}: {file} holds {', '.join(methods)}")
    cases = frozenset(score.case for score in evaluation.scores if score.method == chosen)
    return Validation(evaluation.settings.year, tuple(_rows(evaluation, chosen)), cases, _trained_on(cases, facts))


def _rows(evaluation: Evaluation, method: str) -> list[Row]:
    scores = [score for score in evaluation.scores if score.method == method]
    rows = []
    for group in dict.fromkeys(score.group for score in scores):
        for metric in evaluation.rules.metrics_of(named(group.structure)):
            values = [score.official[metric.key] for score in scores if score.group == group]
            numbers = np.array([value for value in values if not isnan(value)])
            mean = float(numbers.mean()) if len(numbers) else nan
            low, high = interval_of_mean(numbers)
            lacking = len(values) - len(numbers)
            rows.append(Row(group.title, metric.heading, len(numbers), lacking, mean, low, high, metric.percent))
    return rows


def _trained_on(cases: frozenset[str], facts: ResultFacts) -> int | None:
    """Number of cases that a published fold was trained on; None where that is not known."""
    if not facts.data.splits:
        return None
    trained: set[str] = set()
    for fold in facts.folds:
        if fold.fold == "all":
            trained.update(facts.data.cases)
        elif int(fold.fold) < len(facts.data.splits):
            trained.update(facts.data.splits[int(fold.fold)]["train"])
        else:
            return None
    return len(cases & trained)


def held_out(validation: Validation) -> str:
    """A sentence that says whether the scored cases were trained on."""
    count = len(validation.cases)
    if validation.trained_on is None:
        return "Not known: whether the model was trained on these cases."
    if validation.trained_on == 0:
        return "None of these cases has the name of a training case of a published fold."
    return (
        f"{validation.trained_on} of the {counted(count, 'case')} have the name of a training case of a published fold: these numbers are a validation only if "
        "each case was predicted by a fold that left it out."
    )
