"""A bank outside of the store: a file to which each call appends a line. And effects that do what their events name.

What has reached the bank is in its file, whatever becomes of the process that called it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path

from rayfold import (
    Aggregate,
    Backoff,
    Call,
    Command,
    Declined,
    Effects,
    Event,
    NotDone,
    Send,
    Shared,
    decide,
    effect,
    evolve,
    settle,
)


class Pay(Command):
    """Have money paid. `how`: see `Paying.pay`."""

    bank: str
    how: str = "ok"
    purse: str = ""


class Book(Command):
    """It was paid."""

    key: str


class PayRequested(Event):
    """Money is to be paid."""

    bank: str
    how: str
    purse: str


class Booked(Event):
    """It was paid."""

    key: str


class Bill(Aggregate, placement=Shared()):
    """What is to be paid."""

    booked: list[str] = []

    @decide
    def pay(self, command: Pay) -> PayRequested:
        return PayRequested(bank=command.bank, how=command.how, purse=command.purse)

    @decide
    def book(self, command: Book) -> Booked:
        return Booked(key=command.key)

    @evolve
    def requested(self, event: PayRequested) -> None:
        """Nothing is known yet."""

    @evolve
    def was_booked(self, event: Booked) -> None:
        """One more, a second time too."""
        self.booked = [*self.booked, event.key]


def note(bank: str, *words: object) -> None:
    """Append a line, in one write, so that it is whole whichever process is killed."""
    file = os.open(bank, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(file)


def lines(bank: Path) -> list[list[str]]:
    """What was noted."""
    return [line.split(" ") for line in bank.read_text().splitlines()] if bank.exists() else []


def paid(bank: Path) -> Counter[str]:
    """How often each bill was paid."""
    return Counter(words[2] for words in lines(bank) if words[0] == "paid")


class Paying(Effects):
    """Pays at the bank; an unknown end is looked up there."""

    @effect(retry=Backoff(first_s=0.1, max_s=1), timeout_s=2, at_once=50)
    async def pay(self, event: PayRequested, call: Call) -> Send | Declined | NotDone:
        """`ok`; `slow`: takes a second; `hang`: pays and does not come back; `raise`: pays and raises; `refuse`: twice
        not done; `decline`; `exit`: ends the process after it has paid; `block`: blocks the event loop, the first time.
        """
        bill, how = call.recorded.aggregate_id, event.how
        note(event.bank, "call", call.key, bill, call.attempt)
        if how == "slow":
            await asyncio.sleep(1)
        if how == "decline":
            return Declined("no_money")
        if how == "refuse" and call.attempt <= 2:
            return NotDone("busy")
        if how == "block" and call.attempt == 1:
            time.sleep(20)
        note(event.bank, "paid", call.key, bill)
        if how == "hang":
            await asyncio.sleep(3_600)
        if how == "raise":
            raise ConnectionResetError("reset by the bank")
        if how == "exit":
            os._exit(7)
        return Send(Bill, bill, Book(key=call.key))

    @settle(pay)
    async def look(self, event: PayRequested, call: Call) -> Send | NotDone:
        """Whether the bank has it."""
        bill = call.recorded.aggregate_id
        note(event.bank, "look", call.key, bill, call.attempt)
        if any(words[:2] == ["paid", call.key] for words in lines(Path(event.bank))):
            return Send(Bill, bill, Book(key=call.key))
        return NotDone("the bank has no such payment")
