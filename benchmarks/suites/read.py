"""Read: saturated queries against replicas and depth, and against an embedded replica; all have caught up.

Rule kept here: nothing is written meanwhile (the scale suite has both at once), and the read model that answers is
compared with a fold of the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from ..harness.contract import Case, Figure, Options, Sample, hold, of_each
from ..workloads.bank import AllBalances, BalanceOf, Balances, deposits, questions
from ..workloads.keys import draw
from .invariants import read_model_violations
from .load import Load, ask_all, execute_all
from .measuring import cpu_figures, rate
from .running import Running, running_bank

FILL_S: Final = 0.3
"""How long deposits are sent, so that there are balances to ask for."""

QUESTIONS: Final = 1_000
"""Asked of an embedded replica over and over: made beforehand, since making one takes as long as answering it."""


def cases(options: Options) -> list[Case]:
    """Replicas and depths; a setting without a replica has nobody to ask."""
    depths = (4_096,) if options.quick else (1, 64, 1_024, 4_096)
    replicas = [number for number in options.replicas if number] or [1]
    settings = [{"depth": depth, "replicas": number} for number in replicas for depth in depths]
    found = of_each("read", "saturated reads", saturated, settings, throughput=True)
    return [*found, Case("read", "embedded replica", {}, _measure_embedded)]


async def saturated(options: Options, depth: int, replicas: int) -> Sample:
    """Keep `depth` queries in flight for the time that the options say."""
    async with running_bank(options, replicas=replicas) as running:
        filled = await fill(running, options)
        queries = questions(draw("uniform", options.seed))
        load = await ask_all(
            running.bank, Balances, queries, depth, options.seconds * 0.3, options.seconds, running.cpu()
        )
        hold(load.failures, filled.failures, await running.violations(filled.receipts))
        return Sample(query_figures(load), notes=running.notes | {"events": len(filled.receipts)})


async def _measure_embedded(options: Options) -> Sample:
    """One thread that asks a read model in its own process, and one that looks into it."""
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
