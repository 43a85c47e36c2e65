"""Read: saturated queries against replicas and depth, and against an embedded replica; all have caught up. One query
alone against a null round trip over a Unix socket, and beside thousands that wait.

Rule kept here: nothing is written meanwhile (the scale suite has both at once), and the read model that answers is
compared with a fold of the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...actors.client.replica_pool import ReplicaPool
from ...actors.settings import Settings
from ...runtime.encoding.codec import encode_message
from ...runtime.encoding.query_batch import PackedQuery
from ..harness.contract import Case, Figure, Options, Sample, hold, of_each
from ..harness.histogram import Latencies
from ..harness.processes import Child
from ..workloads.bank import AllBalances, BalanceOf, Balances, deposits, questions
from ..workloads.keys import draw
from .invariants import read_model_violations
from .load import Load, ask_all, execute_all
from .measuring import cpu_figures, of_times, rate
from .running import Running, running_bank

FILL_S: Final = 0.3
"""How long deposits are sent, so that there are balances to ask for."""

WAITING: Final = 10_000
"""Queries that wait at once."""

IN_TURN: Final = 200
"""Of one kind, before the other kind has its turn: some 20 ms."""

QUESTIONS: Final = 1_000
"""Asked of an embedded replica over and over: made beforehand, since making one takes as long as answering it."""


def cases(options: Options) -> list[Case]:
    """Replicas and depths; a setting without a replica has none to ask."""
    depths = (4_096,) if options.quick else (1, 64, 1_024, 4_096)
    replicas = [number for number in options.replicas if number] or [1]
    settings = [{"depth": depth, "replicas": number} for number in replicas for depth in depths]
    found = of_each("read", "saturated reads", saturated, settings, throughput=True)
    alone = Case("read", "one query beside a null round trip", {}, _measure_alone)
    beside = Case("read", "queries beside 10,000 that wait", {}, _measure_beside_waiting)
    return [*found, alone, beside, Case("read", "embedded replica", {}, _measure_embedded)]


async def saturated(options: Options, depth: int, replicas: int) -> Sample:
    """Keep `depth` queries in flight for the time that the options set."""
    async with running_bank(options, replicas=replicas) as running:
        filled = await fill(running, options)
        queries = questions(draw("uniform", options.seed))
        load = await ask_all(
            running.bank, Balances, queries, depth, options.seconds * 0.3, options.seconds, running.cpu()
        )
        hold(load.failures, filled.failures, await running.violations(filled.receipts))
        return Sample(query_figures(load), notes=running.notes | {"events": len(filled.receipts)})


async def _measure_embedded(options: Options) -> Sample:
    """One thread that asks a read model in its own process, and one that reads it."""
    async with running_bank(options, replicas=1) as running:
        filled = await fill(running, options)
        violations = filled.failures + await running.violations(filled.receipts)
        async with await running.bank.replica(Balances) as replica:
            expected = await running.bank.ask(Balances, AllBalances(), after=replica)
            hold(violations, read_model_violations("embedded replica", expected, replica.ask(AllBalances())))
            queries = list(islice(questions(draw("uniform", options.seed)), QUESTIONS))
            asked_per_s = _calls_per_s(replica.ask, queries, options.seconds / 2)
            with replica.reading() as model:
                read_per_s = _calls_per_s(model.balance, queries, options.seconds / 2)
        figures = {
            "queries_per_s": rate(asked_per_s, 1.0, "queries/s"),
            "look_ups_in_reading_per_s": rate(read_per_s, 1.0, "look-ups/s"),
        }
        return Sample(figures, notes=running.notes | {"events": len(filled.receipts)})


class _Echo(asyncio.Protocol):
    """The client's end of a connection that returns what it gets: what any answer over a socket takes here."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._returned: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._returned is not None:
            self._returned.set_result(None)

    async def round_trip(self) -> None:
        """There and back, with as many bytes as a small query."""
        self._returned = asyncio.get_running_loop().create_future()
        self._transport.write(bytes(64))
        await self._returned

    def close(self) -> None:
        """End it."""
        self._transport.abort()


class _Held(NamedTuple):
    """A projector that holds back what it has to (`held_projector.py`), and a client of it."""

    pool: ReplicaPool
    echo: _Echo
    order: Callable[[str], int]


@contextlib.asynccontextmanager
async def held_projector() -> AsyncIterator[_Held]:
    """A projector in a process of its own, with a socket that returns what it gets."""
    with tempfile.TemporaryDirectory() as folder:
        echo_path = Path(folder) / "echo"
        job = f"{__package__}.held_projector:run"  # imported there alone: Ray may not be set up yet
        with Child(job, listens=True, echo_path=str(echo_path)) as program:
            path = program.next_line().strip()

            def order(what: str) -> int:
                program.write_line(what)
                return int(program.next_line())

            echo = _Echo()
            await asyncio.get_running_loop().create_unix_connection(lambda: echo, str(echo_path))
            pool = ReplicaPool("Balances", [_OpenedHandle(path)], Settings(timeout_s=60.0, in_flight_max=2 * WAITING))
            while isinstance(await pool.ask(_BALANCE, {}, 1.0), Exception):
                pass
            try:
                yield _Held(pool, echo, order)
            finally:
                pool.close()
                echo.close()


