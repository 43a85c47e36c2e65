"""Exploring processes: what is found, how it is printed, and what is passed over."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from examples.opt_in import OptIn
from examples.shop import Charge, Fulfilment, Placed, Refund, Wallet
from rayfold import Ended, Event, Process, Rejected, Send, Undo, Wake, accepted, evolve, react, refused, woken
from rayfold.testing import explore
from tests.runtime.exploration.test_planted import found, pasted

pytestmark = pytest.mark.slow


class Paid(Event):
    pass


class Late(Event):
    pass


class Payment(Process):
    """It forgets that it may be paid already when it is late."""

    paid: bool = False
    late: bool = False

    @react(starts=True)
    def placed(self, event: Placed) -> Iterator[Send | Wake]:
        charge = Charge(order=self.id, amount=event.total)
        yield Send(Wallet, "ada", charge, undo=Refund(order=self.id, amount=event.total))
        yield Wake("late", after=timedelta(minutes=15))

    @accepted(Charge)
    def charged(self) -> Paid:
        return Paid()

    @refused(Charge)
    def no_money(self, refusal: Rejected) -> Ended:
        return Ended(refusal.reason)

    @woken("late")
    def too_late(self) -> Iterator[Late | Undo | Ended]:
        yield Late()
        yield Undo()
        yield Ended("late")

    @evolve
    def was_paid(self, event: Paid) -> None:
        self.paid = True

    @evolve
    def was_late(self, event: Late) -> None:
        self.late = True


def never_both(payment: Payment) -> bool:
    return not (payment.paid and payment.late)


class Raising(Payment):
    @accepted(Charge)
    def charged(self) -> Paid:
        if self.late or not self.paid:
            raise ValueError("not yet")
        return Paid()


def test_a_process_that_is_right_is_explored_in_all_its_ways() -> None:
    tried = explore(Fulfilment, seed=1, examples=60)
    assert tried.accepted["Placed"]
    assert tried.repeated
    assert tried.crashes


def test_an_invariant_that_does_not_hold_is_printed_as_a_specification_that_fails() -> None:
    text = found(Payment, invariant=never_both)
    assert text.startswith("never_both does not hold")
    assert ".when_accepted(Charge)" in text
    assert ".later(seconds=" in text
    assert "never_both does not hold" in str(pasted(text))


def test_a_method_that_raises_is_printed_as_a_specification_that_fails() -> None:
    text = found(Raising)
    assert text.startswith("Raising.charged: ValueError: not yet")
    assert "is parked, when Charge is accepted" in str(pasted(text))


def test_an_aggregate_with_outputs_is_explored_too() -> None:
    tried = explore(OptIn, seed=1, examples=40, invariant=lambda one: not (one.confirmed and not one.version))
    assert set(tried.accepted) == {"Request", "Confirm"}
    assert all(tried.accepted.values())


def an_opt_in_is_never_confirmed(opt_in: OptIn) -> bool:
    return not opt_in.confirmed


def test_what_is_found_of_an_aggregate_with_outputs_fails_for_the_same_reason() -> None:
    text = found(OptIn, invariant=an_opt_in_is_never_confirmed)
    assert "an_opt_in_is_never_confirmed does not hold" in str(pasted(text))
