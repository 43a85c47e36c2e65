"""The outages: a process killed with signal 9 in the middle of the run, and how long it was missed.

Rules kept here: an outage ends when a command that was sent after the kill, to what was killed, is acknowledged.
Answers that were under way before the kill do not count, and neither does a refusal. A process is known by its number
only on its own machine, so on a cluster nothing is killed that is not certain to be on this one.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from rayfold import Receipt, Runtime, Unavailable
from rayfold.actors.observe.status import Status

from .domain import Airport

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
        """Note an acknowledgement; true if it ends the outage."""
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
        """The number of commands by which a kill must have happened; there the sending waits for one that has begun."""
        self.spared: list[str] = []
        """What was not killed because it is on another machine, or may be."""
        self._commands = commands
        self._due = [("airport", commands // 3), ("partition", 2 * commands // 3)] if armed else []

    def take_due(self, sent: int) -> str | None:
        """What is to be killed now that so many commands are sent, `airport` or `partition`; each once."""
        if not self._due or sent < self._due[0][1]:
            return None
        return self._due.pop(0)[0]

    async def kill(self, what: str, bank: Runtime, sent: Callable[[], int]) -> Outage | None:
        """Kill it. `sent` returns how many commands are sent by now; it is called at the moment of the kill.

        None if there is no such process yet or a node is gone, then it is due again a little later; if the run is
        nearly over; or if it is on another machine, then it is `spared`.
        """
        try:
            status = await bank.status()
        except Unavailable:  # the supervisor is away
            status = Status([], [], [])
        if sent() > self.last_call:
            return None
        if not _is_within_reach(what, status):
            self.spared.append(what)
            return None
        name, pid = _target(what, status) if all(node.up for node in status.nodes) else ("", 0)
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


def _is_within_reach(what: str, status: Status) -> bool:
    """Whether the process is on this machine: its node is, or of an airport's, which may be on any node, all are."""
    here = [_is_here(node.address) for node in status.nodes if node.up]
    return all(here) if what == "airport" else any(here) or not here


def _target(what: str, status: Status) -> tuple[str, int]:
    """Whom to kill: the name and the process. No process if there is none to kill."""
    if what == "partition":
        here = {node.name for node in status.nodes if _is_here(node.address)} or {""}
        alive = (one for one in status.partitions if one.alive and one.node in here)
        return next(((f"partition {one.partition}", one.pid) for one in alive), ("", 0))
    airports = (one for one in status.own_actors if one.stream.type == Airport.aggregate_type)
    return next(((str(one.stream), one.pid) for one in airports), ("", 0))


def _is_here(address: str) -> bool:
    """Whether an address is this machine's: only on its own addresses can it open a socket."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind((address, 0))
    except OSError:
        return False
    return True
