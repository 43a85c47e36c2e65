"""Saved state: restored equal in value and type, and never trusted beyond its fingerprint."""

from __future__ import annotations

import enum
import typing
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from rayfold.runtime.domain.aggregate import Aggregate, decide, evolve
from rayfold.runtime.domain.messages import Command, Event, Payload, upcast
from rayfold.runtime.domain.projection import Projection, project
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import decode_state, encode_state, state_fingerprint
from rayfold.runtime.encoding.saved_state import check_annotations, check_state_fields
from rayfold.runtime.errors import DefinitionError, InvalidMessage
from tests.bank import Account, Balances


class Colour(enum.Enum):
    RED = "red"


class Money(BaseModel):
    cents: int = Field(alias="Cents")
    currency: str = "EUR"


@dataclass
class Line:
    text: str
    amounts: list[Decimal] = field(default_factory=list)


class Seat(NamedTuple):
    row: int
    letter: str


class Rich(Aggregate):
    by_pair: dict[tuple[str, int], set[str]] = {}
    by_seat: dict[Seat, str] = {}
    by_day: dict[date, list[Line]] = {}
    prices: dict[str, Money] = {}
    at: datetime | None = None
    clock: time | None = None
    span: timedelta = timedelta(0)
    price: Decimal = Decimal(0)
    key: UUID | None = None
    colour: Colour | None = None
    frozen: frozenset[tuple[int, ...]] = frozenset()
    queue: deque[int] = deque()
    counts: Counter[str] = Counter()
    lists: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    raw: bytes = b""
    ratio: float = 0.0
    large: int = 0
    text_or_day: str | date = ""
    anything: Any = None


def filled() -> Rich:
    rich = Rich("x", 3)
    rich.by_pair[("a", 1)] = {"x", "y"}
    rich.by_seat[Seat(1, "A")] = "alice"
    rich.by_day[date(2024, 2, 29)] = [Line("one", [Decimal("1.10")])]
    rich.prices["tea"] = Money(Cents=250)
    rich.at, rich.clock = datetime(2024, 1, 1, 12, 30, 0, 7, tzinfo=UTC), time(1, 2, 3)
    rich.span, rich.price, rich.key = timedelta(days=-1, microseconds=1), Decimal("0.10"), UUID(int=7)
    rich.colour, rich.frozen, rich.queue = Colour.RED, frozenset({(1, 2), ()}), deque([1, 2])
    rich.counts["a"] += 2
    rich.lists["a"].append(1)
    rich.raw, rich.ratio, rich.large, rich.text_or_day = b"\0\xff", 0.1, 2**100, date(2024, 1, 1)
    rich.anything = {
        "list": [1, (2, [3])],
        "set": {1},
        5: datetime(2024, 1, 1),
        ("k",): Decimal(1),
        "b": bytearray(b"x"),
    }
    return rich


def test_every_field_comes_back_equal_and_of_its_type() -> None:
    before = filled()
    after = decode_state(Rich, encode_state(before), "x", 3)
    assert after.__dict__ == before.__dict__
    assert {name: type(value) for name, value in vars(after).items()} == {
        name: type(value) for name, value in vars(before).items()
    }
    assert type(after.anything["list"]) is list
    assert type(after.anything["list"][1]) is tuple
    assert type(next(iter(after.by_seat))) is Seat
    after.lists["new"].append(1)


def test_the_defaults_come_back_too() -> None:
    assert decode_state(Rich, encode_state(Rich("x")), "x", 0).__dict__ == Rich("x").__dict__
    assert decode_state(Balances, encode_state(Balances())).balances == {}


@given(
    state=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.dates(),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
        max_leaves=10,
    )
)
def test_a_field_of_any_value_comes_back_as_it_was(state: Any) -> None:
    before = Rich("x")
    before.anything = state
    after = decode_state(Rich, encode_state(before))
    assert repr(after.anything) == repr(before.anything)


def test_equal_states_have_equal_bytes() -> None:
    one, two = Rich("x"), Rich("y", 9)
    one.by_pair[("a", 1)] = set("abcdefgh")
    two.by_pair[("a", 1)] = set("hgfedcba")
    assert encode_state(one) == encode_state(two)


def test_the_id_and_version_are_those_of_the_caller() -> None:
    account = decode_state(Account, encode_state(Account("alice", 5)), "bob", 7)
    assert (account.id, account.version) == ("bob", 7)


def test_a_value_that_is_not_what_the_field_says_comes_back_too_and_is_told_to_a_specification() -> None:
    account = Account("alice")
    account.balance = "much"  # type: ignore[assignment]
    again: Any = decode_state(Account, encode_state(account))
    assert again.balance == "much"
    with pytest.raises(InvalidMessage) as caught:
        check_annotations(account)
    assert str(caught.value).startswith("Account: its field balance cannot be saved: ")
    assert str(caught.value).endswith("; keep it to its annotation, int")


def test_an_int_in_a_float_field_can_be_saved() -> None:
    rich = Rich("x")
    rich.ratio = 1
    assert type(decode_state(Rich, encode_state(rich)).ratio) is int


def test_a_field_that_cannot_be_saved_is_a_mistake_of_its_declaration() -> None:
    class Handle:
        def __hash__(self) -> int:
            return 1

    class Car(Aggregate):
        handle: Handle = Handle()

    with pytest.raises(DefinitionError) as caught:
        check_state_fields(Car)
    assert str(caught.value) == (
        "Car.handle: values of Handle cannot be saved in a snapshot; use plain values, dataclasses or pydantic models"
    )


