"""A shop: an order is paid from a wallet, reserved in the stock and shipped, or all of it is taken back.

`Fulfilment` is the process: what spans order, wallet and stock, and fifteen minutes. Its rules are tested without Ray,
disk or clock, at the end.
"""

import asyncio
from collections.abc import Iterator
from datetime import timedelta

from pydantic import Field

from rayfold import (
    Aggregate,
    Command,
    Ended,
    Event,
    Forget,
    Process,
    Rejected,
    Send,
    Shared,
    Undo,
    Wake,
    accepted,
    decide,
    evolve,
    given,
    react,
    refused,
    woken,
)
from rayfold.testing import system


class Fill(Command):
    amount: int = Field(gt=0)


class Charge(Command):
    order: str
    amount: int = Field(gt=0)


class Refund(Command):
    order: str
    amount: int = Field(gt=0)


class Filled(Event):
    amount: int


class Charged(Event):
    order: str
    amount: int


class Refunded(Event):
    order: str
    amount: int


class Wallet(Aggregate, placement=Shared()):
    balance: int = 0

    @decide
    def fill(self, command: Fill) -> Filled:
        return Filled(amount=command.amount)

    @decide
    def charge(self, command: Charge) -> Charged | Rejected:
        if command.amount > self.balance:
            return Rejected("no_money", balance=self.balance)
        return Charged(order=command.order, amount=command.amount)

    @decide
    def refund(self, command: Refund) -> Refunded:
        return Refunded(order=command.order, amount=command.amount)

    @evolve
    def filled(self, event: Filled) -> None:
        self.balance += event.amount

    @evolve
    def charged(self, event: Charged) -> None:
        self.balance -= event.amount

    @evolve
    def refunded(self, event: Refunded) -> None:
        self.balance += event.amount


class Supply(Command):
    pieces: int = Field(gt=0)


class Reserve(Command):
    order: str


class Release(Command):
    order: str


class Supplied(Event):
    pieces: int


class Reserved(Event):
    order: str


class Released(Event):
    order: str


class Stock(Aggregate, placement=Shared()):
    pieces: int = 0

    @decide
    def supply(self, command: Supply) -> Supplied:
        return Supplied(pieces=command.pieces)

    @decide
    def reserve(self, command: Reserve) -> Reserved | Rejected:
        return Reserved(order=command.order) if self.pieces else Rejected("sold_out")

    @decide
    def release(self, command: Release) -> Released:
        return Released(order=command.order)

    @evolve
    def supplied(self, event: Supplied) -> None:
        self.pieces += event.pieces

    @evolve
    def reserved(self, event: Reserved) -> None:
        self.pieces -= 1

    @evolve
    def released(self, event: Released) -> None:
        self.pieces += 1


class Place(Command):
    wallet: str = Field(min_length=1)
    item: str = Field(min_length=1)
    total: int = Field(gt=0)


class Ship(Command):
    pass


class Cancel(Command):
    reason: str


class Placed(Event):
    wallet: str = Field(min_length=1)
    item: str = Field(min_length=1)
    total: int = Field(gt=0)


class Shipped(Event):
    pass


class Cancelled(Event):
    reason: str


class Order(Aggregate, placement=Shared()):
    state: str = ""

    @decide(creates=True)
    def place(self, command: Place) -> Placed | Rejected:
        if self.state:
            return Rejected("already_placed")
        return Placed(wallet=command.wallet, item=command.item, total=command.total)

    @decide
    def ship(self, command: Ship) -> Shipped | Rejected:
        return Shipped() if self.state == "placed" else Rejected("not_open", state=self.state)

    @decide
    def cancel(self, command: Cancel) -> Cancelled | Rejected:
        return Cancelled(reason=command.reason) if self.state == "placed" else Rejected("not_open", state=self.state)

    @evolve
    def placed(self, event: Placed) -> None:
        self.state = "placed"

    @evolve
    def shipped(self, event: Shipped) -> None:
        self.state = "shipped"

    @evolve
    def cancelled(self, event: Cancelled) -> None:
        self.state = "cancelled"


