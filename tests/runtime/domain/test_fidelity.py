"""What a saved state comes back as: as it was, in value, type and sharing, or not at all."""

from __future__ import annotations

import enum
import functools
import math
import re
import struct
import threading
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr, RootModel, TypeAdapter, field_validator
from typing_extensions import TypedDict

from rayfold.runtime.domain.aggregate import Aggregate, evolve
from rayfold.runtime.domain.difference import difference
from rayfold.runtime.domain.messages import Event
from rayfold.runtime.domain.projection import Projection, project
from rayfold.runtime.encoding.saved_state import check_restored, checked_state, decode_state, encode_state
from rayfold.runtime.errors import InvalidMessage

T = TypeVar("T")


class Colour(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796 - an alias
    BLUE = (1, "b")

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Item(BaseModel):
    sku: str
    price: int = 1

    @field_validator("price")
    @classmethod
    def small(cls, price: int) -> int:
        if price > 100:
            raise ValueError("too dear")
        return price


class Gift(Item):
    message: str = ""


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    _seen: int = PrivateAttr(default=0)
    _log: list[str] = PrivateAttr(default_factory=list)


class Tags(RootModel[list[str]]):
    pass


class Box(BaseModel, Generic[T]):
    content: T


@dataclass
class Line:
    qty: int
    left: int = field(init=False)

    def __post_init__(self) -> None:
        MADE.append(self.qty)
        self.left = self.qty


@dataclass
class Refund(Line):
    why: str = ""


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


@dataclass(slots=True)
class Slotted:
    a: int
    b: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sealed:
    a: int


class Seat(NamedTuple):
    row: int
    letter: str


class Name(str):
    """Text of a class of its own."""


class Cents(int):
    """A number of a class of its own."""


class Registry(dict[str, int]):
    """A dict with an attribute."""

    limit = 0


class Stack(list[int]):
    """A list of a class of its own."""


class Plain:
    """An object that is nothing special."""

    def __init__(self, value: int) -> None:
        MADE.append(value)
        self.value = value


class Kept(UserDict[str, int]):
    """A dict in an object."""


class Entry(TypedDict):
    n: int


MADE: list[int] = []
"""What `__init__` and `__post_init__` methods were called with."""


def zero() -> int:
    return 0


class Happened(Event):
    items: tuple[int, ...] = ()
    at: datetime | None = None


class Holder(Aggregate, snapshot_every=1):
    """Holds anything; its handler names the classes above."""

    value: Any = None
    other: Any = None
    counted: dict[str, int] = field(default_factory=lambda: defaultdict(lambda: 5))
    nested: dict[str, Any] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    CLASSES: ClassVar[tuple[Any, ...]] = (Colour, Level, Word, Right, Item, Loose, Tags, Box[int], Line, Point)

    @evolve
    def happened(self, event: Happened) -> None:
        self.value = (Slotted, Sealed, Seat, Name, Cents, Registry, Stack, Plain, Kept, Entry, zero)


def back(value: Any) -> Any:
    """What a field with this value comes back as; equal in every respect, or this raises."""
    holder = Holder("x", 7)
    holder.value = value
    state = checked_state(holder)
    check_restored(Holder, state)
    again = decode_state(Holder, state, "x", 7)
    assert difference(holder, again) == ""
    assert encode_state(again) == state
    return again.value


def with_private() -> Loose:
    loose = Loose(extra=[1])  # type: ignore[call-arg]
    loose._seen = 4
    loose._log.append("x")
    return loose


def registry() -> Registry:
    made = Registry(a=1)
    made.limit = 9
    return made


def with_attribute(value: Any, name: str = "note") -> Any:
    object.__setattr__(value, name, ["more"])
    return value


ANY_CLASS: Any = Point
ZURICH = ZoneInfo("Europe/Zurich")
PYDANTIC_TIME = TypeAdapter(datetime).validate_python("2024-01-01T00:00:00+05:30")

VALUES: list[Any] = [
    *(
        0,
        -0.0,
        math.inf,
        math.nan,
        2**63,
        -(2**200),
        10**5000,
        True,
        "",
        "é\0",
        b"\xff",
        None,
        1 + 2j,
        complex(-0.0, math.nan),
    ),
    *(bytearray(b"x"), [bytearray(b"a"), {"k": bytearray(b"")}], (bytearray(b"t"),)),
    *([], [1, [2, (3, {4})]], (), (1, (2,)), {}, {1: "a", "1": "b", (1, 2): 3, None: 4}, frozenset({frozenset({1})})),
    *({True: 1}, {1.5: 2}, {math.nan: 1}, {math.nan}, {date(2024, 1, 1): []}, [True, 1, 1.0]),
    *(defaultdict(int, a=1), defaultdict(list, {"a": [1]}), defaultdict(None, a=1), defaultdict(zero, a=1)),
    *(
        defaultdict(functools.partial(defaultdict, int)),
        defaultdict(ANY_CLASS),
        defaultdict(Counter, {"a": Counter("aab")}),
    ),
    *(Counter("hello"), OrderedDict(b=1, a=2), deque([1, 2], maxlen=3), deque([[1]])),
    *(Decimal("-0"), Decimal("sNaN"), Decimal("1E+5"), Decimal("1.10"), Fraction(1, 3), range(1, 9, 2)),
    *(UUID(int=5), IPv4Address("10.0.0.1"), ip_network("10.0.0.0/8"), Path("/a/b"), PurePosixPath("c")),
    *(datetime(2024, 10, 27, 2, 30, tzinfo=ZURICH), datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZURICH)),
    *(datetime(2024, 10, 27, 2, 30, fold=1), datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 0, 0, 0, 7)),
    *(PYDANTIC_TIME, datetime(1800, 1, 1, tzinfo=timezone(timedelta(hours=1, seconds=33, microseconds=5)))),
    *(datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2), "CEST")), time(1, 2, fold=1), time(1, tzinfo=UTC)),
    *(timedelta(days=-1, microseconds=1), date(1, 1, 1), ZURICH, UTC, timezone(timedelta(hours=1), "X")),
    *(Colour.RED, Colour.CRIMSON, Colour.BLUE, Level.LOW, Word.YES, Right.READ, Right.READ | Right.WRITE, Right(0)),
    *({Level.LOW: 1}, {Word.YES: [Colour.RED]}, [Level.LOW, 1], {Point(1): Point(2, 3)}, {Seat(1, "A"): Seat(2, "B")}),
    *(
        Item(sku="a"),
        Gift(sku="g", message="hello"),
        [Item(sku="a"), Gift(sku="b")],
        Item.model_construct(sku=5, price=500),
    ),
    *(with_private(), Tags(["a"]), Box[int](content=1), Happened(items=(1,), at=datetime(2024, 1, 1, tzinfo=UTC))),
    *(
        Line(5),
        Refund(3, why="x"),
        with_attribute(Line(1)),
        Point(1),
        with_attribute(Point(2)),
        Slotted(1, [2]),
        Sealed(1),
    ),
    *(Name("n"), with_attribute(Name("n")), Cents(5), {Cents(5): Name("x")}, registry(), Stack([1, 2]), Plain(5)),
    *(Kept(a=1), Entry(n=1), [Item, Point, Colour], {"a": (Line(1), [Point(1)])}),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    again = back(value)
    assert type(again) is type(value)


