"""Shapes: what an event class stores, compared with what a later class stores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, NewType

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from rayfold import Event
from rayfold.runtime.shape import Shape, differences, event_shape, pack_shape, shape_of_names, unpack_shape

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
    with pytest.raises(ValueError, match="these bytes are no shape"):
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
                "a is stored, and is no field of the class",
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
                "a.x is stored, and is no field of the class",
                "a.y is a field of the class, and is not stored",
            ],
        ),
        ({"a": "{x}", "a.x": "int"}, {}, ["a is stored, and is no field of the class"]),
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


def test_a_class_that_is_completed_later_has_its_shape() -> None:
    class Late(Event):
        inner: Inner

    class Inner(BaseModel):
        x: int

    Late.model_rebuild()
    assert event_shape(Late) == {"inner": "{x}", "inner.x": "int"}
