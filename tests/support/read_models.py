"""More read models of the bank: later versions of `Balances`, one in two parts, and some that fail.

A handler that is to fail until something is mended looks for a file, whose path an account has for its owner: the test
decides when, also in another process.
"""

from __future__ import annotations

import threading
from pathlib import Path

from rayfold.runtime.domain.messages import Query
from rayfold.runtime.domain.projection import Projection, answer, forget, project
from rayfold.runtime.domain.read_store import Lmdb
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.stream import StreamId
from tests.bank import BalanceOf, Deposited, EventsSeen, Opened

A_WHILE_S = 0.001
"""What a slow handler takes for each event, so that a test can come in the middle of some thousand."""


FORGOTTEN = "~forgotten"
"""A row that is not an account."""


class TotalBalance(Query[int]):
    """All accounts together, in cents."""


class BalancesInMills(Projection, name="Balances", version=2):
    """`Balances` of the bank, counted in tenths of a cent from now on."""

    mills: dict[str, int] = {}

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        """Ten mills are a cent."""
        self.mills[recorded.aggregate_id] = self.mills.get(recorded.aggregate_id, 0) + 10 * event.amount

    @answer
    def balance(self, query: BalanceOf) -> int:
        """In mills."""
        return self.mills.get(query.account, 0)


class SlowBalances(Projection, name="Balances", version=3):
    """`Balances` that take their time, and remember what was marked as replayed."""

    balances: dict[str, int] = {}
    live: int = 0

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        """More, after a while."""
        threading.Event().wait(A_WHILE_S)
        self.live += not recorded.replayed
        self.balances[recorded.aggregate_id] = self.balances.get(recorded.aggregate_id, 0) + event.amount

    @answer
    def balance(self, query: BalanceOf) -> int:
        """In cents again."""
        return self.balances.get(query.account, 0)

    @answer
    def seen(self, query: EventsSeen) -> int:
        """Those that were not replayed."""
        return self.live


class DividedBalances(Projection, name="Balances", version=4, parts=3):
    """`Balances` that one process has become too small for."""

    balances: dict[str, int] = {}

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        """More."""
        self.balances[recorded.aggregate_id] = self.balances.get(recorded.aggregate_id, 0) + event.amount

    @answer(key=lambda query: query.account)
    def balance(self, query: BalanceOf) -> int:
        """Asked of the part that has it."""
        return self.balances.get(query.account, 0)


class BrokenBalances(Projection, name="Balances", version=9):
    """`Balances` with a mistake."""

    @project
    def deposited(self, event: Deposited) -> None:
        """Never works."""
        raise LookupError("a mistake")

    @answer
    def balance(self, query: BalanceOf) -> int:
        """Nothing."""
        return 0


class PartedBalances(Projection, name="Parted", parts=2, store=Lmdb()):
    """The balances, in two processes and not in memory."""

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        """More."""
        self.rows[recorded.aggregate_id] = self.rows.get(recorded.aggregate_id, 0) + event.amount

    @forget
    def forget(self, stream: StreamId) -> None:
        """As if it had never been deposited to; but how often that was is remembered."""
        if self.rows.pop(stream.id, None) is not None:
            self.rows[FORGOTTEN] = self.rows.get(FORGOTTEN, 0) + 1

    @answer(key=lambda query: query.account)
    def balance(self, query: BalanceOf) -> int:
        """Asked of the one part that has the account."""
        return int(self.rows.get(query.account, 0))

    @answer(merge=sum)
    def total(self, query: TotalBalance) -> int:
        """Asked of both."""
        return sum(balance for account, balance in self.rows.items() if account != FORGOTTEN)

    @answer(merge=sum)
    def forgotten(self, query: EventsSeen) -> int:
        """How many times an account was forgotten."""
        return int(self.rows.get(FORGOTTEN, 0))


class Poisoned(Projection, on_failure="quarantine"):
    """Counts accounts, and cannot take one in whose owner is the path of a file that is not there."""

    accounts: int = 0

    @project
    def opened(self, event: Opened) -> None:
        """Raises until the file is there."""
        if event.owner.startswith("/") and not Path(event.owner).exists():
            raise FileNotFoundError(event.owner)
        self.accounts += 1

    @answer
    def seen(self, query: EventsSeen) -> int:
        """Without those in quarantine."""
        return self.accounts


class Stopping(Poisoned, on_failure="stop"):
    """The same, but it stops."""


class LastSeen(Query[list[tuple[int, int, str]]]):
    """The last entries of the trail of each partition: partition, position, account."""

    of_each: int = 20


class Trail(Projection):
    """Where every deposit is in the log."""

    trail: dict[int, list[tuple[int, int, str]]] = {}

    @project
    def opened(self, event: Opened, recorded: Recorded) -> None:
        """An entry too, so that there are no gaps."""
        self._add(recorded)

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        """At its position."""
        self._add(recorded)

    def _add(self, recorded: Recorded) -> None:
        entry = (recorded.partition, recorded.position, recorded.aggregate_id)
        self.trail.setdefault(recorded.partition, []).append(entry)

    @answer
    def last(self, query: LastSeen) -> list[tuple[int, int, str]]:
        """The newest of each partition, in order."""
        return [entry for partition in sorted(self.trail) for entry in self.trail[partition][-query.of_each :]]
