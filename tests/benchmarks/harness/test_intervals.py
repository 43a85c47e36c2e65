"""Medians, their intervals, ratios by round."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.benchmarks.harness.intervals import median_interval, ratio_interval, standing

values = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60)


def test_five_values_give_all_of_them_as_the_interval_with_its_exact_confidence() -> None:
    interval = median_interval([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (interval.median, interval.low, interval.high) == (3.0, 1.0, 5.0)
    assert interval.confidence == 0.9375


def test_three_values_admit_that_they_say_little() -> None:
    assert median_interval([1.0, 2.0, 3.0]).confidence == 0.75


def test_one_value_says_nothing_about_others() -> None:
    interval = median_interval([7.0])
    assert (interval.median, interval.low, interval.high, interval.confidence) == (7.0, 7.0, 7.0, 0.0)


def test_ten_values_leave_out_the_outermost_on_each_side() -> None:
    interval = median_interval([float(number) for number in range(1, 11)])
    assert (interval.low, interval.high) == (2.0, 9.0)
    assert interval.confidence == pytest.approx(1 - 2 * 11 / 1024)


def test_there_is_no_median_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values: there is no median"):
        median_interval([])


@given(values)
def test_the_median_lies_in_its_interval_and_the_interval_among_the_values(numbers: list[float]) -> None:
    interval = median_interval(numbers)
    assert min(numbers) <= interval.low <= interval.median <= interval.high <= max(numbers)
    assert interval.count == len(numbers)


@pytest.mark.parametrize("count", [5, 9, 21])
def test_the_interval_holds_the_true_median_as_often_as_it_says(count: int) -> None:
    chance = random.Random(11)
    confidence, held, tries = 0.0, 0, 4000
    for _ in range(tries):
        interval = median_interval([chance.expovariate(1.0) for _ in range(count)])
        confidence = interval.confidence
        held += interval.low <= 0.6931471805599453 <= interval.high
    assert held / tries == pytest.approx(confidence, abs=0.015)


def test_a_ratio_is_formed_within_rounds_so_that_a_slow_round_cancels_out() -> None:
    interval = ratio_interval({0: 10.0, 1: 1.0, 2: 12.0}, {0: 5.0, 1: 0.5, 2: 6.0})
    assert interval is not None
    assert (interval.median, interval.low, interval.high) == (2.0, 2.0, 2.0)


def test_a_ratio_takes_only_rounds_that_have_both_sides() -> None:
    interval = ratio_interval({0: 10.0, 2: 9.0}, {1: 1.0, 2: 3.0})
    assert interval is not None
    assert (interval.median, interval.count) == (3.0, 1)


@pytest.mark.parametrize(("above", "below"), [({0: 1.0}, {1: 1.0}), ({0: 1.0}, {0: 0.0}), ({}, {})])
def test_there_is_no_ratio_without_a_common_round_or_of_nothing(
    above: dict[int, float], below: dict[int, float]
) -> None:
    assert ratio_interval(above, below) is None


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((4, 5, 1, 3), "apart above"),
        ((1, 2, 3, 4), "apart below"),
        ((1, 3, 3, 4), "together"),
        ((0, 9, 3, 4), "together"),
    ],
)
def test_intervals_that_touch_are_together(ends: tuple[int, int, int, int], expected: str) -> None:
    assert standing(*ends) == expected
