"""Histories: what the write loop must do, told by a model that is simple enough to be believed.

`Ledger` is the model: accounts as plain numbers, and the command ids that took effect. It takes one command after the
other, as if each came alone; that a batch may not differ from that is the law under test. `History` drives the real
loop over a real log beside the model, with faults and crashes at every step of the loop, and compares what every caller
is told. `Histories` is the Hypothesis machine that makes random ones.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rayfold.runtime.aggregate import Shared, decide, evolve
from rayfold.runtime.catalogue import Catalogue
from rayfold.runtime.envelope import Envelope, PackedCommand, join, pack, unpack_batch
from rayfold.runtime.errors import (
    CommandIdReused,
    Conflict,
    Fenced,
    HandlerFailed,
    Rejected,
    StorageFailed,
)
from rayfold.runtime.log.contract import Append, Appended, CommandEntry, Log, Snapshot
from rayfold.runtime.log.environment import open_log
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.messages import Command, Event
from rayfold.runtime.outcome import Outcome
from rayfold.runtime.partition import WriteLoop
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.residents import Residents
from rayfold.runtime.stream import ANY, NO_STREAM, StreamId
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


class Killed(BaseException):
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
        raise Killed

    @evolve
    def bursting(self, event: Bursting) -> None:
        """Half of the way."""
        self.balance = -1
        raise KeyError("burst")


CATALOGUE = Catalogue([Till])
ACCOUNTS = ("alice", "bob", "carol", "dave")


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


# The model --------------------------------------------------------------------------------------------------------

Told = tuple[Any, ...]
"""What a caller is told, as plain facts."""


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


@dataclass
class Ledger:
    """The whole bank as the model keeps it: books, and the commands that took effect, with position and version."""

    books: dict[str, Book] = field(default_factory=dict)
    taken: dict[bytes, tuple[tuple[str, str, Command], int, int]] = field(default_factory=dict)
    head: int = 0

    def take(self, sent: Sent) -> Told:
        """One command, and what its caller must be told."""
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
            self.books[sent.account] = book
            self.taken[sent.command_id] = (sent.content, self.head, book.version)
        return "receipt", self.head, book.version, False

    def would_take(self, sent: Sent) -> Told:
        """What its caller would be told if it were the next command of all."""
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


# The real thing beside it -----------------------------------------------------------------------------------------

Stage = Literal["before deciding", "while deciding", "before the append", "after the commit", "before the answer"]
STAGES: tuple[Stage, ...] = (
    "before deciding",
    "while deciding",
    "before the append",
    "after the commit",
    "before the answer",
)


class FaultyLog:
    """A log that does what it is told to do wrong, once, at a stage; and else what the log behind it does."""

    def __init__(self, log: Log) -> None:
        self.behind = log
        self._faults: dict[Stage, BaseException] = {}

    def fail_once(self, stage: Stage, error: BaseException) -> None:
        self._faults[stage] = error

    def _pass(self, stage: Stage) -> None:
        error = self._faults.pop(stage, None)
        if error is not None:
            raise error

    def activate(self) -> int:
        return self.behind.activate()

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        self._pass("before the append")
        done = self.behind.append(epoch, appends)
        self._pass("after the commit")
        return done

    def head(self) -> int:
        return self.behind.head()

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        return self.behind.read(after, limit, bytes_max)

    def version(self, stream: StreamId) -> int:
        return self.behind.version(stream)

    def read_stream(
        self, stream: StreamId, from_version: int = 1, to_version: int | None = None, limit: int | None = None
    ) -> list[bytes]:
        return self.behind.read_stream(stream, from_version, to_version, limit)

    def find_command(self, command_id: bytes) -> CommandEntry | None:
        self._pass("before deciding")
        return self.behind.find_command(command_id)

    def find_snapshot(self, stream: StreamId, schema: bytes, at_or_before: int | None = None) -> Snapshot | None:
        return self.behind.find_snapshot(stream, schema, at_or_before)

    def close(self) -> None:
        self.behind.close()


class History:
    """The write loop and the model, side by side."""

    def __init__(self, folder: Path | None, loop_class: type[WriteLoop] = WriteLoop) -> None:
        """Over LMDB in `folder`, or in memory."""
        self.ledger = Ledger()
        self._folder = folder
        self._loop_class = loop_class
        self.log = FaultyLog(open_log(folder, "partition 0") if folder else MemoryLog())
        self.loop = self._activated()

    def send(self, batch: Sequence[Sent]) -> None:
        """A batch that nothing goes wrong with."""
        head = self.ledger.head
        expected = [self.ledger.take(sent) for sent in batch]
        done = self.loop.execute(packed(batch))
        assert [told(outcome) for outcome in done.outcomes] == expected
        assert done.records == self.log.read(head, 1_000_000), "what is broadcast is not what was stored"

    def send_to_a_full_disk(self, batch: Sequence[Sent]) -> None:
        """A batch whose append fails: each caller is told that, or what is true without the batch."""
        self.log.fail_once("before the append", StorageFailed("disk", "no space left"))
        done = self.loop.execute(packed(batch))
        assert not done.records
        for sent, outcome in zip(batch, done.outcomes, strict=True):
            facts, alone = told(outcome), self.ledger.would_take(sent)
            assert facts == ("lost",) or facts == alone != ("receipt", *alone[1:3], False), (sent, facts, alone)

    def crash(self, batch: Sequence[Sent], stage: Stage) -> None:
        """The process ends at a stage of the batch, and another opens the log. No caller is told anything."""
        if stage in ("after the commit", "before the answer"):
            for sent in batch:
                self.ledger.take(sent)
        if stage == "before the answer":
            self.loop.execute(packed(batch))
        else:
            if stage == "while deciding":
                batch = [*batch, Sent(1 << 100, "alice", Kill())]
            else:
                self.log.fail_once(stage, Killed())
            with pytest.raises(Killed):
                self.loop.execute(packed(batch))
        self.reopen()

    def reopen(self) -> None:
        """Another process opens the log."""
        if self._folder is not None:
            self.log.close()
            self.log = FaultyLog(open_log(self._folder, "partition 0"))
        self.loop = self._activated()

    def take_over(self, batch: Sequence[Sent]) -> None:
        """A second loop takes the log over, and the first, which does not know, gets a batch."""
        first, self.loop = self.loop, self._activated()
        for sent, outcome in zip(batch, first.execute(packed(batch)).outcomes, strict=True):
            alone = self.ledger.would_take(sent)
            assert told(outcome) == (alone if alone[0] == "receipt" and alone[3] else ("fenced",))

    def check(self) -> None:
        """The log, the command ids and the residents are what the model says."""
        books, positions = folded(self.log.behind)
        assert books == self.ledger.books
        for command_id, (_, position, version) in self.ledger.taken.items():
            own = positions.pop(command_id)
            assert own == list(range(own[0], position + 1)), "events of one command are torn apart"
            entry = self.log.behind.find_command(command_id)
            assert entry is not None
            assert (entry.position, entry.version) == (position, version)
        assert not positions, "events of commands that were never taken"
        self._check_residents(books)

    def _check_residents(self, books: dict[str, Book]) -> None:
        cache = self.loop.residents._cache
        assert len(cache) <= 2
        fresh = Residents(CATALOGUE, self.log.behind)
        for stream, resident in [*cache.items(), *((stream, fresh.load(stream)) for stream in cache)]:
            assert isinstance(resident, Till)
            kept = Book(resident.version, resident.owner, resident.balance, resident.closed)
            assert kept == books.get(stream.id, Book())

    def _activated(self) -> WriteLoop:
        loop = self._loop_class(0, self.log, CATALOGUE, residents_max=2)
        loop.activate()
        return loop


# Random ones ------------------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """A command as Hypothesis draws it, before it is known what there is to repeat."""

    kind: str
    account: str
    message: Command
    expected: str
    pick: int


def _amounts(command: type[Command], most: int) -> st.SearchStrategy[Command]:
    return st.integers(1, most).map(lambda amount: command(amount=amount))


MESSAGES: st.SearchStrategy[Command] = st.one_of(
    st.sampled_from("xyz").map(lambda owner: Open(owner=owner)),
    st.just(Open(owner="z")),
    _amounts(Deposit, 50),
    _amounts(Deposit, 50),
    _amounts(Withdraw, 80),
    st.integers(1, 40).map(lambda amount: Pay(to="bob", amount=amount)),
    st.sampled_from([Close(), Break(), Burst(), Babble()]),
)
BATCHES = st.lists(
    st.builds(
        Drawn,
        st.sampled_from(["new"] * 5 + ["repeat", "reuse"]),
        st.sampled_from(ACCOUNTS),
        MESSAGES,
        st.sampled_from(["any"] * 6 + ["current", "none", "wrong"]),
        st.integers(0, 1_000),
    ),
    max_size=7,
)


class Histories(RuleBasedStateMachine):
    """Random histories of commands, conflicts, repeats, failures, crashes, reopenings and take-overs."""

    loop_class: ClassVar[type[WriteLoop]] = WriteLoop
    on_disk: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory() if self.on_disk else None
        self.history = History(Path(self.folder.name) if self.folder else None, self.loop_class)
        self.sent: list[Sent] = []

    @initialize()
    def open_some(self) -> None:
        """Else most commands would be to accounts that do not exist."""
        for account in ACCOUNTS[:3]:
            self.sent.append(Sent(len(self.sent) + 1, account, Open(owner="x")))
        self.history.send([*self.sent, Sent(1 << 99, "alice", Deposit(amount=100))])

    @rule(drawn=BATCHES)
    def send(self, drawn: list[Drawn]) -> None:
        """A batch."""
        self.history.send(self.batch(drawn))

    @rule(drawn=BATCHES)
    def full_disk(self, drawn: list[Drawn]) -> None:
        """A batch that cannot be written, and the same batch again."""
        batch = self.batch(drawn)
        self.history.send_to_a_full_disk(batch)
        self.history.check()
        self.history.send(batch)

    @rule(drawn=BATCHES.filter(bool), stage=st.sampled_from(STAGES))
    def crash(self, drawn: list[Drawn], stage: Stage) -> None:
        """A batch in which the process ends, and the same batch again, as its callers send it."""
        batch = self.batch(drawn)
        self.history.crash(batch, stage)
        self.history.check()
        self.history.send(batch)

    @rule()
    def reopen(self) -> None:
        """A restart in quiet times."""
        self.history.reopen()

    @rule(drawn=BATCHES)
    def take_over(self, drawn: list[Drawn]) -> None:
        """A batch to a loop that was taken over."""
        self.history.take_over(self.batch(drawn))

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        """After every step."""
        self.history.check()

    def teardown(self) -> None:
        """Close the log, and leave no folder."""
        self.history.log.close()
        if self.folder:
            self.folder.cleanup()

    def batch(self, drawn: list[Drawn]) -> list[Sent]:
        """The commands to send: new ones, earlier ones again, and new ones under the ids of earlier ones."""
        return [self._sent(one) for one in drawn]

    def _sent(self, drawn: Drawn) -> Sent:
        versions = {
            "any": ANY,
            "none": NO_STREAM,
            "current": self.history.ledger.books.get(drawn.account, Book()).version,
            "wrong": 1_000,
        }
        new = Sent(len(self.sent) + 1, drawn.account, drawn.message, versions[drawn.expected])
        if drawn.kind == "new" or not self.sent:
            self.sent.append(new)
            return new
        earlier = self.sent[drawn.pick % len(self.sent)]
        if drawn.kind == "repeat":
            return earlier._replace(expected_version=new.expected_version)
        return new._replace(number=earlier.number)


def machine(loop: type[WriteLoop] = WriteLoop, *, disk: bool = False) -> type[Histories]:
    """Random histories of this write loop, over LMDB or in memory."""
    return type("Machine", (Histories,), {"loop_class": loop, "on_disk": disk})
