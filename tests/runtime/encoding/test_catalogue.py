"""The catalogue: one class for one stored name, and old events read by new code."""

from __future__ import annotations

import pickle

import msgpack
import pytest
from pydantic import Field

from rayfold.runtime.domain.aggregate import Aggregate, Shared, evolve
from rayfold.runtime.domain.messages import Event, Payload, upcast
from rayfold.runtime.domain.projection import Projection, project
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.errors import DefinitionError, UnknownEvent, UnknownName
from rayfold.runtime.log.contract import StoredEvent
from rayfold.runtime.stream import StreamId
from tests.bank import (
    Account,
    BalanceOf,
    Balances,
    Deposit,
    Deposited,
    Opened,
    Retrieve,
    Turnover,
    TurnoverOn,
    Vault,
)


@pytest.fixture
def bank() -> Catalogue:
    return Catalogue([Account, Vault], [Balances, Turnover])


def stored(name: str, version: int, payload: bytes) -> StoredEvent:
    return StoredEvent(1, StreamId("Account", "alice"), 1, name, version, payload, 0, b"c" * 16, b"", b"")


def test_every_name_finds_its_class(bank: Catalogue) -> None:
    assert bank.aggregate("Vault") is Vault
    assert bank.command(Account, "Deposit") is Deposit
    assert bank.command(Vault, "Retrieve") is Retrieve
    assert bank.event("Deposited") is Deposited
    assert bank.projection("Turnover") is Turnover
    assert bank.query(Balances, "BalanceOf") is BalanceOf
    assert bank.query(Turnover, "TurnoverOn") is TurnoverOn


def test_an_unknown_name_is_told_with_those_that_are_known(bank: Catalogue) -> None:
    with pytest.raises(UnknownName) as caught:
        bank.aggregate("Acount")
    assert str(caught.value) == "no aggregate is named 'Acount'; known: Account, Vault"
    with pytest.raises(UnknownName, match="no command of Vault is named 'Deposit'; known: Retrieve, Store"):
        bank.command(Vault, "Deposit")
    with pytest.raises(UnknownName, match="no event is named 'Lost'; known: Closed, Deposited, "):
        bank.event("Lost")
    with pytest.raises(UnknownName, match="no projection is named 'x'; known: Balances, Turnover"):
        bank.projection("x")
    with pytest.raises(UnknownName, match="no query of Balances is named 'TurnoverOn'; known: BalanceOf, Richest"):
        bank.query(Balances, "TurnoverOn")


def test_an_event_that_only_a_projection_knows_is_known() -> None:
    assert Catalogue([], [Balances]).event("Opened") is Opened


def test_a_stored_event_becomes_an_event_again(bank: Catalogue) -> None:
    event = Deposited(amount=5, currency="USD")
    assert bank.decode_event(stored("Deposited", 2, encode_message(event))) == event


def test_an_older_event_is_upcast(bank: Catalogue) -> None:
    assert bank.decode_event(stored("Deposited", 1, msgpack.packb({"amount": 5}))) == Deposited(amount=5)


def test_an_event_is_read_by_the_class_that_bears_its_name_now() -> None:
    class MoneyIn(Event, name="Deposited", version=2):
        cents: int

        @staticmethod
        @upcast(from_version=1)
        def rename(old: Payload) -> Payload:
            return {"cents": old["amount"]}

    class Ledger(Projection):
        @project
        def money_in(self, event: MoneyIn) -> None: ...

    catalogue = Catalogue([], [Ledger])
    assert catalogue.decode_event(stored("Deposited", 1, msgpack.packb({"amount": 5}))) == MoneyIn(cents=5)


def test_an_event_that_no_class_bears_is_unknown(bank: Catalogue) -> None:
    with pytest.raises(UnknownEvent) as caught:
        bank.decode_event(stored("Lost", 1, b"\x80"))
    assert str(caught.value) == (
        "stored event 'Lost' version 1 cannot be read: no registered class has that name; known: Closed, Deposited, "
        "FeeCharged, Opened, Paid, Retrieved, Stored, Withdrawn"
    )


@pytest.mark.parametrize("version", [3, 0, -1])
def test_an_event_of_a_version_that_the_class_has_not_reached_is_unknown(bank: Catalogue, version: int) -> None:
    with pytest.raises(UnknownEvent) as caught:
        bank.decode_event(stored("Deposited", version, msgpack.packb({"amount": 5})))
    assert str(caught.value) == (
        f"stored event 'Deposited' version {version} cannot be read: Deposited is only at version 2; deploy newer code"
    )


