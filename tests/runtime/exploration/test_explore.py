"""Exploring: what it takes, what it gives when nothing breaks, and how it prints what it has found."""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.errors import CallerError, InvalidId, InvalidMessage, Rejected
from rayfold.testing import Explored, explore
from tests.bank import Account, Balances, Vault, Withdraw, Withdrawn
from tests.runtime.exploration.test_planted import Overdrawn, Purse, found, never_overdrawn, pasted


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Money(BaseModel):
    amount: Decimal
    currency: str = "EUR"


class Price(Command):
    money: Money
    colour: Colour
    day: date
    at: datetime
    ids: tuple[UUID, ...] = Field(min_length=1)
    note: str | None = None
    rates: dict[str, float] = Field(min_length=1, alias="the rates")


class Priced(Event):
    money: Money


class Article(Aggregate, placement=Shared()):
    prices: int = 0

    @decide
    def price(self, command: Price) -> Priced | Rejected:
        if self.prices and command.colour is Colour.BLUE:
            raise RuntimeError("blue")
        return Priced(money=command.money)

    @evolve
    def priced(self, event: Priced) -> None:
        self.prices += 1


def test_what_holds_gives_what_was_tried() -> None:
    tried = explore(Account, invariant=[lambda account: account.balance >= 0, lambda account: None], seed=1)
    assert isinstance(tried, Explored)
    assert tried.examples == 100
    assert tried.seed == 1
    assert tried.accepted.keys() == {"Open", "Deposit", "Withdraw", "Pay", "Close"}
    assert all(tried.accepted[name] for name in ("Open", "Deposit", "Close"))
    assert all(tried.refused.values())
    assert tried.repeated > 10
    assert tried.crashes > 10
    assert explore(Vault, examples=10, ids=["one"], seed=1).accepted["Store"]


def test_the_same_seed_finds_the_same_and_there_is_one_seed_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explore(Purse, seed=5, examples=10) == explore(Purse, seed=5, examples=10)
    assert found(Overdrawn, invariant=never_overdrawn) == found(Overdrawn, invariant=never_overdrawn)
    monkeypatch.setenv("CI", "true")
    assert explore(Purse, examples=5).seed == 0
    monkeypatch.delenv("CI")
    assert len({explore(Purse, examples=5).seed for _ in range(3)}) > 1


def test_what_is_printed_makes_values_of_every_kind_again_and_is_not_logged_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        text = found(Article)
    assert not caplog.records
    assert isinstance(pasted(text), RuntimeError)
    assert "the rates" in text
    assert "from decimal import Decimal" in text


def test_a_lambda_is_printed_as_it_was_written() -> None:
    most = 3
    text = found(Purse, invariant=lambda purse: purse.balance <= most)
    assert ".then_holds(lambda purse: purse.balance <= most)" in text
    assert "given(Purse).when(Deposit(amount=4)).then(Deposited(amount=4))" in " ".join(text.split()).replace(" .", ".")


def test_what_an_invariant_raises_is_the_cause() -> None:
    def in_range(purse: Purse) -> None:
        assert purse.balance < 100, "too rich"

    with pytest.raises(AssertionError, match=r"in_range raised AssertionError: too rich") as raised:
        explore(Purse, invariant=in_range, seed=0)
    assert str(raised.value.__cause__).startswith("too rich")
    assert ".then_holds(in_range)" in str(raised.value)


def test_other_ids_are_printed() -> None:
    text = found(Overdrawn, ids=["ada's"], invariant=never_overdrawn)
    assert 'given(Overdrawn, id="ada\'s")' in text
    pasted(text)


def test_an_aggregate_that_accepts_nothing_was_not_tried() -> None:
    class Never(Purse):
        @decide
        def withdraw(self, command: Withdraw) -> Withdrawn | Rejected:
            return Rejected("never")

    class Stern(Aggregate):
        @decide
        def withdraw(self, command: Withdraw) -> Withdrawn | Rejected:
            return Rejected("never")

        @evolve
        def withdrawn(self, event: Withdrawn) -> None: ...

    assert explore(Never, examples=5, seed=0).accepted["Withdraw"] == 0
    with pytest.raises(AssertionError, match=r"of \d+ commands Stern has accepted none, so nothing was tried"):
        explore(Stern, examples=5, seed=0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"examples": 0}, "examples= of explore(): 0 is no number of them; give 1 to 1,000,000"),
        ({"steps": True}, "steps= of explore(): True is no number of them; give 1 to 1,000"),
        ({"invariant": 5}, "invariant= of explore(): 5 is no function; give a function of the Purse"),
        ({"ids": "alice"}, "ids= of explore(): 'alice' is no list of ids; give 1 to 100 of them"),
        ({"ids": []}, "ids= of explore(): [] is no list of ids; give 1 to 100 of them"),
        ({"seed": "x"}, "seed= of explore(): 'x' is no whole number"),
    ],
)
def test_what_cannot_be_explored_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidMessage) as raised:
        explore(Purse, **options)
    assert str(raised.value) == why


def test_what_is_no_aggregate_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="is not an Aggregate class; give the class itself"):
        explore(Balances)  # type: ignore[type-var]

    class Silent(Aggregate):
        pass

    with pytest.raises(InvalidMessage, match="Silent decides no commands; give it a @decide method"):
        explore(Silent)
    with pytest.raises(InvalidId):
        explore(Purse, ids=[""])


def test_without_hypothesis_the_error_has_the_line_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(CallerError, match=r"explore\(\) needs the package hypothesis: pip install rayfold\[testing\]"):
        explore(Purse)


@pytest.mark.slow
def test_hypothesis_is_imported_by_explore_alone() -> None:
    program = "import sys, rayfold.testing; assert 'hypothesis' not in sys.modules and 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
