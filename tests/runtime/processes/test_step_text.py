"""A stored step in words."""

from __future__ import annotations

from typing import Any

import pytest

from examples.shop import Charge, Fulfilment, Placed, Reserve
from rayfold import End, Retry, given
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.processes.progress import STEPPED, Stepped, body_of
from rayfold.runtime.processes.step_text import step_text

PLACED = Placed(wallet="ada", item="pen", total=5)


def steps_of(case: Any) -> list[str]:
    """Each record of a step, as it is shown."""
    stored = [decode_record(record) for record in case._log.read(0, 100)]
    steps = [case._catalogue.decode_event(one) for one in stored if one.name == STEPPED]
    assert all(isinstance(one, Stepped) and body_of(one) for one in steps)
    return [repr(one) for one in steps]


def test_a_step_is_shown_with_what_came_in_and_what_is_carried_out() -> None:
    case = given(Fulfilment, PLACED).when_accepted(Charge).when_refused(Reserve, "sold_out")
    assert steps_of(case)[:2] == [
        "Stepped(input='Placed, version 1 of Example/example', "
        "outputs=['number 0: Charge to Wallet/ada', 'timer too_late: after 900 s'])",
        "Stepped(input='number 0 was accepted', outputs=['number 1: Reserve to Stock/pen'])",
    ]
    assert "'take back'" in steps_of(case)[2]
    assert "number 3: Refund to Wallet/ada, takes back number 0" in steps_of(case)[2]


def test_what_an_operator_has_done_is_shown_with_who_and_why() -> None:
    case = given(Fulfilment, PLACED).when_accepted(Charge).later(minutes=15).when_refused(Reserve, "no")
    case.when_refused(next(command for command, back in case.commands_sent if back), "closed")
    case.when(Retry(by="ada", reason="ticket 7")).when(End(by="bob", reason="ticket 8"))
    *_, parked, retried, ended = steps_of(case)
    assert "waits=True" in parked
    assert "parked='the compensation Refund to Wallet/ada was refused: closed'" in parked
    assert "how='retried'" in retried
    assert "by='ada', reason='ticket 7'" in retried
    assert ended == "Stepped(how='ended by an operator', outputs=['ended: ticket 8'], by='bob', reason='ticket 8')"


@pytest.mark.parametrize("body", [b"", b"\x90", b"\xc1", b"\x9a\x00\x09\x90\xc4\x00\xc4\x00\xc2\xa0\x90\xa0\xa0"])
def test_what_is_no_step_is_shown_too(body: bytes) -> None:
    assert step_text(body)


def test_where_an_instance_is_is_shown_in_one_line() -> None:
    case = given(Fulfilment, PLACED)
    assert repr(case.process.progress) == "Progress(sent=['Charge to Wallet/ada'], timers=['too_late'])"
    case.later(minutes=15).when_refused(Charge, "no")
    assert repr(case.process.progress) == "Progress(sent=['Cancel to Order/example'], ended='too_late')"
