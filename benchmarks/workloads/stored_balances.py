"""The read model of the bank in the stores beside memory: the same balances, the same answers.

Rule kept here: each is written as its store is meant to be used. LMDB has a row for each account; DuckDB has a row for
each deposit, and adds them up when it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Final

from rayfold import DuckDb, Lmdb, Projection, Recorded, answer, project

from .bank import AllBalances, BalanceOf, Balances, Deposited

__all__ = ["STORES", "BalancesInDuckDb", "BalancesInLmdb", "missing_stores"]


class BalancesInLmdb(Projection, store=Lmdb()):
    """A row for each account."""

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        """More."""
        account = recorded.stream.id
        self.rows[account] = self.rows.get(account, 0) + event.amount

    @answer
    def balance(self, query: BalanceOf) -> int:
        """Nothing, for an account that nobody heard of."""
        found: int = self.rows.get(query.account, 0)
        return found

    @answer
    def all_balances(self, query: AllBalances) -> dict[str, int]:
        """As they are now."""
        return dict(self.rows)


class BalancesInDuckDb(
    Projection, store=DuckDb("SET threads = 1; CREATE TABLE IF NOT EXISTS deposits (account VARCHAR, amount BIGINT)")
):
    """A row for each deposit."""

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        """One more."""
        self.append("deposits", (recorded.stream.id, event.amount))

    @answer
    def balance(self, query: BalanceOf) -> int:
        """Summed up now."""
        query_text = "SELECT coalesce(sum(amount), 0)::BIGINT FROM deposits WHERE account = ?"
        total: int = self.sql(query_text, [query.account]).fetchone()[0]
        return total

    @answer
    def all_balances(self, query: AllBalances) -> dict[str, int]:
        """Summed up now."""
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
