"""Timers of a process: an event in, a timer armed, and fired when it is due. Nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from rayfold import Aggregate, Command, Ended, Event, Process, Shared, Wake, decide, evolve, react, woken

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Ask(Command):
    """Have a timer armed."""

    due_us: int


class Asked(Event):
    """What the process reacts to."""

    due_us: int


class Asker(Aggregate, placement=Shared()):
    """Where the events come from."""

    asked: int = 0

    @decide
    def ask(self, command: Ask) -> Asked:
        """One more."""
        return Asked(due_us=command.due_us)

    @evolve
    def was_asked(self, event: Asked) -> None:
        """Counts."""
        self.asked += 1


class Waiting(Process):
    """Waits for its time."""

    @react(starts=True)
    def asked(self, event: Asked) -> Wake:
        """Arm it."""
        return Wake("due", at=_EPOCH + timedelta(microseconds=event.due_us))

    @woken("due")
    def due(self) -> Ended:
        """It has come."""
        return Ended("due")
