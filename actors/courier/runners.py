"""Runners: those of one courier, one for each `Effects` class that has something to call, and a second one for calls
that are made one at a time, since a runner has ended with them.

Beside step [5], on the event loop of the courier's thread. Before it: attempts have begun in the log. After it: each is
made in the runner of its class, and what it has come to goes back to the courier.

A runner is started when calls wait, and ends when it has been idle. Where its process ends, or its event loop is
blocked, what it had in hand has an unknown end, at once; so one class costs no other anything. What no runner was given
was not called.

Rule kept here: each attempt is handed over once at most, and comes to one result here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ...runtime.effects.call_attempt import CallAttempt
from ...runtime.effects.call_queue import RunnerName
from ...runtime.effects.results import Unknown, packed_not_called, packed_result
from ...runtime.printable import printable_log
from ..cluster.rpc import call, kill, one_line
from .runner import BLOCKED_S, RunnerHandle

__all__ = ["Runners"]

log = printable_log(__name__)

_START_TIMEOUT_S: Final = 60.0
"""A process, and the application's imports, on a machine that is busy."""

_PAUSE_FIRST_S: Final = 0.5
_PAUSE_MAX_S: Final = 30.0
"""The pause before the next runner of a class, doubled each time that one has ended within a minute and without any
result. After one that had any it is the first pause: what waits behind calls that end their runner is not held up by
them. A start takes half a second of a CPU."""

_IDLE_S: Final = 60.0
"""A runner without calls ends: a process is some 50 MiB, and is there again in a second."""

_ASK_S: Final = 10.0
"""How long one question waits for an end; and twice that for an answer, which a function that holds the interpreter
lock keeps from coming."""

Report = Callable[[CallAttempt, bytes, bool], None]
"""Gets an attempt, what it has come to, and whether its runner has ended."""


@dataclass(slots=True)
class _Runner:
    """One process."""

    name: RunnerName
    actor: RunnerHandle
    is_up: bool = False
    in_hand: dict[tuple[bytes, int], CallAttempt] = field(default_factory=dict)
    used_s: float = 0.0
    """When it last had anything in hand."""
    has_results: bool = False
    """Whether any of its attempts has come to something by itself."""


class Runners:
    """Used on one event loop."""

    def __init__(
        self, start: Callable[[str], RunnerHandle], report: Report, changed: Callable[[RunnerName, bool], None]
    ) -> None:
        """`start`: begins to start a runner of this class; `changed`: this one is there now, or is not."""
        self._start, self._report, self._changed = start, report, changed
        self._runners: dict[RunnerName, _Runner] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._not_before_s: dict[RunnerName, float] = {}
        self._pauses_s: dict[RunnerName, float] = {}
        """After those that have ended by themselves."""

    @property
    def up(self) -> list[RunnerName]:
        """Those that are there."""
        return [one.name for one in self._runners.values() if one.is_up]

    @property
    def in_hand(self) -> int:
        """Attempts that are being made."""
        return sum(len(one.in_hand) for one in self._runners.values())

    def want(self, names: Iterable[RunnerName]) -> None:
        """Calls wait for these."""
        loop = asyncio.get_running_loop()
        for name in names:
            if name in self._runners or loop.time() < self._not_before_s.get(name, 0.0):
                continue
            try:  # here and not in the task, which begins later: this is called again before that
                runner = self._runners[name] = _Runner(name, self._start(name.effects))
            except Exception as error:  # Ray is away
                log.warning("no runner of %s can be started: %s", name.effects, one_line(error))
                self._pause(name, anew=False)
                continue
            task = loop.create_task(self._serve(runner))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def make(self, calls: Sequence[CallAttempt]) -> None:
        """Hand these over; each is reported."""
        by_runner: dict[RunnerName, list[CallAttempt]] = {}
        for one in calls:
            by_runner.setdefault(RunnerName(one.stream.type, one.alone), []).append(one)
        for name, given in by_runner.items():
            runner = self._runners.get(name)
            if runner is None or not runner.is_up:
                for one in given:
                    self._report(one, packed_not_called("its runner has just ended"), False)
                continue
            runner.in_hand.update({(one.key, one.number): one for one in given})
            runner.actor.make.remote(given)

    def end(self) -> None:
        """End all. What they have in hand is not reported: its end is declared unknown when it is late."""
        for task in self._tasks:
            task.cancel()
        for runner in self._runners.values():
            kill(runner.actor)
        self._runners.clear()

    async def _serve(self, runner: _Runner) -> None:
        """The life of one runner."""
        loop, name = asyncio.get_running_loop(), runner.name
        begun_s, why = loop.time(), "its runner has ended"
        try:
            await call(runner.actor.start, timeout_s=_START_TIMEOUT_S)
            runner.is_up, runner.used_s = True, loop.time()
            self._changed(name, True)
            why = await self._follow(runner)
        except Exception as error:
            why = f"its runner has ended: {one_line(error)}"
            calls = len(runner.in_hand)
            log.warning("the runner of %s has ended, with %d calls: %s", name.effects, calls, one_line(error))
        finally:
            kill(runner.actor)
            self._pause(name, anew=runner.has_results or loop.time() - begun_s > _IDLE_S)
            if self._runners.get(name) is runner:
                del self._runners[name]
                self._changed(name, False)
                self._lose(list(runner.in_hand.values()), why)

    def _pause(self, name: RunnerName, *, anew: bool) -> None:
        """The next one is not started at once. `anew`: with the first pause."""
        last_s = 0.0 if anew else self._pauses_s.get(name, 0.0)
        self._pauses_s[name] = min(max(2 * last_s, _PAUSE_FIRST_S), _PAUSE_MAX_S)
        self._not_before_s[name] = asyncio.get_running_loop().time() + self._pauses_s[name]

    async def _follow(self, runner: _Runner) -> str:
        """Take in what its attempts come to, until it is to end. Why that is."""
        loop, after = asyncio.get_running_loop(), 0
        while True:
            answer = await call(runner.actor.ends, after, _ASK_S, timeout_s=2 * _ASK_S)
            for one in answer.ends:
                after = one.number
                attempt = runner.in_hand.pop((one.key, one.attempt), None)
                if attempt is not None:
                    runner.has_results = True
                    self._report(attempt, one.result, False)
            if answer.blocked_by:
                what = f"{answer.blocked_by} has blocked the event loop for {BLOCKED_S:g} s"
                log.error("the runner of %s is ended: %s", runner.name.effects, what)
                return what
            if runner.in_hand or answer.ends:
                runner.used_s = loop.time()
            elif loop.time() - runner.used_s > _IDLE_S:
                return "it was idle"

    def _lose(self, calls: Sequence[CallAttempt], why: str) -> None:
        for one in calls:
            self._report(one, packed_result(Unknown(why)), True)