def test_a_defaultdict_goes_on_where_it_was() -> None:
    holder = Holder("x", 1)
    holder.counted["a"] += 1
    holder.nested["a"]["b"].append(1)
    again = decode_state(Holder, checked_state(holder))
    again.counted["b"] += 1
    again.nested["c"]["d"].append(2)
    assert again.counted == {"a": 6, "b": 6}
    assert again.nested == {"a": {"b": [1]}, "c": {"d": [2]}}


def test_an_attribute_that_was_never_declared_comes_back_too() -> None:
    holder = Holder("x", 3)
    holder.extra = [1, Point(2)]  # type: ignore[attr-defined]
    again: Any = decode_state(Holder, checked_state(holder))
    assert again.extra == [1, Point(2)]


def test_nothing_of_the_users_runs_while_a_state_is_restored() -> None:
    holder = Holder("x", 1)
    holder.value = [Line(5), Plain(6), Item.model_construct(sku="a", price=500)]
    holder.value[0].left = 2
    state = checked_state(holder)
    MADE.clear()
    again = decode_state(Holder, state)
    assert MADE == []
    assert (again.value[0].left, again.value[2].price) == (2, 500)


def test_a_nan_keeps_its_bits() -> None:
    odd = struct.unpack("d", b"\x01\0\0\0\0\0\xf8\x7f")[0]
    assert struct.pack("d", back(odd)) == struct.pack("d", odd)


