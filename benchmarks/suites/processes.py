"""Processes: whole steps a second (an event in, a command out, its outcome in), how soon they react, and timers.

Rule kept here: a step counts once its outcome is stored, and each exactly once, by the log. Every event is of another
aggregate and starts an instance of its own. How soon: by the times that are stored with the records, all of one clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import timedelta
from itertools import count as counting
from pathlib import Path
from typing import Any, Final

import msgpack

from rayfold import NO_STREAM, Envelope, RayfoldError, Runtime
from rayfold.runtime.encoding.envelope import DIGEST_BYTES
from rayfold.runtime.encoding.outputs import AT, WAKE, step_id
from rayfold.runtime.log.contract import Append, NewEvent, StoredEvent
from rayfold.runtime.processes.agenda import Agenda
from rayfold.runtime.processes.progress import STEPPED
from rayfold.runtime.processes.stored_step import step_in
from rayfold.runtime.processes.timers import Timers
from rayfold.runtime.store.store import create_or_open_store
from rayfold.runtime.stream import StreamId

from ..harness.contract import Case, Figure, Options, Sample, hold
from ..harness.couriers import open_work
from ..harness.histogram import Latencies
from ..harness.log_walk import events_of
from ..harness.processes import Child
from ..workloads import local_calls
from ..workloads.local_calls import Posting
from ..workloads.steps import Answerer, Ask, Asker, Relaying, Waiting
from .load import execute_all, open_loop
from .measuring import CpuMeter, cpu_figures, of_times, rate, seconds_of
from .running import fresh_folder, shared_ray

DEPTH: Final = 1_024
"""Events on their way at once, of a closed loop."""

ARMED: Final = 20_000
"""Timers that are armed by events, of a system that runs."""

DUE_PER_S: Final = 500
"""Timers that become due one after the other, for lateness."""

ARM_PER_S: Final = 1_000
"""What a busy machine arms at the least: the first timers are due once all are armed."""

OPEN_CALLS: Final = ("undelivered", "timers")
"""Events that were not delivered, and calls without an end: each has one timer."""

OPEN_CALLS_MAX: Final = 2_000
"""Calls that were asked for and have no end: the commands are paced so, since they are much faster."""

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
        Case("processes", "effects", {"partitions": partitions}, _effects),
        Case("processes", "timers", {"count": TIMERS_QUICK if options.quick else TIMERS}, _timers),
        Case("processes", "timers in a system", {"partitions": partitions}, _timers_in_a_system),
        Case(
            "processes", "start with timers", {"count": TIMERS_QUICK if options.quick else TIMERS}, _start_with_timers
        ),
    ]


@contextlib.asynccontextmanager
async def _running(folder: Path, partitions: int, **classes: Any) -> AsyncIterator[Runtime]:
    """A system with these processes or effects; those that relay if none are given."""
    shared_ray()
    classes = {"aggregates": [Asker, Answerer], **(classes or {"processes": [Relaying]})}
    async with Runtime(folder / "s", partitions=partitions, **classes) as running:
        yield running


def _asks(first: int = 0, number: int | None = None) -> Iterator[Envelope]:
    """Each to another aggregate, with its own number or always the same."""
    for at in counting(first):
        yield Envelope(Asker, f"asker-{at:07d}", Ask(number=at if number is None else number))


async def _saturated(running: Runtime, seconds: float) -> tuple[int, float]:
    """How many events went in, in so many seconds, and how long it took until the last step was whole."""
    begun_s = time.perf_counter()
    load = await execute_all(running, _asks(), DEPTH, 0.0, seconds)
    hold(load.failures)
    await _until(running, 0, "undelivered", "open_sends")
    return len(load.receipts), time.perf_counter() - begun_s


async def _until(running: Runtime, wanted: int, *kinds: str) -> None:
    """Until so much of these kinds is open."""
    end_s = time.perf_counter() + SETTLE_TIMEOUT_S
    while (there := open_work(await running.status(), *kinds)) != wanted:
        hold([] if time.perf_counter() < end_s else [f"{there} are open of {' and '.join(kinds)}, not {wanted}"])
        await asyncio.sleep(0.01)


def _stored(running: Runtime) -> Iterator[StoredEvent]:
    """Every event of all logs."""
    for partition in range(running.store.partitions):
        with contextlib.closing(running.store.open_reader(partition)) as reader:
            yield from events_of(reader)


def _reactions(running: Runtime, expected: int) -> Latencies:
    """From each event until the process has reacted; each of so many events had one outcome."""
    asked_us: dict[str, int] = {}
    outcomes: Counter[str] = Counter()
    reacted: Latencies = Latencies()
    steps = []
    for stored in _stored(running):
        if stored.name == "Asked":
            asked_us[stored.stream.id] = stored.recorded_at_us
        elif stored.name == STEPPED and (step := step_in(stored)) is not None:
            steps.append((stored.stream.id, stored.recorded_at_us, step.answered))
    for ident, at_us, answered in steps:
        if answered is None:
            reacted.record_us(max(at_us - asked_us[ident], 0))
        else:
            outcomes[ident] += 1
    once = sum(outcomes[ident] == 1 for ident in asked_us)
    hold([] if once == expected == len(asked_us) else [f"{once} of {expected} events had one outcome"])
    return reacted


async def _steps(options: Options, partitions: int) -> Sample:
    with fresh_folder(options) as folder:
        async with _running(folder, partitions) as running:
            await _saturated(running, options.seconds / 5)
        async with _running(folder / "again", partitions) as running:
            cpu = await _cpu_of_partitions(running)
            steps, taken_s = await _saturated(running, options.seconds)
            used_s = cpu.used_s()
            await asyncio.to_thread(_reactions, running, steps)
    figures = {"steps_per_s": rate(steps, taken_s, "steps/s")}
    return Sample(figures | cpu_figures(used_s, steps, "steps"), notes={"steps": steps})


async def _effects(options: Options, partitions: int) -> Sample:
    """Calls to an HTTP server of this machine, until each has its end in the log."""
    with fresh_folder(options) as folder, Child(local_calls.serve, listens=True) as server:
        port = int(server.next_line())
        async with _running(folder, partitions, effects=[Posting]) as running:
            await _called(running, port, options.seconds / 5, 0)
            cpu, begun_s = await _cpu_of_partitions(running), time.perf_counter()
            first, calls_before = _counts_of(server)
            made = await _called(running, port, options.seconds, first)
            taken_s, used_s = time.perf_counter() - begun_s, cpu.used_s()
        keys, calls = _counts_of(server)
        seen = keys - first, calls - calls_before
        hold([] if seen == (made, made) else [f"{seen[0]} keys and {seen[1]} calls of {made} effects"])
    figures = {"effects_per_s": rate(made, taken_s, "effects/s")}
    return Sample(figures | cpu_figures(used_s, made, "effects"), notes={"effects": made})


def _counts_of(server: Child) -> tuple[int, int]:
    """How many keys have come to the server, and how many calls."""
    server.write_line("")
    keys, calls = server.next_line().split()
    return int(keys), int(calls)


async def _called(running: Runtime, port: int, seconds: float, first: int) -> int:
    """How many effects were asked for in so many seconds; returns once the last one has its end."""
    begun_s, asked, going, asks = time.perf_counter(), 0, True, _asks(first, port)
    source = iter(lambda: next(asks) if going else None, None)
    async for _, outcome in running.execute_all(source, in_flight=DEPTH):
        if isinstance(outcome, RayfoldError):
            raise outcome
        asked += 1
        if going and not asked % 64:
            going = time.perf_counter() - begun_s < seconds
            while open_work(await running.status(), *OPEN_CALLS) > OPEN_CALLS_MAX:
                await asyncio.sleep(0.02)
    await _until(running, 0, *OPEN_CALLS)
    return asked


async def _cpu_of_partitions(running: Runtime) -> CpuMeter:
    return CpuMeter({"partitions": [one.pid for one in (await running.status()).partitions]})


async def _reaction(options: Options, partitions: int) -> Sample:
    """At half of what a short saturated run has shown."""
    with fresh_folder(options) as folder:
        async with _running(folder / "first", partitions) as running:
            steps, taken_s = await _saturated(running, options.seconds / 2)
        async with _running(folder, partitions) as running:
            asks = _asks()

            async def ask() -> object:
                envelope = next(asks)
                return await running.execute(envelope.aggregate, envelope.id, envelope.command)

            load = await open_loop(ask, steps / taken_s / 2, 0.0, options.seconds)
            hold(load.failures.failures)
            await _until(running, 0, "undelivered", "open_sends")
            reacted = await asyncio.to_thread(_reactions, running, load.sent)
    return of_times({"reaction": reacted}, {"steps_per_s": rate(load.sent, options.seconds, "steps/s")})


async def _peer(options: Options, store: str) -> Sample:
    from .process_peer import steps_per_s

    found = {}
    for threads in (False, True):
        with fresh_folder(options) as folder:
            per_s = await asyncio.to_thread(steps_per_s, folder, options.seconds, threads=threads)
        found["several threads" if threads else "one thread"] = per_s
    notes = {name: round(per_s) for name, per_s in found.items()}
    return Sample({"steps_per_s": rate(max(found.values()), 1.0, "steps/s")}, notes=dict(notes))


async def _arm(running: Runtime, due_us: Iterable[int], first: int = 0) -> None:
    """Have timers armed for these times."""
    asks = (Envelope(Asker, f"asker-{at:07d}", Ask(number=at_us)) for at, at_us in enumerate(due_us, first))
    async for _, outcome in running.execute_all(asks, in_flight=DEPTH):
        if isinstance(outcome, RayfoldError):
            raise outcome


def _lateness_us(running: Runtime) -> dict[str, int]:
    """How late each timer was fired, by the times in the log; by instance."""
    due_us: dict[str, int] = {}
    late_us: dict[str, int] = {}
    for stored in _stored(running):
        step = step_in(stored) if stored.name == STEPPED else None
        if step is not None and step.timers:
            due_us[stored.stream.id] = step.timers[0].due_us
        elif step is not None and step.fired is not None:
            hold([] if stored.stream.id not in late_us else [f"{stored.stream} was fired twice"])
            late_us[stored.stream.id] = stored.recorded_at_us - due_us[stored.stream.id]
    return late_us


async def _timers_in_a_system(options: Options, partitions: int) -> Sample:
    """Arming by events; how late they are fired one after the other; and a thousand that are due at once."""
    seconds, hour_us = max(int(options.seconds), 1), 3_600_000_000
    armed, spread = ARMED // 10 if options.quick else ARMED, DUE_PER_S * seconds
    with fresh_folder(options) as folder:
        async with _running(folder, partitions, processes=[Waiting]) as running:
            begun_s = time.perf_counter()
            await _arm(running, (time.time_ns() // 1_000 + hour_us for _ in range(armed)))
            await _until(running, armed, "timers")
            armed_s = time.perf_counter() - begun_s
            first_us = time.time_ns() // 1_000 + (1 + (spread + DUE_AT_ONCE) // ARM_PER_S) * 1_000_000
            at_once_us = first_us + (seconds + 1) * 1_000_000
            await _arm(running, (first_us + number * 1_000_000 // DUE_PER_S for number in range(spread)), armed)
            await _arm(running, [at_once_us] * DUE_AT_ONCE, armed + spread)
            hold([] if time.time_ns() // 1_000 < first_us else ["the first were due before all were armed"])
            await _until(running, armed, "timers")
            late_us = await asyncio.to_thread(_lateness_us, running)
    hold(
        [] if len(late_us) == spread + DUE_AT_ONCE else [f"{len(late_us)} timers of {spread + DUE_AT_ONCE} were fired"]
    )
    hold([f"a timer was fired {-one} us early" for one in late_us.values() if one < 0][:1])
    lateness: Latencies = Latencies()
    for number in range(spread):
        lateness.record_us(late_us[f"asker-{armed + number:07d}"])
    last_us = max(late_us[f"asker-{armed + spread + number:07d}"] for number in range(DUE_AT_ONCE))
    figures = {"armed_per_s": rate(armed, armed_s, "timers/s"), "at_once_s": seconds_of(last_us / 1e6)}
    return of_times({"lateness": lateness}, figures)


def _write_pending(folder: Path, count: int) -> None:
    """A store with so many instances that wait for a timer, as their steps would have stored them."""
    due_us = time.time_ns() // 1_000 + 3_600_000_000
    store = create_or_open_store(folder, 1)
    log = store.open_log(0)
    epoch = log.activate()
    try:
        for first in range(0, count, 1_000):
            appends = []
            for number in range(first, min(first + 1_000, count)):
                head = ["Asker", f"asker-{number:07d}", 1, "Asked", 0, number + 1, due_us]
                command_id = step_id("event", number)
                body = [0, 0, head, command_id, b"", False, "", [[WAKE, "due", AT, due_us + number]], "", ""]
                event = NewEvent(STEPPED, 1, msgpack.packb({"body": msgpack.packb(body)}))
                stream = StreamId("Waiting", f"asker-{number:07d}")
                appends.append(Append(stream, NO_STREAM, (event,), command_id, bytes(DIGEST_BYTES)))
            log.append(epoch, appends)
    finally:
        log.close()


async def _start_with_timers(options: Options, count: int) -> Sample:
    """A start whose agenda has to be read from the log, and one that finds it saved; beside one without any."""
    taken_s: dict[str, float] = {}
    with fresh_folder(options) as folder:
        await asyncio.to_thread(_write_pending, folder / "s", count)
        for name, directory, expected in (("none", "none", 1), ("read", "", count + 1), ("saved", "", count + 2)):
            begun_s = time.perf_counter()
            async with _running(folder / directory, 1, processes={Waiting: "beginning"}) as running:
                due_us = time.time_ns() // 1_000 + 10**10
                await running.execute(Asker, f"first-{name}", Ask(number=due_us))
                await _until(running, expected, "timers")
                taken_s[name] = time.perf_counter() - begun_s
    figures = {
        "start_without_s": seconds_of(taken_s["none"]),
        "start_saved_s": seconds_of(taken_s["saved"]),
        "start_read_s": seconds_of(taken_s["read"]),
    }
    return Sample(figures)


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
