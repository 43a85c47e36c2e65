"""Purity: a decide handler that changes the state is found, and one that only reads is known to."""

from __future__ import annotations

import array
import collections
import copy
import dataclasses
import functools
import logging
import re
import types
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from enum import Enum
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, ConfigDict, Field

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.encoding.outcome import Outcome
from rayfold.runtime.errors import HandlerFailed, Rejected
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import StreamId
from rayfold.runtime.testing import given
from rayfold.runtime.write.purity import changed, reads_only, witness_of
from rayfold.runtime.write.write_loop import WriteLoop

# What a witness sees ---------------------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("__hidden", "__weakref__")

    def __init__(self) -> None:
        self.__hidden = [1]

    def change(self) -> None:
        self.__hidden.append(2)


class Items(list[int]):
    pass


class Part(BaseModel):
    numbers: list[int]


@dataclasses.dataclass
class Pair:
    left: list[int]


def circle() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


def deep() -> list[Any]:
    outside: list[Any] = []
    for _ in range(2_000):
        outside = [outside]
    return outside


CHANGES: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (lambda: {"a": 1}, lambda value: value.update(b=1)),
    (lambda: {"a": 1, "b": 2}, lambda value: value.update(a=value.pop("a"))),
    (lambda: {"a": [1, {2}]}, lambda value: value["a"][1].add(3)),
    (lambda: [1], lambda value: value.__setitem__(0, True)),
    (lambda: [0.0], lambda value: value.__setitem__(0, -0.0)),
    (lambda: [Decimal(1)], lambda value: value.__setitem__(0, Decimal(2))),
    (lambda: [datetime(2020, 1, 1)], lambda value: value.__setitem__(0, datetime(2020, 1, 1, fold=1))),
    (lambda: [1 << 80, "\ud800"], lambda value: value.append(1)),
    (lambda: ({},), lambda value: value[0].update(a=1)),
    (lambda: {1}, lambda value: value.discard(1)),
    (lambda: collections.defaultdict(int), lambda value: value["asked for"]),
    (lambda: collections.deque([1]), lambda value: value.append(1)),
    (lambda: collections.OrderedDict(a=1, b=2), lambda value: value.move_to_end("a")),
    (lambda: collections.Counter("a"), lambda value: value.update("a")),
    (lambda: collections.ChainMap({}), lambda value: value.update(a=1)),
    (lambda: array.array("i", [1]), lambda value: value.append(1)),
    (lambda: bytearray(b"x"), lambda value: value.append(1)),
    (lambda: iter([1, 2]), lambda value: next(value)),
    (lambda: types.SimpleNamespace(a=1), lambda value: setattr(value, "a", 2)),
    (lambda: ValueError([1]), lambda value: value.args[0].append(1)),
    (Slotted, lambda value: value.change()),
    (lambda: Items([1]), lambda value: value.append(2)),
    (lambda: Items([1]), lambda value: setattr(value, "more", 1)),
    (lambda: Part(numbers=[1]), lambda value: value.numbers.append(1)),
    (lambda: Part(numbers=[1]), lambda value: value.__dict__.update(more=1)),
    (lambda: Pair([1]), lambda value: value.left.append(1)),
    (circle, lambda value: value.append(1)),
    (deep, lambda value: value.append(1)),
]


@pytest.mark.parametrize(("make", "change"), CHANGES)
def test_a_change_anywhere_in_a_state_is_seen(make: Callable[[], Any], change: Callable[[Any], Any]) -> None:
    attributes = {"number": 1, "part": make()}
    before = witness_of(attributes)
    assert changed(attributes, before) == ""
    change(attributes["part"])
    assert changed(attributes, before) == "part"


@dataclasses.dataclass(frozen=True)
class Price:
    cents: int

    @functools.cached_property
    def text(self) -> str:
        return f"{self.cents / 100:.2f}"


class NetPrice(Price):
    pass


class Weight(BaseModel):
    model_config = ConfigDict(frozen=True)

    grams: int

    @functools.cached_property
    def text(self) -> str:
        return f"{self.grams / 1000:.3f}"


LOOKS: list[tuple[Any, Callable[[Any], Any]]] = [
    (Price(5), lambda value: value.text),
    (NetPrice(5), lambda value: value.text),
    (Weight(grams=5), lambda value: value.text),
    (Path("/a/b"), lambda value: (str(value), hash(value), value.parent, value.parts)),
    (ip_network("10.0.0.0/8"), lambda value: (hash(value), value.hostmask, value.broadcast_address)),
    (ip_network("fe80::/64"), lambda value: (value.is_private, value.netmask)),
    (ZoneInfo("Europe/Berlin"), lambda value: value.utcoffset(datetime(2020, 7, 1))),
    (re.compile("a"), lambda value: value.match("a")),
]


