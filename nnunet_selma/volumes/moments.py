"""Mean and standard deviation of values that arrive in parts."""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from nnunet_selma.volumes.base import Array


@dataclass(frozen=True)
class Moments:
    """Count, mean and spread of some values; `+` joins those of two parts.

    Parts are joined by the formula of Chan, Golub and LeVeque (1983), which loses no digits where the mean is much larger than
    the standard deviation, as the difference of two sums of squares does.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared differences from the mean."""

    @staticmethod
    def measure(values: Array) -> "Moments":
        """Moments of all values of an array, in double precision: 16 bytes of memory for each value meanwhile."""
        if not values.size:
            return Moments()
        wide = values.astype(np.float64).ravel()
        mean = float(wide.mean())
        wide -= mean
        return Moments(wide.size, mean, float(np.square(wide, out=wide).sum()))  # BLAS would wake threads

    @staticmethod
    def of_sums(count: int, total: int, squares: int) -> "Moments":
        """Moments of whole numbers from their count, sum and sum of squares, which lose no digits in Python's integers."""
        if not count:
            return Moments()
        return Moments(count, total / count, (count * squares - total * total) / count)

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not count:
            return self
        step, share = other.mean - self.mean, other.count / count
        squares = self.squares + other.squares + step * step * self.count * share
        return Moments(count, self.mean + step * share, squares)

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of all values (divided by their number, as nnU-Net does); 0 where there are none."""
        return sqrt(self.squares / self.count) if self.count else 0.0
