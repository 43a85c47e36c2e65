"""Exploring: planted mistakes are found, and what is printed fails in the same way when it is pasted into a test."""

from __future__ import annotations

import itertools
import re
from dataclasses import field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import pytest
from pydantic import PositiveInt

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.errors import Rejected
from rayfold.testing import explore
from tests.bank import Close, Closed, Deposit, Deposited, Withdraw, Withdrawn

pytestmark = pytest.mark.slow


class Purse(Aggregate, placement=Shared()):
    """The right one."""

    balance: int = 0

    @decide
    def deposit(self, command: Deposit) -> Deposited:
        return Deposited(amount=command.amount)

    @decide
    def withdraw(self, command: Withdraw) -> Withdrawn | Rejected:
        return Withdrawn(amount=command.amount) if command.amount <= self.balance else Rejected("no_money")

    @evolve
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount

    @evolve
    def withdrawn(self, event: Withdrawn) -> None:
        self.balance -= event.amount


def never_overdrawn(purse: Any) -> bool:
    return bool(purse.balance >= 0)


class Overdrawn(Purse):
    """Its check is off by one."""

    @decide
    def withdraw(self, command: Withdraw) -> Withdrawn | Rejected:
        return Withdrawn(amount=command.amount) if command.amount <= self.balance + 1 else Rejected("no_money")


numbers = itertools.count(1)


class Numbered(Purse):
    """Its fold is another one each time."""

    number: int = 0

    @evolve
    def withdrawn(self, event: Withdrawn) -> None:
        self.balance -= event.amount
        self.number = next(numbers)


seen: WeakKeyDictionary[Aggregate, int] = WeakKeyDictionary()


class Beside(Purse):
    """It keeps something beside its state, which no snapshot has."""

    bonus: int = 0

    @evolve
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount
        seen[self] = seen.get(self, 0) + 1
        self.bonus = seen[self] // 3


class Odd(Purse):
    """A handler that raises on an odd value."""

    @decide
    def deposit(self, command: Deposit) -> Deposited:
        if command.amount == 7:
            raise ZeroDivisionError("seven")
        return Deposited(amount=command.amount)


class OddEvent(Purse):
    """An `@evolve` that raises."""

    @evolve
    def withdrawn(self, event: Withdrawn) -> None:
        self.balance //= self.balance - event.amount


entries: list[int] = []


class Shares(Purse):
    """All instances have one list."""

    entries: list[int] = field(default_factory=lambda: entries)

    @evolve
    def deposited(self, event: Deposited) -> None:
        self.entries.append(event.amount)


class Constant(Purse):
    """What is meant as a field is one of the class."""

    entries: ClassVar[list[int]] = []

    @evolve
    def deposited(self, event: Deposited) -> None:
        self.entries.append(event.amount)
        self.balance = sum(self.entries)


class Transfer(Command):
    to: str
    amount: PositiveInt


class Transferred(Event):
    to: str
    amount: int


purses: dict[str, Any] = {}


class Registered(Purse):
    """It changes another instance, which it finds in a table of all."""

    @decide
    def transfer(self, command: Transfer) -> Transferred | Rejected:
        return Transferred(to=command.to, amount=command.amount)

    @evolve
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount
        purses[self.id] = self

    @evolve
    def transferred(self, event: Transferred) -> None:
        self.balance -= event.amount
        if event.to != self.id and event.to in purses:
            purses[event.to].balance += event.amount


class Spoils(Purse):
    """A `@decide` that changes the state."""

    @decide
    def withdraw(self, command: Withdraw) -> Withdrawn | Rejected:
        self.balance -= command.amount
        if self.balance < 0:
            self.balance += command.amount
            return Rejected("no_money")
        return Withdrawn(amount=command.amount)


class Untaken(Purse):
    """A `@decide` that returns what is no event."""

    @decide
    def close(self, command: Close) -> Closed | None:
        return "closed" if self.balance else None  # type: ignore[return-value]

    @evolve
    def closed(self, event: Closed) -> None: ...


def found(subject: type[Aggregate], **options: Any) -> str:
    with pytest.raises(AssertionError) as raised:
        explore(subject, **{"seed": 0, "examples": 1_000, "steps": 10, **options})
    return str(raised.value)


def pasted(text: str) -> BaseException:
    """What the specification in the text raises, with nothing around it but what it imports."""
    source = text.partition("\n\n")[2].rpartition("\n\nfound with")[0]
    assert "from rayfold.testing import given\n" in source
    try:
        exec(compile(source, "pasted", "exec"), {})
    except Exception as error:
        return error
    raise AssertionError(f"nothing fails in\n{source}")


@pytest.mark.parametrize(
    ("subject", "kind", "why"),
    [
        (Overdrawn, AssertionError, "never_overdrawn does not hold"),
        (Numbered, AssertionError, "its handlers are not deterministic.*: number is"),
        (
            Beside,
            AssertionError,
            "another one after a crash, with a snapshot of version .\n  bonus is 0, where it was 1",
        ),
        (Odd, ZeroDivisionError, "seven"),
        (OddEvent, ZeroDivisionError, "division"),
        (Shares, AssertionError, "instances share a part of the state.*: entries has"),
        (Constant, AssertionError, "another one after a crash"),
        (Registered, AssertionError, "instances share|another one after a crash"),
        (Spoils, AssertionError, "Spoils.withdraw changed"),
        (Untaken, Exception, "Untaken.close.*it returned str 'closed'"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_a_planted_mistake_is_found_and_its_case_fails_when_pasted(
    subject: type[Aggregate], kind: type[BaseException], why: str
) -> None:
    text = found(subject, invariant=never_overdrawn if subject is Overdrawn else ())
    error = pasted(text)
    assert isinstance(error, kind)
    assert re.search(why, str(error), re.DOTALL), error
