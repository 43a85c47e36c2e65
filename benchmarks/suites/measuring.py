"""How things are measured: latencies in HDR histograms, CPU by process, figures with their units last.

Rules kept here: latencies are recorded in whole microseconds into one kind of histogram, so that any two can be added;
CPU comes from `/proc/<pid>/stat`, all threads of a process together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..harness.contract import Figure

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

__all__ = [
    "CpuMeter",
    "cpu_figures",
    "encoded",
    "latency_figures",
    "new_histogram",
    "rate",
    "seconds_of",
    "timed_us",
]

LATENCY_US_MAX: Final = 600_000_000
"""Ten minutes: nothing in a benchmark may take longer."""

DIGITS: Final = 3
"""Significant digits that a histogram keeps."""

PERCENTILES: Final = (("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9))
"""`p999` is the 99.9th: a name has no full stop."""

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def new_histogram() -> HdrHistogram:
    """An empty histogram of microseconds."""
    from hdrh.histogram import HdrHistogram  # of the extra `bench`

    return HdrHistogram(1, LATENCY_US_MAX, DIGITS)


def encoded(histogram: HdrHistogram) -> str:
    """The whole histogram as text, in HdrHistogram's own compressed form."""
    text: str = histogram.encode().decode("ascii")
    return text


def latency_figures(histogram: HdrHistogram, name: str = "latency") -> dict[str, Figure]:
    """`latency_ms_p50`, `_p90`, `_p99`, `_p999` and `_max`. Nothing for an empty histogram: it has no percentiles."""
    if not histogram.get_total_count():
        return {}
    values_us = {label: histogram.get_value_at_percentile(percentile) for label, percentile in PERCENTILES}
    values_us["max"] = histogram.get_max_value()
    return {f"{name}_ms_{label}": Figure(value / 1e3, "ms", "lower") for label, value in values_us.items()}


def rate(count: float, seconds: float, unit: str) -> Figure:
    """So many per second; more is better."""
    return Figure(count / seconds if seconds > 0 else 0.0, unit, "higher")


def seconds_of(value: float) -> Figure:
    """A duration; less is better."""
    return Figure(value, "s", "lower")


def timed_us(call: Callable[[], object], seconds: float, warm_up: int = 20) -> HdrHistogram:
    """Call again and again for so long, and record each call's duration."""
    for _ in range(warm_up):
        call()
    histogram = new_histogram()
    end_ns = time.perf_counter_ns() + int(seconds * 1e9)
    while (begun_ns := time.perf_counter_ns()) < end_ns:
        call()
        histogram.record_value(max(1, (time.perf_counter_ns() - begun_ns) // 1000))
    return histogram


class CpuMeter:
    """CPU seconds of processes by role, since it was made or last reset."""

    def __init__(self, pids: Mapping[str, Iterable[int]]) -> None:
        self._pids = {role: tuple(of_role) for role, of_role in pids.items()}
        self.reset()

    def reset(self) -> None:
        """Count from now on."""
        self._before = self._now()

    def used_s(self) -> dict[str, float]:
        """CPU seconds by role since then."""
        return {role: now_s - self._before[role] for role, now_s in self._now().items()}

    def _now(self) -> dict[str, float]:
        return {role: sum(map(_cpu_s, of_role)) for role, of_role in self._pids.items()}


def cpu_figures(used_s: Mapping[str, float], count: int, what: str) -> dict[str, Figure]:
    """CPU seconds per 1,000 of something, all roles together and each: `cpu_s_per_1000_commands_partitions`."""
    if not count:
        return {}
    unit = f"CPU-s per 1,000 {what}"
    name = f"cpu_s_per_1000_{what}"
    figures = {name: Figure(sum(used_s.values()) * 1000 / count, unit, "lower")}
    figures |= {f"{name}_{role}": Figure(used * 1000 / count, unit, "lower") for role, used in used_s.items()}
    return figures


def _cpu_s(pid: int) -> float:
    """User and system time of a process; 0 for one that has ended."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return 0.0
