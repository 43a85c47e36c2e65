"""The smallest application: a tally that is added to, and the total of all of them."""

from __future__ import annotations

from rayfold import Aggregate, Command, Event, Projection, Query, answer, decide, evolve, project


class Add(Command):
    """Add to a tally."""

    amount: int = 1


class Added(Event):
    """A tally has grown."""

    amount: int


class Tally(Aggregate):
    """The sum of what was added."""

    total: int = 0

    @decide
    def add(self, command: Add) -> Added:
        """Never refused."""
        return Added(amount=command.amount)

    @evolve
    def added(self, event: Added) -> None:
        """So much more."""
        self.total += event.amount


class Total(Query[int]):
    """Of all tallies."""


class Totals(Projection):
    """The sum over all tallies."""

    total: int = 0

    @project
    def added(self, event: Added) -> None:
        """So much more."""
        self.total += event.amount

    @answer
    def of_all(self, query: Total) -> int:
        """The sum."""
        return self.total
