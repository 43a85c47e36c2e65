"""The ledger: what the write loop must do, by a model that is simple enough to be right.

Accounts as plain numbers, and the command ids that took effect. It takes one command after the other, as if each came
alone; that a batch may not differ from that is the law under test (`histories.py`).
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from rayfold.runtime.domain.aggregate import Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import Envelope, PackedCommand, join, pack, unpack_batch
from rayfold.runtime.encoding.outcome import Outcome
from rayfold.runtime.errors import CommandIdReused, Conflict, Fenced, HandlerFailed, Rejected, StorageFailed
from rayfold.runtime.log.contract import Log
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import ANY
from tests.bank import (
    FEE,
    Account,
    Close,
    Closed,
    Deposit,
    Deposited,
    FeeCharged,
    Open,
    Opened,
    Paid,
    Pay,
    Withdraw,
    Withdrawn,
)


class Killed(KeyboardInterrupt):
    """The process ends here: nothing may catch it, and nothing of this process is used afterwards."""


class Break(Command):
    """Decide something, spoil the state, and raise."""


class Burst(Command):
    """Two events, of which the second cannot be evolved."""


class Babble(Command):
    """Decide nonsense."""


class Kill(Command):
    """End the process in the middle of deciding."""


class Bursting(Event):
    """An event whose handler raises, with the state half-changed."""


class Till(Account, name="Account", placement=Shared(), snapshot_every=3):
    """The bank's account with everything that a user's code can do wrong."""

    @decide
    def break_(self, command: Break) -> Deposited:
        """Spoils what it must not touch."""
        self.balance += 1_000_000
        raise ValueError("broken")

    @decide
    def burst(self, command: Burst) -> Iterator[Deposited | Bursting]:
        """The first event would be fine."""
        yield Deposited(amount=1_000)
        yield Bursting()

    @decide
    def babble(self, command: Babble) -> Deposited:
        """Not what it promises."""
        return "a deposit"  # type: ignore[return-value]

    @decide(creates=True)
    def kill(self, command: Kill) -> None:
        """Spoils the state, as it ends with the process."""
        self.balance = -1
        signal.raise_signal(signal.SIGINT)

    @evolve
    def bursting(self, event: Bursting) -> None:
        """Half of the way."""
        self.balance = -1
        raise KeyError("burst")


CATALOGUE = Catalogue([Till])


class Sent(NamedTuple):
    """A command as a caller sends it."""

    number: int
    """What its id is made of."""
    account: str
    message: Command
    expected_version: int = ANY

    @property
    def command_id(self) -> bytes:
        return self.number.to_bytes(16, "big")

    @property
    def content(self) -> tuple[str, str, Command]:
        return self.account, self.message.message_name, self.message

    def packed(self) -> bytes:
        address = Envelope(Till, self.account, self.message, UUID(int=self.number), self.expected_version)
        return pack(address)[1]


def packed(batch: Sequence[Sent]) -> list[PackedCommand]:
    """A batch as it arrives at the partition."""
    return list(unpack_batch(join(sent.packed() for sent in batch)))


Told = tuple[Any, ...]
"""What a caller is answered, as plain facts."""


def told(outcome: Outcome) -> Told:
    """The facts of an outcome."""
    match outcome:
        case Receipt():
            return "receipt", outcome.position, outcome.version, outcome.repeated
        case Rejected():
            return "rejected", outcome.reason
        case Conflict():
            return "conflict", outcome.expected_version, outcome.version
        case CommandIdReused():
            return ("reused",)
        case HandlerFailed():
            return ("failed",)
        case Fenced():
            return ("fenced",)
        case StorageFailed():
            return ("lost",)
    raise AssertionError(f"an unexpected outcome: {outcome!r}")


@dataclass
class Book:
    """One account as the model keeps it."""

    version: int = 0
    owner: str = ""
    balance: int = 0
    closed: bool = False
    position: int = field(default=0, compare=False)
    """Of its last event; an aggregate in memory does not know it."""


@dataclass
class Ledger:
    """The whole bank as the model keeps it: books, and the commands that took effect, with position and version."""

    books: dict[str, Book] = field(default_factory=dict)
    taken: dict[bytes, tuple[tuple[str, str, Command], int, int]] = field(default_factory=dict)
    head: int = 0

    def take(self, sent: Sent) -> Told:
        """One command, and what its caller must be answered."""
        if sent.command_id in self.taken:
            content, position, version = self.taken[sent.command_id]
            return ("receipt", position, version, True) if content == sent.content else ("reused",)
        book = copy.copy(self.books.get(sent.account, Book()))
        if sent.expected_version not in (ANY, book.version):
            return "conflict", sent.expected_version, book.version
        refusal = _refusal(book, sent.message)
        if refusal is not None:
            return refusal
        events = _carry_out(book, sent.message)
        self.head += events
        book.version += events
        if events:
            book.position = self.head
            self.books[sent.account] = book
            self.taken[sent.command_id] = (sent.content, self.head, book.version)
        return "receipt", book.position, book.version, False

    def would_take(self, sent: Sent) -> Told:
        """What its caller would be answered if it were the next command of all."""
        return copy.copy(Ledger(dict(self.books), dict(self.taken), self.head)).take(sent)


def _refusal(book: Book, message: Command) -> Told | None:
    if isinstance(message, Open):
        return ("rejected", "already_open") if book.version else None
    if not book.version:
        return "rejected", "does_not_exist"
    if isinstance(message, Break | Burst | Babble):
        return ("failed",)
    if book.closed and not isinstance(message, Close):
        return "rejected", "closed"
    needed = message.amount + FEE if isinstance(message, Pay) else getattr(message, "amount", 0)
    if not isinstance(message, Deposit) and needed > book.balance:
        return "rejected", "insufficient_funds"
    return None


def _carry_out(book: Book, message: Command) -> int:
    """Change the book. Returns how many events that is."""
    match message:
        case Open(owner=owner):
            book.owner = owner
        case Deposit(amount=amount):
            book.balance += amount
        case Withdraw(amount=amount):
            book.balance -= amount
        case Pay(amount=amount):
            book.balance -= amount + FEE
            return 2
        case Close():
            if book.closed:
                return 0
            book.closed = True
    return 1


def folded(log: Log) -> tuple[dict[str, Book], dict[bytes, list[int]]]:
    """The books that the log amounts to, and the positions of each command's events. Checks every number on the way."""
    books: dict[str, Book] = {}
    positions: dict[bytes, list[int]] = {}
    for position, record in enumerate(log.read(0, 1_000_000), start=1):
        stored = decode_record(record)
        book = books.setdefault(stored.stream.id, Book())
        book.version += 1
        book.position = position
        assert (stored.position, stored.version) == (position, book.version), "a gap, or a repeat, in the log"
        positions.setdefault(stored.command_id, []).append(position)
        match CATALOGUE.decode_event(stored):
            case Opened(owner=owner):
                book.owner = owner
            case Deposited(amount=amount):
                book.balance += amount
            case Withdrawn(amount=amount) | Paid(amount=amount) | FeeCharged(amount=amount):
                book.balance -= amount
            case Closed():
                book.closed = True
            case other:
                raise AssertionError(f"this must never have been stored: {other!r}")
    return books, positions
