"""The scalability fit, the frontier and the interference matrix, against curves whose numbers are known."""

from __future__ import annotations

import random

import pytest

from rayfold.benchmarks.harness.curves import Point, fit_scaling, frontier, independence, relative, throughput, worst

COUNTS = [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(("contention", "coherency"), [(0.0, 0.0), (0.1, 0.0), (0.05, 0.002), (0.02, 0.0005)])
def test_the_fit_finds_the_numbers_that_a_curve_was_made_with(contention: float, coherency: float) -> None:
    fit = fit_scaling(COUNTS, [throughput(n, 1000.0, contention, coherency) for n in COUNTS])
    assert fit is not None
    assert (fit.one, fit.contention, fit.coherency) == pytest.approx(
        (1000.0, contention, coherency), rel=1e-3, abs=1e-5
    )
    assert fit.at(64) == pytest.approx(throughput(64, 1000.0, contention, coherency), rel=2e-2)


def test_the_standard_errors_cover_the_truth_of_noisy_points_and_shrink_with_more_of_them() -> None:
    def noisy(times: int) -> tuple[list[float], list[float]]:
        chance = random.Random(3)
        counts = [float(n) for n in COUNTS for _ in range(times)]
        return counts, [throughput(n, 1000.0, 0.05, 0.002) * chance.gauss(1.0, 0.02) for n in counts]

    few, many = fit_scaling(*noisy(2)), fit_scaling(*noisy(30))
    assert few is not None
    assert many is not None
    assert many.known
    assert many.contention_error < few.contention_error
    assert abs(many.contention - 0.05) < 4 * many.contention_error
    assert abs(many.coherency - 0.002) < 4 * many.coherency_error


def test_three_points_have_no_standard_errors_and_the_sentence_says_so() -> None:
    fit = fit_scaling([1, 2, 4], [10.0, 18.0, 30.0])
    assert fit is not None
    assert not fit.known
    assert "three parameters through 3 points: no standard errors" in fit.sentence(8)
    assert "Extrapolated, not measured: " in fit.sentence(8)


@pytest.mark.parametrize("counts", [[], [1, 2], [1, 1, 2, 2]])
def test_two_numbers_of_workers_are_not_fitted(counts: list[float]) -> None:
    assert fit_scaling(counts, [10.0] * len(counts)) is None


def test_as_many_rates_as_numbers_of_workers_are_needed() -> None:
    with pytest.raises(ValueError, match="3 numbers of workers, but 1 rates"):
        fit_scaling([1, 2, 3], [1.0])


def test_the_frontier_leaves_out_what_is_beaten_on_both_sides() -> None:
    points = [Point(0, 10), Point(5, 5), Point(4, 4), Point(10, 0), Point(5, 3)]
    assert frontier(points) == [Point(0, 10), Point(5, 5), Point(10, 0)]


@pytest.mark.parametrize(
    ("middle", "share"), [(Point(5, 5), 0.5), (Point(10, 10), 1.0), (Point(2, 2), 0.2)], ids=["shared", "apart", "harm"]
)
def test_independence_is_the_area_below_the_frontier(middle: Point, share: float) -> None:
    assert independence(frontier([Point(0, 10), middle, Point(10, 0)])) == pytest.approx(share)


def test_without_a_box_there_is_no_independence() -> None:
    assert independence([]) is None
    assert independence([Point(0, 10)]) is None


def test_interference_compares_with_the_same_load_while_the_other_side_is_idle() -> None:
    cells = {
        ("half", "idle"): 50.0,
        ("half", "saturated"): 40.0,
        ("saturated", "idle"): 100.0,
        ("saturated", "half"): 60.0,
    }
    multiples = relative(cells)
    assert multiples["half", "saturated"] == pytest.approx(0.8)
    assert worst(multiples, lower_is_worse=True) == (("saturated", "half"), 0.6)
    assert worst(multiples, lower_is_worse=False) == (("half", "saturated"), 0.8)


def test_a_cell_without_its_idle_one_is_not_compared() -> None:
    assert relative({("half", "saturated"): 40.0}) == {}
    assert worst({}, lower_is_worse=True) is None
