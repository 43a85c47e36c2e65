"""A shop with a process, for tests: an order is charged, its goods are reserved, or what was done is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve, woken
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.domain.outputs import Ended, Forget, Send, Undo, Wake
from rayfold.runtime.errors import Rejected
from rayfold.runtime.processes.process import Process, accepted, react, refused

UNLUCKY = 13
"""An order of which the process has a bug."""


class Place(Command):
    wallet: str
    item: str
    total: int


class Placed(Event):
    wallet: str
    item: str
    total: int


class Close(Command):
    how: str


class Closed(Event):
    how: str


class Order(Aggregate, placement=Shared()):
    placed: bool = False
    how: str = ""

    @decide
    def place(self, command: Place) -> Placed | Rejected:
        if self.placed:
            return Rejected("placed_before")
        return Placed(wallet=command.wallet, item=command.item, total=command.total)

    @decide
    def close(self, command: Close) -> Closed:
        return Closed(how=command.how)

    @evolve
    def was_placed(self, event: Placed) -> None:
        self.placed = True

    @evolve
    def was_closed(self, event: Closed) -> None:
        self.how += event.how + ";"


class Move(Command):
    by: int


class Charge(Command):
    amount: int


class Refund(Command):
    amount: int


class Moved(Event):
    by: int


class Wallet(Aggregate, placement=Shared()):
    balance: int = 0

    @decide
    def move(self, command: Move) -> Moved:
        return Moved(by=command.by)

    @decide
    def charge(self, command: Charge) -> Moved | Rejected:
        return Moved(by=-command.amount) if command.amount <= self.balance else Rejected("no_money", has=self.balance)

    @decide
    def refund(self, command: Refund) -> Moved:
        return Moved(by=command.amount)

    @evolve
    def moved(self, event: Moved) -> None:
        self.balance += event.by


class Fill(Command):
    pieces: int


class Reserve(Command):
    pieces: int = 1


class Release(Command):
    pieces: int = 1


class Filled(Event):
    pieces: int


class Stock(Aggregate, placement=Shared()):
    pieces: int = 0

    @decide
    def fill(self, command: Fill) -> Filled:
        return Filled(pieces=command.pieces)

    @decide
    def reserve(self, command: Reserve) -> Filled | Rejected:
        return Filled(pieces=-command.pieces) if command.pieces <= self.pieces else Rejected("sold_out")

    @decide
    def release(self, command: Release) -> Filled:
        return Filled(pieces=command.pieces)

    @evolve
    def filled(self, event: Filled) -> None:
        self.pieces += event.pieces


class Sold(Event):
    pass


class Fulfilment(Process):
    item: str = ""
    sold: bool = False

    @react(starts=True)
    def placed(self, event: Placed) -> Iterator[Send | Wake]:
        if event.total == UNLUCKY:
            raise ValueError("unlucky")
        yield Send(Wallet, event.wallet, Charge(amount=event.total), undo=Refund(amount=event.total))
        yield Send(Stock, event.item, Reserve(), undo=Release())
        yield Wake("late", after=timedelta(minutes=15))

    @refused(Charge, Reserve)
    def no(self, refusal: Rejected) -> Iterator[Undo | Ended | Send]:
        yield Undo()
        yield Send(Order, self.id, Close(how=refusal.reason))
        yield Ended(refusal.reason)

    @accepted(Charge, Reserve)
    def one_more(self) -> Iterator[Send | Forget | Sold | Ended]:
        if sum(not sent.done for sent in self.progress.sends.values()) == 1:  # this one
            yield Sold()
            yield Forget("late")
            yield Send(Order, self.id, Close(how="sold"))
            yield Ended("sold")

    @woken("late")
    def late(self) -> Iterator[Undo | Ended]:
        yield Undo()
        yield Ended("late")

    @evolve
    def was_sold(self, event: Sold) -> None:
        self.sold = True


AGGREGATES = [Order, Wallet, Stock]
