"""Shapes: what an event class stores, compared with what a later class stores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, NewType

import pytest
from pydantic import BaseModel, Field, PlainSerializer
from typing_extensions import TypedDict

from rayfold import Event
from rayfold.runtime.encoding.shape import Shape, differences, event_shape, pack_shape, shape_of_names, unpack_shape

Sku = NewType("Sku", str)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    sku: Sku
    count: int = Field(1, ge=0)


@dataclass
class Parcel:
    weight: float
    lines: list[Line]


class Note(TypedDict):
    text: str


class Point(NamedTuple):
    x: int
    y: float


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


class Book(BaseModel):
    title: str
    pages: int


class Card(BaseModel):
    title: bytes


class Everything(Event, name="shape.Everything"):
    amount: Annotated[int, Field(gt=0)]
    price: Decimal | None = None
    at: datetime
    colour: Colour
    kind: Literal["b", "a"]
    lines: list[Line]
    by_key: dict[str, tuple[Line, ...]]
    parcel: Parcel
    note: Note
    point: Point
    tree: Tree
    either: Book | Card
    anything: Any = None
    left_out: int = Field(0, exclude=True)


def test_a_shape_has_a_text_for_the_type_of_every_stored_field() -> None:
    assert event_shape(Everything) == {
        "amount": "int",
        "anything": "Any",
        "at": "datetime",
        "by_key": "dict[str, tuple[{count, sku}, ...]]",
        "by_key.count": "int",
        "by_key.sku": "str",
        "colour@BLUE": "'blue'",
        "colour@RED": "'red'",
        "colour": "one of 'blue', 'red'",
        "either": "{pages, title} | {title}",
        "either.pages": "int",
        "either.title": "bytes | str",
        "kind": "one of 'a', 'b'",
        "lines": "list[{count, sku}]",
        "lines.count": "int",
        "lines.sku": "str",
        "note": "{text}",
        "note.text": "str",
        "parcel": "{lines, weight}",
        "parcel.lines": "list[{count, sku}]",
        "parcel.lines.count": "int",
        "parcel.lines.sku": "str",
        "parcel.weight": "float",
        "point": "tuple[int, float]",
        "point@0": "x",
        "point@1": "y",
        "price": "Decimal | None",
        "tree": "{children, name}",
        "tree.children": "list[{...}]",
        "tree.name": "str",
    }


def test_a_shape_comes_back_from_its_bytes_and_equal_shapes_have_equal_bytes() -> None:
    shape = event_shape(Everything)
    assert unpack_shape(pack_shape(shape)) == shape
    assert pack_shape(dict(reversed(shape.items()))) == pack_shape(shape)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x01", b"\x81\x01\xa1a", b"\x81\xa1a\x90", b"\x81\xa1a"])
def test_bytes_that_hold_no_shape_are_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="these bytes are not a shape"):
        unpack_shape(data)


def test_what_changes_nothing_that_is_stored_is_no_difference() -> None:
    class Item(BaseModel):
        """Another name, a description, constraints and a default."""

        count: int = 7
        sku: str = Field(max_length=3)

    class Old(Event):
        lines: list[Line]

    class New(Event):
        lines: list[Item]

    assert differences(event_shape(Old), event_shape(New)) == []


@pytest.mark.parametrize(
    ("held", "now", "told"),
    [
        (
            {"a": "int"},
            {"b": "int"},
            [
                "a is stored, and is not a field of the class",
                "b is a field of the class, and is not stored",
            ],
        ),
        ({"a": "int"}, {"a": "str"}, ["a is stored as int, and is str in the class"]),
        ({"a": "int"}, {"a": "int"}, []),
        (
            {"a": "{x}", "a.x": "int"},
            {"a": "{y}", "a.y": "int"},
            [
                "a is stored as {x}, and is {y} in the class",
                "a.x is stored, and is not a field of the class",
                "a.y is a field of the class, and is not stored",
            ],
        ),
        ({"a": "{x}", "a.x": "int"}, {}, ["a is stored, and is not a field of the class"]),
        ({}, {"a": "{x}", "a.x": "int"}, ["a is a field of the class, and is not stored"]),
    ],
)
def test_differences_are_told_one_by_one(held: Shape, now: Shape, told: list[str]) -> None:
    assert [str(one) for one in differences(held, now)] == told


def test_of_a_log_of_which_only_names_are_known_only_names_are_compared() -> None:
    held = shape_of_names(["parcel", "amount"])
    assert held == {"amount": "", "parcel": ""}
    assert differences(held, {"amount": "str", "parcel": "{weight}", "parcel.weight": "float"}) == []
    assert [one.path for one in differences(held, {"parcel": "{weight}", "parcel.weight": "float"})] == ["amount"]


def test_a_type_of_many_members_is_bounded_and_still_compared() -> None:
    members = {f"member_{number}": f"value {number}" for number in range(1_001)}
    one_more: Any = Enum("one_more", members)  # type: ignore[misc]  # members that are made
    members.popitem()
    many: Any = Enum("many", members)  # type: ignore[misc]

    class Old(Event):
        kind: many

    class New(Event):
        kind: one_more

    assert len(event_shape(Old)["kind"]) < 1_100
    assert [one.kind for one in differences(event_shape(Old), event_shape(New))] == ["type"]


def shape_with(annotation: Any) -> dict[str, str]:
    return event_shape(type("Made", (Event,), {"__annotations__": {"field": annotation}, "__module__": __name__}))


def enum(**members: Any) -> Any:
    return Enum("Made", members)


def alone(one: Any) -> Any:
    return one


def in_list(one: Any) -> Any:
    return list[one]


def in_map(one: Any) -> Any:
    return dict[str, tuple[one, ...] | None]


def named_tuple(*names: str) -> Any:
    return NamedTuple("Made", [(name, int) for name in names])


@pytest.mark.parametrize("container", [alone, in_list, in_map])
@pytest.mark.parametrize(
    ("held", "now", "meanings"),
    [
        (enum(A=1, B=2), enum(Z=1, A=2, B=3), ["field@A", "field@B"]),
        (enum(A=1, B=2), enum(B=1), ["field@B"]),
        (enum(RED="r", BLUE="b"), enum(RED="b", BLUE="r"), ["field@BLUE", "field@RED"]),
        (enum(A=1), enum(A="1"), ["field@A"]),
        (enum(A=1, B=2), enum(A=1, B=2, Z=3), []),
        (enum(RED="r"), enum(CRIMSON="r"), []),
        (enum(A=1, B=2), enum(A=1), []),
        (named_tuple("left", "right"), named_tuple("right", "left"), ["field@0", "field@1"]),
        (named_tuple("left"), named_tuple("first"), ["field@0"]),
        (named_tuple("left"), named_tuple("left", "right"), ["field@1"]),
        (named_tuple("left", "right"), named_tuple("left"), ["field@1"]),
        (tuple[int, int], named_tuple("left", "right"), []),
    ],
)
def test_what_would_be_read_as_something_else_is_a_difference(
    container: Any, held: Any, now: Any, meanings: list[str]
) -> None:
    found = differences(shape_with(container(held)), shape_with(container(now)))
    assert [one.path for one in found if one.kind != "type"] == meanings
    assert {one.kind for one in found if one.kind != "type"} <= {"meaning"}


def test_members_in_a_literal_have_a_meaning_as_well() -> None:
    one, other = enum(RED="r", BLUE="b"), enum(RED="b", BLUE="r")
    found = differences(
        shape_with(Literal[one.RED, one.BLUE, "none"]), shape_with(Literal[other.RED, other.BLUE, "none"])
    )
    assert [difference.path for difference in found] == ["field@BLUE", "field@RED"]


def test_of_a_log_that_was_written_before_meanings_were_kept_none_are_compared() -> None:
    for one in (enum(A=1), named_tuple("left", "right")):
        held = {path: text for path, text in shape_with(one).items() if "@" not in path}
        assert differences(held, shape_with(one)) == []


def test_a_value_that_has_another_text_in_each_process_has_no_meaning() -> None:
    by_name = PlainSerializer(lambda one: one.name, return_type=str)  # without one such values are refused
    assert set(shape_with(Annotated[enum(A=frozenset({"a", "b"}), B=object()), by_name])) == {"field"}


def test_a_class_that_is_completed_later_has_its_shape() -> None:
    class Late(Event):
        inner: Inner

    class Inner(BaseModel):
        x: int

    Late.model_rebuild()
    assert event_shape(Late) == {"inner": "{x}", "inner.x": "int"}


def test_a_class_in_a_union_that_gains_a_field_of_another_one_is_a_difference() -> None:
    class Dog(BaseModel):
        bark: int = 1

    class Cat(BaseModel):
        meow: int = 1

    class Both(BaseModel):
        bark: int = 1
        meow: int = 1

    class Stored(Event):
        pet: Dog | Cat
        more: list[Dog | Cat]

    class Same(Event):
        pet: Cat | Dog
        more: list[Cat | Dog]

    class Gained(Event):
        pet: Both | Cat
        more: list[Both | Cat]

    class Wider(Event):
        pet: Dog | Cat | None
        more: list[Dog | Cat | int]

    held = event_shape(Stored)
    assert differences(held, event_shape(Same)) == []
    assert {one.kind for one in differences(held, event_shape(Wider))} == {"type"}
    assert [str(one) for one in differences(held, event_shape(Gained)) if one.kind != "type"] == [
        "more is stored with the fields {bark}, and no class has just these there now",
        "pet is stored with the fields {bark}, and no class has just these there now",
    ]


def test_braces_in_a_literal_are_no_fields() -> None:
    class Stored(Event):
        key: Literal["{a}", "it's {b}"]

    class Wider(Event):
        key: Literal["{a} and", "it's {c}"]

    assert [one.kind for one in differences(event_shape(Stored), event_shape(Wider))] == ["type"]
