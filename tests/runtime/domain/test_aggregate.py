"""Aggregates: what a class may declare, what its deciders may return, and the error for each mistake."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Annotated, Any, List, NoReturn, Optional, Union  # noqa: UP035

import pytest

from rayfold.runtime.domain.aggregate import (
    EVENTS_PER_COMMAND_MAX,
    Aggregate,
    OwnActor,
    Shared,
    decide,
    events_of,
    evolve,
    outcome_of,
)
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.domain.projection import project
from rayfold.runtime.errors import DefinitionError, HandlerFailed, Rejected, UnknownName
from tests.bank import (
    Account,
    Close,
    Deposit,
    Deposited,
    FeeCharged,
    Open,
    Opened,
    Paid,
    Pay,
    Store,
    Stored,
    Vault,
    Withdraw,
)

if TYPE_CHECKING:
    from decimal import Decimal  # to be missing at run time


class Go(Command):
    pass


class Stop(Command):
    pass


class Went(Event):
    pass


class Stopped(Event):
    pass


def opened(balance: int = 0) -> Account:
    account = Account("alice", 1)
    account.owner, account.balance = "Ada", balance
    return account


# What a class declares ------------------------------------------------------------------------------------------


def test_handlers_are_found_by_their_annotation() -> None:
    assert {message.__name__ for message in Account.deciders} == {"Open", "Deposit", "Withdraw", "Pay", "Close"}
    assert Account.deciders[Pay].name == "pay"
    assert Account.deciders[Pay].events == (Paid, FeeCharged)
    assert Account.evolvers[Deposited] is Account.deposited
    assert Account.state_fields == {"owner": str, "balance": int, "closed": bool}


def test_options_have_defaults_and_are_inherited() -> None:
    class Current(Account):
        pass

    class Savings(Account, name="savings", placement=OwnActor(num_cpus=1), snapshot_every=0):
        pass

    assert (Aggregate.placement, Aggregate.snapshot_every) == (OwnActor(), 1_000)
    assert (Current.aggregate_type, Current.placement, Current.snapshot_every) == ("Current", Shared(), 100)
    assert (Savings.aggregate_type, Savings.placement, Savings.snapshot_every) == ("savings", OwnActor(1), 0)
    assert Savings.deciders == Account.deciders
    assert Savings.creation_restricted


def test_creation_is_restricted_once_one_decider_creates() -> None:
    assert Account.creation_restricted
    assert not Vault.creation_restricted


def test_a_subclass_may_override_a_handler_of_the_same_name() -> None:
    class Strict(Account):
        @decide
        def deposit(self, command: Deposit) -> Deposited | Rejected:
            return Rejected("no_deposits")

    account = Strict("alice", 1)
    assert isinstance(outcome_of(account, Deposit(amount=1)), Rejected)
    assert outcome_of(opened(), Deposit(amount=1)) == [Deposited(amount=1)]


def test_a_subclass_may_drop_a_handler_by_setting_it_to_none() -> None:
    class Frozen(Account):
        deposit = None  # type: ignore[assignment]

    assert Deposit not in Frozen.deciders
    assert Deposit in Account.deciders


def test_messages_nested_in_the_aggregate_are_found() -> None:
    class Lamp(Aggregate):
        class SwitchOn(Command):
            pass

        class SwitchedOn(Event):
            pass

        @decide
        def switch_on(self, command: SwitchOn) -> SwitchedOn:
            return self.SwitchedOn()

        @evolve
        def switched_on(self, event: SwitchedOn) -> None: ...

    assert outcome_of(Lamp("desk"), Lamp.SwitchOn()) == [Lamp.SwitchedOn()]


def test_handlers_of_a_plain_mixin_count() -> None:
    class Travelling:
        trips: int = 0

        @decide
        def go(self, command: Go) -> Went:
            return Went()

        @evolve
        def went(self, event: Went) -> None:
            self.trips += 1

    class Car(Travelling, Aggregate):
        pass

    assert list(Car.deciders) == [Go]
    assert Car.state_fields == {"trips": int}
    assert Car("x").trips == 0


def test_a_mixin_of_another_function_and_text_annotations_is_read() -> None:
    class Local:
        pass

    class Counting:
        kind: type[Local] = Local

    class Car(Counting, Aggregate):
        pass

    assert Car("x").kind is Local


def test_a_class_made_by_exec_is_read() -> None:
    source = """
from __future__ import annotations
class Fact(Event):
    pass
class Car(Aggregate):
    facts: list[Fact] = []
    @evolve
    def fact(self, event: Fact) -> None: ...