class Begun(Event):
    item: str


class Fulfilment(Process):
    item: str = ""

    @react(starts=True)
    def placed(self, event: Placed) -> Iterator[Begun | Send | Wake]:
        yield Begun(item=event.item)
        refund = Refund(order=self.id, amount=event.total)
        yield Send(Wallet, event.wallet, Charge(order=self.id, amount=event.total), undo=refund)
        yield Wake("too_late", after=timedelta(minutes=15))

    @accepted(Charge)
    def paid(self) -> Send:
        return Send(Stock, self.item, Reserve(order=self.id), undo=Release(order=self.id))

    @accepted(Reserve)
    def reserved(self) -> Iterator[Forget | Send]:
        yield Forget("too_late")
        yield Send(Order, self.id, Ship())

    @accepted(Ship)
    def shipped(self) -> Ended:
        return Ended("shipped")

    @refused(Charge, Reserve, Ship)
    def impossible(self, refusal: Rejected) -> Iterator[Undo | Send | Ended]:
        yield from self.taken_back(refusal.reason)

    @woken("too_late")
    def too_late(self) -> Iterator[Undo | Send | Ended]:
        yield from self.taken_back("too_late")

    @evolve
    def begun(self, event: Begun) -> None:
        self.item = event.item

    def taken_back(self, reason: str) -> Iterator[Undo | Send | Ended]:
        yield Undo()
        yield Send(Order, self.id, Cancel(reason=reason))
        yield Ended(reason)


PLACED = Placed(wallet="ada", item="pen", total=5)
CHARGE = Send(Wallet, "ada", Charge(order="example", amount=5), undo=Refund(order="example", amount=5))
RESERVE = Send(Stock, "pen", Reserve(order="example"), undo=Release(order="example"))


def test_an_order_that_is_paid_and_reserved_is_shipped() -> None:
    paid = given(Fulfilment, PLACED).when_accepted(Charge).then(RESERVE)
    paid.when_accepted(Reserve).then(Forget("too_late"), Send(Order, "example", Ship()))
    paid.when_accepted(Ship).then(Ended("shipped")).later(hours=1).then_nothing()


def test_an_order_that_is_sold_out_is_paid_back() -> None:
    sold_out = given(Fulfilment, PLACED).when_accepted(Charge).when_refused(Reserve, "sold_out")
    cancel = Send(Order, "example", Cancel(reason="sold_out"))
    sold_out.then(Undo(), cancel, Ended("sold_out"))
    sold_out.then_sent(cancel, Send(Wallet, "ada", Refund(order="example", amount=5)))
    sold_out.when_accepted(Refund).then_ended("sold_out")


def test_an_order_that_takes_too_long_is_taken_back_whatever_is_still_on_its_way() -> None:
    waiting = (
        given(Fulfilment).when(PLACED).then(Begun(item="pen"), CHARGE, Wake("too_late", after=timedelta(minutes=15)))
    )
    late = waiting.later(minutes=15).then(Undo(), Send(Order, "example", Cancel(reason="too_late")), Ended("too_late"))
    late.when_accepted(Charge).then_sent(Send(Wallet, "ada", Refund(order="example", amount=5)))
    late.when_accepted(Refund).then_ended("too_late")


async def test_a_shop_in_memory_ships_what_it_has_and_takes_back_the_rest() -> None:
    async with system(Order, Wallet, Stock, Fulfilment) as shop:
        await shop.execute(Wallet, "ada", Fill(amount=10))
        await shop.execute(Stock, "pen", Supply(pieces=1))
        await shop.execute(Order, "1", Place(wallet="ada", item="pen", total=5))
        await shop.execute(Order, "2", Place(wallet="ada", item="pen", total=5))
        assert (await shop.state_at(Order, "1")).state == "shipped"
        assert (await shop.state_at(Order, "2")).state == "cancelled"
        assert (await shop.state_at(Wallet, "ada")).balance == 5


if __name__ == "__main__":
    for test in [value for name, value in sorted(globals().items()) if name.startswith("test_")]:
        if (waiting := test()) is not None:
            asyncio.run(waiting)
