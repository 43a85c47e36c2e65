"""The domain of the simulation: purses that money is put into and taken out of, and what is in them."""

from __future__ import annotations

from rayfold import Projection, Query, Recorded, Shared, answer, project
from rayfold.runtime.encoding.catalogue import Catalogue

from ..bank import Jar, Put, PutIn, Take, TakenOut

__all__ = ["CATALOGUE", "Contents", "InPurse", "Purse", "Put", "Take"]


class Purse(Jar, placement=Shared(), snapshot_every=4):
    """May be empty, never owe."""


class InPurse(Query[list[int]]):
    """Every movement of a purse so far."""

    purse: str


class Contents(Projection):
    """Every movement of every purse, so that a reader can be compared with the log event by event."""

    purses: dict[str, list[int]] = {}

    @project
    def put_in(self, event: PutIn, recorded: Recorded) -> None:
        self.purses.setdefault(recorded.aggregate_id, []).append(event.amount)

    @project
    def taken_out(self, event: TakenOut, recorded: Recorded) -> None:
        self.purses.setdefault(recorded.aggregate_id, []).append(-event.amount)

    @answer
    def movements(self, query: InPurse) -> list[int]:
        """In order."""
        return self.purses.get(query.purse, [])


CATALOGUE = Catalogue([Purse], [Contents])
