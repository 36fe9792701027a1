"""Rules of an edition: the metrics of each structure, the class it is ranked in, and the divisor of standard deviations.

Sources: [1] SELMA3D challenge paper (arXiv 2501.03880), section 3.5 and tables 4 to 6; [2] the evaluator of 2024
(github.com/YingChen7/SELMA3D_challenge-evaluation); [3] that of 2026 (github.com/YingChen7/SELMA3D2026_evaluation, with panoptica 2.1.7)
and the page on its assessment. `docs/metrics.md` explains every corner.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isnan

from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation.metrics.matching import panoptic_quality
from nnunet_selma.evaluation.metrics.pair import Pair
from nnunet_selma.structures import Structure


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One column of the official table."""

    key: str
    title: str
    higher_is_better: bool
    percent: bool = False
    """True if tables show the metric in percent."""
    value: Callable[[Pair], float]
    """The metric as the official evaluator computes it."""
    corrected: Callable[[Pair], float] | None = None
    """The metric without the official evaluator's mistakes in corner cases; None if it has none."""

    @property
    def arrow(self) -> str:
        """The better direction."""
        return "↑" if self.higher_is_better else "↓"

    @property
    def heading(self) -> str:
        """Title with an arrow in the better direction."""
        return f"{self.title} {self.arrow}"

    @property
    def scale(self) -> int:
        """Factor between a value and the number that tables show."""
        return 100 if self.percent else 1


@dataclass(frozen=True, kw_only=True)
class Edition:
    """The rules of one year."""

    year: int
    metrics: Mapping[str, tuple[Metric, ...]]
    """Kind of structure to its metrics, in the order of the tables."""
    kind: Callable[[Structure], str]
    """Kind of a structure."""
    ranked_with: Callable[[Structure], str]
    """Class of a structure; for the ranking, metrics are averaged over all cases of a class."""
    ddof: int
    """Standard deviations over n cases divide by n - ddof: 0 as in the tables of the 2024 paper, 1 for those of a sample."""

    def metrics_of(self, structure: Structure) -> tuple[Metric, ...]:
        """The metrics of a structure."""
        return self.metrics[self.kind(structure)]

    def score(self, pair: Pair, structure: Structure) -> dict[str, float]:
        """Metric to official value, which may be NaN."""
        return {metric.key: float(metric.value(pair)) for metric in self.metrics_of(structure)}

    def corrected(self, pair: Pair, structure: Structure) -> dict[str, float]:
        """Metric to corrected value, for metrics that have one; equal to the official value except in corner cases."""
        return {m.key: float(m.corrected(pair)) for m in self.metrics_of(structure) if m.corrected is not None}


def _corrected_panoptic_quality(pair: Pair) -> float:
    quality = panoptic_quality(pair.instances)
    return 1.0 if isnan(quality) else quality


def _betti_error(dimension: int) -> Callable[[Pair], float]:
    return lambda pair: abs(pair.betti[0][dimension] - pair.betti[1][dimension])


_DICE = Metric(
    key="dice",
    title="Dice (%)",
    higher_is_better=True,
    percent=True,
    value=lambda pair: pair.overlap.dice,
)
_BETTI_0 = Metric(key="betti_0_error", title="β0 error", higher_is_better=False, value=_betti_error(0))
_BETTI_1 = Metric(key="betti_1_error", title="β1 error", higher_is_better=False, value=_betti_error(1))
_CLDICE_2024 = Metric(
    key="cldice",
    title="clDice (%)",
    higher_is_better=True,
    percent=True,
    value=lambda pair: pair.centrelines.cldice_2024,
    corrected=lambda pair: pair.centrelines.corrected(pair.centrelines.cldice_2024, pair.overlap),
)
_CLDICE_2026 = replace(
    _CLDICE_2024,
    value=lambda pair: pair.centrelines.cldice_2026,
    corrected=lambda pair: pair.centrelines.corrected(pair.centrelines.cldice_2026, pair.overlap),
)
_PANOPTIC_QUALITY = Metric(
    key="panoptic_quality",
    title="PQ (%)",
    higher_is_better=True,
    percent=True,
    value=lambda pair: panoptic_quality(pair.instances),
    corrected=_corrected_panoptic_quality,
)

EDITIONS: Mapping[int, Edition] = {
    2024: Edition(
        year=2024,
        metrics={"spot": (_DICE, _BETTI_0), "tree": (_DICE, _CLDICE_2024, _BETTI_0, _BETTI_1)},
        kind=lambda structure: structure.kind_2024,
        ranked_with=lambda structure: f"{structure.kind_2024}-like",
        ddof=0,
    ),
    2026: Edition(
        year=2026,
        metrics={"isolated": (_DICE, _PANOPTIC_QUALITY), "contiguous": (_DICE, _CLDICE_2026)},
        kind=lambda structure: structure.kind_2026,
        ranked_with=lambda structure: f"{structure.density or 'other'} {structure.kind_2026}",
        ddof=1,
    ),
}


def edition(year: int) -> Edition:
    """The rules of an edition.

    Raises:
        SelmaError: no rules of that year are known; for 2025 the message says what is.
    """
    if year == 2025:
        raise SelmaError(
            "the rules of SELMA3D 2025 cannot be followed: neither its evaluator nor its metrics were published. What is known: isolated and "
            "contiguous structures were two tasks, judged apart, with a place of its own for contiguous structures without pretraining. "
            "Choose 2024 or 2026"
        )
    if year not in EDITIONS:
        raise SelmaError(f"there is no edition {year}: choose {' or '.join(map(str, EDITIONS))}")
    return EDITIONS[year]
