"""kill -9: of partitions, own actors and projectors under load, and of the whole program in the middle of a batch.

After each kill it is measured how long it takes until that part answers again. Who killed what is drawn from the seed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from rayfold import BlockingRuntime, Runtime, StoreInUse
from rayfold.runtime.receipt import Receipt

from .checking import check_log, stored_events
from .child import Child
from .contract import Context, Findings, Scenario
from .history import History
from .local_harness import Living, living, quantile, ray_of_this_process, until
from .workload import Jar, OwnJar, Put, Total, Totals, jar_names

__all__ = ["SCENARIOS"]

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
"""Ray's own delay for the workers of a program that was killed, and for its two agents."""


def kill_parts(context: Context) -> Findings:
    """Partitions, own actors and projectors in turn."""
    findings = Findings({"killed_partitions": 0, "killed_own_actors": 0, "killed_projectors": 0})
    asyncio.run(_kill_parts(context, findings))
    return findings


async def _kill_parts(context: Context, findings: Findings) -> None:
    recoveries: dict[str, list[float]] = {"partitions": [], "own_actors": [], "projectors": []}
    async with living(context, findings, replicas=2) as bank:
        bank.begin_load(own=OWN)
        await until(lambda: _all_up(bank), 30.0)
        for _ in range(KILLS_SHORT if context.short else KILLS_LONG):
            recoveries["partitions"].append(await _kill_partition(bank))
            recoveries["own_actors"].append(await _kill_own(bank))
            recoveries["projectors"].append(await _kill_projector(bank))
            if not context.short and context.left_s < 0:
                break
    for kind, times in recoveries.items():
        findings.figures[f"killed_{kind}"] = len(times)
        times.sort()
        findings.figures[f"recovery_ms_p50 {kind}"] = quantile(times, 0.5)
        findings.figures[f"recovery_ms_max {kind}"] = quantile(times, 1.0)
        findings.check("I12", times[-1] < RECOVERY_MAX_MS, f"{kind} took {times[-1]:.0f} ms to answer again")


async def _all_up(bank: Living) -> bool:
    return len(await bank.own_pids()) == len(OWN)


async def _kill_partition(bank: Living) -> float:
    status = await bank.runtime.status()
    victim = bank.context.rng.choice(status.partitions)
    os.kill(victim.pid, signal.SIGKILL)
    return await bank.probe(victim.partition)


async def _kill_own(bank: Living) -> float:
    """Its partition may have been killed just before, and all own actors with it: wait for one first."""

    async def some_up() -> bool:
        return bool(await bank.own_pids())

    if not bank.findings.check("I12", await until(some_up, 60.0), "no own actor came up within a minute"):
        return RECOVERY_MAX_MS
    jar, pid = bank.context.rng.choice(sorted((await bank.own_pids()).items()))
    os.kill(pid, signal.SIGKILL)
    return await bank.probe_own(jar)


async def _kill_projector(bank: Living) -> float:
    """Until the very replica that was killed has come past what was there when it was killed."""
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


def kill_program(context: Context) -> Findings:
    """A program with its own Ray dies in the middle of its batches; the directory is opened at once by another."""
    findings = Findings({"killed_programs": 0, "refused": 0})
    ray_of_this_process()
    recoveries: list[float] = []
    while True:
        recoveries.append(_kill_program(context, findings, len(recoveries)))
        if context.short or context.left_s < 0:
            break
    findings.figures["killed_programs"] = len(recoveries)
    recoveries.sort()
    findings.figures["recovery_ms_p50"] = quantile(recoveries, 0.5)
    findings.figures["recovery_ms_max"] = quantile(recoveries, 1.0)
    findings.check("I12", recoveries[-1] < 2 * RECOVERY_MAX_MS, f"{recoveries[-1]:.0f} ms until it was open again")
    return findings


