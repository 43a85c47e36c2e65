"""Tallies: one projection in every kind of store, with the same questions and the same way to break it.

Each remembers every deposit with its position, so that one applied twice, never, half or out of order is seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rayfold.runtime.domain.messages import Query
from rayfold.runtime.domain.projection import Projection, answer, forget, project
from rayfold.runtime.domain.read_store import DuckDb, Lmdb
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.envelope import new_command_id
from rayfold.runtime.encoding.query_batch import PackedQuery
from rayfold.runtime.log.contract import Append, Log, NewEvent, Reader
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.read.stores.lmdb import Rows
from rayfold.runtime.stream import ANY, StreamId
from tests.bank import Account, Deposited

DOCUMENTED = Path(__file__).resolve().parents[4] / "docs/read-models.md"


def documented_store() -> Any:
    """The store over sqlite3 that `docs/read-models.md` shows."""
    (code,) = re.findall(r"```python\n(# a read store over sqlite3.*?)```", DOCUMENTED.read_text(), re.DOTALL)
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(code, namespace)
    return namespace["Sqlite"]


class SumOf(Query[int]):
    """What was deposited to one account."""

    account: str


class Seen(Query[list[int]]):
    """The positions of all deposits that were taken in, sorted: each once."""


class Broken:
    """Accounts whose deposits the handlers raise on, and how often they were called for one."""

    accounts: set[str] = set()
    calls = 0

    @classmethod
    def check(cls, recorded: Recorded) -> None:
        if recorded.aggregate_id in cls.accounts:
            cls.calls += 1
            raise ValueError("cannot count that")


class Tally(Projection):
    """In memory."""

    sums: dict[str, int] = {}
    positions: list[int] = []

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        self.sums[recorded.aggregate_id] = self.sums.get(recorded.aggregate_id, 0) + event.amount
        Broken.check(recorded)
        self.positions.append(recorded.position)

    @answer
    def sum_of(self, query: SumOf) -> int:
        return self.sums.get(query.account, 0)

    @answer
    def seen(self, query: Seen) -> list[int]:
        return sorted(self.positions)


class LmdbTally(Projection, store=Lmdb()):
    """In rows: the sum of an account, and a row for each deposit."""

    rows: Rows

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        account = f"sum/{recorded.aggregate_id}"
        self.rows[account] = self.rows.get(account, 0) + event.amount
        Broken.check(recorded)
        self.rows[f"at/{recorded.position:08d}"] = recorded.stream.id

    @answer
    def sum_of(self, query: SumOf) -> int:
        return int(self.rows.get(f"sum/{query.account}", 0))

    @answer
    def seen(self, query: Seen) -> list[int]:
        return [int(key[3:]) for key, _ in self.rows.starting_with("at/")]

    @forget
    def forget(self, stream: StreamId) -> None:
        self.rows.pop(f"sum/{stream.id}", None)
        for key, account in list(self.rows.items()):
            if account == stream.id:
                del self.rows[key]


TABLES = "CREATE TABLE IF NOT EXISTS deposits (account VARCHAR, amount BIGINT CHECK (amount < 1000), position BIGINT)"


class DuckDbTally(Projection, store=DuckDb(TABLES)):
    """In a table of deposits. The table refuses what is too large, which shows only at the end of a page."""

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        self.append("deposits", (recorded.aggregate_id, event.amount, recorded.position))
        Broken.check(recorded)

    @answer
    def sum_of(self, query: SumOf) -> int:
        (found,) = self.sql("SELECT sum(amount) FROM deposits WHERE account = ?", [query.account]).fetchone()
        return int(found or 0)

    @answer
    def seen(self, query: Seen) -> list[int]:
        return [position for (position,) in self.sql("SELECT position FROM deposits ORDER BY 1").fetchall()]

    @forget
    def forget(self, stream: StreamId) -> None:
        self.sql("DELETE FROM deposits WHERE account = ?", [stream.id])


class SqliteTally(Projection, store=documented_store()(TABLES + ";")):
    """In the store that the documentation shows."""

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        row = (recorded.aggregate_id, event.amount, recorded.position)
        self.db.execute("INSERT INTO deposits VALUES (?, ?, ?)", row)  # type: ignore[attr-defined]
        Broken.check(recorded)

    @answer
    def sum_of(self, query: SumOf) -> int:
        found = self.db.execute("SELECT sum(amount) FROM deposits WHERE account = ?", [query.account])  # type: ignore[attr-defined]
        return int(found.fetchone()[0] or 0)

    @answer
    def seen(self, query: Seen) -> list[int]:
        return [row[0] for row in self.db.execute("SELECT position FROM deposits ORDER BY 1")]  # type: ignore[attr-defined]


class TallyForgetting(Tally, name="Tally"):
    """In memory, and can forget an account."""

    places: dict[int, str] = {}

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        super().deposited(event, recorded)
        self.places[recorded.position] = recorded.stream.id

    @forget
    def forget(self, stream: StreamId) -> None:
        self.sums.pop(stream.id, None)
        self.positions = [position for position in self.positions if self.places[position] != stream.id]


TALLIES: tuple[type[Projection], ...] = (Tally, LmdbTally, DuckDbTally, SqliteTally)


def quarantining(tally: type[Projection]) -> type[Projection]:
    """The same projection, with `on_failure="quarantine"`."""
    return type(tally.__name__, (tally,), {"__module__": __name__}, on_failure="quarantine")


def deposit(log: Log, accounts: Iterable[str], amount: int = 10) -> None:
    """One deposit to each of these accounts, in this order."""
    event = NewEvent("Deposited", 2, encode_message(Deposited(amount=amount)))
    appends = [Append(StreamId("Account", each), ANY, (event,), new_command_id(), bytes(16)) for each in accounts]
    log.append(log.activate(), appends)


def read_model_of(
    tally: type[Projection], log: Reader, directory: Path | None = None, partition: int = 0, part: int = 0
) -> ReadModel:
    """A read model that is not open yet."""
    return ReadModel(tally, Catalogue([Account], [tally]), {partition: log}, directory=directory, part=part)


def tally_of(
    tally: type[Projection], log: Log, directory: Path | None = None, partition: int = 0, part: int = 0
) -> ReadModel:
    """An open read model that has caught up."""
    read_model = read_model_of(tally, log, directory, partition, part)
    read_model.open()
    read_model.catch_up(partition)
    return read_model


def ask(read_model: ReadModel, query: Query[Any]) -> Any:
    (answered,) = read_model.answer([PackedQuery(query.message_name, encode_message(query))], list)
    return answered
