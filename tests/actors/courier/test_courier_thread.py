"""What the thread of a courier shows of itself."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rayfold.actors.courier import courier_thread
from rayfold.actors.courier.courier_thread import CourierPlan, CourierThread, returned
from rayfold.actors.observe.screen import couriers_troubles
from rayfold.actors.settings import Settings


def test_why_a_courier_fails_is_shown_while_it_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier_thread, "_AGAIN_S", 0.001)
    twice, calls = threading.Event(), []

    def fails() -> Any:
        calls.append(1)
        if len(calls) > 1:
            twice.set()
        raise ValueError("the log is damaged")

    nothing: Any = lambda *_: None  # noqa: E731 - what is called of the partition
    plan = CourierPlan(0, ("shop/partition-0",), {}, Settings(), "crc32", "", nothing)
    thread = CourierThread(plan, fails, nothing, nothing, nothing, nothing)
    try:
        assert twice.wait(20)
        facts = thread.facts()
    finally:
        thread.stop()
    assert facts is not None
    assert couriers_troubles(facts) == ["a courier fails and begins anew: ValueError: the log is damaged"]


def test_a_partition_that_was_away_and_one_that_has_moved_are_asked_once_they_are_there() -> None:
    names = ("a", "b", "c")
    assert returned((names, {}), (names, {})) == []
    assert returned((names, {}), (names, {1: "its node is down"})) == []
    assert returned((names, {1: "its node is down"}), (names, {})) == [1]
    assert returned((names, {}), (("a", "b", ""), {})) == []
    assert returned((("a", "b", ""), {}), (("a", "b", "d"), {})) == [2]
