"""A shop with a process: an order is charged, its goods are reserved, it is sent off a little later, or what was done
is taken back. Of money and goods nothing is ever lost or made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

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
    react,
    refused,
    woken,
)

UNLUCKY: Final = 13
"""The total of an order that the process cannot take in."""

DEADLY: Final = 17
"""... and of one that ends the process which takes it in."""

LATE: Final = timedelta(minutes=15)
SENT_OFF: Final = timedelta(seconds=1)
"""After all is charged and reserved."""


class Place(Command):
    """Place an order."""

    wallet: str
    item: str
    total: int


class Placed(Event):
    """It was placed."""

    wallet: str
    item: str
    total: int


class Close(Command):
    """Note down how it ended."""

    how: str


class Closed(Event):
    """It ended."""

    how: str


class Order(Aggregate, placement=Shared()):
    """One order."""

    placed: bool = False
    how: str = ""

    @decide
    def place(self, command: Place) -> Placed | Rejected:
        """Once."""
        if self.placed:
            return Rejected("placed_before")
        return Placed(wallet=command.wallet, item=command.item, total=command.total)

    @decide
    def close(self, command: Close) -> Closed:
        """Whatever was noted down before: a second time shows."""
        return Closed(how=command.how)

    @evolve
    def was_placed(self, event: Placed) -> None:
        self.placed = True

    @evolve
    def was_closed(self, event: Closed) -> None:
        self.how += event.how + ";"


class Move(Command):
    """Put money in, or take it out."""

    by: int


class Charge(Command):
    """Take money for an order."""

    amount: int


class Refund(Command):
    """Give it back."""

    amount: int


class Moved(Event):
    """The balance has changed."""

    by: int


class Wallet(Aggregate, placement=Shared()):
    """The money of a customer."""

    balance: int = 0

    @decide
    def move(self, command: Move) -> Moved:
        return Moved(by=command.by)

    @decide
    def charge(self, command: Charge) -> Moved | Rejected:
        """If there is enough."""
        return Moved(by=-command.amount) if command.amount <= self.balance else Rejected("no_money", has=self.balance)

    @decide
    def refund(self, command: Refund) -> Moved:
        return Moved(by=command.amount)

    @evolve
    def moved(self, event: Moved) -> None:
        self.balance += event.by


class Fill(Command):
    """More pieces."""

    pieces: int


class Reserve(Command):
    """Set one aside."""


class Release(Command):
    """Put one back."""


class Filled(Event):
    """Their number has changed."""

    pieces: int


class Stock(Aggregate, placement=Shared()):
    """The pieces of an item."""

    pieces: int = 0

    @decide
    def fill(self, command: Fill) -> Filled:
        return Filled(pieces=command.pieces)

    @decide
    def reserve(self, command: Reserve) -> Filled | Rejected:
        """If there is one."""
        return Filled(pieces=-1) if self.pieces else Rejected("sold_out")

    @decide
    def release(self, command: Release) -> Filled:
        return Filled(pieces=1)

    @evolve
    def filled(self, event: Filled) -> None:
        self.pieces += event.pieces


class Sold(Event):
    """All is charged and reserved."""


class Fulfilment(Process):
    """What becomes of an order."""

    sold: bool = False

    @react(starts=True)
    def placed(self, event: Placed) -> Iterator[Send | Wake]:
        """Charge and reserve, at the same time."""
        if event.total == UNLUCKY:
            raise ValueError("unlucky")
        if event.total == DEADLY:
            os._exit(1)
        yield Send(Wallet, event.wallet, Charge(amount=event.total), undo=Refund(amount=event.total))
        yield Send(Stock, event.item, Reserve(), undo=Release())
        yield Wake("late", after=LATE)

    @refused(Charge, Reserve)
    def no(self, refusal: Rejected) -> Iterator[Undo | Ended | Send]:
        """Take back what was done."""
        yield Undo()
        yield Send(Order, self.id, Close(how=refusal.reason))
        yield Ended(refusal.reason)

    @accepted(Charge, Reserve)
    def one_more(self) -> Iterator[Send | Forget | Sold | Wake]:
        """Once both are done."""
        if sum(not sent.done for sent in self.progress.sends.values()) == 1:  # this one
            yield Sold()
            yield Forget("late")
            yield Wake("sent_off", after=SENT_OFF)
            yield Send(Order, self.id, Close(how="sold"))

    @woken("sent_off")
    def sent_off(self) -> Ended:
        return Ended("sold")

    @woken("late")
    def late(self) -> Iterator[Undo | Ended]:
        """Something did not answer."""
        yield Undo()
        yield Ended("late")

    @evolve
    def was_sold(self, event: Sold) -> None:
        """For the account at the end."""
        self.sold = True


AGGREGATES: Final = [Order, Wallet, Stock]
