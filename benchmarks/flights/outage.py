"""The outages: a process killed with signal 9 in the middle of the run, and how long it was missed.

Rule kept here: an outage ends when a command that was sent after the kill, to what was killed, is acknowledged.
Answers that were under way before the kill do not count, and neither does a refusal.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from rayfold import Receipt, Runtime
from rayfold.actors.status import Status

from .domain import Airport

__all__ = ["Killer", "Outage"]

_LATEST: Final = 0.9
"""After this part of the run nothing is killed: there would be no commands left to come back for."""

_RETRY: Final = 0.02
"""If there is no process to kill yet, try again after this part of the run."""


@dataclass(slots=True)
class Outage:
    """One killed process."""

    what: str
    """`airport` or `partition`."""
    name: str
    """`Airport/JFK`, `partition 0`."""
    pid: int
    after_commands: int
    """Commands sent before the kill."""
    killed_at_s: float
    """By the monotonic clock."""
    recovered_s: float | None = None
    """From the kill to the first acknowledgement of a command sent after it."""

    def watch(self, number: int, receipt: Receipt) -> bool:
        """Look at an acknowledgement; true if it ends the outage."""
        if self.recovered_s is not None or number < self.after_commands:
            return False
        if self.name not in (str(receipt.stream), f"partition {receipt.partition}"):
            return False
        self.recovered_s = time.monotonic() - self.killed_at_s
        return True


class Killer:
    """Kills an airport's actor after a third of the commands, and a partition's after two thirds."""

    def __init__(self, commands: int, *, armed: bool) -> None:
        self.outages: list[Outage] = []
        self.last_call = int(_LATEST * commands)
        """The number of commands by which a kill must have happened; until then the sending waits for it."""
        self._commands = commands
        self._due = [("airport", commands // 3), ("partition", 2 * commands // 3)] if armed else []

    def take_due(self, sent: int) -> str | None:
        """What is to be killed now that so many commands are sent, `airport` or `partition`; it is told once."""
        if not self._due or sent < self._due[0][1]:
            return None
        return self._due.pop(0)[0]

    async def kill(self, what: str, bank: Runtime, sent: Callable[[], int]) -> Outage | None:
        """Kill it. `sent` tells how many commands are sent by now; it is asked at the moment of the kill.

        None if there is no such process yet, then it is due again a little later; or if the run is nearly over.
        """
        name, pid = _target(what, await bank.status())
        if sent() > self.last_call:
            return None
        outage = Outage(what, name, pid, sent(), time.monotonic())
        if not _killed(pid):
            self._due.append((what, sent() + int(_RETRY * self._commands) + 1))
            self._due.sort(key=lambda one: one[1])
            return None
        self.outages.append(outage)
        return outage

    def watch(self, number: int, receipt: Receipt) -> Iterator[Outage]:
        """The outages that this acknowledgement ends."""
        return (outage for outage in self.outages if outage.watch(number, receipt))


def _killed(pid: int) -> bool:
    """Whether there was such a process; there is none any more."""
    if not pid:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _target(what: str, status: Status) -> tuple[str, int]:
    """Whom to kill: the name and the process. No process if there is none to kill."""
    if what == "partition":
        return next(((f"partition {one.partition}", one.pid) for one in status.partitions), ("", 0))
    airports = (one for one in status.own_actors if one.stream.type == Airport.aggregate_type)
    return next(((str(one.stream), one.pid) for one in airports), ("", 0))
