"""What is tried again, how often and for how long, on a clock of the test's."""

from __future__ import annotations

import pytest

from rayfold.actors.cluster.retry import Attempts, Patience, retried, retried_now
from rayfold.runtime.errors import StoreInUse, Unavailable

LOST = ConnectionError("the actor is being started")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_failure_is_followed_by_a_pause_until_the_time_is_over() -> None:
    clock = Clock()
    attempts = Attempts(Patience(1.0, pause_s=0.4), clock)
    assert attempts.left_s == 1.0
    assert attempts.pause_s(LOST) == 0.4
    clock.now_s = 0.9
    assert attempts.pause_s(LOST) == pytest.approx(0.1), "the last attempt begins before the end"
    clock.now_s = 1.0
    with pytest.raises(ConnectionError):
        attempts.pause_s(LOST)


def test_without_time_there_is_one_attempt() -> None:
    with pytest.raises(ConnectionError):
        Attempts(Patience(0.0), Clock()).pause_s(LOST)


def test_a_pause_doubles_up_to_its_longest() -> None:
    attempts = Attempts(Patience(pause_s=0.1, pause_max_s=0.5), Clock())
    assert [attempts.pause_s(LOST) for _ in range(5)] == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])
    steady = Attempts(Patience(pause_s=0.1), Clock())
    assert [steady.pause_s(LOST) for _ in range(3)] == [0.1, 0.1, 0.1]


def test_an_error_of_ours_is_an_answer() -> None:
    closed, used = Unavailable("the till", "closed"), StoreInUse("/data", "another one")
    with pytest.raises(Unavailable):
        Attempts(Patience(), Clock()).pause_s(closed)
    patient = Attempts(Patience(again=(StoreInUse,), never=()), Clock())
    assert patient.pause_s(used) == 0.1, "unless its class is named as one that passes"
    with pytest.raises(ConnectionError):
        patient.pause_s(LOST)


async def test_the_last_failure_is_raised_and_each_one_before_it_is_noted() -> None:
    tried: list[float] = []
    noted: list[Exception] = []
    failures = [LookupError("first"), LookupError("second"), LookupError("third")]

    def attempt(left_s: float) -> None:
        tried.append(left_s)
        raise failures[len(tried) - 1]

    async def attempt_later(left_s: float) -> None:
        attempt(left_s)

    patience = Patience(attempts_max=3, pause_s=0.0, note=noted.append)
    with pytest.raises(LookupError, match="third"):
        retried_now(attempt, patience)
    assert noted == failures[:2]
    tried.clear()
    with pytest.raises(LookupError, match="third"):
        await retried(attempt_later, patience)
    assert noted == failures[:2] * 2


async def test_what_succeeds_is_not_tried_again() -> None:
    tried: list[float] = []

    async def attempt(left_s: float) -> int:
        tried.append(left_s)
        if len(tried) < 3:
            raise LOST
        return 7

    assert await retried(attempt, Patience(60.0, pause_s=0.0)) == 7
    assert len(tried) == 3
    assert 0 < tried[2] <= tried[0] <= 60.0
