"""Latency: open loop at shares of saturation, and one command at a time.

Rule kept here: a latency is counted from the moment at which the operation was meant to be sent (see `load.py`). The
generator's own lateness is part of it, and noted beside it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..harness.contract import Case, Figure, Options, Sample
from ..harness.histogram import Latencies
from .load import OpenLoad, in_loops, open_loop
from .read import fill
from .running import Running, running_bank
from .saturation import OPERATIONS, saturation_per_s

__all__ = ["cases", "open_figures", "open_notes"]


def cases(options: Options) -> list[Case]:
    """Every operation at every share of its own saturation."""
    loads = (0.5, 0.9) if options.quick else (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
    found = [
        Case(
            "latency",
            "open loop",
            {"operation": operation, "load": load},
            partial(_measure_open, operation, load),
        )
        for operation in OPERATIONS
        for load in loads
    ]
    return [Case("latency", "one at a time", {}, _measure_alone), *found]


async def _measure_open(operation: str, load: float, options: Options) -> Sample:
    saturation = await saturation_per_s(operation, options)
    async with running_bank(options, replicas=1) as running:
        filled = await fill(running, options)
        started = OPERATIONS[operation](running.bank, options)
        done = await open_loop(started, saturation * load, options.seconds * 0.4, options.seconds)
        violations = done.failures.failures + await running.violations(filled.receipts + done.receipts)
    if violations:
        return Sample(violations=violations)
    figures = done.histogram.figures("latency_ms") | open_figures(done)
    notes = running.notes | open_notes(done, saturation)
    return Sample(figures, {"latency_us": done.histogram.encoded()}, notes=notes)


def open_figures(done: OpenLoad) -> dict[str, Figure]:
    """The rate that was offered, and the one at which answers came."""
    achieved = done.histogram.count / done.seconds if done.seconds else 0.0
    return {
        "offered_per_s": Figure(done.offered_per_s, "operations/s", "neither"),
        "achieved_per_s": Figure(achieved, "operations/s", "neither"),
    }


def open_notes(done: OpenLoad, saturation: float) -> dict[str, str | int | float | bool]:
    """What the reader has to know about the generator."""
    return {
        "saturation_per_s": round(saturation),
        "generator_late_ms_p50": done.late.percentile_ms(50.0),
        "generator_late_ms_p99": done.late.percentile_ms(99.0),
    }


async def _measure_alone(options: Options) -> Sample:
    """One command, its answer, the next command: without a projection, like the null call that it is set against."""
    async with running_bank(options) as running:
        violations, histogram = await _alone(running, "execute", options)
    if violations:
        return Sample(violations=violations)
    return Sample(histogram.figures("latency_ms"), {"latency_us": histogram.encoded()}, notes=running.notes)


async def _alone(running: Running, operation: str, options: Options) -> Any:
    histogram = Latencies()
    started = OPERATIONS[operation](running.bank, options)
    load = await in_loops(started, 1, options.seconds * 0.4, options.seconds, histogram=histogram)
    return load.failures + await running.violations(load.receipts), histogram
