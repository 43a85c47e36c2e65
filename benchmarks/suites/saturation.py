"""Saturation: how much of one kind of operation a bank takes, found once per run and used as 100 % afterwards.

The suites with an open loop (latency, freshness) and the interference matrix load a system to a share of what it can
do. That has to be found first, with the same operation, the same generator and the same shape of system.

Rule kept here: it is found once per run and kind, so that all repetitions of a case offer the same rate; every sample
notes it. Each operation is a task of its own, as in the open loop, whose own cost is then part of both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import cycle
from pathlib import Path
from typing import Final

from rayfold import Runtime

from ..harness.contract import Options
from ..workloads.bank import Account, Balances, Deposit, deposits, questions
from ..workloads.keys import draw
from .load import in_loops
from .running import Running, running_bank

DEPTH: Final = 512
"""Operations in flight that saturate: more of them only wait longer."""

Operation = Callable[[], Awaitable[object]]
OperationOf = Callable[[Runtime, Options], Operation]

_found: dict[tuple[Path, str, int, int], float] = {}


def _execute(bank: Runtime, options: Options) -> Operation:
    envelopes = deposits(draw("uniform", options.seed), options.seed)

    def operation() -> Awaitable[object]:
        envelope = next(envelopes)
        return bank.execute(Account, envelope.id, envelope.command)

    return operation


def _ask(bank: Runtime, options: Options) -> Operation:
    queries = questions(draw("uniform", options.seed))
    return lambda: bank.ask(Balances, next(queries))


def _execute_then_ask(bank: Runtime, options: Options) -> Operation:
    keys = cycle(draw("uniform", options.seed))
    queries = questions(draw("uniform", options.seed))

    async def operation() -> object:
        receipt = await bank.execute(Account, next(keys), Deposit(amount=1))
        await bank.ask(Balances, next(queries), after=receipt)
        return receipt

    return operation


OPERATIONS: Final[dict[str, OperationOf]] = {
    "execute": _execute,
    "ask": _ask,
    "execute then ask": _execute_then_ask,
}
"""Each makes, for a bank, a function that starts one operation; those that write return a receipt."""


async def saturation_per_s(operation: str, options: Options, partitions: int = 1, replicas: int = 1) -> float:
    """Operations per second of a fresh bank that never waits for work."""
    key = (options.directory, operation, partitions, replicas)
    if key not in _found:
        async with running_bank(options, partitions=partitions, replicas=replicas) as running:
            _found[key] = await measured_saturation_per_s(running, operation, options)
    return _found[key]


async def measured_saturation_per_s(running: Running, operation: str, options: Options) -> float:
    """Operations per second of this bank while it never waits for work."""
    seconds = max(0.2, min(1.0, options.seconds))
    started = OPERATIONS[operation](running.bank, options)
    load = await in_loops(lambda: asyncio.ensure_future(started()), DEPTH, seconds / 2, seconds)
    return max(1.0, load.counted / load.seconds)