@pytest.mark.parametrize(("value", "look"), LOOKS, ids=lambda one: type(one).__name__)
def test_what_a_value_keeps_of_what_it_was_asked_is_no_change(value: Any, look: Callable[[Any], Any]) -> None:
    for part in (value, [value], {"a": (value,)}):
        attributes = {"part": copy.deepcopy(part)}
        before = witness_of(attributes)
        inner = attributes["part"]
        while isinstance(inner, list | dict | tuple):
            inner = inner["a"] if isinstance(inner, dict) else inner[0]
        look(inner)
        assert changed(attributes, before) == ""


@pytest.mark.parametrize("value", [NetPrice(5), Weight(grams=5)], ids=repr)
def test_a_change_behind_the_back_of_a_frozen_class_is_seen(value: Any) -> None:
    attributes = {"part": [value]}
    before = witness_of(attributes)
    value.__dict__.update(more=1)
    assert changed(attributes, before) == "part"


def test_attributes_that_come_go_or_are_set_anew_are_seen() -> None:
    attributes: dict[str, Any] = {"balance": 5, "name": "Ada"}
    before = witness_of(attributes)
    for other, name in (
        ({"balance": 6, "name": "Ada"}, "balance"),
        ({"balance": 5}, "name"),
        ({"balance": 5, "name": "Ada", "more": None}, "more"),
        ({"balance": 5.0, "name": "Ada"}, "balance"),
    ):
        assert changed(other, before) == name


# What a proof knows ----------------------------------------------------------------------------------------------


class Level(Enum):
    HIGH = "high"


class Go(Command):
    amount: int = 1
    level: Level = Level.HIGH
    seats: list[int] = Field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.seats)

    def applied_to(self, seats: list[int]) -> None:
        seats.append(self.amount)


class Went(Event):
    amount: int


class Sat(Event):
    seats: list[int]


class Refused(Rejected):
    pass


LIMIT = 10


class Car(Aggregate, placement=Shared()):
    amount: int = 0
    seats: dict[int, str] = {}
    row: list[int] = []

    @evolve
    def went(self, event: Went) -> None:
        self.amount += event.amount
        for seat in range(event.amount):
            self.seats[seat] = "taken"

    @evolve
    def sat(self, event: Sat) -> None:
        self.row.extend(event.seats)

    @property
    def free(self) -> int:
        return LIMIT - len(self.seats)

    def best(self) -> int:
        return min(self.seats, default=0)

    def take(self) -> None:
        self.row.pop()

    def looks(self, command: Go) -> Iterator[Went]:
        found = []
        total = 0
        for seat, name in self.seats.items():
            total += seat
            if name == "taken" and command.level is Level.HIGH and self.free > self.best():
                found.append(Went(amount=seat))
        if total > command.total or any(seat > command.amount for seat in self.row):
            raise Refused("too_much", total=total, free=f"{self.free:>5}", row=sorted(self.row))
        yield from found

    def assigns(self, command: Go) -> None:
        self.amount -= 1

    def adds(self, command: Go) -> None:
        self.undeclared = 1

    def stores(self, command: Go) -> None:
        self.seats[1] = "x"

    def deletes(self, command: Go) -> None:
        del self.seats[1]

    def calls(self, command: Go) -> None:
        self.row.append(1)

    def takes_the_method(self, command: Go) -> None:
        take = self.row.pop
        take()

    def maps_the_method(self, command: Go) -> None:
        list(map(self.row.append, command.seats))

    def in_place(self, command: Go) -> None:
        row = self.row
        row += [1]

    def in_place_after_a_constant(self, command: Go) -> None:
        row: Any = ()
        if command.amount:
            row = self.row
        row += (1,)

    def by_a_method(self, command: Go) -> None:
        self.take()

    def by_a_function(self, command: Go) -> None:
        setattr(self, "amount", 2)  # noqa: B010 - the point

    def by_the_command(self, command: Go) -> None:
        command.applied_to(self.row)

    def by_its_dict(self, command: Go) -> None:
        self.__dict__["amount"] = 2

    def by_a_class(self, command: Go) -> None:
        list.append(self.row, 1)

    def in_a_lambda(self, command: Go) -> None:
        sorted([1], key=lambda seat: self.row.append(seat) or 1)  # type: ignore[func-returns-value]


def test_a_handler_that_only_reads_is_known_to() -> None:
    assert reads_only(Car, Car.looks, Go)


@pytest.mark.parametrize(
    "name",
    [
        *("assigns", "adds", "stores", "deletes", "calls", "takes_the_method", "maps_the_method", "in_place"),
        *("in_place_after_a_constant", "by_a_method", "by_a_function", "by_the_command", "by_its_dict", "by_a_class"),
        "in_a_lambda",
    ],
)
def test_a_handler_that_may_change_something_is_watched(name: str) -> None:
    assert not reads_only(Car, getattr(Car, name), Go)


