"""Scale: writes and reads at the same time, over partitions and replicas, and how much each disturbs the other.

Three views. The grid: both saturated, for every number of partitions and replicas. The frontier (after HATtrick, Milkai
et al., 2022): the same number of clients, divided between writing and reading in several ways. The interference
matrix: writes and reads each idle, at half of their saturation, or saturated, and what that makes of throughput and p99
of both.

Rule kept here: at half, latencies are those of an open loop. Saturated, they are those of a closed loop and are more
about the depth than about the system: they are to be compared along a row of the matrix, not with each other.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from rayfold import Receipt

from ..harness.contract import LEVELS, Case, Figure, Options, Sample, hold, of_each
from ..harness.histogram import Latencies
from .load import Load, in_loops, open_loop
from .measuring import cpu_figures, rate
from .read import fill
from .running import Running, running_bank
from .saturation import OPERATIONS, saturation_per_s
from .write import command_figures, saturate

CLIENTS: Final = 512
"""Loops of the frontier, and of each saturated side of the interference matrix."""

WARM_UP_SHARE: Final = 0.4


def cases(options: Options) -> list[Case]:
    """The grid over all partitions and replicas; frontier and interference at the smallest system that has both."""
    shares = (0.0, 0.5, 1.0) if options.quick else (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    small = {"partitions": options.partitions[0], "replicas": max(1, min(options.replicas, default=1))}
    grid = [
        {"partitions": number, "replicas": replicas} for number in options.partitions for replicas in options.replicas
    ]
    frontier = [{**small, "write_share": share} for share in shares]
    pairs = [{"writes": writes, "reads": reads} for writes, reads in _pairs(options)]
    return [
        *of_each("scale", "grid", _measure_grid, grid, throughput=True),
        *of_each("scale", "frontier", _measure_frontier, frontier, throughput=True),
        *of_each("scale", "interference", _measure_pair, pairs),
    ]


def _pairs(options: Options) -> list[tuple[str, str]]:
    """All but both idle; in a quick run the corners and the middle."""
    pairs = [(writes, reads) for writes in LEVELS for reads in LEVELS if {writes, reads} != {"idle"}]
    if not options.quick:
        return pairs
    return [pair for pair in pairs if "half" not in pair or set(pair) == {"half"}]


async def _measure_grid(options: Options, partitions: int, replicas: int) -> Sample:
    async with running_bank(options, partitions=partitions, replicas=replicas) as running:
        used_s: dict[str, float] = {}
        if not replicas:
            writes, reads = await saturate(running, 1_024 * partitions, "uniform", options), Load()
        else:
            filled = await fill(running, options)
            cpu = running.cpu()
            writing = saturate(running, 1_024 * partitions, "uniform", options)
            reading = _in_loops(running, "ask", CLIENTS * replicas, options)
            writes, reads = await asyncio.gather(writing, reading)
            writes.receipts += filled.receipts
            used_s = cpu.used_s()
        hold(writes.failures, reads.failures, await running.violations(writes.receipts))
    if not replicas:
        return Sample(command_figures(writes), notes=running.notes)
    figures = _both(writes, reads) | cpu_figures(used_s, writes.counted + reads.counted, "operations")
    return Sample(figures, notes=running.notes)


def _both(writes: Load, reads: Load) -> dict[str, Figure]:
    return {
        "commands_per_s": rate(writes.counted, writes.seconds, "commands/s"),
        "queries_per_s": rate(reads.counted, reads.seconds, "queries/s"),
    }


async def _measure_frontier(options: Options, partitions: int, replicas: int, write_share: float) -> Sample:
    writers = round(CLIENTS * write_share)
    async with running_bank(options, partitions=partitions, replicas=replicas) as running:
        filled = await fill(running, options)
        writes, reads = await asyncio.gather(
            _in_loops(running, "execute", writers, options), _in_loops(running, "ask", CLIENTS - writers, options)
        )
        hold(writes.failures, reads.failures, await running.violations(filled.receipts + writes.receipts))
    return Sample(_both(writes, reads), notes=running.notes)


async def _in_loops(
    running: Running, operation: str, clients: int, options: Options, histogram: Latencies | None = None
) -> Load:
    """So many clients that do one operation after the other. Without a client nothing happens."""
    if not clients:
        return Load(seconds=options.seconds)
    started = OPERATIONS[operation](running.bank, options)
    return await in_loops(started, clients, options.seconds * WARM_UP_SHARE, options.seconds, histogram=histogram)


async def _measure_pair(options: Options, writes: str, reads: str) -> Sample:
    saturations = {
        operation: await saturation_per_s(operation, options)
        for operation, level in (("execute", writes), ("ask", reads))
        if level == "half"
    }
    async with running_bank(options, replicas=1) as running:
        filled = await fill(running, options)
        sides = await asyncio.gather(
            _side(running, "execute", writes, saturations, options), _side(running, "ask", reads, saturations, options)
        )
        failures = [side.failures for side in sides]
        hold(*failures, await running.violations(filled.receipts + sides[0].receipts))
    found = {f"{name}_per_s_saturated": round(value) for name, value in saturations.items()}
    figures: dict[str, Figure] = {}
    for side, unit, name in zip(sides, ("commands", "queries"), ("execute", "ask"), strict=True):
        if not side.counted:  # it was idle
            continue
        figures[f"{unit}_per_s"] = rate(side.counted, side.seconds, f"{unit}/s")
        figures |= side.histogram.figures(f"{name}_ms")
    return Sample(figures, notes=running.notes | found)


class _Side(NamedTuple):
    """What one side of a pair did, whichever loop it was."""

    histogram: Latencies
    counted: int
    seconds: float
    failures: list[str]
    receipts: list[Receipt]


async def _side(running: Running, operation: str, level: str, saturations: dict[str, float], options: Options) -> _Side:
    """Nothing, an open loop at half of saturation, or as much as there is."""
    if level == "half":
        started = OPERATIONS[operation](running.bank, options)
        rate_per_s = saturations[operation] / 2
        done = await open_loop(started, rate_per_s, options.seconds * WARM_UP_SHARE, options.seconds)
        return _Side(done.histogram, done.histogram.count, done.seconds, done.failures.failures, done.receipts)
    histogram = Latencies()
    clients = CLIENTS if level == "saturated" else 0
    load = await _in_loops(running, operation, clients, options, histogram)
    return _Side(histogram, load.counted, load.seconds, load.failures, load.receipts)
