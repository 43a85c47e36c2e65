"""Reading: rules are for makers, and whatever user code raises is its own failure."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from datetime import UTC, datetime
from typing import Annotated, Any

import msgpack
import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FutureDatetime,
    PlainValidator,
    StringConstraints,
    field_validator,
    model_validator,
)

from rayfold.runtime.checks.standing import copied
from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event, Query, upcast
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import ITEMS_MAX, decode_message, encode_checked
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.errors import HandlerFailed, InvalidMessage, UnknownEvent, failure_text
from rayfold.runtime.log.contract import StoredEvent
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.read.routes import merged_answer, part_asked
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import StreamId
from rayfold.runtime.write.write_loop import WriteLoop


class Inner(BaseModel):
    model_config = ConfigDict(strict=True)
    number: Annotated[int, Field(ge=10)]

    @field_validator("number")
    @classmethod
    def twice(cls, value: int) -> int:
        return value * 2


class Ruled(Event):
    model_config = ConfigDict(strict=True, str_max_length=3)
    at: FutureDatetime
    name: Annotated[str, StringConstraints(pattern="^a", to_upper=True)]
    inner: Inner
    cents: Annotated[int, AfterValidator(lambda value: value * 100)]
    plain: Annotated[int, PlainValidator(lambda value: 1 / 0)]

    @model_validator(mode="after")
    def never(self) -> Ruled:
        raise ValueError("no")


def test_an_event_is_read_without_the_rules_of_its_class_and_of_the_models_in_it() -> None:
    fields = {"at": "2001-01-01T00:00:00Z", "name": "bbbb", "inner": {"number": 1}, "cents": 5, "plain": 7}
    event = decode_message(Ruled, msgpack.packb(fields))
    assert (event.at, event.name, event.inner.number) == (datetime(2001, 1, 1, tzinfo=UTC), "bbbb", 1)
    assert (event.cents, event.plain, type(event.inner)) == (5, 7, Inner)


def test_a_command_is_read_with_its_rules_and_without_strict() -> None:
    class Book(Command):
        model_config = ConfigDict(strict=True)
        at: datetime
        seats: Annotated[int, Field(ge=1)]

    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert decode_message(Book, encode_checked(Book(at=at, seats=1))[0]) == Book(at=at, seats=1)
    with pytest.raises(InvalidMessage, match="seats is 0"):
        decode_message(Book, msgpack.packb({"at": at.isoformat(), "seats": 0}))


def test_a_command_that_its_validators_would_change_again_is_not_sent() -> None:
    class Pay(Command):
        cents: Annotated[int, AfterValidator(lambda value: value * 100)]

    class Till(Aggregate):
        pass

    with pytest.raises(InvalidMessage, match="cents is 500, which readers would see as 50000; its validators must"):
        pack(Envelope(Till, "a", Pay(cents=5)))


# Whatever user code raises ---------------------------------------------------------------------------------------


class Custom(BaseException):
    def __str__(self) -> str:
        raise Custom


KINDS: dict[str, type[BaseException]] = {
    kind.__name__: kind for kind in (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, SystemExit, Custom)
}


class Do(Command):
    kind: str
    where: str


class Done(Event):
    kind: str
    where: str


class Raises(Aggregate, placement=Shared()):
    @decide
    def do(self, command: Do) -> Done:
        if command.where == "decide":
            raise KINDS[command.kind]
        return Done(kind=command.kind, where=command.where)

    @evolve
    def done(self, event: Done) -> None:
        if event.where == "evolve":
            raise KINDS[event.kind]


class Watches(Projection):
    @project
    def done(self, event: Done) -> None:
        if event.where == "project":
            raise KINDS[event.kind]


def running() -> tuple[WriteLoop, MemoryLog, Catalogue]:
    catalogue, log = Catalogue([Raises], [Watches]), MemoryLog()
    loop = WriteLoop(0, log, catalogue)
    loop.activate()
    return loop, log, catalogue


def do(loop: WriteLoop, kind: str, where: str) -> list[Any]:
    commands = [Do(kind="", where=""), Do(kind=kind, where=where), Do(kind="", where="")]
    return loop.execute([pack(Envelope(Raises, "a", command))[0] for command in commands]).outcomes


@pytest.mark.parametrize("where", ["decide", "evolve"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_handler_raises_costs_no_neighbour_whatever_it_is(kind: str, where: str) -> None:
    loop, log, _ = running()
    before, failed, after = do(loop, kind, where)
    assert type(before) is type(after) is Receipt
    assert isinstance(failed, HandlerFailed)
    assert kind in str(failed)
    assert log.head() == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_projection_raises_is_its_failure_whatever_it_is(kind: str) -> None:
    loop, log, catalogue = running()
    do(loop, kind, "project")
    model = ReadModel(Watches, catalogue, {0: log})
    model.open()
    model.catch_up(0)
    assert isinstance(model.failed, HandlerFailed)
    assert kind in str(model.failed)


def test_what_is_thrown_into_a_generator_is_a_failure_of_the_handler_too() -> None:
    class Thrown(Command):
        pass

    class Throws(Aggregate, placement=Shared()):
        @decide
        def thrown(self, command: Thrown) -> None:
            letters = (letter for letter in "ab")
            next(letters)
            letters.throw(KeyboardInterrupt)

    loop = WriteLoop(0, MemoryLog(), Catalogue([Throws]))
    loop.activate()
    [outcome] = loop.execute([pack(Envelope(Throws, "a", Thrown()))[0]]).outcomes
    assert isinstance(outcome, HandlerFailed)


class Undecided(Exception):
    """Cannot be asked whether it is true."""

    def __bool__(self) -> bool:
        raise Custom


class Hidden(type):
    """Its classes do not give their names."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__"):
            raise Custom
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=Hidden): ...