"""
    for names in ({}, {"__name__": "a.module.that.is.not.there"}):
        scope: dict[str, Any] = {"Aggregate": Aggregate, "Event": Event, "evolve": evolve, **names}
        exec(source, scope)
        assert list(scope["Car"].evolvers) == [scope["Fact"]]


def test_a_helper_that_looks_like_a_handler_is_none() -> None:
    class Car(Aggregate):
        @evolve
        def went(self, event: Went) -> None: ...

        def stopped(self, event: Stopped) -> None: ...

        @property
        def speed(self) -> int:
            return 0

    assert list(Car.evolvers) == [Went]


@pytest.mark.parametrize(
    "annotation",
    [
        Went,
        Went | Stopped,
        Union[Went, Stopped],  # noqa: UP007
        Optional[Went],  # noqa: UP045
        Went | Rejected | None,
        list[Went],
        List[Went],  # noqa: UP006
        list[Went | Stopped] | Rejected,
        tuple[Went, Stopped],
        tuple[Went, ...],
        tuple[()] | Went,
        Sequence[Went],
        Iterable[Went | Rejected],
        Iterator[Went],
        Generator[Went, None, None],
        Annotated[Went, "why"],
        list[Went] | list[Stopped],
    ],
)
def test_a_return_annotation_names_its_events(annotation: Any) -> None:
    def go(self: Any, command: Go) -> Any:
        return None

    go.__annotations__ = {"command": Go, "return": annotation}

    class Car(Aggregate):
        move = decide(go)

        @evolve
        def went(self, event: Went) -> None: ...

        @evolve
        def stopped(self, event: Stopped) -> None: ...

    assert set(Car.deciders[Go].events) in ({Went}, {Went, Stopped})


def test_a_decider_may_only_ever_reject() -> None:
    class Wall(Aggregate):
        @decide
        def go(self, command: Go) -> NoReturn:
            raise Rejected("wall")

        @decide
        def stop(self, command: Stop) -> Rejected | None:
            return None

    assert Wall.deciders[Go].events == Wall.deciders[Stop].events == ()
    assert isinstance(outcome_of(Wall("x"), Go()), Rejected)


# What is refused, and in which words ------------------------------------------------------------------------------


def test_two_deciders_for_one_command_are_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @decide
            def go(self, command: Go) -> None: ...

            @decide
            def go_again(self, command: Go) -> None: ...

    assert str(caught.value) == "Car.go_again: Go is already handled by go; keep one of the two methods"


def test_two_evolvers_for_one_event_are_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @evolve
            def went(self, event: Went) -> None: ...

            @evolve
            def gone(self, event: Went) -> None: ...

    assert str(caught.value) == "Car.gone: Went is already handled by went; keep one of the two methods"


def test_two_commands_of_one_stored_name_are_refused() -> None:
    class GoOn(Command, name="Go"):
        pass

    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @decide
            def go(self, command: Go) -> None: ...

            @decide
            def go_on(self, command: GoOn) -> None: ...

    assert str(caught.value) == (
        "Car.go_on: its GoOn has the stored name 'Go', as does that of go; give one of the two classes another "
        'name="..."'
    )


def test_an_event_that_nothing_evolves_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @decide
            def go(self, command: Go) -> list[Went]:
                return []

    assert str(caught.value) == "Car.go: it returns Went, which no @evolve takes; add an @evolve method for Went"


def test_a_missing_parameter_annotation_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @decide
            def go(self, command) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001

    assert str(caught.value) == "Car.go: its parameter 'command' has no annotation; annotate it with a Command class"


def test_a_missing_return_annotation_of_a_decider_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @decide
            def go(self, command: Go): ...  # type: ignore[no-untyped-def]  # noqa: ANN202

    assert str(caught.value) == "Car.go: its return annotation is missing; name the events that it may return"


def test_an_evolver_needs_no_return_annotation_but_must_return_nothing() -> None:
    class Car(Aggregate):
        @evolve
        def went(self, event: Went): ...  # type: ignore[no-untyped-def]  # noqa: ANN202

    assert Went in Car.evolvers
    with pytest.raises(DefinitionError) as caught:

        class Boat(Aggregate):
            @evolve
            def went(self, event: Went) -> Boat:
                return self

    assert str(caught.value) == (
        "Boat.went: a @evolve method changes self and returns nothing, this one returns Boat; annotate it -> None"
    )


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (Went, "Car.go: 'command' is annotated with Went, which is not a Command class"),
        (int, "Car.go: 'command' is annotated with int, which is not a Command class"),
        (Go | Stop, "which is not a Command class; annotate it with one Command class, and write one method for each"),
        (Command, "Car.go: 'command' is annotated with Command itself; name the one class it handles"),
        (
            "Nowhere",
            "Car.go: its annotations cannot be read: name 'Nowhere' is not defined; define or import the class",
        ),
    ],
)
def test_an_annotation_that_is_no_command_is_refused(annotation: Any, told: str) -> None:
    def go(self: Any, command: Any) -> None: ...

    go.__annotations__["command"] = annotation
    with pytest.raises(DefinitionError) as caught:
        type("Car", (Aggregate,), {"__module__": __name__, "go": decide(go)})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (Event, "Car.go: it returns Event itself; name the event classes it may return"),
        (list[Event], "Car.go: it returns Event itself; name the event classes it may return"),
        (
            int,
            "Car.go: it returns int, which is not an event;"
            " return events, a list or iterator of events, None or Rejected",
        ),
        (Any, "which is not an event"),
        (dict[str, Went], "which is not an event"),
        (list, "Car.go: it returns list, which is not an event"),
    ],
)
def test_a_return_annotation_that_is_no_outcome_is_refused(annotation: Any, told: str) -> None:
    def go(self: Any, command: Go) -> Any: ...

    go.__annotations__ = {"command": Go, "return": annotation}
    with pytest.raises(DefinitionError) as caught:
        type("Car", (Aggregate,), {"__module__": __name__, "go": decide(go)})
    assert told in str(caught.value)


def test_a_decider_with_too_many_parameters_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @decide
            def go(self, command: Go, speed: int) -> None: ...

    assert str(caught.value) == (
        "Car.go: a @decide method takes self and one command, this one takes self, command, speed; "
        "change its parameters"
    )


def test_a_handler_without_parameters_or_with_keyword_ones_is_refused() -> None:
    with pytest.raises(DefinitionError, match="Car.go: .* this one takes nothing"):

        class Car(Aggregate):
            @decide
            def go() -> None: ...  # type: ignore[misc]

    with pytest.raises(DefinitionError, match="Boat.go: .* this one takes self, command"):

        class Boat(Aggregate):
            @decide
            def go(self, *, command: Go) -> None: ...


def test_a_mutable_default_in_the_signature_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @decide
            def go(self, command: Go, seen: list[str] = []) -> None: ...  # noqa: B006

    assert str(caught.value) == (
        "Car.go: the default of 'seen' is one list that all calls would share; take the default away"
    )


def test_an_async_handler_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @decide
            async def go(self, command: Go) -> None: ...

    assert str(caught.value) == ("Car.go: a @decide method cannot be async; write a plain def without input or output")


def test_an_evolver_that_yields_is_refused_because_it_would_never_run() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @evolve
            def went(self, event: Went) -> Iterator[None]:
                yield

    assert str(caught.value) == (
        "Car.went: a @evolve method cannot yield, its body would never run; take the yield out"
    )


def test_a_static_method_cannot_be_a_handler() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @staticmethod
            @decide
            def go(command: Go) -> None: ...

    assert str(caught.value) == "Car.go: a staticmethod cannot be a handler; use a plain method"
    with pytest.raises(DefinitionError, match="@decide: it marks a method, not a staticmethod; put it on a def"):
        decide(staticmethod(lambda command: None))


def test_one_method_cannot_have_two_marks() -> None:
    with pytest.raises(DefinitionError, match="it is both @evolve and @decide; keep one of them"):

        class Car(Aggregate):
            @decide
            @evolve
            def go(self, command: Go) -> None: ...


def test_a_mark_of_projections_is_refused_on_an_aggregate() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            @project
            def went(self, event: Went) -> None: ...

    assert str(caught.value) == "Car.went: @project belongs to a Projection; move it there"


def test_overriding_a_handler_without_its_mark_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Strict(Account):
            def deposit(self, command: Deposit) -> Deposited | Rejected:
                return Rejected("no")

    assert str(caught.value) == (
        "Strict.deposit: it overrides a handler marked @decide without that mark; mark it @decide, or set it to None "
        "to stop handling the message"
    )


def test_an_annotation_imported_for_type_checking_only_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Car(Aggregate):
            price: Decimal | None = None

    assert str(caught.value) == (
        "Car: the annotations of its fields cannot be read: name 'Decimal' is not defined; define or import what they "
        "name above the class, not under TYPE_CHECKING"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"placement": Shared}, "Car: placement=Shared is not a placement; give Shared() or OwnActor(...)"),
        ({"placement": "shared"}, "Car: placement='shared' is not a placement; give Shared() or OwnActor(...)"),
        ({"snapshot_every": -1}, "Car: snapshot_every=-1 is not a number of events; use 0 for none, or more"),
        ({"snapshot_every": True}, "Car: snapshot_every=True is not a number of events; use 0 for none, or more"),
        ({"name": "a b"}, "Car: 'a b' cannot be a stored name; give name="),
    ],
)
def test_a_wrong_option_in_the_class_line_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        type("Car", (Aggregate,), {"__module__": __name__}, **options)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), "1", True])
def test_an_amount_that_no_actor_can_have_is_refused(amount: Any) -> None:
    with pytest.raises(DefinitionError, match="OwnActor: num_gpus=.* is not an amount; use a number from 0"):
        OwnActor(num_gpus=amount)


def test_a_placement_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        OwnActor().num_cpus = 1  # type: ignore[misc]


# What comes of a command --------------------------------------------------------------------------------------------


def test_a_decider_returns_one_event_many_or_none() -> None:
    assert outcome_of(opened(), Deposit(amount=5)) == [Deposited(amount=5)]
    assert outcome_of(opened(10), Pay(to="bob", amount=9)) == [Paid(to="bob", amount=9), FeeCharged(amount=1)]
    account = opened()
    account.closed = True
    assert outcome_of(account, Close()) == []


def test_rejected_may_be_returned_or_raised_also_from_a_generator() -> None:
    returned = outcome_of(opened(3), Withdraw(amount=4))
    raised = outcome_of(opened(3), Pay(to="bob", amount=3))
    assert isinstance(returned, Rejected)
    assert isinstance(raised, Rejected)
    assert (returned.reason, returned.facts) == ("insufficient_funds", {"balance": 3, "needed": 4})
    assert (raised.reason, raised.facts) == ("insufficient_funds", {"balance": 3, "needed": 4})


def test_only_creating_commands_run_on_an_aggregate_that_does_not_exist() -> None:
    refused = outcome_of(Account("nobody"), Deposit(amount=5))
    assert isinstance(refused, Rejected)
    assert refused.reason == "does_not_exist"
    assert outcome_of(Account("nobody"), Open(owner="Ada")) == [Opened(owner="Ada")]


def test_any_command_creates_where_none_says_that_it_does() -> None:
    assert outcome_of(Vault("v"), Store(thing="ring")) == [Stored(thing="ring")]


def test_a_command_that_nothing_decides_is_an_unknown_name() -> None:
    with pytest.raises(UnknownName) as caught:
        outcome_of(opened(), Go())
    assert str(caught.value) == ("no command of Account is named 'Go'; known: Close, Deposit, Open, Pay, Withdraw")


def test_rejected_among_the_events_rejects_the_whole_command() -> None:
    refused = Rejected("no")
    assert events_of([Deposited(amount=1), refused], opened()) is refused


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (5, "it returned int 5; return events, None or Rejected"),
        ("Deposited", "it returned str 'Deposited'; return events, None or Rejected"),
        ({"amount": 1}, "it returned dict {'amount': 1}; return events, None or Rejected"),
        ([None], "it returned None among its events; return events, None or Rejected"),
        ([Deposit(amount=1)], "it returned Deposit Deposit(amount=1) among its events"),
        (Deposited, "it returned ModelMetaclass <class 'tests.bank.Deposited'>; return events, None or Rejected"),
        (Stored(thing="x"), "it returned Stored, which no @evolve of Account takes; add one"),
    ],
)
def test_a_return_value_that_is_no_outcome_is_a_failed_handler(outcome: object, told: str) -> None:
    with pytest.raises(HandlerFailed) as caught:
        events_of(outcome, opened(), "deposit")
    assert str(caught.value).startswith(f"Account.deposit failed on Account/alice: {told}")


def test_an_endless_generator_ends_at_the_limit() -> None:
    def endless() -> Iterator[Event]:
        while True:
            yield Deposited(amount=1)

    with pytest.raises(HandlerFailed, match="it returned over 10,000 events; split the command"):
        events_of(endless(), opened())
    assert len(list(events_of([Deposited(amount=1)] * EVENTS_PER_COMMAND_MAX, opened()))) == 10_000  # type: ignore[arg-type]


def test_what_a_decider_raises_comes_out_as_it_is() -> None:
    class Car(Aggregate):
        @decide
        def go(self, command: Go) -> None:
            raise ZeroDivisionError("no road")

    with pytest.raises(ZeroDivisionError, match="no road"):
        outcome_of(Car("x"), Go())


def test_an_aggregate_shows_its_stream_version_and_state() -> None:
    assert repr(opened(7)) == "Account(id='alice', version=1, owner='Ada', balance=7, closed=False)"


def test_an_aggregate_type_that_begins_with_rayfold_and_a_dot_is_refused() -> None:
    with pytest.raises(DefinitionError, match="'rayfold.Refusals' begins with 'rayfold.'"):

        class Refusals(Aggregate, name="rayfold.Refusals"):
            pass


def test_an_event_class_that_was_defined_again_is_told_from_one_that_nobody_takes() -> None:
    """As in a notebook, where only the cell of the events was run again."""
    again = type("Deposited", (Event,), {"__annotations__": {"amount": int}, "__module__": __name__})
    told = (
        "it returned Deposited, and Account takes another class of that name; run the definition of Account again too"
    )
    with pytest.raises(HandlerFailed, match=told):
        events_of(again(amount=1), opened(), "deposit")
