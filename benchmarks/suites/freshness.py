"""Freshness: how long after its acknowledgement a write is visible, against the rate of writing.

Rule kept here: visible means seen by a query. Of the writes of an open loop some are probed: from the moment at which
the receipt arrived until a query with `after=receipt` was answered. That includes the query's own round trip, so it is
an upper bound of the lag, and it is what a user waits for. What a query costs without `after=` is measured beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from rayfold import RayfoldError, Receipt

from ..harness.contract import Case, Options, Sample, hold, of_each
from ..harness.histogram import Latencies
from ..workloads.bank import STORES, BalanceOf, missing_stores
from .latency import one_after_the_other, open_figures, open_notes
from .load import Load, OpenLoad, open_loop
from .measuring import of_times
from .read import fill
from .running import Running, running_bank
from .saturation import OPERATIONS, Operation, saturation_per_s

STORES_LOAD: Final = 0.5
"""At which the stores are compared: half of saturation."""

PROBES_PER_S: Final = 200
"""Of writes that are looked for: enough for a 99th percentile, too few to be a load."""


def cases(options: Options) -> list[Case]:
    """Rates of writing, the stores of read models, and one write after the other with its query."""
    loads = (0.5, 0.9) if options.quick else (0.1, 0.3, 0.5, 0.7, 0.9)
    found = of_each("freshness", "visible", _measure_visible, [{"load": load} for load in loads])
    for store, skip in missing_stores(("memory", "lmdb") if options.quick else ("memory",)):  # memory is the case above
        found += of_each("freshness", "visible by store", _measure_visible, [{"store": store}], skip=skip)
    return [Case("freshness", "execute then ask after", {}, _measure_after), *found]


async def _measure_visible(options: Options, load: float = STORES_LOAD, store: str = "memory") -> Sample:
    saturation = await saturation_per_s("execute", options)
    async with running_bank(options, replicas=1, projections=[STORES[store]]) as running:
        filled = await fill(running, options)
        done, probes = await written_and_seen(running, saturation * load, options)
        failures = done.failures.failures + probes.failures.failures
        hold(failures, await running.violations(filled.receipts + done.receipts))
    notes = running.notes | open_notes(done, saturation) | {"probes": probes.visible.count}
    return of_times({"visible": probes.visible, "ask": probes.plain}, open_figures(done), notes)


async def written_and_seen(running: Running, rate_per_s: float, options: Options) -> tuple[OpenLoad, _Probes]:
    """An open loop of writes at this rate, some of which are looked for. Returns when all have been seen."""
    probes = _Probes(running, every=max(1, round(rate_per_s / PROBES_PER_S)))
    operation = probes.watching(OPERATIONS["execute"](running.bank, options))
    done = await open_loop(operation, rate_per_s, options.seconds * 0.4, options.seconds)
    await probes.finished()
    return done, probes


class _Probes:
    """Looks for every n-th write, and asks a query without `after=` in between."""

    def __init__(self, running: Running, every: int) -> None:
        self.visible: Latencies = Latencies()
        self.plain: Latencies = Latencies()
        self.failures = Load()
        self._bank, self._projection = running.bank, running.projection
        self._every = every
        self._seen = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def watching(self, operation: Operation) -> Callable[[], Awaitable[object]]:
        """The operation, with a probe started after some of its receipts."""

        async def watched() -> object:
            receipt = await operation()
            self._seen += 1
            if isinstance(receipt, Receipt) and not self._seen % self._every:
                after = receipt if self._seen % (2 * self._every) else None
                task = asyncio.create_task(self._probe(receipt, after, time.perf_counter_ns()))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            return receipt

        return watched

    async def _probe(self, receipt: Receipt, after: Receipt | None, begun_ns: int) -> None:
        histogram = self.visible if after else self.plain
        try:
            await self._bank.ask(self._projection, BalanceOf(account=receipt.stream.id), after=after)
        except RayfoldError as error:
            self.failures.note_failure(error)
        else:
            histogram.record_us((time.perf_counter_ns() - begun_ns) // 1000)

    async def finished(self) -> None:
        """Wait for the probes that are under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _measure_after(options: Options) -> Sample:
    """Write, then read the own write; the next one after that."""
    async with running_bank(options, replicas=1) as running:
        return await one_after_the_other(running, "execute then ask", options)
