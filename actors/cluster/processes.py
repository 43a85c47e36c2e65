"""Node processes: the operating system's processes of one node, found by their session and ended without one left over.

Beside all steps. Each node of a local cluster is started as the leader of a session of its own (`local_node.py`). Ray's
daemons and workers may get other parents and process groups, but none leaves the session: so the session *is* the node,
also after its leader has been killed. Linux does not reuse the number of a session while one member exists.

Rules kept here: never a process by its name. A number alone is not trusted: the leader has the start time that was
written down, or there is no leader and every member carries the data folder in its environment. A zombie has ended,
once its threads have: of a process that is killed the first thread may be a zombie while others still hold its sockets.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from .node import DATA_VARIABLE

__all__ = ["Session", "boot_id", "end_sessions"]

_LOOK_S: Final = 0.02
"""Seconds between two checks whether processes have ended; a check takes a few milliseconds."""


class _Process(NamedTuple):
    pid: int
    session: int
    started: int
    """In ticks since the machine was booted: with the number it identifies one process permanently."""


@dataclass(frozen=True, slots=True)
class Session:
    """All processes of one node, by the leader that began it. A plain value that can be written down."""

    number: int
    """The process id of the leader, which is the id of the session."""
    started: int
    """The leader's start, in ticks since the machine was booted."""
    data_folder: str
    boot_id: str
    """The boot id of the machine at that time: after a restart of the machine the same numbers are others."""

    @classmethod
    def led_by(cls, pid: int, data_folder: Path) -> Session:
        """The session that the running process `pid` leads. Raises `ProcessLookupError` if it has ended."""
        process = _read(pid)
        if process is None:
            raise ProcessLookupError(f"process {pid} has ended")
        return cls(pid, process.started, str(data_folder), boot_id())

    def leads(self) -> bool:
        """Whether the leader is alive: while it is, the node is up or on its way."""
        leader = _read(self.number)
        return self.boot_id == boot_id() and leader is not None and leader.started == self.started

    def members(self) -> list[int]:
        """The processes that are alive, by number. Empty: nothing of this node is left."""
        if self.boot_id != boot_id():
            return []
        found = [process for process in _all() if process.session == self.number]
        leader = next((process for process in found if process.pid == self.number), None)
        if leader is not None:
            return [process.pid for process in found] if leader.started == self.started else []
        return [process.pid for process in found if process.started >= self.started and self._carries(process.pid)]

    def signal(self, number: signal.Signals) -> int:
        """Send it to every member; how many there were. The youngest first: Ray's daemons get SIGTERM when the leader
        has ended, and one that begins to tidy up is no longer what a kill is to show."""
        members = sorted(self.members(), reverse=True)
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(members)

    def _carries(self, pid: int) -> bool:
        """Whether the process was started for this data folder; one that cannot be read was not started by this user.

        One that is just ending has no environment any more, nor a program, and still holds its files and sockets."""
        wanted = f"{DATA_VARIABLE}={self.data_folder}".encode()
        try:
            found = Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            found = b""
        except OSError:
            return False
        return wanted in found.split(b"\0") if found else not _has_program(pid)


def end_sessions(sessions: Iterable[Session], *, grace_s: float, kill_s: float = 10.0) -> list[int]:
    """End every process of these sessions: SIGTERM to the leaders, and after `grace_s` SIGKILL to all that is left.

    Returns the processes that outlived even that for `kill_s`; there are none unless the kernel holds one.
    """
    sessions = list(sessions)
    for session in sessions:
        if grace_s and session.leads():
            with contextlib.suppress(ProcessLookupError):
                os.kill(session.number, signal.SIGTERM)
    kill_from = time.monotonic() + grace_s
    while (left := [pid for session in sessions for pid in session.members()]) and time.monotonic() < kill_from:
        time.sleep(_LOOK_S)
    while left and time.monotonic() < kill_from + kill_s:
        for session in sessions:
            session.signal(signal.SIGKILL)  # again each time: one may have forked meanwhile
        time.sleep(_LOOK_S)
        left = [pid for session in sessions for pid in session.members()]
    return left


def boot_id() -> str:
    """What names this run of the machine, between switching it on and off."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _has_program(pid: int) -> bool:
    """Whether it still has its memory, as far as can be seen."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True


def _all() -> Iterator[_Process]:
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (process := _read(int(entry))) is not None:
            yield process


def _read(pid: int) -> _Process | None:
    """One process, from `/proc/PID/stat`; none if it has ended, a zombie without other threads included."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = line.rpartition(b")")[2].split()  # the name before may hold blanks and brackets
    state, session, threads, started = fields[0], int(fields[3]), int(fields[17]), int(fields[19])
    return None if state in (b"Z", b"X") and threads <= 1 else _Process(pid, session, started)
