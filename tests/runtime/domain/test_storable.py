"""What no message could ever be stored with is refused when its class is defined; what works goes on working."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Generic, TypeVar

import pytest
from pydantic import BaseModel, PlainSerializer, PrivateAttr, RootModel, field_serializer, model_serializer

from rayfold import Command, DefinitionError, Event, Query
from rayfold.runtime.encoding.codec import decode_message, encode_checked

T = TypeVar("T")


class Item(BaseModel, frozen=True):
    name: str


@dataclass(frozen=True)
class Place:
    row: int


class Name(RootModel[str], frozen=True):
    """Stored as the text that it is."""


class Told(BaseModel, frozen=True):
    """Stored as what its serializer returns."""

    name: str

    @model_serializer
    def as_text(self) -> str:
        return self.name


class Odd(enum.Enum):
    DAY = date(2013, 1, 1)


class Listed(enum.Enum):
    ONE = [1]


class Huge(enum.Enum):
    MANY = 1 << 70


class NoNumber(enum.Enum):
    NAN = float("nan")


class Plain(enum.Enum):
    TEXT = "text"
    NUMBER = 2
    PAIR = (1, "x")
    NOTHING = None


def event_with(annotation: Any, **more: Any) -> type[Event]:
    return type("Happened", (Event,), {"__annotations__": {"field": annotation}, "__module__": __name__, **more})


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (frozenset[Item], "it has Item in a set or as a key, which is stored as a map, and a map can be neither"),
        (set[Place], "use tuple[Place, ...], or text or numbers as keys"),
        (frozenset[Item] | None, "it has Item in a set"),
        (tuple[frozenset[Item], ...], "it has Item in a set"),
        (dict[str, list[frozenset[tuple[int, Item]]]], "it has Item in a set"),
        (dict[Item, int], "it has Item in a set or as a key"),
        (dict[tuple[Place, int], int], "it has Place in a set or as a key"),
        (
            Odd,
            "Odd.DAY has the value datetime.date(2013, 1, 1), which cannot be stored; give its members values of text",
        ),
        (list[Odd | None], "Odd.DAY has the value"),
        (Huge, "Huge.MANY has the value 1180591620717411303424"),
        (NoNumber, "NoNumber.NAN has the value nan"),
        (dict[Listed, int], "Listed.ONE has the value [1]"),
    ],
)
def test_a_field_whose_values_cannot_be_stored_is_refused_when_the_class_is_defined(annotation: Any, text: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        event_with(annotation)
    assert str(caught.value).startswith("Happened.field: ")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (tuple[Item, ...], (Item(name="a"),)),
        (dict[str, Item], {"a": Item(name="a")}),
        (frozenset[Name], frozenset([Name("a"), Name("b")])),
        (frozenset[tuple[int, str]], frozenset([(1, "a")])),
        (Plain, Plain.PAIR),
        (frozenset[Plain], frozenset([Plain.TEXT, Plain.PAIR, Plain.NOTHING])),
        (dict[Plain, int], {Plain.NUMBER: 1}),
        (Listed, Listed.ONE),
    ],
)
def test_what_can_be_stored_is_read_back_equal(annotation: Any, value: Any) -> None:
    cls: Any = event_with(annotation)
    packed, seen = encode_checked(cls(field=value))
    assert seen == decode_message(cls, packed) == cls(field=value)


@pytest.mark.parametrize(
    "define",
    [
        lambda: event_with(frozenset[Told]),
        lambda: event_with(Annotated[Odd, PlainSerializer(lambda value: value.name)]),
        lambda: event_with(frozenset[Annotated[Item, PlainSerializer(lambda value: value.name)]]),
        lambda: event_with(Odd, told=field_serializer("field")(lambda _, value: value.name)),
    ],
)
def test_what_has_a_serializer_of_its_own_is_left_to_the_codec(define: Callable[[], Any]) -> None:
    assert define().message_name == "Happened"


@pytest.mark.parametrize("base", [Command, Event])
def test_a_generic_message_is_refused_when_it_is_defined(base: Any) -> None:
    with pytest.raises(DefinitionError, match="Boxed: it is generic, .*; define one class for each type"):

        class Boxed(base, Generic[T]):  # type: ignore[misc]
            content: T

    with pytest.raises(DefinitionError, match="Asked: it is generic"):

        class Asked(Query[int], Generic[T]):
            content: T


def test_a_private_attribute_that_only_a_program_could_set_is_refused() -> None:
    with pytest.raises(DefinitionError, match="Seen._times: a private attribute is not stored, so no reader would see"):

        class Seen(Event):
            name: str
            _times: int = PrivateAttr(default=0)


def test_a_private_attribute_that_the_class_fills_itself_is_there_for_every_reader() -> None:
    class Counted(Event):
        name: str
        _length: int = 0

        def model_post_init(self, context: Any) -> None:
            self._length = len(self.name)

    packed, seen = encode_checked(Counted(name="alice"))
    assert (seen._length, decode_message(Counted, packed)._length) == (5, 5)

    class Derived(Counted):
        more: int = 0

    packed, seen = encode_checked(Derived(name="bob"))
    assert (seen._length, decode_message(Derived, packed)._length) == (3, 3)