class Untraced(Exception):
    """Gives neither its trace, nor its cause, nor its class."""

    def _raise(self) -> Any:
        raise Custom

    __traceback__ = __cause__ = __class__ = property(_raise)


class Text(str):
    def __format__(self, how: str) -> str:
        raise Custom


class Disguised(Exception):
    """Its text is one that cannot be put into another."""

    def __str__(self) -> str:
        return Text("text")


class Endless(Exception):
    """Has a text of ten megabytes."""

    def __str__(self) -> str:
        return "x" * 10_000_000


HOSTILE: dict[str, type[BaseException]] = {
    "Undecided": Undecided,
    "Untraced": Untraced,
    "Disguised": Disguised,
    "Endless": Endless,
}
KINDS |= HOSTILE


def test_an_exception_whose_class_does_not_give_its_name_is_shown_all_the_same() -> None:
    assert failure_text(Nameless("what happened")) == "Nameless: what happened"


@pytest.mark.parametrize("where", ["decide", "evolve"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_an_exception_whose_own_code_raises_costs_no_neighbour(
    kind: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    loop, log, _ = running()
    before, failed, after = do(loop, kind, where)
    assert type(before) is type(after) is Receipt
    assert isinstance(failed, HandlerFailed)
    assert kind in str(failed)
    assert len(str(failed)) < 1_000
    assert log.head() == 2
    assert f"failed on Raises/a: {kind}" in caplog.text
    assert len(caplog.text) < 100_000


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_projection_that_raises_an_exception_whose_own_code_raises_has_failed_by_its_name(kind: str) -> None:
    loop, log, catalogue = running()
    do(loop, kind, "project")
    model = ReadModel(Watches, catalogue, {0: log})
    model.open()
    model.catch_up(0)
    assert isinstance(model.failed, HandlerFailed)
    assert kind in str(model.failed)


# Values whose own code raises ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Mine:
    """A value whose special methods raise, once they are armed."""

    method: str = ""
    kind: str = ""

    def _raise(self, method: str) -> None:
        if self.method == method:
            raise KINDS[self.kind]

    def __eq__(self, other: object) -> bool:
        self._raise("eq")
        return type(other) is Mine and (self.method, self.kind) == (other.method, other.kind)

    def __hash__(self) -> int:
        self._raise("hash")
        return 1

    def __repr__(self) -> str:
        self._raise("repr")
        return "Mine"

    def __reduce_ex__(self, protocol: Any) -> Any:
        self._raise("reduce")
        return super().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Any:
        self._raise("deepcopy")
        return Mine(self.method, self.kind)


class Keep(Command):
    method: str
    kind: str


class Look(Command):
    """Decided by a handler that is watched, since it calls what nothing is known of."""


class Kept(Event):
    method: str
    kind: str


class Looked(Event):
    pass


def looked(what: Any) -> int:
    return int(eval("len")([what]))


class Holder(Aggregate, placement=Shared(), snapshot_every=1):
    one: Mine | None = None
    many: list[Mine] = []
    by_it: dict[Mine, int] = {}

    @decide
    def keep(self, command: Keep) -> Kept:
        return Kept(method=command.method, kind=command.kind)

    @decide
    def look(self, command: Look) -> Looked:
        looked(self.one)
        return Looked()

    @evolve
    def kept(self, event: Kept) -> None:
        self.one, self.many = Mine(event.method, event.kind), [Mine(event.method, event.kind)]
        self.by_it = {Mine(event.method, event.kind): 1}

    @evolve
    def looks(self, event: Looked) -> None: ...


@pytest.mark.parametrize("method", ["eq", "hash", "repr", "reduce", "deepcopy"])
@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "SystemExit", "Custom", "Undecided"])
def test_a_value_whose_own_code_raises_costs_no_neighbour(method: str, kind: str) -> None:
    catalogue, log = Catalogue([Holder, Raises], [Watches]), MemoryLog()
    loop = WriteLoop(0, log, catalogue)
    loop.activate()
    commands = [("a", Keep(method=method, kind=kind)), ("a", Look()), ("a", Look()), ("b", Look())]
    for _ in range(2):
        outcomes = loop.execute([pack(Envelope(Holder, name, command))[0] for name, command in commands]).outcomes
        assert all(isinstance(outcome, Receipt | HandlerFailed) for outcome in outcomes)
        assert isinstance(outcomes[-1], Receipt)
        loop.residents.forget_all()
    loop.residents.grew(1 << 40)  # all of them are weighed
    resident = loop.execute([pack(Envelope(Holder, "a", Look()))[0]]).outcomes[0]
    assert isinstance(resident, Receipt | HandlerFailed)
    held = Holder("a", 1)
    held.one, held.many = Mine(method, kind), [Mine(method, kind)]
    copied(held)  # None, or a copy


class Asked(Query[int]):
    kind: str


class Everywhere(Query[int]):
    kind: str


def _raise(kind: str) -> Any:
    raise KINDS[kind]


class Divided(Projection, parts=2):
    @project
    def done(self, event: Done) -> None: ...

    @answer(key=lambda query: _raise(query.kind))
    def one(self, query: Asked) -> int:
        return 1

    @answer(merge=lambda answers: _raise(answers[0]))
    def all_of_them(self, query: Everywhere) -> int:
        return 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_route_of_queries_raises_is_told_by_name_whatever_it_is(kind: str) -> None:
    with pytest.raises(HandlerFailed, match=rf"Divided @answer\(key=...\) failed on Asked: .*{kind}"):
        part_asked(Divided, Asked(kind=kind), 2)
    with pytest.raises(HandlerFailed, match=rf"Divided @answer\(merge=...\) failed on Everywhere: .*{kind}"):
        merged_answer(Divided, Everywhere(kind=kind), [kind, kind])
    assert part_asked(Divided, Everywhere(kind=kind), 2) is None
    assert part_asked(Divided, Asked(kind=kind), 1) == 0


def test_ctrl_c_interrupts_a_handler() -> None:
    class Long(Command):
        pass

    class Busy(Aggregate, placement=Shared()):
        @decide
        def long(self, command: Long) -> None:
            signal.raise_signal(signal.SIGINT)

    loop = WriteLoop(0, MemoryLog(), Catalogue([Busy]))
    loop.activate()
    with pytest.raises(KeyboardInterrupt):
        loop.execute([pack(Envelope(Busy, "a", Long()))[0]])


# Upcasts ---------------------------------------------------------------------------------------------------------


class Grown(Event, version=2):
    many: list[int]
    how: str = ""

    @staticmethod
    @upcast(from_version=1)
    def more(payload: dict[str, Any]) -> dict[str, Any]:
        if payload["how"] == "many":
            return payload | {"many": [1] * (ITEMS_MAX + 1)}
        raise KINDS[payload["how"]]


class Grows(Aggregate):
    @evolve
    def grown(self, event: Grown) -> None: ...


@pytest.mark.parametrize(("how", "text"), [("many", "exceeds max"), *((kind, kind) for kind in KINDS)])
def test_what_an_upcaster_gives_obeys_the_limits_and_what_it_raises_is_its_failure(how: str, text: str) -> None:
    payload = msgpack.packb({"many": [], "how": how})
    old = StoredEvent(1, StreamId("Grows", "a"), 1, "Grown", 1, payload, 0, bytes(16), b"", b"")
    with pytest.raises(UnknownEvent, match=text):
        Catalogue([Grows]).decode_event(old)
