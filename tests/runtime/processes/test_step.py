"""What a step of a process does with its input: what is yielded, taken back, parked, retried, skipped, ended."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
import pytest

from examples.shop import (
    Cancel,
    Charge,
    Charged,
    Fulfilment,
    Order,
    Placed,
    Refund,
    Release,
    Reserve,
    Ship,
    Stock,
    Wallet,
)
from rayfold import (
    Aggregate,
    Command,
    End,
    Ended,
    Event,
    Forget,
    Process,
    RayfoldError,
    Recorded,
    Rejected,
    Retry,
    Send,
    Shared,
    Skip,
    Undo,
    UnknownEvent,
    Wake,
    accepted,
    decide,
    evolve,
    failed,
    given,
    on,
    react,
    refused,
    woken,
)
from rayfold.runtime.domain.aggregate import outcome_of
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.processes.inputs import Input
from rayfold.runtime.write.residents import evolve_with

PLACED = Placed(wallet="ada", item="pen", total=5)
REFUND = Send(Wallet, "ada", Refund(order="example", amount=5))
RELEASE = Send(Stock, "pen", Release(order="example"))
ADA: dict[str, Any] = {"by": "ada", "reason": "ticket 7"}


class Noted(Event):
    text: str


class Notes(Process):
    """Keeps a note of each input, and raises at some."""

    notes: list[str] = []

    @react(starts=True)
    def placed(self, event: Placed, recorded: Recorded) -> Iterator[Noted | Send | Wake]:
        yield Noted(text=f"{recorded.stream.id} {recorded.version}")
        yield Send(Wallet, event.wallet, Charge(order=self.id, amount=event.total))
        yield Wake("first", after=timedelta(minutes=1))
        yield Wake("second", at=datetime(2024, 1, 1, 0, 2, tzinfo=UTC))

    @react
    def charged(self, event: Charged) -> Noted:
        if event.amount == 13:
            raise ValueError("thirteen")
        return Noted(text=f"charged {event.amount}")

    @accepted(Charge)
    def paid(self, command: Charge) -> Noted:
        return Noted(text=f"paid {command.amount}")

    @refused(Charge)
    def unpaid(self, command: Charge, refusal: Rejected) -> Noted:
        return Noted(text=f"{refusal.reason} {refusal.facts['balance']} of {command.amount}")

    @failed(Charge)
    def broken(self, error: RayfoldError, command: Command) -> Noted:
        return Noted(text=f"{command.message_name} {type(error).__name__}")

    @woken("first")
    def first(self) -> Noted:
        return Noted(text="first")

    @woken("second")
    def second(self, due: datetime) -> Noted:
        return Noted(text=f"second {due:%H:%M}")

    @evolve
    def noted(self, event: Noted) -> None:
        self.notes.append(event.text)


def charged(amount: int) -> Charged:
    return Charged(order="example", amount=amount)


# Inputs --------------------------------------------------------------------------------------------------------------


def test_an_event_comes_with_its_place_and_outcomes_with_what_was_sent() -> None:
    given(Notes).when(on("example", PLACED)).then_state(notes=["example 1"])
    given(Notes, PLACED).when_accepted(Charge).then(Noted(text="paid 5"))
    given(Notes, PLACED).when_refused(Charge, "no_money", balance=3).then(Noted(text="no_money 3 of 5"))
    given(Notes, PLACED).when_failed(Charge).then(Noted(text="Charge HandlerFailed"))


def test_a_command_of_another_class_with_the_name_of_one_that_is_handled_parks_the_instance() -> None:
    class Till(Aggregate, placement=Shared()):
        @decide
        def other(self, command: OtherCharge) -> None: ...

    class Confused(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> Send:
            return Send(Till, "1", OtherCharge())

        @refused(Charge)
        def no(self, command: Charge) -> None: ...

    given(Confused).when(PLACED).then_parked("it sends another Charge than no is for")


class OtherCharge(Command, name="Charge"):
    pass


def test_an_event_that_starts_nothing_is_ignored_where_there_is_no_instance() -> None:
    case = given(Notes).when(charged(1)).then_nothing().then_state(version=0)
    case.when(PLACED).when(charged(1)).then(Noted(text="charged 1"))


def test_which_instance_an_event_is_for_may_be_in_it() -> None:
    class ByOrder(Process):
        @react(starts=True, one=lambda event: event.order or None)
        def charged(self, event: Charged) -> Ended:
            return Ended(self.id)

    given(ByOrder).when(Charged(order="7", amount=1)).then(Ended("7"))
    given(ByOrder, id="7").when(on("ada", Charged(order="7", amount=1))).then(Ended("7"))
    given(ByOrder, id="7").when(Charged(order="", amount=1)).then_nothing().then_state(version=0)
    with pytest.raises(AssertionError, match="is for the instance '8', and this is '7'"):
        given(ByOrder, id="7").when(Charged(order="8", amount=1))


def test_a_method_that_changes_the_state_is_found() -> None:
    class Careless(Notes):
        @react
        def charged(self, event: Charged) -> Noted:
            self.notes.append("changed")
            return Noted(text="")

    with pytest.raises(AssertionError, match="a method of Careless changed notes of the state"):
        given(Careless, PLACED).when(charged(1))


def test_an_instance_that_has_ended_takes_in_nothing_more() -> None:
    case = given(Notes, PLACED).when(End(**ADA)).then_ended("ticket 7")
    version = case.process.version
    case.when(charged(1)).then_nothing().later(hours=1).then_nothing().then_state(version=version)
    with pytest.raises(Rejected, match="already_ended"):
        case.when(End(**ADA))


def test_a_compensation_that_is_refused_after_the_end_parks_nothing() -> None:
    case = (
        given(Fulfilment, PLACED)
        .when_accepted(Charge)
        .when_refused(Reserve, "sold_out")
        .then_sent(Send(Order, "example", Cancel(reason="sold_out")), REFUND)
    )
    case = case.when(End(**ADA)).then_ended("ticket 7").when_refused(Refund, "closed")
    assert case.process.progress.parked == ""
    case.then_ended("ticket 7")


# Timers --------------------------------------------------------------------------------------------------------------


def test_timers_are_fired_in_order_and_never_early() -> None:
    case = given(Notes, PLACED).later(seconds=59).then_nothing()
    case.later(seconds=61).then(Noted(text="first"), Noted(text="second 00:02"))
    case.later(hours=1).then_nothing()


class Rearming(Process):
    @react(starts=True)
    def placed(self, event: Placed) -> Wake:
        return Wake("late", after=timedelta(minutes=10))

    @react
    def charged(self, event: Charged) -> Iterator[Wake | Forget]:
        if event.amount == 1:
            yield Wake("late", after=timedelta(minutes=10))
        elif event.amount == 2:
            yield Forget("late")
        elif event.amount == 3:
            yield Forget("late")
            yield Wake("late", after=timedelta(minutes=1))
        else:
            yield Wake("late", after=timedelta(minutes=1))
            yield Forget("late")

    @woken("late")
    def late(self) -> Ended:
        return Ended("late")


def test_a_timer_that_is_armed_again_is_due_when_it_was_armed_for_last() -> None:
    case = given(Rearming, PLACED).later(minutes=9).when(charged(1)).later(minutes=9).then_nothing()
    case.later(minutes=1).then(Ended("late"))


def test_a_timer_that_was_forgotten_is_not_fired() -> None:
    given(Rearming, PLACED, charged(2)).later(hours=1).then_nothing()
    given(Rearming, PLACED, charged(3)).later(minutes=1).then(Ended("late"))
    given(Rearming, PLACED, charged(4)).later(hours=1).then_nothing()


def test_an_instance_that_ends_in_the_step_that_arms_a_timer_has_none() -> None:
    class Brief(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> Iterator[Wake | Ended]:
            yield Wake("late", after=timedelta(minutes=10))
            yield Ended("brief")

        @woken("late")
        def late(self) -> Ended:
            return Ended("late")

    case = given(Brief, PLACED).then_ended("brief").later(hours=1).then_nothing()
    assert not case.process.progress.timers


def test_a_wake_without_its_method_parks_the_instance() -> None:
    class Unnamed(Rearming):
        @react(starts=True)
        def placed(self, event: Placed) -> Wake:
            return Wake("later", after=timedelta(minutes=10))

    given(Unnamed).when(PLACED).then_parked("no @woken method has that name")


# Taking back ---------------------------------------------------------------------------------------------------------


def test_what_was_sent_is_taken_back_in_reverse_one_after_the_other() -> None:
    case = given(Fulfilment, PLACED).when_accepted(Charge).when_accepted(Reserve).when_refused(Ship, "not_open")
    case.then_sent(Send(Order, "example", Cancel(reason="not_open")), RELEASE)
    case.when_accepted(Cancel).then_sent()
    case.when_accepted(Release).then_sent(REFUND)
    case.when_accepted(Refund).then_sent().then_ended("not_open")


def test_what_was_refused_is_not_taken_back() -> None:
    case = given(Fulfilment, PLACED).when_refused(Charge, "no_money")
    case.then_sent(Send(Order, "example", Cancel(reason="no_money"))).then_ended("no_money")


def test_what_is_on_its_way_is_waited_for_before_anything_is_taken_back() -> None:
    late = given(Fulfilment, PLACED).when_accepted(Charge).later(minutes=15)
    late.then_sent(Send(Order, "example", Cancel(reason="too_late")))
    late.when_refused(Reserve, "sold_out").then_sent(REFUND)


def test_a_compensation_that_is_refused_stops_the_instance_until_it_is_retried() -> None:
    case = given(Fulfilment, PLACED).when_accepted(Charge).later(minutes=15).when_accepted(Reserve).then_sent(RELEASE)
    case.when_refused(Release, "closed").then_parked("the compensation Release to Stock/pen was refused: closed")
    first = case.process.progress.sends
    case.when(Retry(**ADA)).then_sent(RELEASE)
    ids = {one.send_id for one in (*first.values(), *case.process.progress.sends.values()) if one.undoes >= 0}
    assert len(ids) == 2  # under the id of the first it would be refused again
    case.when_accepted(Release).then_sent(REFUND).when_accepted(Refund).then_ended("too_late")


def test_a_compensation_that_fails_again_and_again_can_be_left_out() -> None:
    case = given(Fulfilment, PLACED).when_accepted(Charge).later(minutes=15).when_accepted(Reserve)
    case.when_failed(Release).then_parked("failed").when(Retry(**ADA)).then_sent(RELEASE)
    case.when_refused(Release, "closed").when(Skip(**ADA)).then_sent(REFUND)
    case.when_accepted(Refund).then_ended("too_late")


# Parked --------------------------------------------------------------------------------------------------------------


def test_an_instance_whose_method_raises_is_parked_and_later_inputs_wait_in_order() -> None:
    case = given(Notes, PLACED).when(charged(13)).then_parked("Notes.charged: ValueError: thirteen")
    case.when(charged(1)).then_parked("thirteen").when_accepted(Charge).later(minutes=1)
    assert len(case.process.progress.waiting) == 4
    with pytest.raises(AssertionError, match=r"Notes/example is parked, when later\(minutes=1\)"):
        case.then_nothing()
    case.when(Retry(**ADA)).then_parked("thirteen")
    case.when(Skip(**ADA)).then(Noted(text="charged 1"), Noted(text="paid 5"), Noted(text="first"))
    case.then_state(notes=["example 1", "charged 1", "paid 5", "first"])
    assert not case.process.progress.waiting


def test_what_waits_is_taken_in_once_the_code_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    case = given(Notes, PLACED).when(charged(13)).when(charged(2)).then_parked("thirteen")
    mended = Notes.reactions["Charged"]._replace(function=lambda self, event: Noted(text=f"mended {event.amount}"))
    monkeypatch.setitem(Notes.reactions, "Charged", mended)
    case.when(Retry(**ADA)).then(Noted(text="mended 13"), Noted(text="mended 2"))


def test_a_refusal_that_no_method_takes_parks_the_instance_and_its_retry_sends_the_command_again() -> None:
    class Plain(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> Send:
            return Send(Wallet, "ada", Charge(order=self.id, amount=1), undo=Refund(order=self.id, amount=1))

        @react
        def charged(self, event: Charged) -> Undo:
            return Undo()

    charge = Send(Wallet, "ada", Charge(order="example", amount=1))
    case = given(Plain, PLACED).when_refused(Charge, "no_money").then_parked("no @refused method takes it")
    case.when(Retry(**ADA)).then_sent(charge).when_failed(Charge).then_parked("no @failed method takes it")
    case.when(Retry(**ADA)).then_sent(charge).when_accepted(Charge).when(charged(1))
    case.then_sent(Send(Wallet, "ada", Refund(order="example", amount=1)))
    given(Plain, PLACED).when_refused(Charge, "no_money").when(Skip(**ADA)).when(charged(1)).then_sent()


def test_only_an_instance_that_is_parked_is_retried_or_skipped() -> None:
    for operation in (Retry(**ADA), Skip(**ADA)):
        with pytest.raises(Rejected, match="not_parked"):
            given(Notes, PLACED).when(operation)


def test_an_instance_that_an_operator_ends_takes_nothing_back_any_more() -> None:
    case = given(Fulfilment, PLACED).when_accepted(Charge).when_accepted(Reserve).when_refused(Ship, "not_open")
    case.when(End(**ADA)).when_accepted(Release).then_sent().then_ended("ticket 7")


def test_an_instance_can_be_ended_while_it_is_parked() -> None:
    case = given(Notes, PLACED).when(charged(13)).when(End(**ADA)).then_ended("ticket 7")
    assert not case.process.progress.parked
    assert not case.process.progress.waiting


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("text", "it returned 'text'; return events and outputs, or None"),
        ([1], "it returned 1 among its outputs"),
        (Rejected("no"), "an event cannot be refused"),
        (charged(1), "which no @evolve of Odd takes"),
    ],
    ids=["text", "number", "refusal", "event"],
)
def test_what_is_no_output_parks_the_instance(returned: Any, told: str) -> None:
    class Odd(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> Ended:
            return returned  # type: ignore[no-any-return]  # what is tested

    given(Odd).when(PLACED).then_parked(told)


def test_a_step_without_end_or_too_large_parks_the_instance() -> None:
    class Endless(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> Iterator[Forget]:
            while True:
                yield Forget("late")

    class Large(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> Iterator[Send]:
            for _ in range(20):
                yield Send(Order, "1", Cancel(reason="x" * 60_000))

    given(Endless).when(PLACED).then_parked("it yielded over 1,000 outputs")
    given(Large).when(PLACED).then_parked("bytes, over 921,600")


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt])
def test_whatever_a_method_raises_parks_the_instance_so_that_later_inputs_wait_behind_it(
    error: type[BaseException],
) -> None:
    class Odd(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> Iterator[Ended]:
            if event.total:
                raise error
            yield Ended("never")

    given(Odd).when(PLACED).then_parked(error.__name__)


def test_a_specification_that_is_not_met_shows_what_came() -> None:
    with pytest.raises(AssertionError) as error:
        given(Fulfilment).when(PLACED).then(Ended("no"))
    assert re.search(r"expected:\n\s+Ended\('no'\)\n\s+got:\n\s+Begun\(item='pen'\)", str(error.value))
    with pytest.raises(AssertionError, match="Reserve was not sent, or is answered already; not answered: Charge"):
        given(Fulfilment, PLACED).when_accepted(Reserve)
    with pytest.raises(AssertionError, match="no @react of Fulfilment takes Charged"):
        given(Fulfilment).when(charged(1))


def test_a_timer_that_was_armed_again_while_it_waited_in_a_parked_instance_is_not_fired() -> None:
    class Poisoned(Rearming):
        @react
        def charged(self, event: Charged) -> Iterator[Wake | Forget]:
            if event.amount == 13:
                raise ValueError("thirteen")
            yield from super().charged(event)

    case = given(Poisoned, PLACED).when(charged(13)).when(charged(1)).later(minutes=10).then_parked("thirteen")
    assert case.process.progress.parked
    case.when(Skip(**ADA)).then(Wake("late", after=timedelta(minutes=10)))
    case.later(minutes=9).then_nothing().later(minutes=1).then(Ended("late"))


def placed_input(version: int, schema_version: int) -> Input:
    head = ("Order", "1", version, "Placed", 0, version, schema_version, 0, bytes(16), b"", b"")
    return Input(kind=0, input_id=bytes([version] * 16), head=msgpack.packb(head), payload=encode_message(PLACED))


def test_an_event_that_is_newer_than_the_code_is_not_parked_and_later_ones_wait_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes = Notes("1")
    resume = Input(kind=3, input_id=bytes(16), head=msgpack.packb(()), payload=b"")
    for message in (placed_input(1, 2), placed_input(2, 1)):
        take(notes, message)
    assert (len(notes.progress.waiting), notes.progress.parked, notes.notes) == (2, "", [])
    with pytest.raises(UnknownEvent, match="Placed is only at version 1; deploy newer code"):
        outcome_of(notes, resume)
    monkeypatch.setattr(Placed, "schema_version", 2)
    take(notes, resume)
    monkeypatch.setattr(Placed, "schema_version", 1)
    take(notes, resume)
    assert (notes.progress.waiting, notes.notes) == ((), ["1 1", "1 2"])


def take(process: Process, message: Input) -> None:
    """Decide an input, and evolve what comes of it."""
    events = outcome_of(process, message)
    assert not isinstance(events, Rejected)
    for event in events:
        evolve_with(process, event)
