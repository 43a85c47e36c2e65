"""The timetable: how many flights of the year a store is about, written down in its own log.

In a directory the demo leaves a file beside the store that says so. On a cluster the log is all that every node and
every program sees, so it is an event there: the first of a new store.

Rule kept here: a timetable only grows. Fewer flights than were sent into a store before cannot be what the store comes
to, whatever is sent, so the demo is refused before it sends anything.
"""

from __future__ import annotations

from typing import Final

from rayfold import Aggregate, Command, Event, Rejected, Shared, decide, evolve

__all__ = ["YEAR", "Publish", "Published", "Timetable"]

YEAR: Final = "2013"
"""The id of the only timetable."""


class Publish(Command):
    """Say how many flights there will be, from the first of January on."""

    flights: int


class Published(Event):
    """So many flights there will be."""

    flights: int


class Timetable(Aggregate, placement=Shared()):
    """The timetable of a year. Its id is the year."""

    flights: int = 0

    @decide
    def publish(self, command: Publish) -> Published | Rejected | None:
        """As many as before, or more."""
        if command.flights < self.flights:
            return Rejected("more_are_published", flights=self.flights)
        return Published(flights=command.flights) if command.flights > self.flights else None

    @evolve
    def has_been_published(self, event: Published) -> None:
        """These are to be flown."""
        self.flights = event.flights
