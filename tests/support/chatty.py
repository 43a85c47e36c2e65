"""A domain that talks: its handlers log, print and raise."""

from __future__ import annotations

import logging

from rayfold import Aggregate, Command, Event, OwnActor, Projection, Query, Shared, answer, decide, evolve, project

log = logging.getLogger("chatty")


class Say(Command):
    """Log it, print it, and raise if it is nothing."""

    text: str


class Said(Event):
    """It was said."""

    text: str


class Speaker(Aggregate, placement=Shared()):
    """Says what it is told to."""

    times: int = 0

    @decide
    def say(self, command: Say) -> Said:
        """As told."""
        log.warning("to say: %s", command.text)
        log.info("which nobody asked for")
        print(f"printed: {command.text}")
        if not command.text:
            raise LookupError("nothing to say")
        return Said(text=command.text)

    @evolve
    def said(self, event: Said) -> None:
        """Once more."""
        self.times += 1


class Soloist(Speaker, placement=OwnActor()):
    """The same in an actor of its own."""


class LastWord(Query[str]):
    """What was said last."""


class Words(Projection):
    """The last word."""

    last: str = ""

    @project
    def said(self, event: Said) -> None:
        """This one now."""
        self.last = event.text

    @answer
    def last_word(self, query: LastWord) -> str:
        """Not all words can be told."""
        if self.last.startswith("secret"):
            raise PermissionError("not for you")
        return self.last


class Deaf(Words):
    """Does not take every word."""

    @project
    def said(self, event: Said) -> None:
        """Not this one."""
        print(f"heard: {event.text}")
        if event.text == "shout":
            raise ValueError("too loud")
        self.last = event.text
