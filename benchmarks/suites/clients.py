"""Clients: several programs at once against one application, each a process that has connected to it by its name.

One client is one Python thread: at some tens of thousands of commands a second it is busy, whatever the application
could still take. Here their number grows with the partitions and replicas, as in a system that has many users: writes
alone, reads alone, and both at once, each side at the size at which it was measured alone. That is the claim of
independent scaling, put to the test: what the one side keeps while the other is saturated.

The application runs on one node of its own (`LocalCluster(nodes=1)`), or on those of `--address`.

A client (`work`) connects to a bank by its name, prints `ready`, waits for a line, works, and prints `done`; what it
did, with its many receipts, is then in a file, pickled. Only what happens within the timed part counts, CPU included; a
client that fails prints the reason.

Rule kept here: throughputs are added up, so all clients begin at one word and are timed over the same seconds; what
each was acknowledged is looked up in the logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

from rayfold import connect
from rayfold.actors.nodes.store import ClusterStore
from rayfold.actors.system.remote import RemoteSystem

from ..harness.contract import Case, Figure, Options, Sample, hold, of_each
from ..harness.processes import Child
from ..workloads.bank import Balances, deposits, questions
from ..workloads.keys import draw
from .load import Load, ask_all, execute_all
from .measuring import CpuMeter, cpu_figures, rate
from .read import fill
from .running import Running, bank_on_own_cluster, running_bank

DEPTH: Final = 2_048
"""In flight in each client."""

WARM_UP_SHARE: Final = 0.4
CLIENT_TIMEOUT_S: Final = 120.0
"""For a client to connect, and again to do its work: seconds, unless the machine has other things to do."""


def cases(options: Options) -> list[Case]:
    """As many clients as partitions or replicas, and one alone for the largest number of partitions. Then systems with
    both, used by writers, by readers, and by both at once; a quick run has one of those."""
    partitions = options.partitions
    replicas = tuple(number for number in options.replicas if number) or (1,)
    sizes = list(zip(partitions, replicas, strict=False))
    if options.quick:
        sizes = [(partitions[len(partitions) // 2], replicas[len(replicas) // 2])]
    found = {
        "writes": [(number, 0, number, 0) for number in partitions] + [(partitions[-1], 0, 1, 0)],
        "reads": [(1, number, 0, number) for number in replicas],
        "both": [(*size, *sides) for size in sizes for sides in ((size[0], 0), (0, size[1]), size)],
    }
    names = ("partitions", "replicas", "writers", "readers")
    return [
        case
        for name, settings in found.items()
        for case in of_each("clients", name, _measure, (dict(zip(names, one, strict=True)) for one in settings))
    ]


async def _measure(options: Options, partitions: int, replicas: int, writers: int, readers: int) -> Sample:
    kinds = ["writes"] * writers + ["reads"] * readers
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(_bank(partitions, replicas, options))
        filled = (await fill(running, options)).receipts if replicas else []
        results = [running.folder / f"load-{number}" for number in range(len(kinds))]
        given = _application(running, options)
        clients = [
            stack.enter_context(
                Child(work, os.environ, listens=True, kind=kind, number=number, result=str(result), **given)
            )
            for number, (kind, result) in enumerate(zip(kinds, results, strict=True))
        ]
        await _lines_of(clients)
        for client in clients:
            client.write_line("go")
        await _lines_of(clients)
        done: list[Load] = [pickle.loads(result.read_bytes()) for result in results]
        receipts = filled + [receipt for load in done for receipt in load.receipts]
        hold(*(load.failures for load in done), await running.violations(receipts))
    figures: dict[str, Figure] = {}
    for kind, unit in (("writes", "commands"), ("reads", "queries")):
        of_kind = [load for load, one in zip(done, kinds, strict=True) if one == kind]
        if of_kind:
            per_s = sum(load.counted / load.seconds for load in of_kind)
            figures[f"{unit}_per_s"] = rate(per_s, 1.0, f"{unit}/s")
            if of_kind == done:
                figures |= cpu_figures(_cpu_s(done), sum(load.counted for load in done), unit)
    return Sample(figures, notes=running.notes | {"receipts": len(receipts)})


@contextlib.asynccontextmanager
async def _bank(partitions: int, replicas: int, options: Options) -> AsyncIterator[Running]:
    if options.address is not None:
        async with running_bank(options, partitions=partitions, replicas=replicas) as running:
            yield running
        return
    cpus = os.cpu_count() or 1
    async with bank_on_own_cluster(options, nodes=1, cpus=cpus, partitions=partitions, replicas=replicas) as (bank, _):
        yield bank


def _application(running: Running, options: Options) -> dict[str, Any]:
    """What every client is given."""
    store = running.store
    assert isinstance(store, ClusterStore)
    pids = {role: pids for role, pids in running.pids.items() if pids and role != "driver"}
    address = cast(RemoteSystem, running.bank._active).address
    return {"bank": store.name, "address": address, "seed": options.seed, "seconds": options.seconds, "pids": pids}


async def _lines_of(clients: Sequence[Child]) -> list[str]:
    """The next line that each prints. Raises `TimeoutError`, `ChildEnded` if one has ended instead."""
    return await asyncio.gather(*(asyncio.to_thread(client.next_line, CLIENT_TIMEOUT_S) for client in clients))


def _cpu_s(done: Sequence[Load]) -> dict[str, float]:
    """All clients together, and the application's roles as the first of them has measured them."""
    return done[0].cpu_s | {"clients": sum(load.cpu_s.get("clients", 0.0) for load in done)}


def work(result: str, **given: Any) -> None:
    """What a client runs. Its load goes into the file `result`."""
    Path(result).write_bytes(pickle.dumps(asyncio.run(_work(**given))))
    print("done", flush=True)


async def _work(
    bank: str, address: str, kind: str, number: int, seed: int, seconds: float, pids: dict[str, list[int]]
) -> Load:
    """`kind`: `writes` or `reads`. Clients use the same accounts in different orders. `pids`: of the application, by
    role; the first client measures their CPU beside its own."""
    async with connect(bank, address=address) as connected:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        cpu = CpuMeter({"clients": [os.getpid()], **({} if number else pids)})
        keys, times = draw("uniform", seed + number), (seconds * WARM_UP_SHARE, seconds)
        if kind == "writes":
            return await execute_all(connected, deposits(keys, seed + number), DEPTH, *times, cpu)
        return await ask_all(connected, Balances, questions(keys), DEPTH, *times, cpu)
