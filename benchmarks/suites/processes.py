"""Processes: whole steps a second (an event in, a command out, its outcome in), how soon they react, and timers.

Rule kept here: a step counts once its outcome is stored, and each exactly once, by the log. Every event is of another
aggregate and starts an instance of its own. How soon: by the times that are stored with the records, all of one clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

from rayfold import Envelope, RayfoldError, Runtime
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.processes.agenda import Agenda
from rayfold.runtime.processes.progress import STEPPED
from rayfold.runtime.processes.stored_step import step_in
from rayfold.runtime.processes.timers import Timers
from rayfold.runtime.stream import StreamId

from ..harness.contract import Case, Figure, Options, Sample, hold
from ..harness.histogram import Latencies
from ..workloads.relay_steps import Answerer, Ask, Asker, Relaying
from .measuring import CpuMeter, cpu_figures, of_times, rate, seconds_of
from .running import fresh_folder, shared_ray

DEPTH: Final = 1_024
"""Events on their way at once, of a closed loop."""

SETTLE_TIMEOUT_S: Final = 120.0
TIMERS: Final = 1_000_000
TIMERS_QUICK: Final = 100_000
DUE_AT_ONCE: Final = 1_000


def cases(options: Options) -> list[Case]:
    """Ours at saturation and at half of it, the peer, and timers."""
    skip = "" if importlib.util.find_spec("eventsourcing") else "not installed: eventsourcing"
    partitions = options.partitions[min(1, len(options.partitions) - 1)]
    return [
        Case("processes", "steps", {"partitions": partitions}, _steps),
        Case("processes", "reaction at half", {"partitions": partitions}, _reaction),
        Case("processes", "eventsourcing steps", {"store": "sqlite"}, _peer, skip),
        Case("processes", "timers", {"count": TIMERS_QUICK if options.quick else TIMERS}, _timers),
    ]


@contextlib.asynccontextmanager
async def _running(folder: Path, partitions: int) -> AsyncIterator[Runtime]:
    shared_ray()
    aggregates = [Asker, Answerer]
    async with Runtime(folder / "s", aggregates=aggregates, processes=[Relaying], partitions=partitions) as running:
        yield running


def _asks(first: int = 0) -> Iterator[Envelope]:
    number = first
    while True:
        yield Envelope(Asker, f"asker-{number:07d}", Ask(number=number))
        number += 1


async def _saturated(running: Runtime, seconds: float) -> tuple[int, float]:
    """How many events went in, in so many seconds, and how long it took until the last step was whole."""
    begun_s, count = time.perf_counter(), 0
    going = True

    def source() -> Iterator[Envelope]:
        for envelope in _asks():
            if not going:
                return
            yield envelope

    async for _, outcome in running.execute_all(source(), in_flight=DEPTH):
        if isinstance(outcome, RayfoldError):
            raise outcome
        count += 1
        going = time.perf_counter() - begun_s < seconds
    await _settled(running)
    return count, time.perf_counter() - begun_s


async def _settled(running: Runtime) -> None:
    """Until nothing is on its way any more."""
    end_s = time.perf_counter() + SETTLE_TIMEOUT_S
    while time.perf_counter() < end_s:
        facts = [one.courier for one in (await running.status()).partitions]
        if all(one is not None and not (one.undelivered or one.open_sends) for one in facts):
            return
        await asyncio.sleep(0.01)
    hold([f"not all steps are whole after {SETTLE_TIMEOUT_S:g} s"])


def _outcomes(running: Runtime) -> tuple[Latencies, list[int]]:
    """From each event until the process has reacted, and until the outcome was in; and how many outcomes each had."""
    asked_us: dict[str, int] = {}
    reacted: Latencies = Latencies()
    outcomes: dict[str, int] = {}
    steps = []
    for partition in range(running.store.partitions):
        reader = running.store.open_reader(partition)
        try:
            at, head = 0, reader.head()
            while at < head:
                records = reader.read(at, 4_096)
                at += len(records)
                for record in records:
                    stored = decode_record(record, checked=True)
                    if stored.name == "Asked":
                        asked_us[stored.stream.id] = stored.recorded_at_us
                    elif stored.name == STEPPED and (step := step_in(stored)) is not None:
                        steps.append((stored.stream.id, stored.recorded_at_us, step.answered))
        finally:
            reader.close()
    for ident, at_us, answered in steps:
        if answered is None:
            reacted.record_us(max(at_us - asked_us[ident], 0))
        else:
            outcomes[ident] = outcomes.get(ident, 0) + 1
    return reacted, [outcomes.get(ident, 0) for ident in asked_us]


async def _steps(options: Options, partitions: int) -> Sample:
    with fresh_folder(options) as folder:
        async with _running(folder, partitions) as running:
            await _saturated(running, options.seconds / 5)
        async with _running(folder / "again", partitions) as running:
            pids = [one.pid for one in (await running.status()).partitions]
            cpu = CpuMeter({"partitions": pids})
            count, taken_s = await _saturated(running, options.seconds)
            used_s = cpu.used_s()
            _, each = await asyncio.to_thread(_outcomes, running)
            hold([] if each == [1] * count else [f"{each.count(1)} of {count} events had one outcome"])
    figures = {"steps_per_s": rate(count, taken_s, "steps/s")}
    return Sample(figures | cpu_figures(used_s, count, "steps"), notes={"steps": count})


async def _reaction(options: Options, partitions: int) -> Sample:
    """At half of what a short saturated run has shown."""
    with fresh_folder(options) as folder:
        async with _running(folder / "first", partitions) as running:
            count, taken_s = await _saturated(running, options.seconds / 2)
        per_s = count / taken_s / 2
        async with _running(folder, partitions) as running:
            asks, begun_s, sent = _asks(), time.perf_counter(), 0
            tasks: set[asyncio.Task[object]] = set()
            while (passed_s := time.perf_counter() - begun_s) < options.seconds:
                while sent < passed_s * per_s:
                    envelope = next(asks)
                    asking = running.execute(envelope.aggregate, envelope.id, envelope.command)
                    task: asyncio.Task[object] = asyncio.ensure_future(asking)
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    sent += 1
                await asyncio.sleep(0.001)
            await asyncio.gather(*tasks)
            await _settled(running)
            reacted, each = await asyncio.to_thread(_outcomes, running)
            hold([] if each == [1] * sent else [f"{each.count(1)} of {sent} events had one outcome"])
    return of_times({"reaction": reacted}, {"steps_per_s": rate(sent, options.seconds, "steps/s")})


async def _peer(options: Options, store: str) -> Sample:
    from .process_peer import steps_per_s

    found = {}
    for threads in (False, True):
        with fresh_folder(options) as folder:
            per_s = await asyncio.to_thread(steps_per_s, folder, options.seconds, threads=threads)
        found["several threads" if threads else "one thread"] = per_s
    notes = {name: round(per_s) for name, per_s in found.items()}
    return Sample({"steps_per_s": rate(max(found.values()), 1.0, "steps/s")}, notes=dict(notes))


async def _timers(options: Options, count: int) -> Sample:
    """Arming, a start with all of them pending, and a thousand that are due at once: the agenda alone."""
    from rayfold.runtime.log.agenda_file import open_agenda_file

    with fresh_folder(options) as folder:
        file = open_agenda_file(folder / "agenda", "agenda")
        timers, begun_s = Timers(file), time.perf_counter()
        hour_us = int(timedelta(hours=1).total_seconds() * 1e6)
        for number in range(count):
            due_us = number if number < DUE_AT_ONCE else hour_us + number
            timers.arm(StreamId("Order", f"order-{number:07d}"), "unpaid", due_us, 1)
            if number % 20_000 == 19_999:
                file.write(timers.changes())
                timers.saved()
        file.write(timers.changes())
        timers.saved()
        armed_s = time.perf_counter() - begun_s
        file.close()
        begun_s = time.perf_counter()
        agenda = Agenda(open_agenda_file(folder / "agenda", "agenda"))
        agenda.timers = Timers(agenda._file)
        due = agenda.timers.due(DUE_AT_ONCE, 1 << 20)
        started_s = time.perf_counter() - begun_s
        hold([] if len(due) == DUE_AT_ONCE else [f"{len(due)} are due, not {DUE_AT_ONCE}"])
        hold([] if agenda.timers.count == count else [f"{agenda.timers.count} are armed, not {count}"])
        agenda.shut()
    figures: dict[str, Figure] = {"armed_per_s": rate(count, armed_s, "timers/s"), "start_s": seconds_of(started_s)}
    return Sample(figures)
