"""A domain that talks: its handlers log, print and raise."""

from __future__ import annotations

import logging

from rayfold import Aggregate, Command, Event, OwnActor, Projection, Query, Shared, answer, decide, evolve, project

log = logging.getLogger("chatty")


class Speak(Command):
    """Log it, print it, and raise if it is nothing."""

    text: str


class Spoken(Event):
    """It was spoken."""

    text: str


class Speaker(Aggregate, placement=Shared()):
    """Logs and prints the words of each command."""

    times: int = 0

    @decide
    def speak(self, command: Speak) -> Spoken:
        """As the command asks."""
        log.warning("to speak: %s", command.text)
        log.info("below the level")
        print(f"printed: {command.text}")
        if not command.text:
            raise LookupError("no words")
        return Spoken(text=command.text)

    @evolve
    def spoken(self, event: Spoken) -> None:
        """Once more."""
        self.times += 1


class Soloist(Speaker, placement=OwnActor()):
    """The same in an actor of its own."""


class LastWord(Query[str]):
    """What was spoken last."""


class Words(Projection):
    """The last word."""

    last: str = ""

    @project
    def spoken(self, event: Spoken) -> None:
        """This one now."""
        self.last = event.text

    @answer
    def last_word(self, query: LastWord) -> str:
        """Raises for some words."""
        if self.last.startswith("secret"):
            raise PermissionError("not for you")
        return self.last


class Deaf(Words):
    """Does not take every word."""

    @project
    def spoken(self, event: Spoken) -> None:
        """Not this one."""
        print(f"received: {event.text}")
        if event.text == "shout":
            raise ValueError("too loud")
        self.last = event.text
