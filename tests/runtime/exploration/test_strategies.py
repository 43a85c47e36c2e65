"""What commands are made of: every annotated type, within its limits, and a clear error for one that cannot be made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntFlag
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired, Optional
from uuid import UUID

import hypothesis
import pytest
from hypothesis import strategies as st
from pydantic import (
    UUID4,
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    NaiveDatetime,
    NonNegativeInt,
    PastDate,
    StringConstraints,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from rayfold.runtime.domain.aggregate import Aggregate, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.errors import DefinitionError, InvalidMessage
from rayfold.runtime.exploration.strategies import QUIET, Maker
from rayfold.testing import explore


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Right(IntFlag):
    READ = 1
    WRITE = 2


class Money(BaseModel):
    amount: Decimal = Field(gt=0, max_digits=6, decimal_places=2)
    currency: Literal["EUR", "USD"] = "EUR"


class Tree(BaseModel):
    name: str
    children: tuple[Tree, ...] = ()
    parent: Optional[Tree] = None  # noqa: UP045 - as people write it


@dataclasses.dataclass(frozen=True)
class Pair:
    left: int
    right: str = "r"


class Place(NamedTuple):
    row: int
    seat: str


class Options(TypedDict):
    fast: bool
    note: NotRequired[str]


Pieces = NewType("Pieces", int)


class Go(Command):
    pass


class Went(Event):
    pass


class Walker(Aggregate):
    @decide
    def go(self, command: Go) -> Went:
        return Went()

    @evolve
    def went(self, event: Went) -> None: ...


def field_of(annotation: Any) -> Any:
    """A class of commands with this field."""
    return type("Made", (Command,), {"__annotations__": {"field": annotation}, "__module__": __name__})


def made(annotation: Any, *, examples: int = 30) -> list[Any]:
    """Values of a field of this annotation, of commands that could be sent."""
    commands = drawn(field_of(annotation), examples)
    found = [command.field for command in commands if command is not None]
    assert len(found) > len(commands) // 2, "most of them were refused"
    return found


def drawn(cls: type[Command], examples: int) -> list[Any]:
    """Commands, each of which can be sent, and None for those that their class refuses."""
    found: list[Any] = []

    @hypothesis.seed(0)
    @hypothesis.settings(**QUIET, max_examples=examples, phases=[hypothesis.Phase.generate])
    @hypothesis.given(Maker({}, ["example", "another"]).commands(cls))
    def make(command: Any) -> None:
        if command is not None:
            pack(Envelope(Walker, "example", command))
        found.append(command)

    make()
    return found


def test_numbers_keep_their_limits_and_small_ones_come_often() -> None:
    numbers = made(Annotated[int, Field(gt=3, le=1_000_000, multiple_of=5)])
    assert all(3 < number <= 1_000_000 and number % 5 == 0 for number in numbers)
    assert sum(number < 100 for number in numbers) > 5
    assert all(number >= 0 for number in made(NonNegativeInt))
    assert {type(number) for number in made(Pieces)} == {int}
    assert all(0 < number < 1 for number in made(Annotated[float, Field(gt=0, lt=1)]))
    assert made(Annotated[int, Field(ge=5, le=5)])[0] == 5
    assert all(number % 0.5 == 0 for number in made(Annotated[float, Field(multiple_of=0.5)]))


def test_decimals_keep_digits_and_places() -> None:
    for number in made(Annotated[Decimal, Field(gt=0, max_digits=5, decimal_places=2)]):
        assert 0 < number < 1_000
        assert number == round(number, 2)
    assert len(set(made(Decimal))) > 5
    assert all(number >= 10**15 for number in made(Annotated[Decimal, Field(ge=10**15)]))


def test_texts_keep_their_length_and_pattern_and_ids_come_often() -> None:
    texts = made(str, examples=100)
    assert "example" in texts
    assert "another" in texts
    assert all(len(text) == 30 for text in made(Annotated[str, Field(min_length=30, max_length=30)]))
    texts = drawn(field_of(Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]), 30)
    assert all(text is not None and len(text.field) == 3 for text in texts), "none ends with a line end"
    assert made(Annotated[str, StringConstraints(pattern=r"^[a-z]\$")])[0].endswith("$")
    assert all(1 <= len(data) <= 4 for data in made(Annotated[bytes, Field(min_length=1, max_length=4)]))


def test_times_keep_their_limits_and_their_zones() -> None:
    first = datetime(2024, 5, 1, tzinfo=UTC)
    assert all(at > first for at in made(Annotated[datetime, Field(gt=first)]))
    assert {at.tzinfo is None for at in made(datetime)} == {True, False}
    assert all(at.tzinfo is not None for at in made(AwareDatetime))
    assert all(at.tzinfo is None for at in made(NaiveDatetime))
    assert all(day >= date(2030, 1, 1) for day in made(Annotated[date, Field(ge=date(2030, 1, 1))]))
    assert all(day < date.today() for day in made(PastDate))
    assert all(span > timedelta(0) for span in made(Annotated[timedelta, Field(gt=timedelta(0))]))
    assert {type(one) for one in made(time)} == {time}


@pytest.mark.parametrize(
    ("annotation", "kinds"),
    [
        (bool, [bool]),
        (int | None, [int, type(None)]),
        (Colour | None, [Colour, type(None)]),
        (Right, [Right]),
        (Literal["a", 1], [str, int]),
        (int | str | Money, [int, str, Money]),
        (Money, [Money]),
        (Tree, [Tree]),
        (Pair, [Pair]),
        (Place, [Place]),
        (Options, [dict]),
        (UUID, [UUID]),
        (UUID4, [UUID]),
        (IPv4Address, [IPv4Address]),
        (list[Annotated[int, Field(gt=0)]], [list]),
        (tuple[int, str], [tuple]),
        (tuple[Money, ...], [tuple]),
        (set[Colour], [set]),
        (frozenset[int], [frozenset]),
        (dict[str, Money], [dict]),
        (Sequence[int], [list]),
        (Mapping[str, int], [dict]),
        (Any, [bool, int, str, list, type(None)]),
        (Annotated[int, st.integers(5, 6)], [int]),
    ],
    ids=str,
)
def test_a_type_gives_values_of_all_its_kinds(annotation: Any, kinds: list[type]) -> None:
    assert {type(value) for value in made(annotation, examples=60)} == set(kinds)


def test_lists_keep_their_lengths() -> None:
    assert all(2 <= len(one) <= 3 for one in made(Annotated[list[int], Field(min_length=2, max_length=3)]))
    assert all(value in (5, 6) for value in made(Annotated[int, st.integers(5, 6)]))


def test_a_class_that_holds_itself_comes_to_an_end() -> None:
    trees = made(Tree)
    assert any(tree.children for tree in trees)
    assert all(not grandchild.children for tree in trees for one in tree.children for grandchild in one.children)


class Order(Command):
    model_config = ConfigDict(strict=True)
    pieces: int = Field(alias="Pieces", gt=0)
    colour: Colour = Colour.RED
    tags: set[str] = Field(default_factory=set)
    price: Money
    until: date
    since: date

    @field_validator("pieces")
    @classmethod
    def even(cls, pieces: int) -> int:
        if pieces % 2:
            raise ValueError("odd")
        return pieces

    @model_validator(mode="after")
    def in_order(self) -> Order:
        if self.since > self.until:
            raise ValueError("never")
        return self


def test_validators_aliases_and_strictness_are_kept() -> None:
    found: list[Order] = [command for command in drawn(Order, 100) if command is not None]
    assert len(found) > 10
    assert all(order.pieces % 2 == 0 and order.since <= order.until for order in found)
    assert {order.colour for order in found} == set(Colour)


class Opaque:
    """Nothing can be made of it, and pydantic has no schema of it."""

    def __init__(self, secret: int, /, *, checked: bool) -> None:
        if secret != 4711 or not checked:
            raise ValueError("wrong")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            cls._read, serialization=core_schema.plain_serializer_function_ser_schema(lambda one: 4711)
        )

    @classmethod
    def _read(cls, value: Any) -> Opaque:
        if value == 4711:
            return cls(4711, checked=True)
        if not isinstance(value, Opaque):
            raise ValueError("no Opaque")
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque)

    __hash__ = None  # type: ignore[assignment]


class Use(Command):
    opaque: Opaque


class Greet(Command):
    name: Annotated[str, AfterValidator(lambda name: name if name == "Rumpelstiltskin" else int("no"))]


class Using(Aggregate):
    @decide
    def use(self, command: Use) -> Went:
        return Went()

    @evolve
    def went(self, event: Went) -> None: ...


class Greeting(Aggregate):
    @decide
    def greet(self, command: Greet) -> Went:
        return Went()

    @evolve
    def went(self, event: Went) -> None: ...


def test_a_type_that_cannot_be_made_is_named_with_the_remedy() -> None:
    with pytest.raises(DefinitionError) as raised:
        explore(Using)
    assert "Use" in raised.value.where
    assert str(raised.value).endswith("strategies={Opaque: st.builds(Opaque, ...)}"), raised.value


def test_a_command_that_refuses_whatever_is_made_is_named_with_the_remedy() -> None:
    with pytest.raises(DefinitionError) as raised:
        explore(Greeting)
    assert str(raised.value).endswith(
        "Greet: of 50 commands that Hypothesis has made of its annotations, it has refused all "
        "(name: Value error, invalid literal for int() with base 10: 'no'); "
        "give explore() a strategy for it: strategies={Greet: st.builds(Greet, ...)}"
    )


def test_strategies_are_for_types_and_for_commands() -> None:
    opaque = st.just(4711)
    assert explore(Using, strategies={Opaque: opaque}, examples=5, seed=0).accepted["Use"] > 5
    greet = st.builds(Greet, name=st.just("Rumpelstiltskin"))
    assert explore(Greeting, strategies={Greet: greet}, examples=5, seed=0).accepted["Greet"] > 5


def test_what_is_no_strategy_or_one_of_something_else_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="for Greet it has 'Ada', which is no strategy of Hypothesis"):
        explore(Greeting, strategies={Greet: "Ada"})
    with pytest.raises(InvalidMessage, match="the strategy for Greet makes 'Ada', which is no Greet"):
        explore(Greeting, strategies={Greet: st.just("Ada")})
