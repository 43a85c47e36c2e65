"""An application without the aggregates that its processes send to is refused, or that is logged, before it runs."""

from __future__ import annotations

import logging

import pytest

from examples.shop import Fulfilment, Order, Placed, Stock, Wallet
from rayfold import Application, DefinitionError, Process, Send, react
from tests.runtime.processes.test_endless import Parrot, Room, Say, Wheel


def test_a_process_that_takes_the_outcome_of_what_nothing_decides_is_refused() -> None:
    with pytest.raises(DefinitionError) as error:
        Application("shop", aggregates=[Order, Stock], processes=[Fulfilment])
    assert str(error.value) == (
        "Fulfilment.paid: nothing in aggregates= decides Charge, whose outcome it takes; list the aggregate that "
        "decides it"
    )
    Application("shop", aggregates=[Order, Stock, Wallet], processes=[Fulfilment])


def test_an_aggregate_that_a_method_names_and_that_is_missing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Many(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> list[Send]:
            return [Send(Room, str(number), Say()) for number in range(event.total)]

    with caplog.at_level(logging.WARNING):
        Application("rooms", aggregates=[Order], processes=[Parrot, Many])
    told = [record.getMessage() for record in caplog.records]
    assert sorted(told) == [
        "Many.placed names Room, which is not in aggregates=: what it sends there fails",
        "Parrot.answer names Room, which is not in aggregates=: what it sends there fails",
    ]
    caplog.clear()
    Application("rooms", aggregates=[Order, Room, Wheel], processes=[Parrot, Many])
    assert not caplog.records
