"""SIGSTOP: a partition that stands still, is taken for dead, and wakes up after its successor has taken its log over.

This is what a frozen virtual machine or a network partition does to a cluster: for a while there are two of one. The
one that wakes up has commands in its socket and in its memory, and its epoch is the older one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from typing import Final

from rayfold import Envelope
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import pack
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.store import open_store
from rayfold.runtime.write.write_loop import WriteLoop

from .child import Child
from .contract import Context, Findings, Scenario
from .local_harness import Living, living, quantile, until
from .workload import Jar, Put, jar_names

__all__ = ["SCENARIOS"]

_SUCCESSORS_COMMANDS: Final = 20
_GONE_S: Final = 30.0
_TAKE_OVER_S: Final = 3.0
"""For a few milliseconds of work: who has not done it by then waits for the writer that was stopped."""

_TRIES_MAX: Final = 5
"""Nothing is on its way when it is stopped, so it is hardly ever inside a transaction."""

_LOOK_S: Final = 0.001


def stop_and_resume(context: Context) -> Findings:
    """Again and again in the long form."""
    findings = Findings({"taken_over": 0, "appended_by_the_old": 0, "stopped_in_a_transaction": 0})
    asyncio.run(_stop_and_resume(context, findings))
    return findings


async def _stop_and_resume(context: Context, findings: Findings) -> None:
    recoveries: list[float] = []
    others = _SUCCESSORS_COMMANDS * (_TRIES_MAX if context.short else 1_000)
    async with living(context, findings, partitions=2, others=others) as bank:
        bank.begin_load()
        await bank.probe(0)
        while True:
            recoveries.append(await _round(bank, context.rng.randrange(2)))
            if context.short or context.left_s < 0 or len(recoveries) == 1_000:
                break
    recoveries.sort()
    findings.figures["recovery_ms_p50"] = quantile(recoveries, 0.5)
    findings.figures["recovery_ms_max"] = quantile(recoveries, 1.0)
    findings.check("I12", recoveries[-1] < _GONE_S * 1e3, f"{recoveries[-1]:.0f} ms until it answered again")


async def _round(bank: Living, partition: int) -> float:
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
    reader = bank.runtime.store.open_reader(partition)
    try:
        last = head
        while _runs(old.pid) and time.monotonic() - began_s < _GONE_S:
            last = reader.head()
            await asyncio.sleep(_LOOK_S)
    finally:
        reader.close()
    findings.count("taken_over")
    findings.count("appended_by_the_old", last - head)
    findings.check(
        "I6", last == head, f"partition {partition}: {last - head} appended by epoch {old.epoch} after {head}"
    )
    findings.check("I6", not _runs(old.pid), f"partition {partition}: process {old.pid} is fenced and still there")
    await probing

    async def taken_back() -> bool:
        return (await bank.runtime.status()).partitions[partition].epoch > old.epoch + 1

    findings.check(
        "I6", await until(taken_back, _GONE_S), f"partition {partition} did not come back with a later epoch"
    )
    return (time.monotonic() - began_s) * 1e3


def _succeed(bank: Living, partition: int, epoch: int) -> int:
    """Have a successor, a process of its own, take the log over. Returns the log's head then, or 0 if it had to
    wait: whoever was stopped inside a transaction holds the lock of the log's only writer until it goes on or ends."""
    name = next(one for one in jar_names(1000) if bank.partition(Jar, one) == partition)
    with Child("process_stop:succeed", path=str(bank.runtime.store.path), partition=partition, jar=name) as child:
        lines = child.lines()
        began = next(lines, "")
        watching = threading.Timer(_TAKE_OVER_S, child.kill)
        watching.start()
        told = [json.loads(line) for line in lines]
        watching.cancel()
        if child.wait() == -signal.SIGKILL and not told:
            return 0
        if not began or not told:
            raise RuntimeError(f"the successor failed:\n{child.errors()}")
    [(taken, receipts, head)] = told
    bank.findings.check("I6", taken == epoch + 1, f"partition {partition}: the successor of epoch {epoch} is {taken}")
    bank.findings.check("I1", receipts == _SUCCESSORS_COMMANDS, f"the successor was told of {receipts} receipts")
    return int(head)


def succeed(path: str, partition: int, jar: str) -> None:
    """What the child runs: activate, append, and tell epoch, receipts and head."""
    print("began", flush=True)
    log = open_store(path).open_log(partition)
    try:
        loop = WriteLoop(partition, log, Catalogue([Jar]))
        epoch = loop.activate()
        sent = [pack(Envelope(Jar, jar, Put(amount=1, note="successor")))[0] for _ in range(_SUCCESSORS_COMMANDS)]
        receipts = sum(isinstance(outcome, Receipt) for outcome in loop.execute(sent).outcomes)
        print(json.dumps([epoch, receipts, log.head()]), flush=True)
    finally:
        log.close()


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


SCENARIOS: Final = (
    Scenario(
        "stop-and-resume",
        "SIGSTOP of a partition; a successor takes its log over; the old one wakes up and has commands waiting",
        stop_and_resume,
        invariants=("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I11", "I12"),
        short_s=12,
        long_s=40,
    ),
)
