"""Medians with confidence intervals, and ratios of two series that were measured round by round.

The interval of a median is taken from order statistics: between the k-th smallest and the k-th largest value lies the
true median with a probability that the binomial distribution gives exactly, whatever the distribution of the values
(J.-Y. Le Boudec, Performance Evaluation of Computer and Communication Systems, theorem 2.1; recommended for benchmarks
by T. Hoefler and R. Belli, Scientific Benchmarking of Parallel Computing Systems, SC 2015, rule 5). A bootstrap of five
values would only look more precise. The narrowest interval of at least 95 % is taken; where there are too few values
for one, that of all values, with the confidence that it really has: 93.75 % with five, 75 % with three.

Rule kept here: a ratio is formed within a round, of neighbours in time, before the median is taken: what slows a whole
round down slows both sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

CONFIDENCE: Final = 0.95
"""Aimed at."""

Standing = str
"""`apart above`, `apart below` or `together`: how one interval lies to another."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and where the true one lies."""

    median: float
    low: float
    high: float
    confidence: float
    """That the true median lies between `low` and `high`; 0 with a single value, which is no evidence about others."""
    count: int
    """How many values."""


def median_interval(values: Sequence[float]) -> Interval:
    """The median and its interval. Raises `ValueError` if there is no value."""
    if not values:
        raise ValueError("no values: there is no median")
    ordered = sorted(values)
    count = len(ordered)
    from_end, confidence = _rank(count)
    return Interval(median(ordered), ordered[from_end], ordered[count - 1 - from_end], confidence, count)


def ratio_interval(numerators: Mapping[int, float], denominators: Mapping[int, float]) -> Interval | None:
    """The ratio of two series by round; None if no round has both, or a denominator is 0."""
    rounds = sorted(numerators.keys() & denominators.keys())
    if not rounds or any(denominators[number] == 0 for number in rounds):
        return None
    return median_interval([numerators[number] / denominators[number] for number in rounds])


def standing(low: float, high: float, other_low: float, other_high: float) -> Standing:
    """How the first interval lies to the second. Intervals that touch are together."""
    if low > other_high:
        return "apart above"
    return "apart below" if high < other_low else "together"


def _rank(count: int) -> tuple[int, float]:
    """How many values to leave out at each end, and the confidence that is left."""
    best = (0, _coverage(count, 0))
    for from_end in range(1, (count + 1) // 2):
        coverage = _coverage(count, from_end)
        if coverage < CONFIDENCE:
            break
        best = (from_end, coverage)
    return best


def _coverage(count: int, from_end: int) -> float:
    """That the true median lies between the ends when so many values are left out at each: 1 - 2 P(B <= from_end)."""
    outside: float = sum(math.comb(count, k) for k in range(from_end + 1)) / 2**count
    return max(0.0, 1.0 - 2.0 * outside)
