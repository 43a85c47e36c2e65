"""Specifications: what they accept, what they catch, and how each failure reads."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from rayfold.runtime.domain.aggregate import Aggregate, decide, evolve
from rayfold.runtime.domain.messages import Command, Event, Query
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.errors import InvalidId, InvalidMessage, Rejected, UnknownName
from rayfold.runtime.stream import StreamId
from rayfold.runtime.testing import given, on
from tests.bank import (
    Account,
    BalanceOf,
    Balances,
    Close,
    Closed,
    Deposit,
    Deposited,
    EventsSeen,
    FeeCharged,
    Open,
    Opened,
    Paid,
    Pay,
    Retrieve,
    Richest,
    Store,
    Stored,
    Turnover,
    TurnoverOn,
    Vault,
    Withdraw,
)

# Aggregates ---------------------------------------------------------------------------------------------------------


def test_given_when_then() -> None:
    given(Account, Opened(owner="Ada")).when(Deposit(amount=5)).then(Deposited(amount=5))


def test_a_chain_goes_on_with_the_events_taken_in() -> None:
    (
        given(Account, Opened(owner="Ada"), id="alice")
        .when(Deposit(amount=10))
        .then(Deposited(amount=10))
        .when(Pay(to="bob", amount=6))
        .then(Paid(to="bob", amount=6), FeeCharged(amount=1))
        .then_state(balance=3, version=4, id="alice")
        .when(Withdraw(amount=4))
        .rejected("insufficient_funds", balance=3, needed=4)
        .when(Close())
        .then_state(closed=True)
        .when(Close())
        .then_nothing()
        .then_state(version=5)
    )


def test_a_history_may_be_added_to() -> None:
    given(Account, Opened(owner="Ada")).given(Deposited(amount=3), Closed()).then_state(balance=3, closed=True)


def test_the_creation_rule_holds() -> None:
    given(Account).when(Deposit(amount=5)).rejected("does_not_exist")
    given(Account).when(Open(owner="Ada")).then(Opened(owner="Ada"))
    given(Vault).when(Store(thing="ring")).then(Stored(thing="ring"))


def test_facts_that_are_not_named_may_be_anything() -> None:
    given(Account, Opened(owner="Ada")).when(Withdraw(amount=4)).rejected("insufficient_funds")


def failure_of(call: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        call()
    return str(caught.value)


def test_another_event_than_expected_is_shown_with_the_difference() -> None:
    outcome = given(Account, Opened(owner="Ada"), id="alice").when(Deposit(amount=5))
    assert failure_of(lambda: outcome.then(Deposited(amount=6))) == (
        "Account/alice, when Deposit(amount=5)\n"
        "  expected:\n"
        "    Deposited(amount=6, currency='EUR')\n"
        "  got:\n"
        "    Deposited(amount=5, currency='EUR')\n"
        "  difference (- expected, + got):\n"
        "    - Deposited(amount=6, currency='EUR')\n"
        "    ?                  ^\n"
        "    + Deposited(amount=5, currency='EUR')\n"
        "    ?                  ^"
    )


def test_a_missing_and_a_further_event_are_shown() -> None:
    outcome = given(Account, Opened(owner="Ada"), Deposited(amount=9)).when(Pay(to="bob", amount=5))
    told = failure_of(lambda: outcome.then(Paid(to="bob", amount=5)))
    assert told.endswith("      Paid(to='bob', amount=5)\n    + FeeCharged(amount=1)")
    stored = given(Vault).when(Store(thing="ring"))
    told = failure_of(lambda: stored.then(Stored(thing="ring"), Stored(thing="ring")))
    assert told.endswith("      Stored(thing='ring')\n    - Stored(thing='ring')")


def test_the_order_of_events_counts() -> None:
    outcome = given(Account, Opened(owner="Ada"), Deposited(amount=9)).when(Pay(to="bob", amount=5))
    assert "difference" in failure_of(lambda: outcome.then(FeeCharged(amount=1), Paid(to="bob", amount=5)))


def test_a_rejection_in_place_of_events_is_shown() -> None:
    outcome = given(Account, id="alice").when(Deposit(amount=5))
    assert failure_of(lambda: outcome.then(Deposited(amount=5))) == (
        "Account/alice, when Deposit(amount=5)\n"
        "  expected:\n"
        "    Deposited(amount=5, currency='EUR')\n"
        "  got:\n"
        "    Rejected('does_not_exist')\n"
        "  difference (- expected, + got):\n"
        "    - Deposited(amount=5, currency='EUR')\n"
        "    + Rejected('does_not_exist')"
    )
    assert "expected:\n    no event\n" in failure_of(outcome.then_nothing)
    assert "events that lead to balance=5" in failure_of(lambda: outcome.then_state(balance=5))


def test_events_in_place_of_a_rejection_are_shown() -> None:
    case = given(Account, Opened(owner="Ada"))
    assert "expected:\n    Rejected('no', because=1)\n  got:\n    Deposited(" in failure_of(
        lambda: case.when(Deposit(amount=5)).rejected("no", because=1)
    )
    closed = given(Account, Opened(owner="Ada"), Closed())
    assert "got:\n    no event\n" in failure_of(lambda: closed.when(Close()).rejected("closed"))


def test_a_rejection_may_be_expected_in_place_of_events_too() -> None:
    outcome = given(Account, Opened(owner="Ada")).when(Withdraw(amount=4))
    outcome.then(Rejected("insufficient_funds", balance=0, needed=4))
    assert "- Rejected('closed')" in failure_of(lambda: outcome.then(Rejected("closed")))


def test_another_reason_or_fact_of_a_rejection_is_shown() -> None:
    outcome = given(Account, Opened(owner="Ada")).when(Withdraw(amount=4))
    assert "+ Rejected('insufficient_funds', balance=0, needed=4)" in failure_of(lambda: outcome.rejected("closed"))
    assert "- Rejected('insufficient_funds', balance=1)" in failure_of(
        lambda: outcome.rejected("insufficient_funds", balance=1)
    )
    assert "- Rejected('insufficient_funds', owner='Ada')" in failure_of(
        lambda: outcome.rejected("insufficient_funds", owner="Ada")
    )


def test_another_state_than_expected_is_shown() -> None:
    case = given(Account, Opened(owner="Ada"), Deposited(amount=5))
    assert failure_of(lambda: case.then_state(balance=6, owner="Ada")) == (
        "the state of Account\n"
        "  expected:\n"
        "    balance=6\n"
        "    owner='Ada'\n"
        "  got:\n"
        "    balance=5\n"
        "    owner='Ada'\n"
        "  difference (- expected, + got):\n"
        "    - balance=6\n"
        "    ?         ^\n"
        "    + balance=5\n"
        "    ?         ^\n"
        "      owner='Ada'"
    )
    assert failure_of(lambda: case.then_state(blance=6)) == (
        "Account has no field 'blance'; its fields are owner, balance, closed"
    )


def test_an_aggregate_id_that_no_stream_can_have_is_refused() -> None:
    with pytest.raises(InvalidId, match="is empty"):
        given(Account, id="")


def test_an_event_of_another_aggregate_is_no_history() -> None:
    assert failure_of(lambda: given(Account, Stored(thing="x"))) == "no @evolve of Account takes Stored(thing='x')"


def test_a_command_of_another_aggregate_is_an_unknown_name() -> None:
    with pytest.raises(UnknownName, match="no command of Account is named 'Retrieve'"):
        given(Account, Opened(owner="Ada")).when(Retrieve(thing="x"))


class Go(Command):
    miles: int = 1


class Went(Event):
    miles: int


def test_a_decider_that_changes_the_state_is_caught() -> None:
    class Car(Aggregate):
        miles: int = 0
        trips: list[int] = []

        @decide
        def go(self, command: Go) -> Went:
            self.miles += command.miles
            self.trips.append(command.miles)
            return Went(miles=command.miles)

        @evolve
        def went(self, event: Went) -> None: ...

    assert failure_of(lambda: given(Car).when(Go(miles=3))) == (
        "Car.go changed the state; only @evolve may; return an event instead\n"
        "  expected:\n"
        "    miles=0\n"
        "    trips=[]\n"
        "  got:\n"
        "    miles=3\n"
        "    trips=[3]\n"
        "  difference (- expected, + got):\n"
        "    - miles=0\n"
        "    ?       ^\n"
        "    + miles=3\n"
        "    ?       ^\n"
        "    - trips=[]\n"
        "    + trips=[3]\n"
        "    ?        +"
    )


def test_a_decider_that_changes_a_state_no_snapshot_can_hold_is_caught_too() -> None:
    class Box:
        def __init__(self) -> None:
            self.items: list[int] = []

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Box) and self.items == other.items

        def __hash__(self) -> int:
            return 1

    class Car(Aggregate, snapshot_every=0):
        box: Box = Box()

        @decide
        def go(self, command: Go) -> None:
            self.box.items.append(1)

    assert failure_of(lambda: given(Car).when(Go())).startswith("Car.go changed the state; only @evolve may")


def test_an_event_that_does_not_survive_the_log_is_caught() -> None:
    class Part(BaseModel):
        number: int

    class Odd(Event):
        anything: Any

    class Car(Aggregate):
        @decide
        def go(self, command: Go) -> Odd:
            return Odd(anything=Part(number=1))

        @evolve
        def odd(self, event: Odd) -> None: ...

    assert failure_of(lambda: given(Car).when(Go())) == (
        "Odd does not come back equal from the codec\n"
        "anything is Part(number=1) (Part), which readers would see as {'number': 1} (dict)\n"
        "give it a value of its annotation, or change the annotation so that it names the type"
    )


def test_a_state_that_does_not_fit_its_annotation_is_caught() -> None:
    class Car(Aggregate):
        miles: int = 0

        @evolve
        def went(self, event: Went) -> None:
            self.miles += event.miles / 2  # type: ignore[assignment]

    with pytest.raises(
        InvalidMessage, match="Car: its field miles cannot be saved: .*; keep it to its annotation, int"
    ):
        given(Car, Went(miles=1))


def test_what_a_handler_raises_comes_out_as_it_is() -> None:
    class Car(Aggregate):
        @decide
        def go(self, command: Go) -> Rejected | None:
            raise ZeroDivisionError("no road")

    with pytest.raises(ZeroDivisionError, match="no road"):
        given(Car).when(Go())


def test_an_invariant_holds_if_it_returns_something_true_or_nothing() -> None:
    def no_debt(account: Account) -> bool:
        return account.balance > 3

    case = given(Account, Opened(owner="Ada"), Deposited(amount=3))
    case.then_holds(lambda account: account.balance, lambda account: None).then_state(balance=3)
    assert failure_of(lambda: case.then_holds(no_debt)) == (
        "no_debt does not hold\n  Account(id='example', version=2, owner='Ada', balance=3, closed=False)"
    )
    with pytest.raises(ZeroDivisionError):
        case.then_holds(lambda account: 1 // (account.balance - 3))


def test_a_case_goes_on_after_a_crash() -> None:
    case = given(Account, Opened(owner="Ada")).when(Deposit(amount=5)).then(Deposited(amount=5)).after_crash()
    case.when(Pay(to="bob", amount=4)).then_state(balance=0).after_crash().then_state(version=4)
    given(Account).after_crash().when(Open(owner="Ada")).then_state(owner="Ada").after_crash()


def test_a_state_that_is_another_one_after_a_crash_is_caught() -> None:
    seen: list[int] = []

    class Counts(Aggregate):
        seen: int = 0

        @evolve
        def went(self, event: Went) -> None:
            seen.append(1)
            self.seen = len(seen)

    case = given(Counts, Went(miles=1))
    assert failure_of(case.after_crash) == (
        "Counts/example at version 1 is another one after a crash\n"
        "  its handlers are not deterministic, two folds of the same events differ: seen is 3, where it was 2"
    )


def test_what_is_neither_aggregate_nor_projection_is_refused() -> None:
    with pytest.raises(TypeError, match="takes an Aggregate or a Projection class, not int"):
        given(int)  # type: ignore[type-var]


# Projections --------------------------------------------------------------------------------------------------------


def test_given_ask_answers() -> None:
    (
        given(
            Balances, on("alice", Opened(owner="Ada")), ("alice", Deposited(amount=5)), on("bob", Deposited(amount=9))
        )
        .ask(BalanceOf(account="alice"))
        .answers(5)
        .ask(Richest(limit=1))
        .answers(["bob"])
        .given(on("alice", Deposited(amount=10)))
        .ask(Richest())
        .answers(["alice", "bob"])
        .then_state(balances={"alice": 15, "bob": 9})
    )


def test_events_that_nothing_projects_are_passed_over() -> None:
    given(Balances, Stored(thing="x"), Closed()).then_state(balances={})


def test_given_events_are_a_second_apart_on_a_fixed_day() -> None:
    given(Turnover, Deposited(amount=5), Opened(owner="Ada")).ask(TurnoverOn(day=date(2024, 1, 1))).answers(5).ask(
        EventsSeen()
    ).answers(2)


class Places(Projection):
    seen: list[tuple[str, str, int, int, datetime]] = []

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        self.seen.append(
            (recorded.aggregate_type, recorded.aggregate_id, recorded.version, recorded.position, recorded.recorded_at)
        )


def test_an_event_is_placed_as_the_log_would() -> None:
    event = Deposited(amount=1)
    case = given(
        Places,
        event,
        Opened(owner="Ada"),
        on("a", event),
        on("a", event, aggregate=Account),
        on(StreamId("Account", "a"), event),
    )
    case.then_state(
        seen=[
            ("Example", "example", 1, 1, datetime(2024, 1, 1, 0, 0, 0, tzinfo=UTC)),
            ("Example", "a", 1, 3, datetime(2024, 1, 1, 0, 0, 2, tzinfo=UTC)),
            ("Account", "a", 1, 4, datetime(2024, 1, 1, 0, 0, 3, tzinfo=UTC)),
            ("Account", "a", 2, 5, datetime(2024, 1, 1, 0, 0, 4, tzinfo=UTC)),
        ]
    )


def test_an_id_that_no_stream_can_have_is_refused() -> None:
    with pytest.raises(InvalidId, match="is empty"):
        given(Balances, on("", Deposited(amount=1)))


def test_another_answer_than_expected_is_shown() -> None:
    asked = given(Balances, on("alice", Deposited(amount=5))).ask(BalanceOf(account="alice"))
    assert failure_of(lambda: asked.answers(6)) == (
        "Balances, asked BalanceOf(account='alice')\n"
        "  expected:\n"
        "    6\n"
        "  got:\n"
        "    5\n"
        "  difference (- expected, + got):\n"
        "    - 6\n"
        "    + 5"
    )


def test_a_query_that_nothing_answers_is_told() -> None:
    assert failure_of(lambda: given(Balances).ask(EventsSeen())) == (
        "Balances has no @answer for EventsSeen; it answers BalanceOf, Richest"
    )


def test_an_answer_that_changes_the_read_model_is_caught() -> None:
    class Asked(Query[int]):
        pass

    class Counting(Projection):
        asked: int = 0

        @answer
        def count(self, query: Asked) -> int:
            self.asked += 1
            return self.asked

    told = failure_of(lambda: given(Counting).ask(Asked()))
    assert told.startswith("Counting.count changed the state; only @project may\n  expected:\n    asked=0\n")