@pytest.mark.parametrize("cut", [0, 1, 3, -1])
def test_bytes_that_are_no_state_of_the_class_are_refused(cut: int) -> None:
    account = Account("alice")
    with pytest.raises(InvalidMessage, match="Account: these bytes are not a state of it: "):
        decode_state(Account, encode_state(account)[:cut])
    with pytest.raises(InvalidMessage, match="Account: these bytes are not a state of it: other fields"):
        decode_state(Account, encode_state(Balances()))


@given(data=st.binary(max_size=100))
def test_no_bytes_raise_anything_but_invalid_message(data: bytes) -> None:
    for prefix in (b"", b"\x13", encode_state(filled())[:40]):
        with pytest.raises(InvalidMessage):
            decode_state(Rich, prefix + data)


# The fingerprint ------------------------------------------------------------------------------------------------------


class Go(Command):
    pass


class Went(Event):
    miles: int


def car(
    *,
    name: str = "Car",
    miles: Any = 0,
    kind: Any = int,
    evolver: Callable[[Any, Any], None] | None = None,
    helper: Callable[..., Any] | None = None,
    event: type[Event] = Went,
) -> bytes:
    """The fingerprint of a class that differs from the others in one thing."""

    def default_evolver(self: Any, event: Any) -> None:
        self.miles += event.miles

    chosen = evolver or default_evolver
    chosen.__annotations__ = {"event": event, "return": None}
    body = {"__module__": __name__, "__annotations__": {"miles": kind}, "miles": miles, "went": evolve(chosen)}
    if helper is not None:
        body["helper"] = helper
    return state_fingerprint(type(name, (Aggregate,), body))


def test_the_fingerprint_is_16_bytes_and_the_same_for_the_same_code() -> None:
    assert len(car()) == 16
    assert car() == car()


def test_the_fingerprint_changes_with_fields_types_defaults_names_and_code() -> None:
    def doubled(self: Any, event: Any) -> None:
        self.miles += event.miles * 2

    def tripled(self: Any, event: Any) -> None:
        self.miles += event.miles * 3

    class Renamed(Event, name="Moved"):
        miles: int

    class Newer(Event, name="Went", version=2):
        miles: int

        @staticmethod
        @upcast(from_version=1)
        def second(old: Payload) -> Payload:
            return old

    prints = [
        car(),
        car(name="Boat"),
        car(miles=1),
        car(kind=float, miles=0.0),
        car(evolver=doubled),
        car(evolver=tripled),
        car(helper=lambda self: 1),
        car(helper=lambda self: 2),
        car(event=Renamed),
        car(event=Newer),
    ]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_changes_with_the_fields_of_a_type_inside() -> None:
    def with_fields(fields: dict[str, Any]) -> bytes:
        part: Any = dataclass(type("Part", (), {"__annotations__": fields, "__module__": __name__}))
        return car(kind=dict[str, part], miles={})

    assert with_fields({"a": int}) == with_fields({"a": int})
    assert with_fields({"a": int}) != with_fields({"a": str})
    assert with_fields({"a": int}) != with_fields({"b": int})


def test_the_fingerprint_passes_over_docstrings_deciders_and_where_the_code_is() -> None:
    def documented(self: Any, event: Any) -> None:
        """Far away."""
        self.miles += event.miles

    assert car(evolver=documented) == car()

    class Quiet(Aggregate):
        @decide
        def go(self, command: Go) -> None: ...

    first = state_fingerprint(Quiet)

    class Quiet(Aggregate):  # type: ignore[no-redef]
        @decide
        def go(self, command: Go) -> None:
            print("changed")

    assert state_fingerprint(Quiet) == first


def test_the_fingerprint_of_an_aggregate_changes_with_its_state_version() -> None:
    def fingerprint(state_version: int) -> bytes:
        class Quiet(Aggregate, state_version=state_version):
            total: int = 0

        return state_fingerprint(Quiet)

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)
    with pytest.raises(DefinitionError, match=r"Quiet: state_version=0 is not a version; count from 1"):
        fingerprint(0)


def test_the_fingerprint_of_a_projection_changes_with_its_version() -> None:
    def sums(version: int) -> bytes:
        class Sums(Projection, version=version):
            total: int = 0

            @project
            def went(self, event: Went) -> None:
                self.total += event.miles

        return state_fingerprint(Sums)

    assert sums(1) == sums(1)
    assert sums(1) != sums(2)


class Place(typing.TypedDict):
    shelf: str
    above: typing.NotRequired[Place]


class Half(typing.TypedDict, total=False):
    left: int


class Shelves(Aggregate):
    places: dict[str, Place] = {}
    last: Place | None = None
    halves: list[typing.Annotated[Half, "a half"]] = []
    one_of: typing.Optional[typing.Union[Half, int]] = None  # noqa: UP007, UP045 - the old spelling


def test_a_typed_dict_of_the_standard_library_is_saved_and_restored() -> None:
    shelves = Shelves("a", 1)
    shelves.places["x"] = {"shelf": "1", "above": {"shelf": "2"}}
    shelves.last = {"shelf": "3"}
    shelves.halves = [{}, {"left": 1}]
    shelves.one_of = {"left": 2}
    restored = decode_state(Shelves, encode_state(shelves), "a", 1)
    assert restored.places == {"x": {"shelf": "1", "above": {"shelf": "2"}}}
    assert (restored.last, restored.halves, restored.one_of) == ({"shelf": "3"}, [{}, {"left": 1}], {"left": 2})
    Catalogue([Shelves])
