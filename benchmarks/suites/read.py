"""Read: saturated queries against replicas and depth, from read models that have caught up.

Rule kept here: nothing is written meanwhile (the scale suite has both at once), and the read model that answers is
compared with a fold of the log.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from ..harness.contract import Case, Figure, Options, Sample
from ..workloads.bank import Balances, deposits, questions
from ..workloads.keys import draw
from .load import Load, ask_all, execute_all
from .measuring import cpu_figures, rate
from .running import Running, running_bank

__all__ = ["cases", "fill", "query_figures"]

FILL_S: Final = 0.3
"""How long deposits are sent, so that there are balances to ask for."""


def cases(options: Options) -> list[Case]:
    """Replicas and depths; a setting without a replica has nobody to ask."""
    depths = (4_096,) if options.quick else (1, 64, 1_024, 4_096)
    replicas = [number for number in options.replicas if number] or [1]
    return [
        Case(
            "read",
            "saturated reads",
            {"depth": depth, "replicas": number},
            partial(_measure, depth, number),
            throughput=True,
        )
        for number in replicas
        for depth in depths
    ]


async def _measure(depth: int, replicas: int, options: Options) -> Sample:
    async with running_bank(options, replicas=replicas) as running:
        filled = await fill(running, options)
        queries = questions(draw("uniform", options.seed))
        load = await ask_all(
            running.bank, Balances, queries, depth, options.seconds * 0.3, options.seconds, running.cpu()
        )
        violations = load.failures + filled.failures + await running.violations(filled.receipts)
        if violations:
            return Sample(violations=violations)
        return Sample(query_figures(load), notes=running.notes | {"events": len(filled.receipts)})


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