def _kill_program(context: Context, findings: Findings, number: int) -> float:
    folder, kill_after = context.folder / f"killed-{number}", context.rng.choice(_KILL_AFTER)
    receipts: list[list[Any]] = []
    with Child("process_kill:drive", path=str(folder), seed=context.seed + number) as child:
        workers: set[int] = set()
        for line in child.lines(_DRIVEN_S):
            receipts.append(json.loads(line))
            if len(receipts) == kill_after:
                workers = child.processes()
                _refused(folder, child.pid, findings)
                child.kill()
        if not workers:
            raise RuntimeError(f"the program ended by itself:\n{child.errors()}")
        began_s = time.monotonic()
        asyncio.run(_reopen(context, folder, receipts, findings))
        recovery_ms = (time.monotonic() - began_s) * 1e3
        left = child.wait_until_gone(workers, _ORPHANS_GONE_S)
        findings.figures["processes_left"] = len(left)
        findings.check("I11", not left, f"left over a minute after the program was killed: {left}")
    return recovery_ms


def _refused(folder: Path, holder: int, findings: Findings) -> None:
    """I6, the first half: while one runtime has the directory, another is told who that is."""
    try:
        with BlockingRuntime(folder, aggregates=[Jar, OwnJar]):
            told = "it was opened"
    except StoreInUse as error:
        told = str(error)
    findings.count("refused", f"process {holder}" in told)
    findings.check("I6", f"process {holder}" in told, f"a second runtime on a directory in use: {told}")


async def _reopen(context: Context, folder: Path, receipts: list[list[Any]], findings: Findings) -> None:
    """Open, write, and look whether all that was acknowledged is there, in its place."""
    ray_of_this_process()
    async with Runtime(folder, aggregates=[Jar, OwnJar], projections=[Totals]) as bank:
        for name in jar_names(2):
            await bank.execute(Jar, name, Put(amount=1, note="after"), timeout_s=60)
        events = stored_events(bank.store)
        for partition, position, command_id, note in receipts:
            log = events[partition]
            stored = log[position - 1] if position <= len(log) else None
            there = stored is not None and stored.command_id.hex() == command_id and note.encode() in stored.payload
            if not findings.check("I1", there, f"{command_id} was acknowledged at {partition}:{position}, not there"):
                findings.count("lost")
        findings.count("acknowledged", len(receipts))
        check = Findings()
        check_log(bank.store, History(), check, others=sum(map(len, events.values())))
        ids = [stored.command_id for log in events.values() for stored in log]
        findings.check("I2", len(ids) == len(set(ids)), "a command took effect twice")
        for violation in check.violations:
            findings.violate(*violation)
        for invariant in ("I3", "I4"):
            findings.checks[invariant] = findings.checks.get(invariant, 0) + check.checks[invariant]


async def drive_until_killed(path: str, seed: int) -> None:
    """The program: it writes, and prints each receipt the moment it has it."""
    from .workload import puts_and_takes

    async with Runtime(path, aggregates=[Jar, OwnJar], projections=[Totals], num_cpus=2) as bank:
        commands = puts_and_takes(seed, 0, jar_names(50))
        async for envelope, outcome in bank.execute_all(commands, in_flight=64):
            if isinstance(outcome, Receipt):
                note = envelope.command.note  # type: ignore[attr-defined]
                place = outcome.partition, outcome.position
                print(json.dumps([*place, outcome.command_bytes.hex(), note]), flush=True)


def drive(path: str, seed: int) -> None:
    """What the child runs."""
    asyncio.run(drive_until_killed(path, seed))


SCENARIOS: Final = (
    Scenario(
        "kill-parts",
        "kill -9 of partitions, own actors and projectors under load",
        kill_parts,
        invariants=("I1", "I2", "I3", "I4", "I5", "I7", "I8", "I9", "I11", "I12"),
        short_s=20,
        long_s=240,
        weight=3.0,
    ),
    Scenario(
        "kill-program",
        "kill -9 of a whole program in the middle of a batch; another opens its directory at once",
        kill_program,
        invariants=("I1", "I2", "I3", "I4", "I6", "I11", "I12"),
        short_s=30,
        long_s=30,
    ),
)
