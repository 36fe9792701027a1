"""Numbers in equal steps: their step, and which numbers are missing, where positions may have been rounded or cut."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-6
"""Tolerance of comparisons, in units of the last digit."""


@dataclass(frozen=True, kw_only=True)
class Progression:
    """Sorted numbers as parts of a row in equal steps."""

    numbers: tuple[Decimal, ...]
    """The numbers, lowest first."""
    step: Decimal | None
    """Distance of neighbours in the row; None if no row in equal steps holds the numbers."""
    absent: tuple[int, ...]
    """Count of the numbers that are missing between each number and the next."""

    @property
    def missing_count(self) -> int:
        """Count of the missing numbers."""
        return sum(self.absent)

    def missing(self) -> list[Decimal]:
        """The missing numbers, spread evenly over each gap."""
        digits = min(0, *(_exponent(number) for number in self.numbers))
        return [
            round(before + (after - before) * i / (count + 1), -digits)
            for before, after, count in zip(self.numbers, self.numbers[1:], self.absent, strict=False)
            for i in range(1, count + 1)
        ]


def progression(numbers: Sequence[Decimal]) -> Progression:
    """Find the row in equal steps of which sorted, different numbers are parts.

    A row need not be one of whole numbers: 0, 2, 3, 4, 6 are steps of 1.5, rounded. A gap is assumed only if no step fits without it.
    One or two steps of 2 among many steps of 1 are gaps all the same, because a slice is lost more often than a step is 1.05.
    """
    row = tuple(numbers)
    digits = min(0, *map(_exponent, row))
    values = np.array([float((number - row[0]).scaleb(-digits)) for number in row])  # in units of the last digit
    steps = np.diff(values)
    if len(row) < 2:
        return Progression(numbers=row, step=Decimal(1), absent=())
    usual = min(Counter(steps.tolist()).items(), key=lambda item: (-item[1], item[0]))[0]
    for counts in _readings(steps, usual):
        step = _common_step(values, np.cumsum([0, *counts]))
        if step is not None:
            break
    else:  # uneven steps: only a step that is much longer than the others is a gap
        step, counts = None, _times(steps, float(np.median(steps)))
    return Progression(
        numbers=row,
        step=None if step is None else Decimal(repr(step)).scaleb(digits).normalize(),
        absent=tuple(int(count) - 1 for count in counts),
    )


def _exponent(number: Decimal) -> int:
    """The exponent of the last digit of a number: -1 for 2.5."""
    return int(number.as_tuple().exponent)


def _times(steps: NDArray[np.float64], usual: float) -> NDArray[np.float64]:
    """Each step as a multiple of the usual one, at least 1."""
    times: NDArray[np.float64] = np.maximum(1, np.ceil(steps / usual - 0.5))
    return times


def _readings(steps: NDArray[np.float64], usual: float) -> list[NDArray[np.float64]]:
    """Possible counts of steps between neighbours, the ones to prefer first."""
    like_usual = np.abs(steps - usual) <= 1
    times = steps / steps[like_usual].mean()
    with_gaps = [np.where(like_usual, 1, np.maximum(2, whole)) for whole in (np.rint(times), np.floor(times))]
    rounded = [np.ones_like(steps), *with_gaps]
    whole = [_times(steps, usual)]
    double = int((steps == 2).sum())
    lost = steps.min() == 1 and (double == 1 or (double == 2 and len(steps) > 20))
    return whole + rounded if lost else rounded + whole


def _common_step(values: NDArray[np.float64], places: NDArray[np.float64]) -> float | None:
    """The plainest step of a row that has each value, rounded or cut, at its place; None if there is no such row.

    Two values that are `d` places apart bound the step: their distance is `d` steps, give or take 1 for the rounding of both.
    """
    mean = float((values[-1] - values[0]) / places[-1])
    if np.array_equal(values, mean * places):
        return mean
    lowest, highest = 0.0, np.inf
    for apart in range(1, len(values)):
        distances = values[apart:] - values[:-apart]
        between = places[apart:] - places[:-apart]
        lowest = max(lowest, float(((distances - 1) / between).max()))
        highest = min(highest, float(((distances + 1) / between).min()))
        if lowest > highest + _ROUNDING:
            return None
    if highest - lowest < _ROUNDING and abs(lowest - round(lowest)) < _ROUNDING:
        return None  # whole steps are not made uneven by rounding
    for scale in (1, 10, 100, 1000):
        first, last = np.ceil(lowest * scale - _ROUNDING), np.floor(highest * scale + _ROUNDING)
        if first <= last:
            return float(min(max(np.rint(mean * scale), first), last)) / scale
    return mean
