"""Ceiling: what this machine and Ray allow, and what a plain program makes of it: the card that all else is read by.

Rule kept here: each ceiling does as little as can be done, with the durability of the log.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import lmdb

from rayfold.runtime.log.environment import LMDB_ENGINE
from rayfold.runtime.log.folder import open_reader

from ..harness.contract import Case, Options, Sample, hold, of_each
from ..workloads.bank import Balances, deposits, questions
from ..workloads.keys import draw
from ..workloads.plain import PlainBank
from .invariants import balances_in, fsync_violations, log_violations, read_model_violations
from .load import NullBank, ask_all, execute_all
from .measuring import CpuMeter, Timed, cpu_figures, of_times, rate, seconds_of, timed
from .running import fresh_folder, shared_ray

EVENT_BYTES: Final = 300
"""Of what is committed where no event is: about a record of the bank."""

IN_FLIGHT: Final = 256
"""Null calls on their way at once."""


def cases(options: Options) -> list[Case]:
    """The load generators first: every throughput is set against them."""
    sizes = (100,) if options.quick else (0, 100, 10_000, 100_000)
    batches = (1, 1_024) if options.quick else (1, 16, 128, 1_024)
    calls = [{"actor": actor, "size_bytes": size} for actor in ("sync", "async") for size in sizes]
    return [
        *of_each("ceiling", "load generator", _to_nobody, [{"load": load} for load in ("commands", "queries")]),
        Case("ceiling", "fdatasync", {}, _fdatasync),
        *of_each("ceiling", "synced commits", _commits, [{"batch": batch} for batch in batches]),
        *of_each("ceiling", "plain program", _plain, [{"batch": batch} for batch in batches]),
        *of_each("ceiling", "null call", _null_call, calls),
        Case("ceiling", "null call and synced commit", {}, _null_call_and_commit),
        Case("ceiling", "actor start", {}, _actor_start),
    ]


async def _to_nobody(options: Options, load: str) -> Sample:
    keys, times = draw("uniform", options.seed), (options.seconds / 4, options.seconds)
    if load == "commands":
        done = await execute_all(NullBank(), deposits(keys, options.seed), 1_024, *times)
    else:
        done = await ask_all(NullBank(), Balances, questions(keys), 4_096, *times)
    return Sample({f"{load}_per_s": rate(done.counted, done.seconds, f"{load}/s")})


async def _fdatasync(options: Options) -> Sample:
    """Overwrite one page of a file and wait until the disk has it."""
    with fresh_folder(options) as folder, (folder / "page").open("wb", buffering=0) as file:
        file.write(bytes(1 << 20))
        os.fsync(file.fileno())
        page = os.urandom(4_096)

        def write() -> None:
            os.pwrite(file.fileno(), page, 0)
            os.fdatasync(file.fileno())

        return of_times({"latency": timed(write, options.seconds).latencies}, {})


class SyncedFile:
    """An LMDB file with the durability of the log, and nothing of the log. Used by the raw peers as well."""

    def __init__(self, folder: Path) -> None:
        self._lmdb = lmdb.open(
            str(folder), map_size=1 << 36, sync=True, metasync=True, writemap=False, lib_version=LMDB_ENGINE
        )
        self._value = os.urandom(EVENT_BYTES)
        self.entries = 0

    def commit(self, events: int) -> None:
        """One transaction with so many entries, fsynced when this returns."""
        with self._lmdb.begin(write=True) as transaction:
            for _ in range(events):
                self.entries += 1
                transaction.put(self.entries.to_bytes(8, "big"), self._value, append=True)

    def violations(self, folder: Path) -> list[str]:
        """Whether all entries are there and on the disk."""
        told = fsync_violations([folder / "data.mdb"])
        stored = self._lmdb.stat()["entries"]
        return told if stored == self.entries else [*told, f"{stored} entries are stored of {self.entries}"]

    def close(self) -> None:
        """Close the file."""
        self._lmdb.close()


def commits(batch: int, options: Options) -> Timed:
    """Synced transactions of so many entries, one after the other."""
    with fresh_folder(options) as folder, closing(SyncedFile(folder)) as file:
        done = timed(partial(file.commit, batch), options.seconds)
        hold(file.violations(folder))
    return done


async def _commits(options: Options, batch: int) -> Sample:
    done = commits(batch, options)
    count = done.latencies.count
    figures = {
        "commits_per_s": rate(count, done.seconds, "commits/s"),
        "events_per_s": rate(count * batch, done.seconds, "events/s"),
    }
    return Sample(figures | done.latencies.figures("latency_ms"), {"latency_us": done.latencies.encoded()})


async def _plain(options: Options, batch: int) -> Sample:
    with fresh_folder(options) as folder:
        bank, source = PlainBank(folder), _amounts(options)
        receipts = bank.run(source, batch, options.seconds / 4)
        cpu, begun_s = CpuMeter({"driver": [os.getpid()]}), time.perf_counter()
        timed = bank.run(source, batch, options.seconds)
        seconds, used_s = time.perf_counter() - begun_s, cpu.used_s()
        violations = fsync_violations([folder / "data.mdb"])
        bank.close()
        reader = open_reader(folder, "plain")
        violations += log_violations({0: reader}, receipts + timed)
        balances = {account: balance for account, (_, _, _, balance) in bank.accounts.items()}
        violations += read_model_violations("the plain program", balances_in([reader]), balances)
        reader.close()
    hold(violations)
    figures = {"commands_per_s": rate(len(timed), seconds, "commands/s")}
    return Sample(figures | cpu_figures(used_s, len(timed), "commands"))


def _amounts(options: Options) -> Iterator[tuple[str, int]]:
    """The same keys and amounts as the runtime is sent."""
    keys = draw("uniform", options.seed)
    drawn = deposits(keys, options.seed)
    pairs = [(envelope.id, envelope.command.amount) for envelope, _ in zip(drawn, keys, strict=False)]  # type: ignore[attr-defined]
    return cycle(pairs)


class _Echo:
    """An actor that does nothing."""

    def call(self, payload: bytes) -> bytes:
        return payload

    def pid(self) -> int:
        return os.getpid()


class _AsyncEcho(_Echo):
    """The same on an event loop."""

    async def call(self, payload: bytes) -> bytes:  # type: ignore[override] # Ray calls either
        return payload


class _Committer:
    """An actor that commits one entry per call."""

    def __init__(self, folder: str) -> None:
        self._file = SyncedFile(Path(folder))

    def call(self, payload: bytes) -> bytes:
        self._file.commit(1)
        return payload


def started_actor(actor_class: type, *arguments: Any) -> Any:
    """A Ray actor with the options that the runtime uses, up and answering."""
    shared_ray()
    import ray

    remote: Any = ray.remote
    actor = remote(actor_class).options(num_cpus=0, enable_task_events=False).remote(*arguments)
    ray.get(actor.call.remote(b""))
    return actor


async def _null_call(options: Options, actor: str, size_bytes: int) -> Sample:
    """Alone, for the latency; then with many in flight, for the throughput."""
    import ray

    echo, payload = started_actor(_Echo if actor == "sync" else _AsyncEcho), os.urandom(size_bytes)
    try:
        latencies = timed(lambda: ray.get(echo.call.remote(payload)), options.seconds / 2).latencies
        cpu = CpuMeter({"driver": [os.getpid()], "actor": [ray.get(echo.pid.remote())]})
        calls, begun_s = 0, time.perf_counter()
        while (passed_s := time.perf_counter() - begun_s) < options.seconds / 2:
            ray.get([echo.call.remote(payload) for _ in range(IN_FLIGHT)])
            calls += IN_FLIGHT
        figures = {"calls_per_s": rate(calls, passed_s, "calls/s")} | cpu_figures(cpu.used_s(), calls, "calls")
    finally:
        ray.kill(echo)
    return of_times({"latency": latencies}, figures)


async def _null_call_and_commit(options: Options) -> Sample:
    """What one durable command has to cost at least: a call to a sync actor, and one synced commit in it."""
    import ray

    with fresh_folder(options) as folder:
        actor = started_actor(_Committer, str(folder))
        try:
            latencies = timed(lambda: ray.get(actor.call.remote(b"x" * 100)), options.seconds).latencies
            hold(fsync_violations([folder / "data.mdb"]))
        finally:
            ray.kill(actor)
    return of_times({"latency": latencies}, {})


async def _actor_start(options: Options) -> Sample:
    """From asking for an actor to its first answer, one after the other."""
    import ray

    shared_ray()
    done = timed(lambda: ray.kill(started_actor(_Echo)), options.seconds, warm_up=0)
    figures = {
        "start_s": seconds_of(done.latencies.percentile_ms(50.0) / 1e3),
        "starts_per_s": rate(done.latencies.count, done.seconds, "actors/s"),
    }
    return Sample(figures, {"start_us": done.latencies.encoded()}, notes={"actors": done.latencies.count})
