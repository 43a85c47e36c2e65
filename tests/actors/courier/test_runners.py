"""Which runner gets what: of each class one, and what it was never given was not called."""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import Future
from typing import Any

from rayfold.actors.cluster.rpc import Reply
from rayfold.actors.courier.runner import AttemptEnd, Ends
from rayfold.actors.courier.runners import Runners
from rayfold.runtime.effects.call_attempt import CallAttempt
from rayfold.runtime.effects.call_queue import RunnerName
from rayfold.runtime.effects.results import NOT_CALLED, UNKNOWN, Done, packed_result, unpacked_result
from rayfold.runtime.stream import StreamId

DONE = packed_result(Done())


def attempt(ident: str) -> CallAttempt:
    return CallAttempt(StreamId("Paying", ident), "pay", 1, 1, ident.encode(), b"", b"", 0, b"", False, 0)


class Asked:
    """A method of an actor, with the answers to it."""

    def __init__(self, *answers: Any) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._answers = list(answers)
        self._open: list[Future[Any]] = []

    def remote(self, *arguments: Any) -> Asked:
        self.asked.append(arguments)
        self._open.append(Future())
        self._match()
        return self

    def future(self) -> Future[Any]:
        return self._last

    def answer(self, value: Any) -> None:
        """What the next question, or the one that waits, is answered with."""
        self._answers.append(value)
        self._match()

    def _match(self) -> None:
        if self._open:
            self._last = self._open[-1]
        while self._open and self._answers:
            answer = self._answers.pop(0)
            if isinstance(answer, Exception):
                self._open.pop(0).set_exception(answer)
            else:
                self._open.pop(0).set_result(Reply(answer))


class Runner:
    """An actor that is up at once and answers what the test has it answer."""

    def __init__(self) -> None:
        self.start, self.ends, self.make = Asked(1), Asked(), Asked()

    @property
    def made(self) -> list[str]:
        return [one.stream.id for (calls,) in self.make.asked for one in calls]

    def finish(self, *idents: str) -> None:
        """These are done."""
        ends = [AttemptEnd(number, ident.encode(), 1, DONE) for number, ident in enumerate(idents, 1)]
        self.ends.answer(Ends(ends, ""))


class World:
    """Runners that were started, and what was reported."""

    def __init__(self) -> None:
        self.started: list[Runner] = []
        self.reported: list[tuple[str, bytes, bool]] = []
        self.up = asyncio.Event()
        self.down = asyncio.Event()
        self.runners = Runners(self._start, self._report, self._changed)

    def _start(self, effects: str) -> Any:
        self.started.append(Runner())
        return self.started[-1]

    def _report(self, call: CallAttempt, result: bytes, lost: bool) -> None:
        self.reported.append((call.stream.id, result, lost))

    def _changed(self, name: RunnerName, up: bool) -> None:
        (self.up if up else self.down).set()


async def test_a_class_that_is_wanted_twice_at_once_gets_one_runner_which_makes_its_calls() -> None:
    world = World()
    world.runners.want({RunnerName("Paying")})
    world.runners.want({RunnerName("Paying")})
    await world.up.wait()
    world.runners.make([attempt("a")])
    world.started[0].finish("a")
    while not world.reported:
        await asyncio.sleep(0)
    world.runners.end()
    assert len(world.started) == 1
    assert world.started[0].made == ["a"]
    assert world.reported == [("a", DONE, False)]


async def test_what_no_runner_was_given_was_not_called_and_what_one_had_is_unknown() -> None:
    world = World()
    world.runners.want({RunnerName("Paying")})
    await world.up.wait()
    world.runners.make([attempt("a")])
    world.started[0].ends.answer(RuntimeError("it has ended"))
    await world.down.wait()
    world.runners.make([attempt("b")])
    world.runners.end()
    results = [(ident, unpacked_result(result).result, lost) for ident, result, lost in world.reported]
    assert results == [("a", UNKNOWN, True), ("b", NOT_CALLED, False)]
    assert world.started[0].made == ["a"]


async def test_what_is_made_alone_has_a_runner_of_its_own() -> None:
    world = World()
    world.runners.want({RunnerName("Paying"), RunnerName("Paying", alone=True)})
    await world.up.wait()
    while len(world.runners.up) < 2:
        await asyncio.sleep(0)
    world.runners.make([attempt("a"), attempt("b")._replace(alone=True)])
    world.runners.end()
    assert sorted(one.made for one in world.started) == [["a"], ["b"]]


class Clock:
    """The clock of the running event loop, which stands still until the test moves it."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        asyncio.get_running_loop().time = lambda: self.now_s  # type: ignore[method-assign]


async def lives(world: World, *, finishes: bool) -> None:
    """A runner starts, is given a call, and ends; before that, its call may be done."""
    await world.up.wait()
    runner = world.started[-1]
    world.runners.make([attempt("a")])
    if finishes:
        runner.finish("a")
        while not world.reported:
            await asyncio.sleep(0)
    runner.ends.answer(RuntimeError("it has ended"))
    await world.down.wait()
    world.up.clear()
    world.down.clear()
    world.reported.clear()


async def test_a_runner_that_has_had_a_result_is_followed_by_the_next_after_the_first_pause() -> None:
    clock, world = Clock(), World()
    for number in range(1, 6):
        world.runners.want({RunnerName("Paying")})
        assert len(world.started) == number
        await lives(world, finishes=True)
        clock.now_s += 0.6
    world.runners.end()


async def test_runners_that_end_without_a_result_follow_one_another_after_longer_and_longer_pauses() -> None:
    clock, world = Clock(), World()
    pauses_s = []
    for number in range(1, 6):
        while len(world.started) < number:
            world.runners.want({RunnerName("Paying")})
            clock.now_s += 0.1
        pauses_s.append(clock.now_s)
        await lives(world, finishes=False)
    world.runners.end()
    waited_s = [round(later - earlier) for earlier, later in itertools.pairwise(pauses_s)]
    assert waited_s == [1, 1, 2, 4]
