"""Messages: frozen, bounded, and named once and for all."""

from __future__ import annotations

import math
import types
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rayfold.runtime.domain.aggregate import Aggregate
from rayfold.runtime.domain.messages import Command, Event, Query
from rayfold.runtime.domain.projection import Projection
from rayfold.runtime.errors import DefinitionError
from tests.bank import Deposit


def test_a_message_cannot_be_changed() -> None:
    deposit = Deposit(amount=1)
    with pytest.raises(ValidationError, match="frozen"):
        deposit.amount = 2


def test_a_message_refuses_a_field_it_does_not_declare() -> None:
    with pytest.raises(ValidationError, match="amuont"):
        Deposit(amount=1, amuont=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_message_refuses_nan_and_infinity(value: float) -> None:
    class Weigh(Command):
        weight: float

    with pytest.raises(ValidationError, match="finite"):
        Weigh(weight=value)


def test_a_string_field_is_bounded_and_a_class_may_move_the_bound() -> None:
    class Note(Command):
        text: str

    class LongNote(Command):
        model_config = ConfigDict(str_max_length=100_000)
        text: str

    assert Note(text="x" * 65_536)
    with pytest.raises(ValidationError, match="at most 65536 characters"):
        Note(text="x" * 65_537)
    assert LongNote(text="x" * 65_537)


def test_a_default_is_validated_like_any_value() -> None:
    class Weigh(Command):
        weight: float = math.nan

    with pytest.raises(ValidationError, match="finite"):
        Weigh()


def test_the_text_of_a_message_names_its_class() -> None:
    class Balance(Query[int]):
        account: str

    class Happened(Event):
        amount: int

    assert str(Deposit(amount=1)) == repr(Deposit(amount=1)) == f"{Deposit(amount=1)}" == "Deposit(amount=1)"
    assert str(Happened(amount=1)) == "Happened(amount=1)"
    assert str(Balance(account="alice")) == "Balance(account='alice')"


def test_the_stored_name_is_the_class_name_unless_the_class_line_says_another() -> None:
    class Renamed(Command, name="bank.deposit"):
        amount: int

    assert Deposit.message_name == "Deposit"
    assert Renamed.message_name == "bank.deposit"


def test_a_subclass_does_not_inherit_the_stored_name_or_version() -> None:
    class First(Event, name="first"):
        number: int

    class Second(First):
        pass

    assert (Second.message_name, Second.schema_version) == ("Second", 1)


@pytest.mark.parametrize("name", ["", "two words", "ümlaut", "x" * 65, "1st", "a/b", 5, False])
@pytest.mark.parametrize("base", [Command, Event, Query[int], Aggregate, Projection])
def test_a_name_that_cannot_be_stored_is_refused(base: Any, name: Any) -> None:
    with pytest.raises(DefinitionError) as caught:
        types.new_class("Wish", (base,), {"name": name})
    assert str(caught.value) == (
        f'Wish: {name!r} cannot be a stored name; give name="..." in the class line: ASCII letters, digits, '
        '"_", "." and "-", 64 characters at most'
    )


def test_a_class_whose_own_name_cannot_be_stored_needs_another() -> None:
    with pytest.raises(DefinitionError, match="'Größe' cannot be a stored name"):

        class Größe(Command):
            pass

    class Größer(Command, name="Bigger"):
        pass

    assert Größer.message_name == "Bigger"


def test_a_word_in_the_class_line_that_no_message_has_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Wish(Command, version=2):
            pass

    assert str(caught.value) == "Wish: the class line has version, which no message takes; give name=..."


@pytest.mark.parametrize(("default", "kind"), [([], "list"), ({}, "dict"), (set(), "set"), (([],), "tuple")])
def test_a_mutable_default_is_refused(default: Any, kind: str) -> None:
    with pytest.raises(DefinitionError) as caught:

        class Wish(Command):
            things: Any = default

    assert str(caught.value) == (
        f"Wish.things: its default is a mutable {kind}; use a tuple or frozenset, or Field(default_factory=...)"
    )


def test_a_default_with_a_hash_of_its_own_is_mutable_all_the_same() -> None:
    class Tally(BaseModel):
        count: int = 0

        def __hash__(self) -> int:
            return hash(self.count)

    for default in (Tally(), (Tally(),)):
        with pytest.raises(DefinitionError, match=f"its default is a mutable {type(default).__name__}"):

            class Wish(Command):
                things: Any = default


def test_a_default_factory_is_what_replaces_a_mutable_default() -> None:
    class Wish(Command):
        things: list[str] = Field(default_factory=list)

    assert Wish().things == []
    assert Wish().things is not Wish().things


@pytest.mark.parametrize("name", ["message_name", "schema_version", "upcasters", "answer_type", "packing"])
@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
def test_a_reserved_field_name_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        types.new_class("Fact", (Event,), {}, lambda body: body.update(__annotations__={name: str}))
    assert str(caught.value) == f"Fact.{name}: the name is reserved by Rayfold; give the field another name"


def test_a_class_cannot_take_away_that_messages_are_frozen() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Wish(Command):
            model_config = ConfigDict(frozen=False)

    assert str(caught.value) == "Wish: its model_config takes frozen away; messages cannot change once made"


def test_a_class_cannot_allow_undeclared_fields() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Wish(Command):
            model_config = ConfigDict(extra="allow")

    assert str(caught.value) == 'Wish: its model_config allows undeclared fields; leave extra="forbid"'


def test_a_query_knows_the_type_of_its_answer() -> None:
    class Count(Query[int]):
        pass

    class CountNamed(Query[dict[str, int] | None], name="count"):
        pass

    class Anything(Query[Any]):
        pass

    assert Count.answer_type is int
    assert CountNamed.answer_type == dict[str, int] | None
    assert Anything.answer_type is Any


def test_a_query_without_an_answer_type_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Count(Query):  # type: ignore[type-arg]
            pass

    assert str(caught.value) == "Count: it has no answer type; declare its answer: class Count(Query[int])"


def test_a_query_may_be_derived_from_a_base_with_fields_and_state_its_own_answer_type() -> None:
    class Paged(Query[Any]):
        page: int = 0

    class Orders(Paged, Query[list[str]]):
        pass

    assert Orders.answer_type == list[str]
    assert Orders().page == 0


def test_a_query_inherits_its_answer_type_and_cannot_state_a_second_one() -> None:
    class Count(Query[int]):
        pass

    class CountBetter(Count):
        pass

    assert CountBetter.answer_type is int
    with pytest.raises(DefinitionError, match=r"Count: its answer type is already stated; derive from Query\[\.\.\.\]"):
        Count[str]  # type: ignore[misc]


def test_an_answer_type_as_text_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"Query\['int'\]: the answer type is text; write the type itself"):
        Query["int"]


@pytest.mark.parametrize("base", [Command, Event, Query[int]])
def test_names_that_begin_with_rayfold_and_a_dot_are_refused(base: Any) -> None:
    with pytest.raises(DefinitionError) as raised:
        types.new_class("Mine", (base,), {"name": "rayfold.Refused"})
    what = "'rayfold.Refused' begins with 'rayfold.', which is for what Rayfold itself stores"
    assert str(raised.value) == f"Mine: {what}; choose another name"
    types.new_class("Mine", (base,), {"name": "rayfold_Refused"})
