"""Processes of a system on one machine that are killed or stopped: one by one under load, and a whole program.

- *kill -9* of partitions, own actors and projectors, and of the whole program in the middle of a batch. After each kill
  it is measured how long it takes until that part answers again
- *SIGSTOP* of a partition, which is taken for dead, and wakes up after its successor has taken its log over. This is
  what a frozen virtual machine or a network partition does to a cluster: for a while there are two of one. The one that
  wakes up has commands in its socket and in its memory, and its epoch is the older one
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from rayfold import BlockingRuntime, Envelope, Runtime, StoreInUse
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import pack
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.store import open_store
from rayfold.runtime.write.write_loop import WriteLoop

from ...harness.processes import Child, processes_below, runs
from ..bank import Jar, OwnJar, Put, Total, Totals, jar_names, puts_and_takes
from ..checking import check_log
from ..contract import Context, Findings, scenario
from ..history import History, JournaledHistory, Sender, read_journals
from ..processes import take_over
from .harness import INVARIANTS_OF_BANKS, LocalBank, local_bank, ray_of_this_process, until

KILLS_SHORT: Final = 2
KILLS_LONG: Final = 50
"""Of each kind."""

RECOVERY_MAX_MS: Final = 30_000.0
"""Ray restarts a worker in one or two seconds on a quiet machine; whatever takes so long is not coming back."""

OWN: Final = ("own-0", "own-1")

_KILL_AFTER: Final = range(1_301, 1_501)
"""Acknowledgements of the program that is killed: after one of these."""

_DRIVEN_S: Final = 180.0
"""For a program to start, to be acknowledged as many, and to die: seconds on two busy cores."""

_ORPHANS_GONE_S: Final = 60.0
"""Ray's own delay for the workers of a program that was killed."""


_SUCCESSORS_COMMANDS: Final = 20
_GONE_S: Final = 30.0
_TRIES_MAX: Final = 5
"""Nothing is on its way when it is stopped, so it is hardly ever inside a transaction."""

_LOOK_S: Final = 0.001
_PRINT_S: Final = 0.01


@scenario(
    "kill-parts",
    "kill -9 of partitions, own actors and projectors under load",
    f"{INVARIANTS_OF_BANKS} I12",
    counts="killed_partitions killed_own_actors killed_projectors",
    times=(20, 240, 3.0),
)
async def kill_parts(context: Context, findings: Findings) -> None:
    """Partitions, own actors and projectors in turn."""
    recoveries: dict[str, list[float]] = {"partitions": [], "own_actors": [], "projectors": []}
    async with local_bank(context, findings, replicas=2) as bank:
        bank.begin_load(own=OWN)

        async def all_up() -> bool:
            return len(await bank.own_pids()) == len(OWN)

        await until(all_up, 30.0)
        for _ in context.rounds(KILLS_LONG, short=KILLS_SHORT):
            victim = context.rng.choice((await bank.runtime.status()).partitions)
            os.kill(victim.pid, signal.SIGKILL)
            recoveries["partitions"].append(await bank.probe(victim.partition))
            recoveries["own_actors"].append(await _kill_own(bank))
            recoveries["projectors"].append(await _kill_projector(bank))
    for kind, times in recoveries.items():
        findings.figures[f"killed_{kind}"] = len(times)
        findings.note("recovery_ms", times, of=kind)
        findings.check("I12", max(times) < RECOVERY_MAX_MS, f"{kind} took {max(times):.0f} ms to answer again")


async def _kill_own(bank: LocalBank) -> float:
    """Its partition may have been killed just before, and all own actors with it: wait for one first."""

    async def some_up() -> bool:
        return bool(await bank.own_pids())

    if not bank.findings.check("I12", await until(some_up, 60.0), "no own actor came up within a minute"):
        return RECOVERY_MAX_MS
    jar, pid = bank.context.rng.choice(sorted((await bank.own_pids()).items()))
    os.kill(pid, signal.SIGKILL)
    return await bank.probe_own(jar)


