"""The domain of the simulation: purses that money is put into and taken out of, and what is in them."""

from __future__ import annotations

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
from rayfold.runtime.encoding.catalogue import Catalogue

__all__ = ["CATALOGUE", "Contents", "InPurse", "MoveResult", "Purse", "Put", "Take"]


class Put(Command):
    """Put money in."""

    amount: int


class Take(Command):
    """Take money out, if there is enough."""

    amount: int


class MoveResult(Event):
    """Money came in, or went out if it is negative."""

    amount: int


class Purse(Aggregate, placement=Shared(), snapshot_every=4):
    """May be empty, never owe."""

    money: int = 0

    @decide
    def put(self, command: Put) -> MoveResult:
        """Always."""
        return MoveResult(amount=command.amount)

    @decide
    def take(self, command: Take) -> MoveResult | Rejected:
        """Not more than there is."""
        if command.amount > self.money:
            return Rejected("too little", money=self.money)
        return MoveResult(amount=-command.amount)

    @evolve
    def moved(self, event: MoveResult) -> None:
        """More or less."""
        self.money += event.amount


class InPurse(Query[list[int]]):
    """Every movement of a purse so far."""

    purse: str


class Contents(Projection):
    """Every movement of every purse, so that a reader can be compared with the log event by event."""

    purses: dict[str, list[int]] = {}

    @project
    def moved(self, event: MoveResult, recorded: Recorded) -> None:
        """One more."""
        self.purses.setdefault(recorded.aggregate_id, []).append(event.amount)

    @answer
    def movements(self, query: InPurse) -> list[int]:
        """In order."""
        return self.purses.get(query.purse, [])


CATALOGUE = Catalogue([Purse], [Contents])
