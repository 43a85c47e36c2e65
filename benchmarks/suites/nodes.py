"""Nodes: the same bank on 1, 2 and 3 nodes of this machine and on none, moves under load, and a node that is lost.

Every case starts a cluster of its own (`LocalCluster`), one session of processes a node, and ends it. The nodes share
the cores of this machine: what is measured is what spreading costs, not what more machines bring; for that there is
`--address`.

Rules kept here: what was acknowledged on nodes is searched on their disks, and read back through their node agents;
what a user waits for is measured where the user is, in the client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from statistics import median
from typing import Any, Final

from rayfold import RayfoldError, Receipt, Unavailable
from rayfold.actors.nodes.move_result import MoveResult
from rayfold.actors.nodes.store import AnyStore
from rayfold.runtime.stream import StreamId

from ..harness.contract import Case, Figure, Options, Sample, hold, of_each
from ..harness.histogram import Latencies
from ..workloads.bank import Account, Deposit
from ..workloads.keys import names
from .freshness import written_and_seen
from .latency import open_figures, open_notes
from .load import open_loop
from .measuring import of_times, seconds_of
from .running import Running, bank_on_own_cluster, running_bank
from .saturation import OPERATIONS, measured_saturation_per_s
from .write import command_figures, saturate

NODES: Final = 3
PARTITIONS: Final = 3
"""On one node and on three alike, so that only the nodes differ."""

DEPTH: Final = 1_024 * PARTITIONS
HALF: Final = 0.5
LOST: Final = 1
"""The node that is killed: not the head, without which Ray starts nothing."""

OUTAGE_TIMEOUT_S: Final = 120.0
"""For each step of a loss. It takes seconds; on a machine with more to do, some tens."""

COMMAND_TIMEOUT_S: Final = 1.0
"""Of those writers. A command on its way to a node that is lost waits for it until then; later ones are refused."""

PAUSE_S: Final = 0.02
"""Of a writer whose partition is unavailable."""


def cases(options: Options) -> list[Case]:
    """Numbers of nodes, 0 being a plain runtime; then three nodes while partitions move, and while one is lost."""
    numbers = (0, 1, NODES) if options.quick else range(NODES + 1)
    settings = [{"nodes": number} for number in numbers]
    return [
        *of_each("nodes", "writes and freshness", _measure_spread, settings, throughput=True),
        Case("nodes", "move at half load", {"nodes": NODES}, _measure_moves),
        Case("nodes", "node lost and back", {"nodes": NODES}, _measure_loss),
    ]


async def _measure_spread(options: Options, nodes: int) -> Sample:
    size: Any = {"partitions": PARTITIONS, "replicas": 1}
    if not nodes:
        async with running_bank(options, **size) as running:
            return await _saturated_then_half(running, options)
    async with bank_on_own_cluster(options, nodes=nodes, cpus=1, **size) as (running, _):
        return await _saturated_then_half(running, options)


async def _saturated_then_half(running: Running, options: Options) -> Sample:
    """Commands a second of a bank that never waits for work; then half of it, and when that is visible."""
    load = await saturate(running, DEPTH, "uniform", options)
    await running.caught_up()
    saturation_per_s = await measured_saturation_per_s(running, "execute", options)
    await running.caught_up()
    done, probes = await written_and_seen(running, saturation_per_s * HALF, options)
    failures = load.failures + done.failures.failures + probes.failures.failures
    hold(failures, await running.violations(load.receipts + done.receipts))
    figures = command_figures(load) | probes.visible.figures("visible_ms") | open_figures(done)
    notes = running.notes | open_notes(done, saturation_per_s) | {"probes": probes.visible.count}
    return Sample(figures, {"visible_us": probes.visible.encoded()}, notes=notes)


async def _measure_moves(options: Options, nodes: int) -> Sample:
    """Half of saturation, first in peace, then while partition 0 goes from node to node without a rest."""
    async with bank_on_own_cluster(options, nodes=nodes, cpus=1, partitions=PARTITIONS, replicas=0) as (running, _):
        filled = await saturate(running, DEPTH, "uniform", options)
        saturation_per_s = await measured_saturation_per_s(running, "execute", options)
        operation = OPERATIONS["execute"](running.bank, options)
        rate_per_s, warm_up_s = saturation_per_s * HALF, options.seconds * 0.4
        quiet = await open_loop(operation, rate_per_s, warm_up_s, options.seconds)
        moves: list[MoveResult] = []
        enough = asyncio.Event()
        moving = asyncio.create_task(_keep_moving(running, moves, enough))
        loaded = await open_loop(operation, rate_per_s, warm_up_s, options.seconds)
        loads = [quiet, loaded]
        while not moves and not moving.done():  # small and quick runs: a move takes as long as it takes
            loads.append(await open_loop(operation, rate_per_s, 0.0, options.seconds))
            loaded.histogram.add(loads[-1].histogram)
        enough.set()
        await asyncio.wait([moving])
        failures = [load.failures.failures for load in loads]
        if failure := moving.exception():
            failures.append([f"a move failed: {failure}"])
        receipts = filled.receipts + [receipt for load in loads for receipt in load.receipts]
        hold(filled.failures, *failures, await running.violations(receipts))
    figures = {
        "move_s": seconds_of(median(move.seconds for move in moves)),
        "waited_ms": Figure(median(move.waited_ms for move in moves), "ms", "lower"),
    }
    notes = running.notes | open_notes(loaded, saturation_per_s) | {"moves": len(moves), "events": moves[-1].events}
    return of_times({"quiet": quiet.histogram, "moving": loaded.histogram}, figures, notes)


async def _keep_moving(running: Running, moves: list[MoveResult], enough: asyncio.Event) -> None:
    """Until it is enough. The move that is on its way then is waited for: what is checked next lies where it goes."""
    nodes = cycle((await running.bank.status()).nodes)
    while not enough.is_set():
        done = await running.bank.move(0, next(nodes).name)
        if done.source != done.to:
            moves.append(done)


@dataclass(slots=True)
class _Writer:
    """Deposits into one account of one partition, one after the other, and when each was acknowledged."""

    partition: int
    account: str
    receipts: list[Receipt] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)
    """Of `time.perf_counter`, as the receipts came."""
    refused: int = 0
    """How often its partition was unavailable to it."""
    failures: list[str] = field(default_factory=list)
    """Errors of any other kind."""

    async def run(self, running: Running) -> None:
        """Until it is cancelled."""
        while True:
            try:
                receipt = await running.bank.execute(
                    Account, self.account, Deposit(amount=1), timeout_s=COMMAND_TIMEOUT_S
                )
            except Unavailable:
                self.refused += 1
                await asyncio.sleep(PAUSE_S)
            except RayfoldError as error:
                self.failures.append(f"partition {self.partition}: {error}")
                return
            else:
                self.receipts.append(receipt)
                self.answered_s.append(time.perf_counter())

    def waits_s(self) -> list[float]:
        """From each acknowledgement to the next."""
        return [later - sooner for sooner, later in pairwise(self.answered_s)]

    def first_after(self, moment_s: float) -> float | None:
        """The first acknowledgement after a moment."""
        return next((answered for answered in self.answered_s if answered > moment_s), None)


async def _measure_loss(options: Options, nodes: int) -> Sample:
    """Writers to every partition while every process of a node is killed, and while it comes back."""
    async with bank_on_own_cluster(options, nodes=nodes, cpus=1, partitions=PARTITIONS, replicas=0) as (running, local):
        status = await running.bank.status()
        lost_node = local.nodes[LOST].name
        writers = [_Writer(number, _account_in(number, running.bank._store)) for number in range(PARTITIONS)]
        lost = [one for one in writers if status.partitions[one.partition].node == lost_node]
        others = [one for one in writers if one not in lost]
        tasks = [asyncio.create_task(one.run(running)) for one in writers]
        try:
            await _until(lambda: all(len(one.receipts) >= 100 for one in writers))
            killed_s = time.perf_counter()
            await asyncio.to_thread(local.kill_node, LOST)
            await _until(lambda: all(one.refused > 1 for one in lost))
            killed_for_s = time.perf_counter() - killed_s
            await asyncio.to_thread(local.start_node, LOST)
            up_s = time.perf_counter()
            await _until(lambda: all(one.first_after(up_s) for one in lost))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        receipts = [receipt for one in writers for receipt in one.receipts]
        hold(*(one.failures for one in writers), await running.violations(receipts))
    waits = Latencies()
    for one in others:
        for wait_s in one.waits_s():
            waits.record_s(wait_s)
    figures = {
        "back_to_writes_s": seconds_of(max((one.first_after(up_s) or up_s) - up_s for one in lost)),
        "unavailable_s": seconds_of(max(max(one.waits_s()) for one in lost)),
    } | waits.figures("others_ms")
    return Sample(
        figures, {"others_us": waits.encoded()}, notes=running.notes | {"killed_for_s": round(killed_for_s, 3)}
    )


def _account_in(partition: int, store: AnyStore) -> str:
    """An account whose stream is in this partition."""
    return next(name for name in names(1_000) if store.partition_of(StreamId("Account", name)) == partition)


async def _until(is_so: Callable[[], bool]) -> None:
    """Look until it is. Raises `TimeoutError`."""
    async with asyncio.timeout(OUTAGE_TIMEOUT_S):
        while not is_so():
            await asyncio.sleep(PAUSE_S)
