"""Latency: open loop at shares of saturation, and one command at a time, alone and beside what it takes at least.

Rule kept here: a latency is counted from the moment at which the operation was meant to be sent (see `load.py`). The
generator's own lateness is part of it, and noted beside it.
"""

from __future__ import annotations

from rayfold import Receipt

from ..harness.contract import Case, Figure, Options, Parameter, Sample, hold, of_each
from ..harness.histogram import Latencies
from ..workloads.bank import Account, deposits
from ..workloads.keys import draw
from .ceiling import SyncedFile
from .load import OpenLoad, in_loops, open_loop
from .measuring import of_times
from .read import fill, held_projector, in_turn
from .running import Running, fresh_folder, running_bank
from .saturation import OPERATIONS, saturation_per_s


def cases(options: Options) -> list[Case]:
    """Every operation at every share of its own saturation."""
    loads = (0.5, 0.9) if options.quick else (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
    settings: list[dict[str, Parameter]]
    settings = [{"operation": operation, "load": load} for operation in OPERATIONS for load in loads]
    alone = Case("latency", "one at a time", {}, _measure_alone)
    beside = Case("latency", "one command beside a null round trip and a commit", {}, _measure_beside)
    return [alone, beside, *of_each("latency", "open loop", _measure_open, settings)]


async def _measure_open(options: Options, operation: str, load: float) -> Sample:
    saturation = await saturation_per_s(operation, options)
    async with running_bank(options, replicas=1) as running:
        filled = await fill(running, options)
        started = OPERATIONS[operation](running.bank, options)
        done = await open_loop(started, saturation * load, options.seconds * 0.4, options.seconds)
        hold(done.failures.failures, await running.violations(filled.receipts + done.receipts))
    notes = running.notes | open_notes(done, saturation)
    return of_times({"latency": done.histogram}, open_figures(done), notes)


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
        return await one_after_the_other(running, "execute", options)


async def _measure_beside(options: Options) -> Sample:
    """One command and its answer, a null round trip over a Unix socket, a synced commit of one entry, and again."""
    command, null, commit, receipts = Latencies(), Latencies(), Latencies(), list[Receipt]()
    with fresh_folder(options) as folder:
        file = SyncedFile(folder)
        async with running_bank(options) as running, held_projector() as held:
            envelopes = deposits(draw("uniform", options.seed), options.seed)

            async def execute() -> None:
                envelope = next(envelopes)
                receipts.append(await running.bank.execute(Account, envelope.id, envelope.command))

            async def commit_one() -> None:
                file.commit(1)

            calls = execute, held.echo.round_trip, commit_one
            await in_turn([(Latencies(), call) for call in calls], options.seconds * 0.2)
            await in_turn(list(zip((command, null, commit), calls, strict=True)), options.seconds)
            hold(await running.violations(receipts), file.violations(folder))
            file.close()
            floor_ms = null.percentile_ms(50.0) + commit.percentile_ms(50.0)
            figures = {"command_of_both_p50": Figure(command.percentile_ms(50.0) / floor_ms, "times", "lower")}
            return of_times({"command": command, "null": null, "commit": commit}, figures, running.notes)


async def one_after_the_other(running: Running, operation: str, options: Options) -> Sample:
    """The latency of an operation that begins when the one before has ended."""
    histogram = Latencies()
    started = OPERATIONS[operation](running.bank, options)
    load = await in_loops(started, 1, options.seconds * 0.4, options.seconds, histogram=histogram)
    hold(load.failures, await running.violations(load.receipts))
    return of_times({"latency": histogram}, {}, running.notes)