def refusal(fill: Callable[[Any], None]) -> str:
    holder = Holder("x", 1)
    fill(holder)
    with pytest.raises(InvalidMessage) as caught:
        checked_state(holder)
    return str(caught.value)


def shared_lists(holder: Any) -> None:
    holder.value = holder.other = [1]


def shared_inside(holder: Any) -> None:
    line = Line(1)
    holder.value = {"by id": {1: line}, "in order": [line]}


def shared_through_tuples(holder: Any) -> None:
    inner: list[int] = []
    holder.value, holder.other = (inner,), ((inner, 1),)


def shared_in_attributes(holder: Any) -> None:
    inner: list[int] = []
    holder.value = [Slotted(1, inner), Slotted(2, inner)]


def cycle(holder: Any) -> None:
    holder.value = []
    holder.value.append(holder.value)


def cycle_of_objects(holder: Any) -> None:
    holder.value = Plain(1)
    holder.value.parent = holder.value


def itself(holder: Any) -> None:
    holder.value = holder


def gone(holder: Any) -> None:
    del holder.value


def nested(levels: int) -> list[Any]:
    return [nested(levels - 1)] if levels else []


class Unnamed:
    """A class that no handler names."""


def unnamed_lambda(holder: Any) -> None:
    holder.value = defaultdict(lambda: 1)


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (shared_lists, "its field other cannot be saved: it holds one list that its field value holds too"),
        (shared_inside, "its field value cannot be saved: it holds one Line in two places, or one that holds itself"),
        (shared_through_tuples, "its field other cannot be saved: it holds one list that its field value holds too"),
        (shared_in_attributes, "its field value cannot be saved: it holds one list in two places"),
        (cycle, "it holds one list in two places, or one that holds itself"),
        (cycle_of_objects, "it holds one Plain in two places, or one that holds itself"),
        (itself, "its field value cannot be saved: "),
        (gone, "its field value is gone"),
        (unnamed_lambda, "nothing names the default_factory of a defaultdict"),
        (
            lambda holder: setattr(holder, "value", Unnamed()),
            "neither its fields nor its handlers name the class Unnamed",
        ),
        (lambda holder: setattr(holder, "value", {"a": [threading.Lock()]}), "its field value cannot be saved: "),
        (lambda holder: setattr(holder, "value", iter(())), "its field value cannot be saved: "),
        (lambda holder: setattr(holder, "value", memoryview(b"x")), "a memoryview cannot be stored"),
        (lambda holder: setattr(holder, "value", "\udc80"), "its field value cannot be saved: "),
        (lambda holder: setattr(holder, "value", re.compile("x")), "its field value cannot be saved: "),
        (lambda holder: setattr(holder, "value", nested(300)), "levels"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused_by_class_field_and_reason(
    fill: Callable[[Any], None], told: str
) -> None:
    assert refusal(fill).startswith("Holder: ")
    assert told in refusal(fill)


def test_one_unchangeable_object_may_be_in_two_places() -> None:
    point, text = Point(1), Name("x")
    assert back([point, point, (point,), text, text, Colour.RED, Colour.RED]) == [
        point,
        point,
        (point,),
        text,
        text,
        Colour.RED,
        Colour.RED,
    ]


def two_of_one_name() -> list[Any]:
    def made(number: int) -> Any:
        @dataclass
        class Twin:
            n: int = number

        return Twin

    return [made(1), made(2)]


ONE, TWO = two_of_one_name()
SAME, _ = two_of_one_name()


class Order:
    class Status(enum.Enum):
        """Of an order."""

        OPEN = "open"


class Parcel:
    class Status(enum.Enum):
        """Of a parcel."""

        SENT = "sent"


class Twins(Aggregate):
    value: Any = None

    @evolve
    def happened(self, event: Happened) -> None:
        self.value = [SAME(), ONE(), TWO(), Order.Status, Parcel.Status]


def test_two_classes_of_one_name_are_told_apart_by_what_they_are() -> None:
    twins = Twins("x", 0)
    twins.value = [TWO(), Order.Status.OPEN, Parcel.Status.SENT]
    again = decode_state(Twins, checked_state(twins))
    assert [type(one) for one in again.value] == [TWO, Order.Status, Parcel.Status]


def test_two_classes_of_one_name_that_are_the_same_are_refused() -> None:
    twins = Twins("x", 0)
    twins.value = SAME()
    with pytest.raises(InvalidMessage, match="two classes that its handlers name are called Twin"):
        checked_state(twins)


class Sums(Projection):
    version: int = 0
    id: str = ""
    sums: dict[str, int] = field(default_factory=Counter)

    @project
    def happened(self, event: Happened) -> None:
        self.version += 1


def test_a_read_model_may_have_fields_called_id_and_version() -> None:
    sums = Sums()
    sums.version, sums.id = 5, "x"
    sums.sums["a"] += 1
    again = decode_state(Sums, checked_state(sums))
    assert (again.version, again.id, again.sums["missing"]) == (5, "x", 0)


# --- comparing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"a": [1, 2]}, {"a": [1, 3]}, "it['a'][1] is 3, where it was 2"),
        ([1], [True], "it[0] is a bool, True, where it was a int, 1"),
        (0.0, -0.0, "it is -0.0, where it was 0.0"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "it has the key 'b' where 'a' was"),
        ({"a": 1}, {"a": 1, "b": 2}, "it has 2 keys, where it had 1: 'b' is new"),
        ({1}, {2}, "it is 2, where it was 1"),
        ([1], [1, 2], "it has 2 items, [1, 2], where it had 1, [1]"),
        (Line(1), with_attribute(Line(1)), "it.note was not there"),
        (defaultdict(int), defaultdict(str), "it.default_factory is <class 'str'>, where it was <class 'int'>"),
        (deque([1], 2), deque([1]), "it has the maxlen None, where it was 2"),
        (Item(sku="a"), Gift(sku="a"), "it is a Gift, Gift(sku='a', price=1, message=''), where it was a Item, "),
        ("x" * 1000, "y", "it is 'y', where it was 'xxxxxxx"),
    ],
)
def test_a_difference_is_named_by_place_and_both_values(one: Any, other: Any, told: str) -> None:
    found = difference(one, other, "it")
    assert found.replace("it's ", "it ").startswith(told)
    assert len(found) < 300
    assert difference(one, one) == ""


