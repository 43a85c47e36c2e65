"""Peers: the same job with what a user would take instead, side by side in one run.

Rule kept here: a peer is measured at its best settings, and one that is not installed is shown as that. Every durable
one syncs before it acknowledges. What each of them leaves out is in its own file.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
from collections import deque
from typing import Any, Final

from ..harness.contract import Case, Options, Sample, hold, of_each
from . import postgres_server, umadb_peer
from .ceiling import commits, started_actor
from .load import Load, in_loops
from .measuring import of_times, rate
from .running import Running, fresh_folder, running_bank
from .saturation import OPERATIONS
from .write import WARM_UP_SHARE, command_figures, saturate

CATCH_UP_EVENTS: Final = 50_000
RATE: Final = "commands_per_s"


def cases(options: Options) -> list[Case]:
    """Ours first, then each peer."""
    return [*_ours(options), *_umadb(options), *_eventsourcing(options), *_raw(options)]


def _ours(options: Options) -> list[Case]:
    return of_each("peers", "rayfold", _rayfold, _depths(options), throughput=True)


def _depths(options: Options) -> list[dict[str, int]]:
    return [{"depth": depth} for depth in ((1, 64, 1_024) if options.quick else (1, 4, 16, 64, 256, 1_024))]


async def _rayfold(options: Options, depth: int) -> Sample:
    """Each command one event; with one partition and with two, of which the better is the figure, as with the peers:
    what is in flight is spread over partitions, and each of them commits by itself."""
    best = Sample()
    for partitions in sorted(set(options.partitions[:2])):
        async with running_bank(options, partitions=partitions) as running:
            load = await _at_depth(running, depth, options)
            hold(load.failures, await running.violations(load.receipts))
        figures = command_figures(load)
        best.notes |= running.notes | {f"{partitions}_partitions_per_s": round(figures[RATE].value)}
        if not best.figures or figures[RATE].value > best.figures[RATE].value:
            best.figures = figures
    return best


async def _at_depth(running: Running, depth: int, options: Options) -> Load:
    """One at a time by `execute`, since a source of many is read on a thread of its own; more by `execute_all`."""
    if depth > 1:
        return await saturate(running, depth, "uniform", options)
    operation, warm_up_s = OPERATIONS["execute"](running.bank, options), options.seconds * WARM_UP_SHARE
    return await in_loops(operation, 1, warm_up_s, options.seconds, running.cpu())


def _umadb(options: Options) -> list[Case]:
    skip = "" if umadb_peer.installed() else "not installed: umadb"
    return of_each("peers", "umadb", _measure_umadb, _depths(options), skip=skip)


async def _measure_umadb(options: Options, depth: int) -> Sample:
    with fresh_folder(options) as folder:
        return _commands(await asyncio.to_thread(umadb_peer.measure, folder, depth, options.seconds))


def _eventsourcing(options: Options) -> list[Case]:
    skip = "" if importlib.util.find_spec("eventsourcing") else "not installed: eventsourcing"
    missing = postgres_server.missing()
    no_server = f"not installed: {', '.join(missing)}" if missing else ""
    return [
        Case("peers", "eventsourcing save", {"store": "sqlite"}, _save, skip),
        Case("peers", "eventsourcing save", {"store": "memory"}, _save, skip),
        Case("peers", "eventsourcing save", {"store": "postgres"}, _save, skip or no_server),
        Case("peers", "eventsourcing cached", {"store": "sqlite"}, _save_cached, skip),
        Case("peers", "eventsourcing save then wait", {"store": "memory"}, _save_then_wait, skip),
        Case("peers", "eventsourcing catch-up", {"store": "memory"}, _catch_up, skip),
    ]


async def _save(options: Options, store: str) -> Sample:
    from . import eventsourcing_peer as peer

    if store == "memory":
        return _commands(peer.save_held(peer.IN_MEMORY, options.seconds))
    with fresh_folder(options) as one, fresh_folder(options) as other:
        if store == "sqlite":  # each of the two measurements has a file of its own
            return await _save_alone_and_together(peer.on_sqlite(one), peer.on_sqlite(other), options)
        with postgres_server.running_server(one) as environment:  # with its default durability
            return await _save_alone_and_together(environment, environment, options)


async def _save_alone_and_together(alone: dict[str, str], together: dict[str, str], options: Options) -> Sample:
    """One process, then one on each core: the better of the two is the figure."""
    from . import eventsourcing_peer as peer

    cores = len(os.sched_getaffinity(0))
    one_per_s = await asyncio.to_thread(peer.save_held, alone, options.seconds)
    all_per_s = await asyncio.to_thread(peer.save_in_processes, together, cores, options.seconds)
    notes = {"one_process_per_s": round(one_per_s), f"{cores}_processes_per_s": round(all_per_s)}
    return _commands(max(one_per_s, all_per_s), **notes)


async def _save_cached(options: Options, store: str) -> Sample:
    from . import eventsourcing_peer as peer

    with fresh_folder(options) as folder:
        return _commands(peer.save_cached(peer.on_sqlite(folder), options.seconds))


def _commands(per_second: float, **notes: int) -> Sample:
    return Sample({RATE: rate(per_second, 1.0, "commands/s")}, notes=dict(notes))


async def _save_then_wait(options: Options, store: str) -> Sample:
    from . import eventsourcing_peer as peer

    return of_times({"latency": await asyncio.to_thread(peer.save_then_wait, options.seconds)}, {})


async def _catch_up(options: Options, store: str) -> Sample:
    from . import eventsourcing_peer as peer

    seconds = await asyncio.to_thread(peer.catch_up, CATCH_UP_EVENTS)
    return Sample({"events_per_s": rate(CATCH_UP_EVENTS, seconds, "events/s")}, notes={"events": CATCH_UP_EVENTS})


def _raw(options: Options) -> list[Case]:
    depths = (1_024,) if options.quick else (1, 64, 1_024)
    batches = (1, 1_024) if options.quick else (1, 64, 1_024)
    return [
        *of_each("peers", "raw ray actor", _raw_actor, [{"depth": depth} for depth in depths], throughput=True),
        *of_each("peers", "raw lmdb", _raw_lmdb, [{"batch": batch} for batch in batches]),
    ]


class _Accounts:
    """An actor that keeps balances in memory and nothing on a disk: what is lost when it ends is lost."""

    def __init__(self) -> None:
        self._balances: dict[str, int] = {}

    def call(self, _: bytes) -> int:
        """How much there is in all."""
        return sum(self._balances.values())

    def deposit(self, account: str, amount: int) -> int:
        """More."""
        self._balances[account] = balance = self._balances.get(account, 0) + amount
        return balance


async def _raw_actor(options: Options, depth: int) -> Sample:
    """One call per command, `depth` of them in flight, the oldest half fetched at once: bulk `get` is the fast way."""
    import ray

    actor = started_actor(_Accounts)
    window: deque[Any] = deque()
    try:
        sent, counted, seconds = 0, 0, 0.0
        begun_s = time.perf_counter()
        while (seconds := time.perf_counter() - begun_s) < options.seconds:
            while len(window) < depth:
                window.append(actor.deposit.remote(f"account-{sent % 1000:06d}", 1))
                sent += 1
            oldest = [window.popleft() for _ in range(max(1, depth // 2))]
            ray.get(oldest)
            counted += len(oldest)
        ray.get(list(window))
        total = ray.get(actor.call.remote(b""))
    finally:
        ray.kill(actor)
    hold([] if total == sent else [f"the actor has {total} of {sent} deposits"])
    return _commands(counted / seconds)


async def _raw_lmdb(options: Options, batch: int) -> Sample:
    """Entries of an event's size in synced transactions, without a domain, an index or a checksum."""
    done = commits(batch, options)
    return _commands(done.latencies.count * batch / done.seconds)
