"""Calls to the outside: what begins, what its end leads to, what waits for people, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from examples.payments import Cancel, ChargeRequested, Charging, Confirm, Purchase
from rayfold import Backoff, Call, Done, Effects, Event, NotDone, Retry, Send, Settle, Skip, effect, given, on, settle
from rayfold.runtime.processes.call_step import LATE_US

ASKED = ChargeRequested(card="ada", amount=5)
CONFIRM = Send(Purchase, "example", Confirm(charge="17"))
ADA: dict[str, Any] = {"by": "ada", "reason": "ticket 7"}
LATE_S = 10 + LATE_US / 1e6


class Mailed(Event):
    to: str


class Mailing(Effects):
    """Without a look: an unknown end waits for people. Three attempts."""

    @effect(retry=Backoff(first_s=1, attempts=3), timeout_s=10)
    async def mail(self, event: Mailed) -> Done | NotDone:
        return Done()


class Repeating(Effects):
    """The other side takes a second call under the same key for the first."""

    @effect(retry=Backoff(first_s=1, attempts=3), timeout_s=10, repeatable=True)
    async def mail(self, event: Mailed, call: Call) -> Done:
        return Done()


def test_a_call_begins_and_what_its_result_sends_goes_out() -> None:
    case = given(Charging).when(ASKED).then_called("charge")
    case.when_done(CONFIRM).then_sent(CONFIRM).when_accepted(Confirm).then_over()


def test_a_call_that_sends_nothing_is_over_at_once() -> None:
    given(Charging).when(ASKED).when_done(note="17").then_sent().then_over()


def test_a_call_is_open_until_what_its_result_sends_has_an_outcome() -> None:
    case = given(Charging).when(ASKED).when_done(CONFIRM)
    with pytest.raises(AssertionError, match="charge is sending"):
        case.then_over()


def test_a_declined_call_is_over_and_sends() -> None:
    cancel = Send(Purchase, "example", Cancel(reason="expired"))
    given(Charging).when(ASKED).when_declined("expired", cancel).then_sent(cancel).when_accepted(Cancel).then_over()


def test_what_was_not_done_is_called_again_after_a_pause_that_doubles() -> None:
    case = given(Charging).when(ASKED).when_not_done().then_not_called()
    case.later(seconds=1.9).then_not_called().later(seconds=0.2).then_called("charge")
    case.when_not_done().later(seconds=3.9).then_not_called().later(seconds=0.2).then_called("charge")


def test_an_unknown_end_is_looked_up_at_once_and_never_called_again_blindly() -> None:
    case = given(Charging).when(ASKED).when_unknown("reset").then_called("look")
    case.when_unknown("the bank has not booked it").then_not_called().later(seconds=2).then_called("look")
    case.when_done(CONFIRM).then_sent(CONFIRM)


def test_a_look_that_finds_nothing_has_it_called_again() -> None:
    given(Charging).when(ASKED).when_unknown().then_called("look").when_not_done().later(seconds=2).then_called(
        "charge"
    )


def test_an_attempt_without_an_end_is_unknown_after_its_timeout() -> None:
    case = given(Charging).when(ASKED).later(seconds=LATE_S - 0.1).then_not_called()
    case.later(seconds=0.1).then_called("look")


def test_without_a_look_an_unknown_end_waits_for_people() -> None:
    case = given(Mailing).when(Mailed(to="ada")).when_unknown("it raised").then_parked("unknown: attempt 1 of mail")
    case.later(days=1).then_not_called()
    case.when(Retry(**ADA)).then_not_called().then_parked("unknown")
    case.when(Settle(outcome="done", **ADA)).then_over().then_goes_on()


def test_a_late_attempt_that_is_parked_takes_its_end_after_all() -> None:
    case = given(Mailing).when(Mailed(to="ada")).later(seconds=LATE_S).then_parked("no end was reported in time")
    case.when_done().then_over().then_goes_on()


def test_a_call_that_was_settled_as_not_done_is_called_again() -> None:
    case = given(Mailing).when(Mailed(to="ada")).when_unknown()
    case.when(Settle(outcome="not_done", **ADA)).then_called("mail").when_done().then_over()


def test_a_call_can_be_settled_with_what_its_result_sends() -> None:
    case = given(Mailing).when(Mailed(to="ada")).when_unknown()
    case.when(Settle.as_result(Done(CONFIRM), **ADA)).then_sent(CONFIRM).when_accepted(Confirm).then_over()


def test_a_call_that_rests_can_be_settled_and_one_that_runs_cannot() -> None:
    running = given(Mailing).when(Mailed(to="ada"))
    with pytest.raises(Exception, match="it_is_running"):
        running.when(Settle(outcome="done", **ADA))
    rests = given(Mailing).when(Mailed(to="ada")).when_not_done()
    rests.when(Settle(outcome="declined", **ADA)).then_over().later(days=1).then_not_called()
    with pytest.raises(Exception, match="no_call"):
        rests.when(Settle(outcome="done", **ADA))


def test_attempts_that_are_used_up_wait_for_people() -> None:
    case = given(Mailing).when(Mailed(to="ada"))
    for seconds in (1, 2):
        case.when_not_done().later(seconds=seconds).then_called("mail")
    case.when_not_done("no route").then_parked("given up after 3 attempts: no route")
    case.when(Retry(**ADA)).then_called("mail").when_not_done().then_goes_on()


def test_a_call_that_is_skipped_is_over() -> None:
    case = given(Mailing).when(Mailed(to="ada")).when_unknown().when(Skip(**ADA)).then_over().then_goes_on()
    case.later(days=1).then_not_called()


def test_a_repeatable_call_of_unknown_end_is_called_again_under_its_key() -> None:
    case = given(Repeating).when(Mailed(to="ada")).when_unknown().then_not_called()
    case.later(seconds=1).then_called("mail").later(seconds=LATE_S).later(seconds=2).then_called("mail")
    case.when_unknown().then_parked("unknown: given up after 3 attempts")


def test_calls_of_one_key_are_made_one_after_the_other_in_order() -> None:
    case = given(Charging)
    for order in ("1", "2", "3"):
        case.when(on(order, ASKED))
    case.then_not_called()
    for order in ("1", "2"):
        sends = Send(Purchase, order, Confirm(charge=order))
        case.when_done(sends).then_sent(sends).when_accepted(Confirm).then_called("charge")
    case.when_done().then_over()


def test_a_result_that_is_refused_stands_visibly_and_is_sent_again_or_left_out() -> None:
    case = given(Charging).when(ASKED).when_done(CONFIRM).when_refused(Confirm, "closed").then_parked("closed")
    case.when(Retry(**ADA)).then_sent(CONFIRM).when_accepted(Confirm).then_over()
    case = given(Charging).when(ASKED).when_done(CONFIRM).when_refused(Confirm, "closed")
    case.when(Skip(**ADA)).then_over().then_goes_on()


def test_a_call_that_stands_has_later_ones_of_its_key_wait_and_they_go_on_after_it() -> None:
    case = given(Charging).when(on("1", ASKED)).when_done(CONFIRM)
    case.when(on("2", ASKED)).then_not_called()
    case.when_refused(Confirm, "closed").then_parked("closed").when(Skip(**ADA)).then_called("charge")
    case.when_done().then_over()


def test_an_attempt_is_the_same_after_a_crash() -> None:
    case = given(Charging).when(ASKED).after_crash().when_unknown().after_crash().then_goes_on()
    case.when_done(CONFIRM).after_crash().when_accepted(Confirm).after_crash().then_over()


class Looked(Effects):
    """Looks twice at most."""

    @effect(retry=Backoff(first_s=1, attempts=2))
    async def mail(self, event: Mailed) -> Done:
        return Done()

    @settle(mail)
    async def look(self, event: Mailed) -> Done:
        return Done()


def test_looks_that_come_to_nothing_wait_for_people_in_the_end() -> None:
    case = given(Looked).when(Mailed(to="ada")).when_unknown().then_called("look")
    case.when_unknown().later(seconds=1).then_called("look")
    case.when_unknown("no answer").then_parked("unknown: attempt 1 of mail, looked up 2 times: no answer")
    case.when(Retry(**ADA)).then_called("look").when_done().then_over()