def test_one_object_in_two_places_differs_from_two_objects() -> None:
    inner = [1]
    assert (
        difference([inner, inner], [[1], [1]], "it")
        == "it[1] is one list in two places on one side, and two on the other"
    )
    assert (
        difference([[1], [1]], [inner, inner], "it")
        == "it[1] is one list in two places on one side, and two on the other"
    )
    assert difference([inner, inner], [other := [1], other]) == ""


def test_the_order_of_a_dict_counts_unless_it_is_not_to() -> None:
    one, other = {"a": 1, "b": {"x": 1, "y": 2}}, {"b": {"y": 2, "x": 1}, "a": 1}
    assert difference(one, other) != ""
    assert difference(one, other, ordered=False) == ""
    other["b"] = {"y": 3, "x": 1}
    assert difference(one, other, ordered=False) == "['b']['y'] is 3, where it was 2"


@pytest.mark.parametrize(
    "value", [UUID(int=1), PurePosixPath("/a"), Fraction(1, 3), Decimal(1), IPv6Address("::1")], ids=repr
)
def test_a_value_that_cannot_change_may_be_one_object_or_two(value: Any) -> None:
    another = type(value)(str(value))
    assert difference([value, value], [value, another]) == ""
    assert difference({"a": value, "b": another}, {"a": value, "b": value}) == ""


def test_a_dict_with_an_order_of_its_own_is_compared_by_that() -> None:
    moved, made = OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)
    moved.move_to_end("a")
    assert difference(moved, made) == ""
    assert difference(moved, OrderedDict(a=1, b=2)) != ""


def test_what_holds_itself_can_be_compared() -> None:
    one: list[Any] = []
    one.append(one)
    other: list[Any] = []
    other.append(other)
    assert difference(one, other) == ""
