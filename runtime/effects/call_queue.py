"""CallQueues: which calls to the outside may begin now.

Beside step [5], part of the courier (`processes/courier.py`). Before it: the timer of a call is due. After it: the
courier has its instance record that the attempt begins, and then it is made. A state machine: no thread, no clock.

Each `@effect` function of a class has a queue of its own, with its look: what is slow or fails holds nothing else. What
is here is in memory alone, and is made again from the timers that are armed.

Rules kept here: of one function at most `at_once` attempts run; while a class is switched off nothing of it begins;
after failures one after the other a target has a pause, and then one attempt, before all others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from ..stream import StreamId
from .methods import EffectMethod
from .results import NOT_DONE, UNKNOWN

__all__ = ["CallQueues", "QueueFacts"]

TimerType = TypeVar("TimerType")

FAILURES_MAX: Final = 5
"""Attempts one after the other that were not done, or have no known end, before a target has a pause."""

PAUSE_FIRST_US: Final = 1_000_000
PAUSE_MAX_US: Final = 60_000_000
"""The pause of a target, doubled each time that the attempt after it fails as well."""


class QueueFacts(NamedTuple):
    """One queue, for a status."""

    effects: str
    """The class, by the name of its streams."""
    method: str
    waiting: int
    """Calls that are due and have not begun."""
    running: int
    state: str
    """`on`, `off` or `pausing`."""


class _Breaker:
    """Of one target: how it has answered."""

    __slots__ = ("failures", "pause_us", "trying", "until_us")

    def __init__(self) -> None:
        self.failures = self.pause_us = self.until_us = 0
        self.trying = False
        """One attempt runs, to find out whether the target answers again."""

    def allows(self, now_us: int) -> bool:
        """Whether an attempt may begin."""
        return self.failures < FAILURES_MAX or (now_us >= self.until_us and not self.trying)

    def began(self) -> bool:
        """An attempt has begun. Whether it is the one that finds out whether the target answers again."""
        self.trying = self.failures >= FAILURES_MAX
        return self.trying

    def ended(self, failed: bool, now_us: int, *, tried: bool) -> None:
        """An attempt has ended. `tried`: it was to find out; those on their way before are nothing new."""
        if tried:
            self.trying = False
        if not failed:
            self.failures = self.pause_us = 0
            return
        self.failures += 1
        if self.failures == FAILURES_MAX or tried:
            self.pause_us = min(max(2 * self.pause_us, PAUSE_FIRST_US), PAUSE_MAX_US)
            self.until_us = now_us + self.pause_us


class _Queue(Generic[TimerType]):
    """Of one `@effect` function."""

    def __init__(self, effects: str, method: EffectMethod, breaker: _Breaker) -> None:
        self.effects, self.method, self.breaker = effects, method, breaker
        self.waiting: deque[TimerType] = deque()
        self.running = 0

    def has_room(self, now_us: int) -> bool:
        return self.running < self.method.rules.at_once and self.breaker.allows(now_us)


class CallQueues(Generic[TimerType]):
    """Of one partition. Used from one thread. `TimerType`: what is kept of a call that waits."""

    def __init__(self, classes: Mapping[str, Any]) -> None:
        """`classes`: the `Effects` classes, by the name of their streams."""
        self._by_name: dict[tuple[str, str], _Queue[TimerType]] = {}
        self._running: dict[StreamId, tuple[_Queue[TimerType], bool]] = {}
        self.off: set[str] = set()
        """The classes that are switched off."""
        self.ready: set[str] = set()
        """The classes that have a runner: nothing of the others begins."""
        breakers: dict[str, _Breaker] = {}
        for name, cls in classes.items():
            for method in cls.effects.values():
                breaker = breakers.setdefault(method.rules.target or name, _Breaker())
                queue: _Queue[TimerType] = _Queue(name, method, breaker)
                self._by_name[name, method.name] = queue
                if method.look:
                    self._by_name[name, method.look] = queue

    def __bool__(self) -> bool:
        """Whether there is anything that may be called."""
        return bool(self._by_name)

    def knows(self, effects: str, method: str) -> bool:
        """Whether a timer of this name is that of a call."""
        return (effects, method) in self._by_name

    def put(self, effects: str, method: str, timer: TimerType) -> None:
        """This call is due."""
        self._by_name[effects, method].waiting.append(timer)

    def take(self, now_us: int) -> Iterator[tuple[TimerType, _Queue[TimerType]]]:
        """Those that may begin now; each is to be `began`."""
        for queue in self._queues():
            while self._is_on(queue) and queue.has_room(now_us):
                yield queue.waiting.popleft(), queue

    def began(self, stream: StreamId, queue: _Queue[TimerType]) -> None:
        """The attempt of this instance is on its way."""
        if stream not in self._running:
            queue.running += 1
            self._running[stream] = queue, queue.breaker.began()

    def ended(self, stream: StreamId, result: int | None, now_us: int) -> None:
        """It is over, with this result; None: it was not made."""
        queue, tried = self._running.pop(stream, (None, False))
        if queue is None:
            return
        queue.running -= 1
        if result is not None:
            queue.breaker.ended(result in (NOT_DONE, UNKNOWN), now_us, tried=tried)
        elif tried:
            queue.breaker.trying = False

    def wanted(self) -> set[str]:
        """The classes of which calls wait for a runner."""
        return {
            one.effects
            for one in self._queues()
            if one.waiting and one.effects not in self.ready and one.effects not in self.off
        }

    def next_us(self) -> int | None:
        """When a pause is over for which calls wait; None if there is none."""
        times = [
            queue.breaker.until_us
            for queue in self._queues()
            if self._is_on(queue)
            and queue.breaker.failures >= FAILURES_MAX
            and not queue.breaker.trying
            and queue.running < queue.method.rules.at_once
        ]
        return min(times, default=None)

    def _is_on(self, queue: _Queue[TimerType]) -> bool:
        """Whether calls wait that may begin."""
        return bool(queue.waiting) and queue.effects in self.ready and queue.effects not in self.off

    def facts(self) -> list[QueueFacts]:
        """All queues."""
        return [
            QueueFacts(queue.effects, queue.method.name, len(queue.waiting), queue.running, self._state(queue))
            for queue in self._queues()
        ]

    def _state(self, queue: _Queue[TimerType]) -> str:
        if queue.effects in self.off:
            return "off"
        return "on" if queue.breaker.failures < FAILURES_MAX else "pausing"

    def _queues(self) -> list[_Queue[TimerType]]:
        return [queue for (_, name), queue in self._by_name.items() if name == queue.method.name]