def test_reading_is_not_trusted_where_code_of_the_user_may_be_behind_it() -> None:
    class Counting(Aggregate):
        seen: collections.defaultdict[str, int] = dataclasses.field(
            default_factory=lambda: collections.defaultdict(int)
        )

        def looks(self, command: Go) -> None:
            self.seen["x"]

    class Hidden(Aggregate):
        seen: dict[str, int] = {}

        @evolve
        def went(self, event: Went) -> None:
            self.seen = collections.defaultdict(int)

        def looks(self, command: Go) -> None:
            self.seen["x"]

    class Typed(Aggregate):
        part: Part | None = None

        def looks(self, command: Go) -> None:
            self.part  # noqa: B018 - the point

    for cls in (Counting, Hidden, Typed):
        assert not reads_only(cls, cls.looks, Go)


# What becomes of it ----------------------------------------------------------------------------------------------


class Put(Command):
    amount: int


class Spoil(Command):
    how: str
    ends: str = "rejected"


class Was(Event):
    amount: int


class Box(Aggregate, placement=Shared(), snapshot_every=2):
    total: int = 0
    parts: dict[str, list[int]] = {}

    @decide
    def put(self, command: Put) -> Was | Rejected:
        if self.total < 0 or sum(map(len, self.parts.values())) != self.version:
            return Rejected("spoilt", total=self.total)
        return Was(amount=command.amount)

    @decide
    def spoil(self, command: Spoil) -> Iterator[Was | Rejected]:
        if command.how == "attribute":
            self.total = -1
        elif command.how == "container":
            self.parts["was"].append(1)
        elif command.how == "undeclared":
            self.more = 1
        elif command.how == "version":
            self.version += 1
        if command.ends == "accepted":
            yield Was(amount=1)
        elif command.ends == "raises":
            raise ValueError("no")
        elif command.ends == "rejected":
            yield Rejected("no")

    @evolve
    def was(self, event: Was) -> None:
        self.total += event.amount
        self.parts.setdefault("was", []).append(event.amount)


@pytest.fixture
def loop() -> WriteLoop:
    loop = WriteLoop(0, MemoryLog(), Catalogue([Box]))
    loop.activate()
    return loop


def sent(loop: WriteLoop, *commands: Command) -> list[Outcome]:
    return loop.execute([pack(Envelope(Box, "a", command))[0] for command in commands]).outcomes


@pytest.mark.parametrize("ends", ["accepted", "rejected", "nothing", "raises"])
@pytest.mark.parametrize(
    ("how", "name"), [("attribute", "total"), ("container", "parts"), ("undeclared", "more"), ("version", "version")]
)
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "batch by batch"])
def test_what_a_decide_handler_changes_does_not_outlive_its_command(
    loop: WriteLoop, how: str, name: str, ends: str, together: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    commands = [Put(amount=5), Spoil(how=how, ends=ends), Put(amount=6), Put(amount=7)]
    outcomes = sent(loop, *commands) if together else [sent(loop, command)[0] for command in commands]
    assert [type(outcomes[index]) for index in (0, 2, 3)] == [Receipt] * 3
    failed = outcomes[1]
    assert isinstance(failed, HandlerFailed)
    if ends != "raises":
        assert str(failed) == (
            f"Box.spoil failed on Box/a: it changed {name} of the state; only @evolve may: return an event that"
            " describes the change"
        )
    assert vars(loop.residents.check_out(StreamId("Box", "a"))) == vars(loop.residents.load(StreamId("Box", "a")))
    assert loop.residents.load(StreamId("Box", "a")).version == 3


def test_refusals_in_a_row_cost_one_look_at_the_state(loop: WriteLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[dict[str, Any]] = []

    def counted(state: dict[str, Any]) -> dict[str, Any]:
        looks.append(state)
        return witness_of(state)

    monkeypatch.setattr("rayfold.runtime.write.write_loop.witness_of", counted)
    sent(loop, Put(amount=5), *[Spoil(how="not at all")] * 10)
    assert len(looks) == 1
    sent(loop, Put(amount=5), Spoil(how="not at all"))
    assert len(looks) == 2


def test_what_a_state_is_compared_with_goes_with_the_state() -> None:
    loop = WriteLoop(0, MemoryLog(), Catalogue([Box]), residents_max=1)
    loop.activate()
    states = []
    for ident in ("a", "b", "c"):
        commands = [Put(amount=5), Spoil(how="not at all")]
        loop.execute([pack(Envelope(Box, ident, command))[0] for command in commands])
        states.append(weakref.ref(loop.residents._cache[StreamId("Box", ident)]))
    assert [state() is None for state in states] == [True, True, False]
    assert [stream.id for stream in loop._witnesses] == ["c"]


@pytest.mark.parametrize(
    ("how", "name"), [("attribute", "total"), ("container", "parts"), ("undeclared", "more"), ("version", "version")]
)
def test_a_specification_finds_it_as_production_does(how: str, name: str) -> None:
    with pytest.raises(AssertionError, match=f"Box.spoil changed.*{name}|Box.spoil changed the state"):
        given(Box, Was(amount=5)).when(Spoil(how=how))
