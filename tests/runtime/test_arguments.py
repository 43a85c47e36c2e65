"""Wrong arguments of what needs no runtime: specifications, plain subscriptions, declarations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayfold import (
    ANY,
    DefinitionError,
    DuckDb,
    InvalidMessage,
    RayfoldError,
    UnknownName,
    given,
    on,
    subscribe,
)
from rayfold.runtime.arguments import listed, unregistered
from rayfold.runtime.encoding.error_codec import from_wire, to_wire
from tests.bank import Account, BalanceOf, Balances, Deposit, Deposited

case: Any = given
placed: Any = on
EVENT = Deposited(amount=1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: case(5), "given: 5 is not a class; give an Aggregate or a Projection class"),
        (lambda: case(Account("alice")), "given: Account(id='alice'"),
        (lambda: case(Account).when(5), "int: is not a Command; give an instance of a Command class"),
        (lambda: case(Account).when(Deposit), "Deposit: is a class and no Command; make one of it: Deposit(...)"),
        (lambda: case(Balances, 5), "given: 5 is not an event; give events, or ('alice', event)"),
        (lambda: case(Balances, ("alice",)), "given: ('alice',) is not an event"),
        (lambda: case(Balances, ("alice", 5)), "given: ('alice', 5) is not an event"),
        (lambda: case(Balances, (5, EVENT)), "given: (5, Deposited(amount=1"),
        (lambda: case(Balances, (ANY, EVENT)), "given: (-1, Deposited(amount=1"),
        (lambda: placed(5, EVENT), "given: (5, Deposited(amount=1"),
        (
            lambda: placed("alice", BalanceOf(account="alice")),
            "given: ('alice', BalanceOf(",
        ),
    ],
)
def test_a_specification_refuses_what_is_no_part_of_one(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        call()
    assert str(caught.value).startswith(text)


def test_a_plain_subscription_refuses_classes_that_are_no_list(tmp_path: Path) -> None:
    aggregates: Any = Account
    with pytest.raises(DefinitionError, match=r"Account is not a list of classes; give aggregates=\[...\]"):
        subscribe(tmp_path, aggregates=aggregates)


def test_a_schema_of_duckdb_is_text() -> None:
    schema: Any = 5
    with pytest.raises(DefinitionError, match="DuckDb: 5 is not SQL"):
        DuckDb(schema)


@pytest.mark.parametrize("given", [None, True, 5, "text", b"bytes", Deposit, EVENT])
def test_what_python_would_iterate_over_all_the_same_is_no_list(given: Any) -> None:
    with pytest.raises(InvalidMessage, match="places: .* is not a list; give a list, each item of it a place"):
        listed("places", given, "a place", (Deposited,))


@pytest.mark.parametrize("given", [[], (), {}, iter([1]), {1}, (one for one in [1])])
def test_any_collection_is_a_list(given: Any) -> None:
    assert listed("places", given, "a place") is given


def test_what_differs_between_two_classes_of_one_name_arrives_with_the_error() -> None:
    class Account:
        aggregate_type = "Account"

    told = unregistered("aggregate", Account, {"Account": Balances})
    assert isinstance(told, UnknownName)
    assert told.differs == (
        f"it is {__name__}.test_what_differs_between_two_classes_of_one_name_arrives_with_the_error.<locals>.Account,"
        " and tests.bank.Balances was registered"
    )
    assert told.differs in str(told)
    arrived: RayfoldError = from_wire(to_wire(told))
    assert str(arrived) == str(told)


def test_a_class_is_looked_for_by_its_stored_name() -> None:
    class Box:
        aggregate_type = "Crate"

    assert str(unregistered("aggregate", Box, {"Chest": Balances})) == "no aggregate is named 'Crate'; known: Chest"
    assert str(unregistered("aggregate", "Crate", {})) == "aggregate: 'Crate' is not a class; give the class itself"
