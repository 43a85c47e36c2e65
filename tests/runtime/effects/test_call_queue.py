"""Which calls may begin: room, switches, runners, and targets that pause."""

from __future__ import annotations

import pytest

from rayfold import Backoff, Done, Effects, Event, effect, settle
from rayfold.runtime.effects import call_queue
from rayfold.runtime.effects.call_queue import FAILURES_MAX, PAUSE_FIRST_US, PAUSE_MAX_US, CallQueues, RunnerName
from rayfold.runtime.effects.results import DECLINED, DONE, NOT_DONE, UNKNOWN
from rayfold.runtime.stream import StreamId


class First(Event):
    to: str


class Second(Event):
    to: str


class Third(Event):
    to: str


class Two(Effects):
    @effect(at_once=2)
    async def first(self, event: First) -> Done:
        return Done()

    @settle(first)
    async def look(self, event: First) -> Done:
        return Done()

    @effect(at_once=1, target="elsewhere", retry=Backoff())
    async def second(self, event: Second) -> Done:
        return Done()


class Other(Effects):
    @effect(target="elsewhere")
    async def third(self, event: Third) -> Done:
        return Done()


class Queues(CallQueues[str]):
    """Knows of what each timer is."""

    def __init__(self) -> None:
        super().__init__({"Two": Two, "Other": Other})
        self.methods: dict[str, tuple[str, str]] = {}


def queues() -> Queues:
    made = Queues()
    made.ready = {RunnerName("Two"), RunnerName("Other")}
    return made


def put(made: Queues, effects: str, method: str, timer: str) -> None:
    made.methods[timer] = effects, method
    made.put(StreamId(effects, timer), method, timer)


def begun(made: Queues, now_us: int = 0) -> list[str]:
    """What may begin, which then has."""
    found = []
    for timer in made.take(now_us):
        effects, method = made.methods[timer]
        made.began(StreamId(effects, timer), method)
        found.append(timer)
    return found


def test_of_one_function_so_many_run_and_a_look_counts_as_its_effect() -> None:
    made = queues()
    for timer in "abc":
        put(made, "Two", "first", timer)
    put(made, "Two", "look", "d")
    put(made, "Two", "second", "x")
    assert begun(made) == ["a", "b", "x"]
    made.ended(StreamId("Two", "a"), DONE, 0)
    made.ended(StreamId("Two", "a"), DONE, 0)
    assert begun(made) == ["c"]
    made.ended(StreamId("Two", "b"), None, 0)
    made.ended(StreamId("Two", "c"), DECLINED, 0)
    assert begun(made) == ["d"]
    assert [(one.method, one.waiting, one.running, one.state) for one in made.facts()] == [
        ("first", 0, 1, "on"),
        ("second", 0, 1, "on"),
        ("third", 0, 0, "on"),
    ]


def test_what_is_off_or_has_no_runner_waits() -> None:
    made = queues()
    made.off, made.ready = {"Two"}, set()
    put(made, "Two", "first", "a")
    put(made, "Other", "third", "b")
    assert begun(made) == []
    assert made.wanted() == {RunnerName("Other")}
    assert [one.state for one in made.facts()] == ["off", "off", "starting"]
    made.ready = {RunnerName("Two"), RunnerName("Other")}
    assert begun(made) == ["b"]
    assert made.facts()[0].state == "off"
    made.off.clear()
    assert begun(made) == ["a"]


def test_after_failures_a_target_pauses_and_one_attempt_is_made_first() -> None:
    made = queues()
    for number in range(FAILURES_MAX):
        put(made, "Other", "third", str(number))
        assert begun(made) == [str(number)]
        made.ended(StreamId("Other", str(number)), UNKNOWN if number % 2 else NOT_DONE, 1_000)
    for timer in "ab":
        put(made, "Other", "third", timer)
    put(made, "Two", "second", "c")
    put(made, "Two", "first", "d")
    assert begun(made, 1_000) == ["d"], "another target goes on"
    assert made.next_us() == 1_000 + PAUSE_FIRST_US
    assert len(begun(made, 1_000 + PAUSE_FIRST_US)) == 1, "one alone"
    assert made.next_us() is None
    made.ended(StreamId("Two", "c"), NOT_DONE, 2_000_000)
    assert made.next_us() == 2_000_000 + 2 * PAUSE_FIRST_US
    assert begun(made, 2_000_000 + 2 * PAUSE_FIRST_US) == ["a"]
    made.ended(StreamId("Other", "a"), DONE, 5_000_000)
    assert begun(made, 5_000_000) == ["b"]


