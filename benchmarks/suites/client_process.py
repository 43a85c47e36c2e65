"""A client in a process of its own: connects to a bank by its name and saturates it, when it is told to.

Run as `python -m rayfold.benchmarks.suites.client_process '{"name": …}'` by the suite `clients`. It says `ready`, waits
for a line, works, and says in one line of JSON what it did; the receipts go into a file, pickled, as they are many.

Rule kept here: only what happens within the timed part counts, CPU included; a client that fails says why.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rayfold import Receipt, connect

from ..workloads.bank import Balances, deposits, questions
from ..workloads.keys import draw
from .load import Load, ask_all, execute_all
from .measuring import CpuMeter

__all__ = ["Did", "Job", "receipts_in"]


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
class Did:
    """What one client has done."""

    counted: int
    seconds: float
    cpu_s: dict[str, float]
    """By role, within the timed part: `clients`, which is this process, and those of the job."""
    failures: list[str]


def receipts_in(path: str) -> list[Receipt]:
    """The receipts that a client has left."""
    found: list[Receipt] = pickle.loads(Path(path).read_bytes())
    return found


async def _work(job: Job) -> Did:
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
    return _did(job, load)


def _did(job: Job, load: Load) -> Did:
    Path(job.receipts).write_bytes(pickle.dumps(load.receipts))
    return Did(load.counted, load.seconds, load.cpu_s, load.failures)


def main() -> None:
    """Do the job that the first argument says."""
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(asyncio.run(_work(job)))), flush=True)


if __name__ == "__main__":
    main()
