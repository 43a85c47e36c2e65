"""What of a process cannot work is a `DefinitionError` while its class is defined, with what would be right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from examples.shop import Charge, Charged, Fulfilment, Order, Placed, Refund, Reserve, Wallet
from rayfold import (
    Aggregate,
    Command,
    DefinitionError,
    Ended,
    Event,
    Forget,
    InvalidMessage,
    Process,
    RayfoldError,
    Rejected,
    Send,
    Shared,
    UnknownName,
    Wake,
    accepted,
    decide,
    evolve,
    failed,
    given,
    react,
    refused,
    scheduled,
    woken,
)
from rayfold.runtime.encoding.catalogue import Catalogue

not_an_aggregate: Any = Charge


class Noted(Event):
    text: str


def starts_nothing() -> None:
    class Idle(Process):
        @react
        def placed(self, event: Placed) -> None: ...


def decides_a_command() -> None:
    class Deciding(Process):
        @decide
        def charge(self, command: Charge) -> Noted:
            return Noted(text="")

        @evolve
        def noted(self, event: Noted) -> None: ...


def yields_an_event_that_nothing_evolves() -> None:
    class Forgetful(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> Iterator[Noted | Send]:
            yield Noted(text="")


def has_a_field_of_the_runtime() -> None:
    class Own(Process):
        progress: int = 0  # type: ignore[assignment]  # what is tested

        @react(starts=True)
        def placed(self, event: Placed) -> None: ...


def takes_the_wrong_thing_in_a_refusal() -> None:
    class Wrong(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> None: ...

        @refused(Charge)
        def no(self, refusal: Refund) -> None: ...


def takes_the_command_of_any() -> None:
    class Wrong(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> None: ...

        @failed()
        def no(self, command: Command) -> None: ...


def handles_one_refusal_twice() -> None:
    class Twice(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> None: ...

        @refused(Charge)
        def no(self) -> None: ...

        @refused(Charge, Refund)
        def never(self) -> None: ...


def handles_one_timer_twice() -> None:
    class Twice(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> None: ...

        @woken("late")
        def no(self) -> None: ...

        @woken("late")
        def never(self) -> None: ...


def takes_an_event_for_a_timer() -> None:
    class Wrong(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> None: ...

        @woken("late")
        def no(self, event: Placed) -> None: ...


def does_not_say_what_it_yields() -> None:
    class Silent(Process):
        @react(starts=True)
        def placed(self, event):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - what is tested
            ...


def reacts_in_an_aggregate() -> None:
    class Wrong(Aggregate):
        @react(starts=True)
        def placed(self, event: Placed) -> None: ...


def asks_for_a_result_of_no_command() -> None:
    accepted(Placed)  # type: ignore[arg-type]  # what is tested


def has_no_schedule() -> None:
    scheduled()


def has_a_schedule_without_parentheses() -> None:
    class Wrong(Process):
        @scheduled  # type: ignore[arg-type]  # what is tested
        def close_books(self) -> None: ...  # type: ignore[misc]  # so is this


def has_an_unreadable_period() -> None:
    scheduled(every="1 hour")


def has_an_unreadable_cron() -> None:
    scheduled(cron="61 * * * *")


def has_an_unknown_zone() -> None:
    scheduled(cron="0 3 * * *", zone="Europe/Atlantis")


def has_a_cron_with_seconds() -> None:
    scheduled(cron="0 0 3 * * *")


def may_refuse_an_event() -> None:
    class Refusing(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> Iterator[Send | Rejected]:
            yield Rejected("no")


def may_refuse_a_timer() -> None:
    class Refusing(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> None: ...

        @woken("late")
        def late(self) -> Rejected | None: ...


def names_an_instance_of_no_event() -> None:
    react(one=lambda: "1")  # type: ignore[arg-type, misc]  # what is tested


def has_a_placement() -> None:
    class Placed(Process, placement=Shared()):
        pass


@pytest.mark.parametrize(
    ("define", "told"),
    [
        (starts_nothing, "Idle: nothing starts an instance of it; mark a method @react(starts=True)"),
        (decides_a_command, "Deciding.charge: a process takes events, and no commands of its own"),
        (yields_an_event_that_nothing_evolves, "Forgetful.placed: it returns Noted, which no @evolve takes"),
        (has_a_field_of_the_runtime, "Own.progress: the name is reserved by Rayfold"),
        (takes_the_wrong_thing_in_a_refusal, "Wrong.no: a @refused method takes Rejected, and the command"),
        (takes_the_command_of_any, "Wrong.no: a @failed method takes RayfoldError, this one takes Command"),
        (handles_one_refusal_twice, "Twice.never: @refused of Charge is already handled by no"),
        (handles_one_timer_twice, "Twice.never: the timer 'late' is already handled by no"),
        (takes_an_event_for_a_timer, "Wrong.no: a @woken method takes self, or self and a datetime"),
        (does_not_say_what_it_yields, "Silent.placed: its parameter 'event' has no annotation"),
        (reacts_in_an_aggregate, "Wrong.placed: @react belongs to a Process"),
        (asks_for_a_result_of_no_command, "@accepted: <class 'examples.shop.Placed'> is not a Command class"),
        (has_no_schedule, "@scheduled: it has neither every= nor cron="),
        (
            has_a_schedule_without_parentheses,
            "@scheduled: it marks close_books without parentheses; write @sch",
        ),
        (has_an_unreadable_period, "@scheduled: every='1 hour' is not a period"),
        (has_an_unreadable_cron, "@scheduled: cron='61 * * * *' cannot be read"),
        (has_a_cron_with_seconds, "@scheduled: cron='0 0 3 * * *' has 6 fields; give five fields"),
        (may_refuse_an_event, "Refusing.placed: it returns Rejected, and what has happened cannot be refused"),
        (may_refuse_a_timer, "Refusing.late: it returns Rejected, and what has happened cannot be refused"),
        (names_an_instance_of_no_event, "@react: one=<function names_an_instance_of_no_event"),
        (has_a_placement, "Placed: placement=Shared() is given, and a process runs in its partition; take it away"),
        (has_an_unknown_zone, "@scheduled: zone='Europe/Atlantis' is not a time zone"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_cannot_work_is_refused_while_the_class_is_defined(define: Callable[[], None], told: str) -> None:
    with pytest.raises(DefinitionError) as error:
        define()
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Send(Wallet, "ada", Reserve(order="1")), "Wallet does not decide Reserve"),
        (lambda: Send(Wallet, "", Charge(order="1", amount=1)), "'' is not the id of an aggregate"),
        (lambda: Send(not_an_aggregate, "ada", Charge(order="1", amount=1)), "is not an Aggregate class"),
        (lambda: Wake("late"), "it has no time"),
        (lambda: Wake("late", after=timedelta(1), at=datetime.now()), "it has two times"),
        (lambda: Wake("late", at=datetime(2026, 1, 1)), "has no time zone"),
        (lambda: Wake("late", after=timedelta(-1)), "is not a time from now on"),
        (lambda: Wake("", after=timedelta(1)), "'' is not the name of a timer"),
        (lambda: Forget("x" * 37), "is not the name of a timer"),
        (lambda: Ended(None), "None is not a reason"),  # type: ignore[arg-type]  # what is tested
    ],
    ids=["command", "id", "target", "no-time", "two-times", "no-zone", "past", "no-name", "long-name", "no-reason"],
)
def test_an_output_that_could_never_be_carried_out_cannot_be_made(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(InvalidMessage, match="Send|Wake|Forget|Ended") as error:
        make()
    assert told in str(error.value)


def test_a_process_is_listed_as_one() -> None:
    catalogue = Catalogue([Order], processes=[Fulfilment])
    assert catalogue.processes == {"Fulfilment": Fulfilment}
    assert catalogue.aggregates == {"Order": Order, "Fulfilment": Fulfilment}
    assert catalogue.has_outputs
    assert not Catalogue([Order, Wallet]).has_outputs
    with pytest.raises(DefinitionError, match="Fulfilment is a process; list it in processes="):
        Catalogue([Fulfilment])
    with pytest.raises(DefinitionError, match="Order is not a process; list it in aggregates="):
        Catalogue(processes=[Order])


def test_a_process_is_shared_and_knows_what_it_reacts_to() -> None:
    assert Fulfilment.placement == Shared()
    assert Fulfilment.reacts_to == (Placed,)
    assert Fulfilment.reactions["Placed"].starts


def test_what_a_base_reacts_to_a_derived_process_does_too() -> None:
    class Late(Fulfilment):
        @react
        def charged(self, event: Charged) -> None: ...

    assert set(Late.reactions) == {"Placed", "Charged"}
    assert set(Late.wakers) == {"too_late"}


def test_outcomes_may_be_taken_with_their_command_and_their_error() -> None:
    class Watching(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> None: ...

        @refused(Charge)
        def no(self, command: Charge, refusal: Rejected) -> None: ...

        @accepted(Charge, Refund)
        def fine(self, command: Charge | Refund) -> None: ...

        @failed()
        def broken(self, error: RayfoldError) -> None: ...

    assert set(Watching.outcome_methods) == {(1, "Charge"), (0, "Charge"), (0, "Refund"), (2, "")}


def test_an_unknown_command_of_a_process_is_told_without_those_of_the_runtime() -> None:
    catalogue = Catalogue([Order], processes=[Fulfilment])
    with pytest.raises(UnknownName) as error:
        catalogue.command(Fulfilment, "Place")
    assert str(error.value) == "no command of Fulfilment is named 'Place'; known: none"


@pytest.mark.parametrize(
    "wake",
    [
        Wake("late", after=timedelta.max),
        Wake("late", at=datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))),
    ],
    ids=["after", "at"],
)
def test_a_timer_for_the_end_of_time_can_be_armed(wake: Wake) -> None:
    class Patient(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> Wake:
            return wake

        @woken("late")
        def late(self, due: datetime) -> Ended:
            return Ended(f"{due:%Y}")

    case = given(Patient).when(Placed(wallet="ada", item="pen", total=5)).then(wake)
    case.later(days=365 * 5_000).then_nothing()