class _OpenedHandle:
    """The handle of an actor that does nothing but return the path of its socket."""

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def socket_path(self) -> _OpenedHandle:
        """See `ProjectorActor`."""
        return self

    def remote(self) -> _OpenedHandle:
        """Nothing is sent."""
        return self

    def future(self) -> asyncio.Future[str]:
        """The path, at once."""
        known = asyncio.get_running_loop().create_future()
        known.set_result(self._path)
        return known


_BALANCE: Final = PackedQuery(BalanceOf.message_name, encode_message(BalanceOf(account="a")))


async def in_turn(kinds: Sequence[tuple[Latencies, Callable[[], Awaitable[object]]]], seconds: float) -> None:
    """Each kind `IN_TURN` times, one call after the other, and again, until so many seconds have gone by."""
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        for latencies, call in kinds:
            for _ in range(IN_TURN):
                began_ns = time.perf_counter_ns()
                await call()
                latencies.record_us((time.perf_counter_ns() - began_ns) // 1000)


def _ratio(over: Latencies, under: Latencies) -> Figure:
    return Figure(over.percentile_ms(50.0) / under.percentile_ms(50.0), "times", "lower")


async def _measure_alone(options: Options) -> Sample:
    """One query of a running system, its answer, the next; and null round trips in between."""
    query, null = Latencies(), Latencies()
    async with running_bank(options, replicas=1) as running, held_projector() as held:
        filled = await fill(running, options)
        asked = BalanceOf(account=filled.receipts[0].stream.id)

        async def ask() -> None:
            await running.bank.ask(Balances, asked)

        await in_turn([(Latencies(), ask), (Latencies(), held.echo.round_trip)], options.seconds * 0.2)
        await in_turn([(query, ask), (null, held.echo.round_trip)], options.seconds)
        hold(filled.failures, await running.violations(filled.receipts))
        return of_times({"query": query, "null": null}, {"query_of_null_p50": _ratio(query, null)}, running.notes)


async def _measure_beside_waiting(options: Options) -> Sample:
    """One query after the other, with and without 10,000 in the projector that wait; and until all of them have been
    answered, once their event comes."""
    alone, beside, woken = Latencies(), Latencies(), Latencies()
    violations, threads = list[str](), 0
    async with held_projector() as held:

        async def ask() -> None:
            if await held.pool.ask(_BALANCE, {}, 60.0) != rounds:
                violations.append("a query was answered from another state")

        rounds = 0
        await in_turn([(Latencies(), ask)], options.seconds * 0.1)
        end_s = time.perf_counter() + options.seconds
        while time.perf_counter() < end_s or not rounds:
            await in_turn([(alone, ask)], 0.0001)
            before, position = held.order("threads"), held.order("commit")
            waiting = [held.pool.ask(_BALANCE, {0: position}, 60.0) for _ in range(WAITING)]
            await ask()  # answered behind them: all of them are parked
            await in_turn([(beside, ask)], 0.0001)
            threads = max(threads, held.order("threads") - before)
            began_s, rounds = time.perf_counter(), rounds + 1
            held.order("release")
            if set(await asyncio.gather(*waiting)) != {rounds}:
                violations.append("a query that waited was answered from another state")
            woken.record_s(time.perf_counter() - began_s)
    hold(violations)
    figures = {
        "beside_of_alone_p50": _ratio(beside, alone),
        "extra_threads": Figure(threads, "threads", "lower"),
    }
    return of_times({"alone": alone, "beside": beside, "all_woken": woken}, figures)


def _calls_per_s(call: Callable[[BalanceOf], int], queries: Sequence[BalanceOf], seconds: float) -> float:
    """Passes over the queries until so many seconds have gone by."""
    calls, began_s = 0, time.perf_counter()
    while (passed_s := time.perf_counter() - began_s) < seconds or not calls:
        for query in queries:
            call(query)
        calls += len(queries)
    return calls / passed_s


async def fill(running: Running, options: Options) -> Load:
    """Some deposits to every account, and wait until every replica has seen them."""
    envelopes = deposits(draw("uniform", options.seed), options.seed)
    load = await execute_all(running.bank, envelopes, 1_024, 0.0, FILL_S)
    await running.caught_up()
    return load


def query_figures(load: Load) -> dict[str, Figure]:
    """Queries per second, and what CPU 1,000 of them take in each role."""
    figures = {"queries_per_s": rate(load.counted, load.seconds, "queries/s")}
    return figures | cpu_figures(load.cpu_s, load.counted, "queries")
