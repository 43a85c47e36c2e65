"""The clock set back an hour, in the middle of a run: order is by position, and nothing else depends on the time.

libfaketime turns the clock of a whole process back between two batches, where it is installed; besides, and everywhere,
a child replaces `time.time_ns`. The command ids are UUIDv7s made by that clock: they stay different, and each is stored
and found again, though those made later sort before those made earlier.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from rayfold import Envelope
from rayfold.runtime.encoding.envelope import pack
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.store import create_or_open_store, open_store
from rayfold.runtime.store.verify import verify_store

from ..bank import Put, Till
from ..contract import Context, Findings, faketime_library, scenario
from ..processes import ForkServer
from .workload import everything, write_loop

BACK_S: Final = 3_600
COMMANDS: Final = 400
"""Half before the clock is set back and half after."""

BATCH: Final = 8


@scenario(
    "clock-set-back",
    "the clock set back an hour between two batches",
    "I1 I2 I3 I4 I8",
    counts="commands seconds_back losses twice",
    times=(3, 5, 0.2),
)
def clock_set_back(context: Context, findings: Findings) -> None:
    """With libfaketime, and with a replaced clock."""
    library = faketime_library()
    if library is None:
        findings.figures["without"] = "libfaketime is not installed"
    else:
        stamp = context.folder / "faketime"
        stamp.write_text("+0")
        faked = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(stamp),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a clock that is set back is the wall clock
        }
        with ForkServer(environment=faked) as server:
            _with_clock(server, context.folder / "faked", str(stamp), findings)
    with ForkServer() as server:
        _with_clock(server, context.folder / "replaced", "", findings)


def _with_clock(server: ForkServer, folder: Path, stamp: str, findings: Findings) -> None:
    where = folder.name
    child = server.run(write_through, folder=str(folder), stamp=stamp)
    child.check_status(findings, where, "I1")
    told = [tuple(one) for line in child.lines for one in line["told"]]
    findings.count("commands", len(told))
    with closing(open_store(folder).open_reader(0)) as reader:
        records = [decode_record(record) for record in everything(reader)]
    stored = {event.command_id.hex(): (event.position, event.version) for event in records}
    lost = [one for one in told if stored.get(one[0]) != one[1:]]
    findings.count("losses", len(lost))
    findings.check("I1", len(told) == COMMANDS and not lost, f"{where}: {len(told)} answered, not there: {lost[:3]}")
    findings.check("I2", len(stored) == len(records), f"{where}: {len(records)} events of {len(stored)} commands")
    findings.check("I2", all(line["repeated"] for line in child.lines), f"{where}: commands sent again were not known")
    findings.check("I4", [one.position for one in records] == list(range(1, COMMANDS + 1)), f"{where}: gaps")
    positions = [one[1] for one in told]
    findings.check("I8", positions == sorted(positions), f"{where}: acknowledged in another order than stored")
    findings.check("I3", verify_store(folder).ok, f"{where}: verify finds something")
    times_us = [one.recorded_at_us for one in records]
    back_s = max(one - other for one, other in pairwise(times_us)) // 1_000_000
    findings.figures["seconds_back"] = back_s
    findings.reach(0 < back_s <= BACK_S, f"{where}: it went back by {back_s} s: nothing was tried")
    ids = {UUID(bytes=one.command_id) for one in records}
    findings.check("I2", len(ids) == COMMANDS and {one.version for one in ids} == {7}, f"{where}: ids are not UUIDv7s")


def write_through(report: Any, *, folder: str, stamp: str) -> None:
    """A job: write, set the clock back, write on; then send some commands of both halves again."""
    log = create_or_open_store(folder, 1).open_log(0)
    loop = write_loop(log)
    sent = []
    for number in range(0, COMMANDS, BATCH):
        if number == COMMANDS // 2:
            _set_back(stamp)
        batch = [pack(Envelope(Till, f"till-{index}", Put(amount=1)))[0] for index in range(BATCH)]
        sent.append(batch)
        done = [one for one in loop.execute(batch).outcomes if isinstance(one, Receipt)]
        told = [(one.command_bytes.hex(), one.position, one.version) for one in done]
        again = loop.execute(sent[number // BATCH // 2]).outcomes
        report.send(told=told, repeated=all(isinstance(one, Receipt) and one.repeated for one in again))
    log.close()


def _set_back(stamp: str) -> None:
    if stamp:
        aside = Path(f"{stamp}.new")
        aside.write_text(f"-{BACK_S}")
        os.replace(aside, stamp)
    else:
        ahead = time.time_ns
        time.time_ns = lambda: ahead() - BACK_S * 10**9
