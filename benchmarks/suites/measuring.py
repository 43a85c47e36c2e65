"""How things are measured: repeated calls, CPU by process, and figures with their units.

Rule kept here: CPU comes from `/proc/<pid>/stat`, all threads of a process together, so that what a role takes does not
depend on what the process reports about itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..harness.contract import Figure, Parameter, Sample
from ..harness.histogram import Latencies
from ..harness.processes import cpu_s


def rate(count: float, seconds: float, unit: str) -> Figure:
    """So many per second; more is better."""
    return Figure(count / seconds if seconds > 0 else 0.0, unit, "higher")


def seconds_of(value: float) -> Figure:
    """A duration; less is better."""
    return Figure(value, "s", "lower")


class Timed(NamedTuple):
    """One call again and again."""

    latencies: Latencies
    seconds: float
    """All of it together, the clock's own time included."""


def of_times(
    times: Mapping[str, Latencies], figures: Mapping[str, Figure], notes: Mapping[str, Parameter] | None = None
) -> Sample:
    """What a case has measured: times, by name, with their percentiles (`latency_ms_p50`); and other figures."""
    percentiles: dict[str, Figure] = {}
    for name, of in times.items():
        percentiles |= of.figures(f"{name}_ms")
    encoded = {f"{name}_us": of.encoded() for name, of in times.items()}
    return Sample(percentiles | dict(figures), encoded, notes=dict(notes or {}))


def timed(call: Callable[[], object], seconds: float, warm_up: int = 20) -> Timed:
    """Call again and again for so long, and record each call's duration."""
    for _ in range(warm_up):
        call()
    latencies = Latencies()
    start_ns = before_ns = time.perf_counter_ns()
    end_ns = start_ns + int(seconds * 1e9)
    while before_ns < end_ns:
        call()
        now_ns = time.perf_counter_ns()
        latencies.record_us((now_ns - before_ns) // 1000)
        before_ns = now_ns
    return Timed(latencies, (before_ns - start_ns) / 1e9)


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
        return {role: sum(map(cpu_s, of_role)) for role, of_role in self._pids.items()}


def cpu_figures(used_s: Mapping[str, float], count: int, what: str) -> dict[str, Figure]:
    """CPU seconds per 1,000 of something, all roles together and each: `cpu_s_per_1000_commands_partitions`."""
    if not count:
        return {}
    unit = f"CPU-s per 1,000 {what}"
    name = f"cpu_s_per_1000_{what}"
    figures = {name: Figure(sum(used_s.values()) * 1000 / count, unit, "lower")}
    figures |= {f"{name}_{role}": Figure(used * 1000 / count, unit, "lower") for role, used in used_s.items()}
    return figures
