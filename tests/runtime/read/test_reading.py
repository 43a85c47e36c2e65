"""Reading: rules are for makers, and whatever user code raises is its own failure."""

from __future__ import annotations

import asyncio
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

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event, Query, upcast
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import ITEMS_MAX, decode_message, encode_checked
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.errors import HandlerFailed, InvalidMessage, UnknownEvent
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
