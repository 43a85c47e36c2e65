"""An event, and what may follow it: a process that sends a command on and gets its outcome; one that waits for a timer.

Nothing else, so that what a step costs is seen. `local_calls.py` has an effect that follows the same event.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from rayfold import (
    Aggregate,
    Command,
    Ended,
    Event,
    Process,
    Send,
    Shared,
    Wake,
    accepted,
    decide,
    evolve,
    react,
    woken,
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Ask(Command):
    """Have one step taken."""

    number: int
    """For `Waiting`: when it is due, in microseconds since 1970. For `Posting`: the port of the server."""


class Asked(Event):
    """What is reacted to."""

    number: int


class Asker(Aggregate, placement=Shared()):
    """Where the events come from."""

    asked: int = 0

    @decide
    def ask(self, command: Ask) -> Asked:
        return Asked(number=command.number)

    @evolve
    def was_asked(self, event: Asked) -> None:
        self.asked += 1


class Answer(Command):
    """What the process sends."""

    number: int


class Answered(Event):
    """That it arrived."""

    number: int


class Answerer(Aggregate, placement=Shared()):
    """Where the commands go."""

    answered: int = 0

    @decide
    def answer(self, command: Answer) -> Answered:
        return Answered(number=command.number)

    @evolve
    def was_answered(self, event: Answered) -> None:
        self.answered += 1


class Relaying(Process):
    """Between the two."""

    @react(starts=True)
    def asked(self, event: Asked) -> Send:
        return Send(Answerer, self.id, Answer(number=event.number))

    @accepted(Answer)
    def answered(self) -> None:
        """It has arrived: the step is whole."""


class Waiting(Process):
    """Waits for its time."""

    @react(starts=True)
    def asked(self, event: Asked) -> Wake:
        return Wake("due", at=_EPOCH + timedelta(microseconds=event.number))

    @woken("due")
    def due(self) -> Ended:
        return Ended("due")