async def _kill_projector(bank: LocalBank) -> float:
    """Until the very replica that was killed has come past the heads that the logs had when it was killed."""
    victim = bank.context.rng.choice((await bank.runtime.status()).projectors)
    heads = await bank.runtime.heads()
    began_s = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)

    async def back() -> bool:
        every = (await bank.runtime.status()).projectors
        now = [one for one in every if one.replica == victim.replica and one.alive and one.pid != victim.pid]
        return any(all(one.positions.get(p, 0) >= head for p, head in heads.items()) for one in now)

    await until(back, 60.0)
    recovery_ms = (time.monotonic() - began_s) * 1e3
    await bank.runtime.ask(Totals, Total(jar="Jar/session"), after=heads, timeout_s=60)
    return recovery_ms


@scenario(
    "kill-program",
    "kill -9 of a whole program in the middle of a batch; another opens its directory at once",
    "I1 I2 I3 I4 I6 I7 I8 I11 I12",
    counts="killed_programs runtimes_refused",
    times=(30, 30, 1),
)
def kill_program(context: Context, findings: Findings) -> None:
    """A program with its own Ray is killed in the middle of its batches; the directory is opened at once by another."""
    ray_of_this_process()
    recoveries = [_kill_program(context, findings, number) for number in context.rounds()]
    findings.figures["killed_programs"] = len(recoveries)
    findings.note("recovery_ms", recoveries)
    slowest_ms = max(recoveries)
    findings.check("I12", slowest_ms < 2 * RECOVERY_MAX_MS, f"{slowest_ms:.0f} ms until it was open again")


def _kill_program(context: Context, findings: Findings, number: int) -> float:
    folder, journal = context.folder / f"killed-{number}", context.folder / f"journal-{number}"
    kill_after, workers = context.rng.choice(_KILL_AFTER), set[int]()
    with Child(drive, path=str(folder), journal=str(journal), seed=context.seed + number) as child:
        for line in child.lines(_DRIVEN_S):
            if not workers and int(line) >= kill_after:
                workers = processes_below(child.pid)
                _refused(folder, child.pid, findings)
                child.signal()
        if not workers:
            raise RuntimeError(f"the program ended by itself:\n{child.errors()}")
        began_s = time.monotonic()
        asyncio.run(_reopen(folder, read_journals([journal]), findings))
        recovery_ms = (time.monotonic() - began_s) * 1e3
        left = child.wait_until_gone(workers, _ORPHANS_GONE_S)
        findings.figures["processes_left"] = len(left)
        findings.check("I11", not left, f"left over a minute after the program was killed: {left}")
    return recovery_ms


def _refused(folder: Path, holder: int, findings: Findings) -> None:
    """I6, the first half: while one runtime has the directory, another is refused, with the process that has it."""
    try:
        with BlockingRuntime(folder, aggregates=[Jar, OwnJar]):
            told = "it was opened"
    except StoreInUse as error:
        told = str(error)
    findings.count("runtimes_refused", f"process {holder}" in told)
    findings.check("I6", f"process {holder}" in told, f"a second runtime on a directory in use: {told}")


async def _reopen(folder: Path, history: History, findings: Findings) -> None:
    """Open, write, and check that all that was acknowledged is there, in its place."""
    ray_of_this_process()
    async with Runtime(folder, aggregates=[Jar, OwnJar], projections=[Totals]) as bank:
        names = jar_names(2)
        for name in names:
            await bank.execute(Jar, name, Put(amount=1, note="after"), timeout_s=60)
        check_log(bank.store, history, findings, others=len(names))


def drive(path: str, journal: str, seed: int) -> None:
    """What the child runs: it writes, and prints again and again how many commands were acknowledged."""
    asyncio.run(_drive(path, JournaledHistory(Path(journal)), seed))


async def _drive(path: str, history: JournaledHistory, seed: int) -> None:
    async with Runtime(path, aggregates=[Jar, OwnJar], projections=[Totals], num_cpus=2) as bank:
        sender = Sender(bank._client._router, history, seed)
        driving = asyncio.create_task(sender.drive(puts_and_takes(seed, 0, jar_names(50)), asyncio.Event(), 64))
        while not driving.done():
            print(sum(1 for _ in history.acknowledged()), flush=True)
            await asyncio.sleep(_PRINT_S)
        await driving


# --- stopped, succeeded, resumed --------------------------------------------------------------------------------------


