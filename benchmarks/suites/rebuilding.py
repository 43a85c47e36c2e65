"""Rebuilding: a read model built anew while the runtime serves, with and without commands meanwhile.

Part of the suite `replay`. What is measured is what a user sees: `bank.rebuild(...)`, from the call until the new read
model has taken over, the start of its process included.

Rule kept here: with traffic, commands keep coming until the rebuild has ended, and what they do in a second is told
beside what they did before it began.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from rayfold import Receipt

from ..harness.contract import Case, Figure, Options, Sample, hold, of_each
from ..workloads.bank import Balances, deposits
from ..workloads.keys import draw
from .measuring import rate
from .running import Running, running_bank

__all__ = ["rebuild_cases"]

EVENTS: Final = 100_000
DEPTH: Final = 256
"""Commands in flight during a rebuild: enough to keep a partition busy, without a queue of seconds."""

BEFORE_S: Final = 1.0
"""In which the rate of commands without a rebuild is counted."""


def rebuild_cases(options: Options) -> list[Case]:
    """A rebuild under traffic, and in a full run also one on an idle system."""
    settings = [{"traffic": traffic} for traffic in ((True,) if options.quick else (False, True))]
    return of_each("replay", "rebuild while serving", _measure, settings)


async def _measure(options: Options, traffic: bool) -> Sample:
    async with running_bank(options, replicas=1) as running:
        receipts = await _filled(running, options)
        async with _sending(running, options, traffic) as sent:
            before_per_s = await _rate_over(sent, BEFORE_S) if traffic else 0.0
            counted, begun_s = len(sent), time.perf_counter()
            done = await running.bank.rebuild(Balances)
            seconds = time.perf_counter() - begun_s
            during_per_s = (len(sent) - counted) / seconds
        await running.learn_processes()
        hold(await running.violations(receipts + sent))
    figures = {"events_per_s": rate(done.events, seconds, "events/s")}
    if traffic:
        figures["commands_kept_share"] = Figure(during_per_s / before_per_s, "share", "higher")
    return Sample(figures, notes=running.notes | {"events": done.events, "rebuilt_in_s": round(seconds, 2)})


async def _filled(running: Running, options: Options) -> list[Receipt]:
    """So many deposits, as fast as they go."""
    receipts: list[Receipt] = []
    envelopes = deposits(draw("uniform", options.seed), options.seed)
    source = (envelope for envelope, _ in zip(envelopes, range(EVENTS), strict=False))
    async for _, outcome in running.bank.execute_all(source, in_flight=4_096):
        assert isinstance(outcome, Receipt), outcome
        receipts.append(outcome)
    return receipts


@asynccontextmanager
async def _sending(running: Running, options: Options, traffic: bool) -> AsyncIterator[list[Receipt]]:
    """Commands, for as long as the block takes; what was acknowledged so far is in the list."""
    sent: list[Receipt] = []
    going = traffic

    async def send() -> None:
        envelopes = deposits(draw("uniform", options.seed + 1), options.seed + 1)
        source = iter(lambda: next(envelopes) if going else None, None)
        async for _, outcome in running.bank.execute_all(source, in_flight=DEPTH):
            assert isinstance(outcome, Receipt), outcome
            sent.append(outcome)

    sending = asyncio.create_task(send())
    try:
        yield sent
    finally:
        going = False
        await sending


async def _rate_over(sent: list[Receipt], seconds: float) -> float:
    counted, begun_s = len(sent), time.perf_counter()
    await asyncio.sleep(seconds)
    return (len(sent) - counted) / (time.perf_counter() - begun_s)
