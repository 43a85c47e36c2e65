"""The one example domain that the tests share: a bank with light accounts and a few heavy vaults.

`Account` is shared (many, light), `Vault` has an actor of its own (few, heavy). `Balances` and `Turnover` are read
models. Amounts are whole cents.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from pydantic import PositiveInt

from rayfold.runtime.domain.aggregate import Aggregate, OwnActor, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event, Payload, Query
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.domain.upcast import upcast
from rayfold.runtime.errors import Rejected

FEE = 1
"""Cents that a payment to another account costs."""


class Open(Command):
    """Open an account."""

    owner: str


class Deposit(Command):
    """Put money in."""

    amount: PositiveInt


class Withdraw(Command):
    """Take money out."""

    amount: PositiveInt


class Pay(Command):
    """Send money to another account, for a fee: two events from one command."""

    to: str
    amount: PositiveInt


class Close(Command):
    """Close an account; closing it twice is not a mistake."""


class Opened(Event):
    """An account came into being."""

    owner: str


class Deposited(Event, version=2):
    """Money came in. Version 1 had no currency."""

    amount: int
    currency: str = "EUR"

    @staticmethod
    @upcast(from_version=1)
    def add_currency(old: Payload) -> Payload:
        """All money was euros then."""
        return {**old, "currency": "EUR"}


class Withdrawn(Event):
    """Money went out."""

    amount: int


class Paid(Event):
    """Money was sent to another account."""

    to: str
    amount: int


class FeeCharged(Event):
    """The bank took its fee."""

    amount: int


class Closed(Event):
    """The account is no more."""


class Account(Aggregate, placement=Shared(), snapshot_every=100):
    """An account: opened once, never overdrawn, closed for good."""

    owner: str = ""
    balance: int = 0
    closed: bool = False

    @decide(creates=True)
    def open(self, command: Open) -> Opened | Rejected:
        """Only once."""
        return Rejected("already_open", owner=self.owner) if self.version else Opened(owner=command.owner)

    @decide
    def deposit(self, command: Deposit) -> Deposited | Rejected:
        """Into an open account."""
        return Rejected("closed") if self.closed else Deposited(amount=command.amount)

    @decide
    def withdraw(self, command: Withdraw) -> Withdrawn | Rejected:
        """As far as the balance goes."""
        return self._refusal(command.amount) or Withdrawn(amount=command.amount)

    @decide
    def pay(self, command: Pay) -> Iterator[Paid | FeeCharged]:
        """The amount and the fee, or neither."""
        refusal = self._refusal(command.amount + FEE)
        if refusal:
            raise refusal
        yield Paid(to=command.to, amount=command.amount)
        yield FeeCharged(amount=FEE)

    @decide
    def close(self, command: Close) -> Closed | None:
        """Nothing comes of closing it again."""
        return None if self.closed else Closed()

    def _refusal(self, needed: int) -> Rejected | None:
        if self.closed:
            return Rejected("closed")
        if needed > self.balance:
            return Rejected("insufficient_funds", balance=self.balance, needed=needed)
        return None

    @evolve
    def opened(self, event: Opened) -> None:
        """Remember whose it is."""
        self.owner = event.owner

    @evolve
    def deposited(self, event: Deposited) -> None:
        """More money."""
        self.balance += event.amount

    @evolve
    def withdrawn(self, event: Withdrawn) -> None:
        """Less money."""
        self.balance -= event.amount

    @evolve
    def paid(self, event: Paid) -> None:
        """Less money."""
        self.balance -= event.amount

    @evolve
    def fee_charged(self, event: FeeCharged) -> None:
        """Less money."""
        self.balance -= event.amount

    @evolve
    def was_closed(self, event: Closed) -> None:
        """For good."""
        self.closed = True


class Store(Command):
    """Put a thing into a vault."""

    thing: str


class Retrieve(Command):
    """Take a thing out of a vault."""

    thing: str


class Stored(Event):
    """A thing came into a vault."""

    thing: str


class Retrieved(Event):
    """A thing left a vault."""

    thing: str


class Vault(Aggregate, placement=OwnActor()):
    """A vault: it holds a thing once. Any command may be its first."""

    things: set[str] = set()

    @decide
    def store(self, command: Store) -> Stored | Rejected:
        """Each thing once."""
        return Rejected("already_there") if command.thing in self.things else Stored(thing=command.thing)

    @decide
    def retrieve(self, command: Retrieve) -> Retrieved | Rejected:
        """Only what it holds."""
        return Retrieved(thing=command.thing) if command.thing in self.things else Rejected("not_there")

    @evolve
    def stored(self, event: Stored) -> None:
        """It is in."""
        self.things.add(event.thing)

    @evolve
    def retrieved(self, event: Retrieved) -> None:
        """It is out."""
        self.things.discard(event.thing)


class BalanceOf(Query[int]):
    """The balance of one account, in cents."""

    account: str


class Richest(Query[list[str]]):
    """The accounts with the highest balances, the richest first."""

    limit: PositiveInt = 3


class Balances(Projection):
    """The balance of every account."""

    balances: dict[str, int] = {}

    @project
    def opened(self, event: Opened, recorded: Recorded) -> None:
        """From nothing."""
        self.balances.setdefault(recorded.aggregate_id, 0)

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        """More."""
        self._add(recorded, event.amount)

    @project
    def withdrawn(self, event: Withdrawn, recorded: Recorded) -> None:
        """Less."""
        self._add(recorded, -event.amount)

    @project
    def paid(self, event: Paid, recorded: Recorded) -> None:
        """Less."""
        self._add(recorded, -event.amount)

    @project
    def fee_charged(self, event: FeeCharged, recorded: Recorded) -> None:
        """Less."""
        self._add(recorded, -event.amount)

    def _add(self, recorded: Recorded, amount: int) -> None:
        account = recorded.aggregate_id
        self.balances[account] = self.balances.get(account, 0) + amount

    @answer
    def balance(self, query: BalanceOf) -> int:
        """0 for an unknown account."""
        return self.balances.get(query.account, 0)

    @answer
    def richest(self, query: Richest) -> list[str]:
        """By balance, then by name."""
        return sorted(self.balances, key=lambda account: (-self.balances[account], account))[: query.limit]


class TurnoverOn(Query[int]):
    """The cents that moved on one day."""

    day: date


class EventsSeen(Query[int]):
    """How many events of the bank a replica has seen."""


class Turnover(Projection, version=2):
    """What moved on each day, and how many events there were."""

    by_day: dict[date, int] = {}
    events: int = 0

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        """In."""
        self._count(recorded, event.amount)

    @project
    def withdrawn(self, event: Withdrawn, recorded: Recorded) -> None:
        """Out."""
        self._count(recorded, event.amount)

    @project
    def opened(self, event: Opened) -> None:
        """Moves nothing."""
        self.events += 1

    def _count(self, recorded: Recorded, amount: int) -> None:
        self.events += 1
        day = recorded.recorded_at.date()
        self.by_day[day] = self.by_day.get(day, 0) + amount

    @answer
    def turnover(self, query: TurnoverOn) -> int:
        """Nothing, on a quiet day."""
        return self.by_day.get(query.day, 0)

    @answer
    def seen(self, query: EventsSeen) -> int:
        """Opened, deposited and withdrawn ones."""
        return self.events