@scenario(
    "stop-and-resume",
    "SIGSTOP of a partition; a successor takes its log over; the old one wakes up and has commands waiting",
    "I1 I2 I3 I4 I5 I6 I7 I8 I9 I11 I12",
    counts="taken_over appended_by_the_old stopped_in_a_transaction",
    times=(12, 40, 1),
)
async def stop_and_resume(context: Context, findings: Findings) -> None:
    """Again and again in the long form."""
    most = 1_000
    others = _SUCCESSORS_COMMANDS * (_TRIES_MAX if context.short else most)
    async with local_bank(context, findings, partitions=2, others=others) as bank:
        bank.begin_load()
        await bank.probe(0)
        recoveries = [await _round(bank, context.rng.randrange(2)) for _ in context.rounds(most)]
    findings.note("recovery_ms", recoveries)
    findings.check("I12", max(recoveries) < _GONE_S * 1e3, f"{max(recoveries):.0f} ms until it answered again")


async def _round(bank: LocalBank, partition: int) -> float:
    """Stop, take over, append, resume; returns how long it took from there to the next acknowledgement."""
    findings = bank.findings
    for _ in range(_TRIES_MAX):
        old = (await bank.runtime.status()).partitions[partition]
        await bank.pause()
        os.kill(old.pid, signal.SIGSTOP)
        bank.history.going.set()  # from now on commands wait in its socket
        try:
            head = await asyncio.to_thread(_succeed, bank, partition, old.epoch)
        finally:
            os.kill(old.pid, signal.SIGCONT)
        if head:
            break
        findings.count("stopped_in_a_transaction")
        await bank.probe(partition)
    else:
        raise RuntimeError(f"partition {partition} was stopped inside a transaction {_TRIES_MAX} times in a row")
    began_s = time.monotonic()
    probing = asyncio.create_task(bank.probe(partition))
    last = head
    with closing(bank.runtime.store.open_reader(partition)) as reader:
        while runs(old.pid) and time.monotonic() - began_s < _GONE_S:
            last = reader.head()
            await asyncio.sleep(_LOOK_S)
    findings.count("taken_over")
    findings.count("appended_by_the_old", last - head)
    where = f"partition {partition}"
    findings.check("I6", last == head, f"{where}: {last - head} appended by epoch {old.epoch} after {head}")
    findings.check("I6", not runs(old.pid), f"{where}: process {old.pid} is fenced and still there")
    await probing

    async def taken_back() -> bool:
        return (await bank.runtime.status()).partitions[partition].epoch > old.epoch + 1

    findings.check("I6", await until(taken_back, _GONE_S), f"{where} did not come back with a later epoch")
    return (time.monotonic() - began_s) * 1e3


def _succeed(bank: LocalBank, partition: int, epoch: int) -> int:
    """Have a successor, a process of its own, take the log over. Returns the log's head then, or 0 if it had to
    wait: a process that was stopped inside a transaction holds the log's write lock until it goes on or ends."""
    name = next(one for one in jar_names(1000) if bank.home_of(one) == partition)
    with Child(succeed, path=str(bank.runtime.store.path), partition=partition, jar=name) as child:
        told = take_over(child)
    if not told:
        return 0
    taken, receipts, head = json.loads(told)
    bank.findings.check("I6", taken == epoch + 1, f"partition {partition}: the successor of epoch {epoch} is {taken}")
    bank.findings.check("I1", receipts == _SUCCESSORS_COMMANDS, f"the successor got {receipts} receipts")
    return int(head)


def succeed(path: str, partition: int, jar: str) -> None:
    """What the child runs: activate, append, and report epoch, receipts and head."""
    print("began", flush=True)
    with closing(open_store(path).open_log(partition)) as log:
        loop = WriteLoop(partition, log, Catalogue([Jar]))
        epoch = loop.activate()
        sent = [pack(Envelope(Jar, jar, Put(amount=1, note="successor")))[0] for _ in range(_SUCCESSORS_COMMANDS)]
        receipts = sum(isinstance(outcome, Receipt) for outcome in loop.execute(sent).outcomes)
        print(json.dumps([epoch, receipts, log.head()]), flush=True)
