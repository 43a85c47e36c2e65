"""Heartbeats: which actors have answered none for too long, and which have answered with an error."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from rayfold.actors.cluster.rpc import Reply
from rayfold.actors.control import heartbeats
from rayfold.actors.control.heartbeats import Heartbeats
from rayfold.runtime.errors import RayfoldError, StoreMissing


class Question:
    """What is asked again and again: each time it is answered when the test sets the result."""

    def __init__(self) -> None:
        self.asked: list[Future[Any]] = []

    def __call__(self) -> Future[Any]:
        self.asked.append(Future())
        return self.asked[-1]


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_nobody_is_asked_again_before_the_last_question_is_answered() -> None:
    beats, question = Heartbeats(60.0), Question()
    for _ in range(3):
        beats.take("partition 0", question)
    assert len(question.asked) == 1
    question.asked[0].set_result(Reply(7))
    await settled()
    beats.take("partition 0", question)
    assert len(question.asked) == 2


async def test_whoever_does_not_answer_or_fails_is_silent_and_whoever_answers_is_not() -> None:
    beats, silent, lively, failing = Heartbeats(0.0), Question(), Question(), Question()
    for who, question in (("silent", silent), ("lively", lively), ("failing", failing)):
        beats.take(who, question)
    failing.asked[0].set_exception(ConnectionError("the actor is gone"))
    await settled()
    assert beats.silent() == ["silent", "lively", "failing"]
    patient = Heartbeats(60.0)
    patient.take("lively", lively)
    lively.asked[1].set_result(Reply(1))
    await settled()
    assert patient.silent() == []


async def test_an_error_of_ours_is_a_sign_of_life_and_is_noted_until_it_is_over() -> None:
    beats, question = Heartbeats(60.0), Question()
    noted: list[RayfoldError | None] = []
    missing = StoreMissing("/data/bank", "the log of partition 0 is not here")
    beats.take("partition 0", question, noted.append)
    question.asked[0].set_result(Reply.failed(missing))
    await settled()
    beats.take("partition 0", question, noted.append)
    question.asked[1].set_result(Reply(1))
    await settled()
    assert [str(one) for one in noted] == [str(missing), "None"]


async def test_the_answer_of_one_that_was_replaced_counts_for_nothing() -> None:
    beats, question = Heartbeats(60.0), Question()
    noted: list[RayfoldError | None] = []
    beats.take("partition 0", question, noted.append)
    beats.forget("partition 0")
    question.asked[0].set_result(Reply(1))
    await settled()
    assert noted == []
    beats.take("partition 0", question)
    beats.keep(set())
    assert beats.silent() == []


@pytest.mark.parametrize("kept", [{"a"}, {"a", "b"}])
async def test_those_that_are_not_asked_any_more_are_forgotten(kept: set[str]) -> None:
    beats = Heartbeats(0.0)
    for who in ("a", "b"):
        beats.take(who, Question())
    beats.keep(kept)
    assert set(beats.silent()) == kept


async def test_what_is_being_started_is_silent_from_then_on_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    beats, question = Heartbeats(0.0), Question()
    beats.take("projector", question)
    assert beats.excuse("projector")
    monkeypatch.setattr(heartbeats, "STARTING_MAX_S", -1.0)
    assert not beats.excuse("projector"), "it has been starting for too long"
    question.asked[0].set_result(Reply(1))
    await settled()
    monkeypatch.setattr(heartbeats, "STARTING_MAX_S", 60.0)
    assert beats.excuse("projector"), "it has answered since, and is started again"
    assert len(question.asked) == 1, "the question is open still"


async def test_time_in_which_the_watching_process_itself_was_stopped_is_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
    beats = Heartbeats(15.0)

    def look(after_s: float) -> list[str]:
        nonlocal now_s
        now_s += after_s
        beats.keep({"partition 0"})
        beats.take("partition 0", Question())
        return beats.silent()

    assert look(0.0) == []
    assert look(240.0) == [], "it was stopped for four minutes"
    assert [look(1.0) for _ in range(15)] == [[]] * 15
    assert look(1.0) == ["partition 0"], "which has not answered in 15 s since"


async def test_the_silence_of_what_is_being_started_counts_from_the_last_time_that_it_was() -> None:
    beats, question = Heartbeats(0.2), Question()
    beats.take("projector", question)
    await asyncio.sleep(0.25)
    assert beats.silent() == ["projector"]
    assert beats.starting() == []
    assert beats.excuse("projector")
    await asyncio.sleep(0.15)
    assert beats.starting() == ["projector"]
    assert beats.excuse("projector")
    await asyncio.sleep(0.1)
    assert beats.silent() == []
    question.asked[0].set_result(Reply(7))
    await settled()
    assert beats.starting() == []