@pytest.mark.parametrize(
    ("version", "payload", "told"),
    [
        (2, {"amount": "x"}, "Deposited: amount is 'x': input should be a valid integer, unable to parse"),
        (2, {"amount": 1, "note": ""}, "Deposited: note is not a field of it; its fields are amount, currency"),
        (1, {"currency": "EUR"}, "Deposited: amount is missing"),
    ],
)
def test_fields_that_the_class_does_not_accept_are_told(
    bank: Catalogue, version: int, payload: Payload, told: str
) -> None:
    with pytest.raises(UnknownEvent) as caught:
        bank.decode_event(stored("Deposited", version, msgpack.packb(payload)))
    assert str(caught.value).startswith(f"stored event 'Deposited' version {version} cannot be read: {told}")


def test_an_upcaster_that_raises_is_told() -> None:
    class Broken(Event, version=2):
        amount: int

        @staticmethod
        @upcast(from_version=1)
        def second(old: Payload) -> Payload:
            return {"amount": old["sum"]}

    class Car(Aggregate):
        @evolve
        def broken(self, event: Broken) -> None: ...

    with pytest.raises(UnknownEvent, match="version 1 cannot be read: its upcaster failed with KeyError: 'sum'"):
        Catalogue([Car]).decode_event(stored("Broken", 1, b"\x80"))


def test_two_classes_of_one_stored_name_are_refused() -> None:
    class Other(Event, name="Deposited"):
        pass

    class Ledger(Aggregate, name="Account"):
        pass

    class Sums(Projection, name="Balances"):
        pass

    class Spy(Projection):
        @project
        def other(self, event: Other) -> None: ...

    with pytest.raises(DefinitionError) as caught:
        Catalogue([Account], [Spy])
    assert str(caught.value).endswith(
        "Other: the event name 'Deposited' is already that of tests.bank.Deposited; "
        'give one of them another name="..."'
    )
    with pytest.raises(DefinitionError, match="Ledger: the aggregate name 'Account' is already that of tests.bank.Acc"):
        Catalogue([Account, Ledger])
    with pytest.raises(DefinitionError, match="Sums: the projection name 'Balances' is already that of tests.bank.Bal"):
        Catalogue([], [Balances, Sums])


def test_the_same_class_twice_is_no_mistake() -> None:
    assert list(Catalogue([Account, Account]).aggregates) == ["Account"]


def test_what_is_no_such_class_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:
        Catalogue([Balances])  # type: ignore[list-item]
    assert str(caught.value) == "aggregates=: Balances is not a subclass of Aggregate; list the classes themselves"
    with pytest.raises(DefinitionError, match="projections=: Projection is not a subclass of Projection"):
        Catalogue([], [Projection])
    with pytest.raises(DefinitionError, match="is not a subclass of Aggregate; list the classes themselves"):
        Catalogue([Account("alice")])  # type: ignore[list-item]


def test_an_aggregate_whose_state_no_snapshot_can_hold_is_refused_unless_it_wants_none() -> None:
    class Handle:
        def __hash__(self) -> int:
            return 1

    class Car(Aggregate):
        handle: Handle = Handle()

    class Boat(Aggregate, snapshot_every=0, placement=Shared()):
        handle: Handle = Handle()

    with pytest.raises(DefinitionError, match="Car.handle: values of Handle cannot be saved in a snapshot"):
        Catalogue([Car])
    assert Catalogue([Boat]).aggregate("Boat") is Boat


def test_a_catalogue_can_be_pickled(bank: Catalogue) -> None:
    copy = pickle.loads(pickle.dumps(bank))
    assert copy.command(Account, "Deposit") is Deposit


def test_a_catalogue_that_a_release_without_processes_has_pickled_can_be_read(bank: Catalogue) -> None:
    state = {name: value for name, value in vars(bank).items() if name not in ("processes", "since", "has_outputs")}
    copy = Catalogue.__new__(Catalogue)
    copy.__setstate__(state)
    assert (copy.processes, copy.since, copy.has_outputs) == ({}, {}, False)
    assert copy.command(Account, "Deposit") is Deposit


def test_a_stored_event_is_read_without_the_limits_of_its_class() -> None:
    class Limited(Event):
        amount: int = Field(le=10)

    class Car(Aggregate):
        @evolve
        def limited(self, event: Limited) -> None: ...

    catalogue = Catalogue([Car])
    assert catalogue.decode_event(stored("Limited", 1, msgpack.packb({"amount": 11}))).amount == 11  # type: ignore[attr-defined]
    with pytest.raises(UnknownEvent, match="amount is 'x': input should be a valid integer"):
        catalogue.decode_event(stored("Limited", 1, msgpack.packb({"amount": "x"})))


def test_a_stored_event_is_read_with_the_limits_of_a_class_that_says_so() -> None:
    class Limited(Event, validated_when_read=True):
        amount: int = Field(le=10)

    class Car(Aggregate):
        @evolve
        def limited(self, event: Limited) -> None: ...

    with pytest.raises(UnknownEvent, match="amount is 11: input should be less than or equal to 10"):
        Catalogue([Car]).decode_event(stored("Limited", 1, msgpack.packb({"amount": 11})))
