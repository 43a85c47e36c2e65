"""The program that runs a store is killed while other programs write and read, and another one runs it again at once.

The clients are processes of their own, without Ray: each sends commands and reads its own writes in a session, over
the relay and the sockets of the actors, and writes down what it was answered. They connect again by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rayfold import Application, BlockingRuntime, Runtime, connect
from rayfold.runtime.errors import RayfoldError
from rayfold.runtime.store.store import open_store

from ...harness.processes import Child
from ..bank import AllTotals, Jar, OwnJar, Totals, jar_names, puts_and_takes
from ..checking import check_log, check_read_model, read_own_writes
from ..contract import Context, Findings, scenario
from ..history import JournaledHistory, Sender, read_journals
from .harness import ray_of_this_process

__all__ = ["kill_owner"]

CLIENTS: Final = 2
_DEPTH: Final = 8
_PAUSE_S: Final = 0.01
"""Between two commands of one in flight: the machine has to start a program beside them."""

_START_S: Final = 180.0
"""For a program to have its system up, on a machine that is busy with the clients."""

_ENOUGH: Final = 200
"""Commands that each client has acknowledged before the next kill."""

RECOVERY_MAX_MS: Final = 120_000.0
"""A whole system is started anew, on a busy machine."""

_LOOK_S: Final = 0.2

BANK: Final = Application("torture", aggregates=[Jar, OwnJar], projections=[Totals], partitions=2)


@scenario(
    "kill-owner",
    "kill -9 of the program that runs a store for several others; another one runs it again",
    "I1 I2 I3 I4 I5 I7 I8 I9 I11 I12",
    counts="killed_owners",
    times=(40, 120, 1),
)
def kill_owner(context: Context, findings: Findings) -> None:
    """Two clients, and one program after the other that runs their store."""
    folder, recoveries = context.folder / "bank-data", list[float]()
    journals = [context.folder / f"journal-{number}" for number in range(CLIENTS)]
    with contextlib.ExitStack() as running:
        owner = running.enter_context(_Owner(folder))
        clients = [
            running.enter_context(
                Child(use, listens=True, path=str(folder), number=number, seed=context.seed, journal=str(journal))
            )
            for number, journal in enumerate(journals)
        ]
        for client in clients:
            _await_more(client, _ENOUGH)
        for _ in context.rounds():
            owner.signal()
            began_s = time.monotonic()
            owner = running.enter_context(_Owner(folder))
            for client in clients:
                _await_more(client, 1)
            recoveries.append((time.monotonic() - began_s) * 1e3)
            for client in clients:
                _await_more(client, _ENOUGH)
        for client in clients:
            client.write_line("end")
            findings.include(Findings.of(json.loads(list(client.lines())[-1])))
    asyncio.run(_look(folder, journals, findings))
    findings.figures["killed_owners"] = len(recoveries)
    findings.note("recovery_ms", recoveries)
    findings.check("I12", max(recoveries) < RECOVERY_MAX_MS, f"{max(recoveries):.0f} ms until clients went on")


class _Owner(Child):
    """A program that runs the store, ready."""

    def __init__(self, folder: Path) -> None:
        super().__init__(own, path=str(folder))
        next(self.lines(_START_S))


def _await_more(client: Child, more: int) -> None:
    """Until it has had so many further commands acknowledged."""
    begun: int | None = None
    for line in client.lines(_START_S):
        acknowledged = int(line)
        begun = acknowledged if begun is None else begun
        if acknowledged >= begun + more:
            return
    raise RuntimeError(client.why_ended())


async def _look(folder: Path, journals: list[Path], findings: Findings) -> None:
    """What the log holds, and what read models answer from it."""
    history = read_journals(journals)
    events = check_log(open_store(folder), history, findings)
    ray_of_this_process()
    async with Runtime(folder, BANK) as bank:
        await bank.caught_up(timeout_s=60)
        check_read_model("Totals", await bank.ask(Totals, AllTotals(), timeout_s=60), events, findings)


# --- in the children --------------------------------------------------------------------------------------------------


def own(path: str) -> None:
    """Run the store until it is killed."""
    with BlockingRuntime(path, BANK, num_cpus=2):
        print("ready", flush=True)
        threading.Event().wait()


def use(path: str, number: int, seed: int, journal: str) -> None:
    """Write and read until a line comes; print how many commands were acknowledged, again and again, and at
    the end what was found: I9."""
    asyncio.run(_use(path, number, seed, journal))


async def _use(path: str, number: int, seed: int, journal: str) -> None:
    findings, stop = Findings(), asyncio.Event()
    history = JournaledHistory(Path(journal))
    refused: list[RayfoldError] = []
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    async with connect(path, BANK) as bank:
        sender = Sender(bank._client._router, history, seed + number)
        commands = puts_and_takes(seed, number, jar_names(20))
        mine = f"mine-{number}"
        working = [
            asyncio.ensure_future(sender.drive(commands, stop, _DEPTH, pause_s=_PAUSE_S)),
            asyncio.ensure_future(
                read_own_writes(bank.session(), sender, mine, stop, findings, refused.append, timeout_s=20)
            ),
        ]
        while not stop.is_set():
            print(sum(1 for _ in history.acknowledged()), flush=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _LOOK_S)
        await asyncio.gather(*working)
    heavy = sorted({"ray", "lmdb"} & set(sys.modules) - _HEAVY_BEFORE)
    findings.check("I11", not heavy, f"a client has imported {heavy}")
    print(json.dumps(asdict(findings)), flush=True)


_HEAVY_BEFORE: Final = {"ray", "lmdb"} & set(sys.modules)
"""Imported by the scenarios' own code."""
