"""The open loop's schedule, and the histograms that its latencies go into."""

from __future__ import annotations

import math

import pytest

from rayfold.benchmarks.harness.histogram import Latencies, decoded, merged
from rayfold.benchmarks.suites.load import ConstantPace


def test_requests_are_meant_for_equal_distances() -> None:
    pace = ConstantPace(rate_per_s=10, seconds=1)
    assert pace.total == 10
    assert [pace.intended_s(n) for n in (0, 1, 9)] == [0.0, 0.1, 0.9]


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-1, 1), (math.inf, 1), (1, 0), (1, math.nan)])
def test_a_schedule_without_rate_or_length_is_refused(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"sends nothing, or everything at once|has no end or no length"):
        ConstantPace(rate, seconds)


def test_percentiles_of_a_stored_histogram_are_those_that_were_recorded() -> None:
    latencies = Latencies()
    for microseconds in range(1, 100_001):
        latencies.record_us(microseconds)
    figures = {name: one.value for name, one in decoded(latencies.encoded()).figures("latency_ms").items()}
    assert figures["latency_ms_p50"] == pytest.approx(50.0, rel=0.002)
    assert figures["latency_ms_p99"] == pytest.approx(99.0, rel=0.002)
    assert figures["latency_ms_p999"] == pytest.approx(99.9, rel=0.002)
    assert figures["latency_ms_max"] == pytest.approx(100.0, rel=0.002)


def test_histograms_of_several_rounds_become_one() -> None:
    fast, slow = Latencies(), Latencies()
    for _ in range(90):
        fast.record_s(0.001)
    for _ in range(10):
        slow.record_s(1.0)
    together = merged([fast.encoded(), slow.encoded()])
    assert together.count == 100
    assert together.percentile_ms(50) == pytest.approx(1.0, rel=0.002)
    assert together.percentile_ms(99) == pytest.approx(1000.0, rel=0.002)


def test_nothing_recorded_has_no_percentiles() -> None:
    assert Latencies().figures("latency_ms") == {}
    with pytest.raises(ValueError, match="nothing was recorded: there are no percentiles"):
        Latencies().percentile_ms(50)


def test_what_is_longer_than_an_hour_counts_as_an_hour() -> None:
    latencies = Latencies()
    latencies.record_s(1e9)
    latencies.record_us(-5)
    assert latencies.count == 2
    assert latencies.percentile_ms(100) == pytest.approx(3_600_000, rel=0.002)


def test_a_text_that_is_no_histogram_is_refused() -> None:
    with pytest.raises(ValueError, match="not an HDR histogram"):
        decoded("nonsense")