def test_the_attempt_after_a_pause_that_was_not_made_is_made_by_the_next() -> None:
    made = queues()
    for number in range(FAILURES_MAX):
        put(made, "Other", "third", str(number))
        begun(made)
        made.ended(StreamId("Other", str(number)), UNKNOWN, 0)
    for timer in "ab":
        put(made, "Other", "third", timer)
    assert begun(made, PAUSE_FIRST_US) == ["a"]
    made.ended(StreamId("Other", "a"), None, PAUSE_FIRST_US)
    assert begun(made, PAUSE_FIRST_US) == ["b"]


def test_pauses_grow_up_to_a_minute() -> None:
    made, now_us = queues(), 0
    for number in range(FAILURES_MAX + 12):
        put(made, "Other", "third", str(number))
        now_us += PAUSE_MAX_US
        assert begun(made, now_us) == [str(number)]
        made.ended(StreamId("Other", str(number)), NOT_DONE, now_us)
    put(made, "Other", "third", "last")
    assert made.next_us() == now_us + PAUSE_MAX_US


def test_attempts_that_fail_together_are_one_pause() -> None:
    made = queues()
    for number in range(12):
        put(made, "Other", "third", str(number))
    assert len(begun(made)) == 12
    for number in range(12):
        made.ended(StreamId("Other", str(number)), UNKNOWN, 0)
    put(made, "Other", "third", "next")
    assert made.next_us() == PAUSE_FIRST_US


def test_of_very_many_most_are_left_to_the_timers_and_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_queue, "HELD_MAX", 8)
    made, calls = queues(), [f"{number:02}" for number in range(20)]
    done: list[str] = []
    for _ in range(100):
        if made.takes_again() or not done:
            for timer in calls:
                if timer not in done:
                    put(made, "Two", "second", timer)
            assert made.facts()[1].waiting + made.facts()[1].running == 20 - len(done)
        for timer in begun(made):
            put(made, "Two", "second", timer)
            made.ended(StreamId("Two", timer), DONE, 0)
            done.append(timer)
    assert done == calls


def test_a_look_that_finds_nothing_and_a_runner_that_ends_are_no_failures_of_the_target() -> None:
    made = queues()
    for number in range(2 * FAILURES_MAX):
        put(made, "Two", "look", str(number))
        assert begun(made) == [str(number)]
        if number % 2:
            made.lost(StreamId("Two", str(number)))
        made.ended(StreamId("Two", str(number)), UNKNOWN if number % 2 else NOT_DONE, 0)
    assert made.facts()[0].state == "on"


def test_calls_with_which_a_runner_has_ended_are_made_one_at_a_time_and_the_others_go_on() -> None:
    made = queues()
    for timer in "ab":
        put(made, "Two", "first", timer)
    begun(made)
    for timer in "ab":
        made.lost(StreamId("Two", timer))
        made.ended(StreamId("Two", timer), UNKNOWN, 0)
    for timer in "abcde":
        put(made, "Two", "look" if timer in "ab" else "first", timer)
    assert begun(made) == ["c", "d"]
    made.ended(StreamId("Two", "d"), DONE, 0)
    assert made.wanted() == {RunnerName("Two", alone=True)}
    assert (made.facts()[0].waiting, made.facts()[0].state) == (3, "starting")
    made.ready.add(RunnerName("Two", alone=True))
    assert begun(made) == ["a"], "before the others"
    assert [made.is_alone(StreamId("Two", one)) for one in "abc"] == [True, False, False]
    made.ended(StreamId("Two", "c"), DONE, 0)
    assert begun(made) == ["e"], "b waits for a"
    made.lost(StreamId("Two", "a"))
    made.ended(StreamId("Two", "a"), UNKNOWN, 0)
    assert begun(made) == ["b"]
    made.ended(StreamId("Two", "b"), NOT_DONE, 0)
    for timer in "ab":
        put(made, "Two", "first", timer)
    made.ended(StreamId("Two", "e"), DONE, 0)
    assert begun(made) == ["a", "b"]
    assert [made.is_alone(StreamId("Two", one)) for one in "ab"] == [True, False]


def test_of_very_many_calls_whose_runner_has_ended_the_last_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_queue, "LOST_MAX", 2)
    made = queues()
    for timer in "abc":
        made.lost(StreamId("Two", timer))
        put(made, "Two", "first", timer)
    for timer in "abc":
        put(made, "Two", "second", timer)
    assert begun(made) == ["a"]
