"""Readers that stay: one that reads all the time, one that is stopped in a read, one that is killed there.

LMDB never changes a page that a reader may still read: while a read transaction is open, every commit takes new pages
and the file grows. So a read ends with its call, and the slot of a reader that was killed is freed by the writer. What
a stopped process pins, no other one can free; when it goes on, or is killed, its pages are used again.

Each phase is the same number of commits, and its figure is what the file grew by.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any, Final

from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.environment import READER_CHECK_EVERY
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.store.store import create_or_open_store, open_store
from rayfold.runtime.stream import ANY, StreamId

from ..contract import Context, Findings, scenario
from ..processes import ForkServer
from .workload import data_of, everything

COMMITS: Final = READER_CHECK_EVERY + 44
"""Of one phase: before its end the writer has freed the slots of the dead."""

PAYLOAD_BYTES: Final = 200
SLACK_BYTES: Final = 256 << 10
"""What a phase may grow by beside its events: pages that are half full, and the list of free ones."""


class _Writer:
    """Commits one event at a time, under ids that touch pages all over the indexes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.store = create_or_open_store(folder, 1)
        self.log: LmdbLog = self.store.open_log(0)
        self._epoch = self.log.activate()
        self._rng = random.Random(seed)
        self._data = data_of(folder)

    def commit(self, times: int) -> int:
        """So many commits; by how many bytes the file has grown."""
        before = self._data.stat().st_size
        for _ in range(times):
            event = NewEvent("PaidIn", 1, self._rng.randbytes(PAYLOAD_BYTES))
            stream = StreamId("Till", f"till-{self._rng.randrange(1_000)}")
            self.log.append(self._epoch, [Append(stream, ANY, (event,), self._rng.randbytes(16), bytes(16))])
        return self._data.stat().st_size - before


@scenario(
    "long-readers", "readers that never stop, stand still in a read, die in a read", "I1 I4 I11", times=(10, 30, 0.3)
)
def long_readers(context: Context, findings: Findings) -> None:
    """The phases, one after the other, on one store."""
    commits = COMMITS if context.short else 8 * COMMITS
    findings.figures["commits_each"] = commits
    writer = _Writer(context.folder / "store", context.seed)
    writer.commit(commits)
    alone = writer.commit(commits)
    with ForkServer() as server:
        arguments = {"path": str(writer.store.path)}
        child = server.start(read_on, **arguments, until=writer.log.head() + commits)
        child.next_line()
        reading = writer.commit(commits)
        seen = child.wait().lines[-1]
        findings.figures["reads_beside"] = seen["reads"]
        findings.check("I4", seen["prefix"] and child.status == 0, f"a reader saw no prefix: {seen}")
        child = server.start(hold_a_read, **arguments)
        child.next_line()
        os.kill(child.pid, signal.SIGKILL)  # its slot stays until the writer looks
        child.wait()
        killed, settled = writer.commit(commits), writer.commit(commits)
        child = server.start(hold_a_read, **arguments)
        child.next_line()
        stopped = writer.commit(commits)
        os.kill(child.pid, signal.SIGCONT)
        child.wait()
        resumed = writer.commit(commits)
    figures = {"alone": alone, "reading": reading, "killed": killed, "settled": settled}
    figures |= {"stopped": stopped, "resumed": resumed}
    findings.figures |= {f"grown_kib_{name}": value >> 10 for name, value in figures.items()}
    once, told = alone + SLACK_BYTES, f"grown by, in bytes: {figures}"
    pinned = READER_CHECK_EVERY * (stopped // commits) * 2 + once  # what one commit pins varies, at most by half
    findings.reach(stopped > 2 * once, f"a stopped reader pins nothing, so nothing was tried; {told}")
    findings.reach(killed > once, f"a killed reader pins nothing, so nothing was tried; {told}")
    findings.check("I11", reading < stopped, f"a reader that never rests pins as much as one that never ends; {told}")
    findings.check("I11", killed <= pinned, f"a dead reader pins more than {READER_CHECK_EVERY} commits; {told}")
    findings.check("I11", settled <= once, f"what a dead reader had pinned is not used again; {told}")
    findings.check("I11", resumed <= once, f"what a stopped reader had pinned is not used again; {told}")
    records = everything(writer.log)
    positions = [decode_record(record).position for record in records]
    findings.check("I4", positions == list(range(1, len(records) + 1)), "positions have gaps")
    findings.check("I1", len(records) == 7 * commits, f"{len(records)} events of {7 * commits}")
    writer.log.close()


def read_on(report: Any, *, path: str, until: int) -> None:
    """A job: read everything again and again, until there is as much as asked for."""
    reader = open_store(path).open_reader(0)
    reads, seen, prefix = 0, 0, True
    report.send(reading=True)
    while seen < until:
        positions = [int.from_bytes(record[4:12], "big") for record in everything(reader)]
        prefix &= positions == list(range(1, len(positions) + 1)) and len(positions) >= seen
        reads, seen = reads + 1, len(positions)
    report.send(reads=reads, prefix=prefix)


def hold_a_read(report: Any, *, path: str) -> None:
    """A job: stop in the middle of a read, as if the machine took the processor away; then end the read well."""
    reader = open_store(path).open_reader(0)

    def stop(transaction: Any) -> None:
        report.send(reading=True)
        os.kill(os.getpid(), signal.SIGSTOP)

    reader.environment.read(stop)
    reader.close()
