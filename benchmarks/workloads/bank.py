"""The bank of the benchmarks: the smallest domain that has a rule, an event and a read model.

Rule kept here: as little domain as possible, so that what is measured is the runtime. An account takes deposits; its
balance is in the read model. `Account` is shared, `OwnAccount` is the same in an actor of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Final

from pydantic import PositiveInt

from rayfold import (
    Aggregate,
    Command,
    Envelope,
    Event,
    OwnActor,
    Projection,
    Query,
    Recorded,
    Shared,
    answer,
    decide,
    evolve,
    project,
)

__all__ = [
    "Account",
    "AllBalances",
    "BalanceOf",
    "Balances",
    "Deposit",
    "Deposited",
    "OwnAccount",
    "deposits",
    "questions",
]

AMOUNT_MAX: Final = 1_000
"""Cents of one deposit: numbers of one to three bytes, as real ones are."""


class Deposit(Command):
    """Put money in."""

    amount: PositiveInt


class Deposited(Event):
    """Money came in."""

    amount: int


class Account(Aggregate, placement=Shared()):
    """An account inside its partition's actor."""

    balance: int = 0

    @decide
    def deposit(self, command: Deposit) -> Deposited:
        """Always fine."""
        return Deposited(amount=command.amount)

    @evolve
    def deposited(self, event: Deposited) -> None:
        """More money."""
        self.balance += event.amount


class OwnAccount(Account, placement=OwnActor()):
    """The same account in a Ray actor of its own."""


class BalanceOf(Query[int]):
    """The balance of one account, in cents."""

    account: str


class AllBalances(Query[dict[str, int]]):
    """Every balance: what the invariants compare with a fold of the log."""


class Balances(Projection):
    """The balance of every account."""

    balances: dict[str, int] = {}

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        """More."""
        account = recorded.stream.id
        self.balances[account] = self.balances.get(account, 0) + event.amount

    @answer
    def balance(self, query: BalanceOf) -> int:
        """Nothing, for an account that nobody heard of."""
        return self.balances.get(query.account, 0)

    @answer
    def all_balances(self, query: AllBalances) -> dict[str, int]:
        """As they are now."""
        return self.balances


def deposits(
    keys: Sequence[str], seed: int, aggregate: type[Account] | type[OwnAccount] = Account
) -> Iterator[Envelope]:
    """Deposits without end, to `keys` over and over, with amounts drawn beforehand: no drawing while measuring."""
    chosen = random.Random(seed)
    amounts = [chosen.randint(1, AMOUNT_MAX) for _ in range(4_093)]  # a prime: pairs of key and amount repeat late
    for key, amount in zip(cycle(keys), cycle(amounts), strict=False):
        yield Envelope(aggregate, key, Deposit(amount=amount))


def questions(keys: Sequence[str]) -> Iterator[BalanceOf]:
    """Queries without end, for `keys` over and over."""
    for key in cycle(keys):
        yield BalanceOf(account=key)
