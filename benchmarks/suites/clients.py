"""Clients: several programs at once against one application, each a process that has connected to it by its name.

One client is one Python thread: at some tens of thousands of commands a second it is busy, whatever the application
could still take. Here their number grows with the partitions and replicas, as in a system that has many users: writes
alone, reads alone, and both at once, each side at the size at which it was measured alone. That is the claim of
independent scaling, put to the test: what the one side keeps while the other is saturated.

The application runs on one node of its own (`LocalCluster(nodes=1)`), or on those of `--address`.

A client (`work`) connects to a bank by its name, prints `ready`, waits for a line, works, and prints in one line of
JSON what it did; the receipts go into a file, pickled, as they are many. Only what happens within the timed part
counts, CPU included; a client that fails prints the reason.

Rule kept here: throughputs are added up, so all clients begin at one word and are timed over the same seconds; what
each was acknowledged is looked up in the logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from rayfold import connect
from rayfold.actors.nodes.store import ClusterStore
from rayfold.actors.system.remote import RemoteSystem

from ..harness.contract import Case, Figure, Options, Sample, hold, of_each
from ..harness.processes import Child
from ..workloads.bank import Balances, deposits, questions
from ..workloads.keys import draw
from .load import ask_all, execute_all
from .measuring import CpuMeter, cpu_figures, rate
from .read import fill
from .running import Running, bank_on_own_cluster, running_bank

DEPTH: Final = 2_048
"""In flight in each client."""

WARM_UP_SHARE: Final = 0.4
CLIENT_TIMEOUT_S: Final = 120.0
"""For a client to connect, and again to do its work: seconds, unless the machine has other things to do."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one client is to do."""

    name: str
    """Of the bank."""
    address: str
    """Of the cluster that it runs on."""
    kind: str
    """`writes` or `reads`."""
    depth: int
    """Commands or queries in flight."""
    seed: int
    """Another one for each client: they use the same accounts in different orders."""
    seconds: float
    warm_up_s: float
    receipts: str
    """The file for them."""
    pids: dict[str, list[int]] = field(default_factory=dict)
    """Role -> processes of the application, whose CPU this client measures beside its own."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What one client has done."""

    counted: int
    seconds: float
    cpu_s: dict[str, float]
    """By role, within the timed part: `clients`, which is this process, and those of the job."""
    failures: list[str]


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
        jobs = [_job(number, kind, running, options) for number, kind in enumerate(kinds)]
        clients = [stack.enter_context(Child(work, os.environ, listens=True, **asdict(job))) for job in jobs]
        await _lines_of(clients)
        for client in clients:
            client.write_line("go")
        done = [JobResult(**json.loads(line)) for line in await _lines_of(clients)]
        receipts = filled + [receipt for job in jobs for receipt in pickle.loads(Path(job.receipts).read_bytes())]
        hold(*(did.failures for did in done), await running.violations(receipts))
    figures: dict[str, Figure] = {}
    for kind, unit in (("writes", "commands"), ("reads", "queries")):
        of_kind = [did for did, one in zip(done, kinds, strict=True) if one == kind]
        if of_kind:
            per_s = sum(did.counted / did.seconds for did in of_kind)
            figures[f"{unit}_per_s"] = rate(per_s, 1.0, f"{unit}/s")
            if of_kind == done:
                figures |= cpu_figures(_cpu_s(done), sum(did.counted for did in done), unit)
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


def _job(number: int, kind: str, running: Running, options: Options) -> Job:
    store = running.store
    assert isinstance(store, ClusterStore)
    return Job(
        name=store.name,
        address=cast(RemoteSystem, running.bank._active).address,
        kind=kind,
        depth=DEPTH,
        seed=options.seed + number,
        seconds=options.seconds,
        warm_up_s=options.seconds * WARM_UP_SHARE,
        receipts=str(running.folder / f"receipts-{number}"),
        pids={} if number else {role: pids for role, pids in running.pids.items() if pids and role != "driver"},
    )


async def _lines_of(clients: Sequence[Child]) -> list[str]:
    """The next line that each prints. Raises `TimeoutError`, `ChildEnded` if one has ended instead."""
    return await asyncio.gather(*(asyncio.to_thread(client.next_line, CLIENT_TIMEOUT_S) for client in clients))


def _cpu_s(done: Sequence[JobResult]) -> dict[str, float]:
    """All clients together, and the application's roles as the first of them has measured them."""
    return done[0].cpu_s | {"clients": sum(did.cpu_s.get("clients", 0.0) for did in done)}


async def _work(job: Job) -> JobResult:
    async with connect(job.name, address=job.address) as bank:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        cpu = CpuMeter({"clients": [os.getpid()], **job.pids})
        keys = draw("uniform", job.seed)
        if job.kind == "writes":
            envelopes = deposits(keys, job.seed)
            load = await execute_all(bank, envelopes, job.depth, job.warm_up_s, job.seconds, cpu)
        else:
            load = await ask_all(bank, Balances, questions(keys), job.depth, job.warm_up_s, job.seconds, cpu)
    Path(job.receipts).write_bytes(pickle.dumps(load.receipts))
    return JobResult(load.counted, load.seconds, load.cpu_s, load.failures)


def work(**job: Any) -> None:
    """What a client runs."""
    print(json.dumps(asdict(asyncio.run(_work(Job(**job))))), flush=True)
