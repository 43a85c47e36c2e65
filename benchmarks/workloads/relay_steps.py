"""Steps of a process: an event in, a command out, its outcome in. Nothing else, so that what they cost is seen."""

from __future__ import annotations

from rayfold import Aggregate, Command, Event, Process, Send, Shared, accepted, decide, evolve, react


class Ask(Command):
    """Have one step taken."""

    number: int


class Asked(Event):
    """What the process reacts to."""

    number: int


class Asker(Aggregate, placement=Shared()):
    """Where the events come from."""

    asked: int = 0

    @decide
    def ask(self, command: Ask) -> Asked:
        """One more."""
        return Asked(number=command.number)

    @evolve
    def was_asked(self, event: Asked) -> None:
        """Counts."""
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
        """One more."""
        return Answered(number=command.number)

    @evolve
    def was_answered(self, event: Answered) -> None:
        """Counts."""
        self.answered += 1


class Relaying(Process):
    """Between the two."""

    @react(starts=True)
    def asked(self, event: Asked) -> Send:
        """Pass it on."""
        return Send(Answerer, self.id, Answer(number=event.number))

    @accepted(Answer)
    def answered(self) -> None:
        """It has arrived: the step is whole."""
