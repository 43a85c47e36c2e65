"""Which calls may begin: room, switches, runners, and targets that pause."""

from __future__ import annotations

from rayfold import Backoff, Done, Effects, Event, effect, settle
from rayfold.runtime.effects.call_queue import FAILURES_MAX, PAUSE_FIRST_US, PAUSE_MAX_US, CallQueues
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


def queues() -> CallQueues[str]:
    made: CallQueues[str] = CallQueues({"Two": Two, "Other": Other})
    made.ready = {"Two", "Other"}
    return made


def begun(made: CallQueues[str], now_us: int = 0) -> list[str]:
    """What may begin, which then has."""
    found = []
    for timer, queue in made.take(now_us):
        made.began(StreamId(queue.effects, timer), queue)
        found.append(timer)
    return found


def test_of_one_function_so_many_run_and_a_look_counts_as_its_effect() -> None:
    made = queues()
    for timer in "abc":
        made.put("Two", "first", timer)
    made.put("Two", "look", "d")
    made.put("Two", "second", "x")
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
    made.put("Two", "first", "a")
    made.put("Other", "third", "b")
    assert begun(made) == []
    assert made.wanted() == {"Other"}
    made.ready = {"Two", "Other"}
    assert begun(made) == ["b"]
    assert made.facts()[0].state == "off"
    made.off.clear()
    assert begun(made) == ["a"]


def test_after_failures_a_target_pauses_and_one_attempt_is_made_first() -> None:
    made = queues()
    for number in range(FAILURES_MAX):
        made.put("Other", "third", str(number))
        assert begun(made) == [str(number)]
        made.ended(StreamId("Other", str(number)), UNKNOWN if number % 2 else NOT_DONE, 1_000)
    for timer in "ab":
        made.put("Other", "third", timer)
    made.put("Two", "second", "c")
    made.put("Two", "first", "d")
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
        made.put("Other", "third", str(number))
        begun(made)
        made.ended(StreamId("Other", str(number)), UNKNOWN, 0)
    for timer in "ab":
        made.put("Other", "third", timer)
    assert begun(made, PAUSE_FIRST_US) == ["a"]
    made.ended(StreamId("Other", "a"), None, PAUSE_FIRST_US)
    assert begun(made, PAUSE_FIRST_US) == ["b"]


def test_pauses_grow_up_to_a_minute() -> None:
    made, now_us = queues(), 0
    for number in range(FAILURES_MAX + 12):
        made.put("Other", "third", str(number))
        now_us += PAUSE_MAX_US
        assert begun(made, now_us) == [str(number)]
        made.ended(StreamId("Other", str(number)), NOT_DONE, now_us)
    made.put("Other", "third", "last")
    assert made.next_us() == now_us + PAUSE_MAX_US


def test_attempts_that_fail_together_are_one_pause() -> None:
    made = queues()
    for number in range(12):
        made.put("Other", "third", str(number))
    assert len(begun(made)) == 12
    for number in range(12):
        made.ended(StreamId("Other", str(number)), UNKNOWN, 0)
    made.put("Other", "third", "next")
    assert made.next_us() == PAUSE_FIRST_US
