"""Orders: pieces are added at a price, and a discount is given. What the tests of time travel share."""

from __future__ import annotations

from pydantic import PositiveInt

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event, Query
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.domain.recorded import Recorded


class Add(Command):
    """Add pieces at a price."""

    pieces: PositiveInt
    price: PositiveInt


class GiveDiscount(Command):
    """Take some of a hundred off."""

    percent: PositiveInt


class Added(Event):
    """Pieces are in the order."""

    pieces: int
    price: int


class DiscountGiven(Event):
    """Everything in the order so far costs less."""

    percent: int


class Order(Aggregate, placement=Shared(), snapshot_every=2):
    """What an order costs."""

    total: int = 0

    @decide
    def add(self, command: Add) -> Added:
        """Always."""
        return Added(pieces=command.pieces, price=command.price)

    @decide
    def give_discount(self, command: GiveDiscount) -> DiscountGiven:
        """Always."""
        return DiscountGiven(percent=command.percent)

    @evolve
    def added(self, event: Added) -> None:
        """More to pay."""
        self.total += event.pieces * event.price

    @evolve
    def discount_given(self, event: DiscountGiven) -> None:
        """Less to pay."""
        self.total -= self.total * event.percent // 100


class TotalOf(Query[int]):
    """What an order costs."""

    order: str


class Totals(Projection):
    """What every order costs."""

    totals: dict[str, int] = {}

    @project
    def added(self, event: Added, recorded: Recorded) -> None:
        """More to pay."""
        so_far = self.totals.get(recorded.aggregate_id, 0)
        self.totals[recorded.aggregate_id] = so_far + event.pieces * event.price

    @project
    def discount_given(self, event: DiscountGiven, recorded: Recorded) -> None:
        """Less to pay."""
        total = self.totals[recorded.aggregate_id]
        self.totals[recorded.aggregate_id] = total - total * event.percent // 100

    @answer
    def total(self, query: TotalOf) -> int:
        """As far as this read model has come."""
        return self.totals.get(query.order, 0)
