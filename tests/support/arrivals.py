"""Arrivals: commands as they arrive at a write loop, the aggregates that go wrong with them, and what came of it.

Shared by the tests of the partition and of its residents.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from pydantic import field_validator

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import Envelope, PackedCommand, join, pack, unpack_batch
from rayfold.runtime.encoding.outcome import Outcome
from rayfold.runtime.errors import RayfoldError, Rejected
from rayfold.runtime.log.contract import Log
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import ANY, StreamId
from rayfold.runtime.write.write_loop import WriteLoop
from tests.bank import Account, Vault
from tests.support.ledger import Till


class Grow(Command):
    """As many events as asked for, each of this size."""

    events: int
    size: int


class Grown(Event):
    model_config = {"str_max_length": 2_000_000}
    text: str


class Recurse(Command):
    pass


class Leave(Command):
    """Raises `SystemExit`, as `sys.exit` does."""

    where: str


class Left(Event):
    pass


class Refuse(Command):
    """Refused in a way that only `@decide` may."""


class Refused(Event):
    pass


class Show(Command):
    """Refused, with a part of the state as a fact."""


class Picky(Command):
    """Its own validator has a bug."""

    key: str

    @field_validator("key")
    @classmethod
    def look_up(cls, key: str) -> str:
        return {"known": "known"}[key]


class Risky(Aggregate, placement=Shared(), snapshot_every=2):
    """Goes wrong in every other way."""

    texts: list[str] = []

    @decide
    def grow(self, command: Grow) -> Iterator[Grown]:
        for _ in range(command.events):
            yield Grown(text="x" * command.size)

    @decide
    def recurse(self, command: Recurse) -> None:
        self.recurse(command)

    @decide
    def leave(self, command: Leave) -> Left:
        if command.where == "decide":
            raise SystemExit(3)
        return Left()

    @decide
    def refuse(self, command: Refuse) -> Refused:
        return Refused()

    @decide
    def show(self, command: Show) -> Rejected:
        return Rejected("as you see", texts=self.texts)

    @decide
    def picky(self, command: Picky) -> None:
        return None

    @evolve
    def grown(self, event: Grown) -> None:
        self.texts.append(event.text)

    @evolve
    def left(self, event: Left) -> None:
        raise SystemExit(4)

    @evolve
    def refused(self, event: Refused) -> None:
        raise Rejected("too late")


CATALOGUE = Catalogue([Till, Vault, Risky])


def activated(log: Log, residents_max: int = 100, catalogue: Catalogue = CATALOGUE) -> WriteLoop:
    loop = WriteLoop(7, log, catalogue, residents_max=residents_max)
    loop.activate()
    return loop


def to(
    aggregate: type[Aggregate], ident: str, command: Command, number: int = 0, expected_version: int = ANY
) -> PackedCommand:
    """A command as it arrives: packed, joined, unpacked."""
    envelope = Envelope(aggregate, ident, command, UUID(int=number) if number else None, expected_version)
    (arrived,) = unpack_batch(join([pack(envelope)[1]]))
    return arrived


def alice(command: Command, number: int = 0, expected_version: int = ANY) -> PackedCommand:
    return to(Account, "alice", command, number, expected_version)


def risky(command: Command) -> PackedCommand:
    return to(Risky, "r", command)


def facts(outcome: Outcome) -> tuple[int, int, bool]:
    assert isinstance(outcome, Receipt), outcome
    return outcome.position, outcome.version, outcome.repeated


def error(outcome: Outcome, kind: type[RayfoldError]) -> str:
    """The text of an error that must be of exactly this kind."""
    assert type(outcome) is kind, outcome
    return str(outcome)


def balance(loop: WriteLoop, ident: str = "alice") -> int:
    account = loop.residents.load(StreamId("Account", ident))
    assert isinstance(account, Account)
    return account.balance


def assert_residents_are_a_fold(loop: WriteLoop) -> None:
    for stream, resident in loop.residents._cache.items():
        assert vars(resident) == vars(loop.residents.load(stream))
