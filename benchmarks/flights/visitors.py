"""The guest book: what visitors of a running demo write, and read back at once.

Each airport has one. It shows that a program which the demo knows nothing of can take part in it: `visitor.py` connects
by name, signs, and asks for what it has written.

Rule kept here: nothing of it touches a flight. The oracle does not count it, and the walk through the log
(`verification.py`) expects it.
"""

from __future__ import annotations

from typing import Final

from rayfold import (
    Aggregate,
    Command,
    Event,
    Projection,
    Query,
    Recorded,
    Rejected,
    Shared,
    answer,
    decide,
    evolve,
    project,
)

_KEPT_MAX: Final = 100
"""Guests of one book that the read model remembers: no query needs more, and the log has them all."""


class Sign(Command):
    """Write one's name into the book."""

    guest: str


class Signed(Event):
    """A guest was here."""

    guest: str
    entry: int
    """The number of the entry in its book, from 1."""


class GuestBook(Aggregate, placement=Shared()):
    """The guest book of an airport. Its id is the airport's three letters."""

    entries: int = 0

    @decide
    def sign(self, command: Sign) -> Signed | Rejected:
        """Any guest with a name may, as often as they like."""
        if not command.guest.strip():
            return Rejected("no_name")
        return Signed(guest=command.guest, entry=self.entries + 1)

    @evolve
    def has_been_signed(self, event: Signed) -> None:
        self.entries = event.entry


class GuestsOf(Query[tuple[str, ...]]):
    """Who was at this airport last? The latest first."""

    airport: str
    limit: int = 5


class Guests(Projection):
    """The last guests of each airport."""

    books: dict[str, list[str]] = {}

    @project
    def signed(self, event: Signed, recorded: Recorded) -> None:
        """Add a guest. The airport is the aggregate of the event."""
        book = self.books.setdefault(recorded.aggregate_id, [])
        book.append(event.guest)
        del book[:-_KEPT_MAX]

    @answer
    def last(self, query: GuestsOf) -> tuple[str, ...]:
        """None at an airport without visitors."""
        return tuple(self.books.get(query.airport, [])[: -query.limit - 1 : -1])
