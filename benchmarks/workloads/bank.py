"""The bank of the benchmarks: the smallest domain that has a rule, an event and a read model.

Rule kept here: as little domain as possible, so that what is measured is the runtime. An account takes deposits; its
balance is in the read model. `Account` is shared, `OwnAccount` is the same in an actor of its own.

The read model is there once for each store, written as that is meant to be used: in memory a mapping, in LMDB a row for
each account; DuckDB has a row for each deposit, and adds them up when it is asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import cycle
from typing import Final

from pydantic import PositiveInt

from rayfold import (
    Aggregate,
    Command,
    DuckDb,
    Envelope,
    Event,
    Lmdb,
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
        return Deposited(amount=command.amount)

    @evolve
    def deposited(self, event: Deposited) -> None:
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
        account = recorded.stream.id
        self.balances[account] = self.balances.get(account, 0) + event.amount

    @answer
    def balance(self, query: BalanceOf) -> int:
        """Nothing, for an account that does not exist."""
        return self.balances.get(query.account, 0)

    @answer
    def all_balances(self, query: AllBalances) -> dict[str, int]:
        return self.balances


class BalancesInLmdb(Projection, store=Lmdb()):
    """A row for each account."""

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        account = recorded.stream.id
        self.rows[account] = self.rows.get(account, 0) + event.amount

    @answer
    def balance(self, query: BalanceOf) -> int:
        """Nothing, for an account that does not exist."""
        found: int = self.rows.get(query.account, 0)
        return found

    @answer
    def all_balances(self, query: AllBalances) -> dict[str, int]:
        return dict(self.rows)


class BalancesInDuckDb(
    Projection, store=DuckDb("SET threads = 1; CREATE TABLE IF NOT EXISTS deposits (account VARCHAR, amount BIGINT)")
):
    """A row for each deposit."""

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        self.append("deposits", (recorded.stream.id, event.amount))

    @answer
    def balance(self, query: BalanceOf) -> int:
        query_text = "SELECT coalesce(sum(amount), 0)::BIGINT FROM deposits WHERE account = ?"
        total: int = self.sql(query_text, [query.account]).fetchone()[0]
        return total

    @answer
    def all_balances(self, query: AllBalances) -> dict[str, int]:
        return dict(self.sql("SELECT account, sum(amount)::BIGINT FROM deposits GROUP BY ALL").fetchall())


STORES: Final[dict[str, type[Projection]]] = {
    "memory": Balances,
    "lmdb": BalancesInLmdb,
    "duckdb": BalancesInDuckDb,
}


def missing_stores(measured: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each of the other stores, and why it cannot be measured here, if it cannot."""
    for store in STORES:
        if store not in measured:
            missing = store == "duckdb" and find_spec("duckdb") is None
            yield store, "not installed: duckdb" if missing else ""


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
