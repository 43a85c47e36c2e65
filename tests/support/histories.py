"""Histories: the write loop over a real log, side by side with the model of `ledger.py`.

`History` drives both, with failures and crashes at every step of the loop, and compares what every caller is answered
and what the log holds afterwards. `Histories` is the Hypothesis machine that makes random ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rayfold.runtime.domain.messages import Command
from rayfold.runtime.errors import StorageFailed
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.stream import ANY, NO_STREAM
from rayfold.runtime.write.residents import Residents
from rayfold.runtime.write.write_loop import WriteLoop
from tests.bank import Close, Deposit, Open, Pay, Withdraw
from tests.support.faulty_log import STAGES, FaultyLog, Stage
from tests.support.ledger import (
    CATALOGUE,
    Babble,
    Book,
    Break,
    Burst,
    Kill,
    Killed,
    Ledger,
    Sent,
    Till,
    folded,
    packed,
    told,
)

ACCOUNTS = ("alice", "bob", "carol", "dave")


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
        """A batch whose append fails: each caller gets that, or what is true without the batch."""
        self.log.fail_once("before the append", StorageFailed("disk", "no space left"))
        done = self.loop.execute(packed(batch))
        assert not done.records
        for sent, outcome in zip(batch, done.outcomes, strict=True):
            facts, alone = told(outcome), self.ledger.would_take(sent)
            assert facts == ("lost",) or facts == alone != ("receipt", *alone[1:3], False), (sent, facts, alone)

    def crash(self, batch: Sequence[Sent], stage: Stage) -> None:
        """The process ends at a stage of the batch, and another opens the log. No caller is answered."""
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
            with pytest.raises(KeyboardInterrupt):
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
        """The log, the command ids and the residents are those of the model."""
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


def _amounts(command: type[Deposit | Withdraw], most: int) -> st.SearchStrategy[Command]:
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


def _batches(accounts: Sequence[str]) -> st.SearchStrategy[list[Drawn]]:
    drawn = st.builds(
        Drawn,
        st.sampled_from(["new"] * 5 + ["repeat", "reuse"]),
        st.sampled_from(accounts),
        MESSAGES,
        st.sampled_from(["any"] * 6 + ["current", "none", "wrong"]),
        st.integers(0, 1_000),
    )
    return st.lists(drawn, max_size=7)


BATCHES = st.one_of(_batches(ACCOUNTS), *(_batches([account]) for account in ACCOUNTS))
"""To all accounts, or to one: where what a command leaves to the next one of the same batch is wrong, the latter show
it."""


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
