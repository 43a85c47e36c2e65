"""CallQueues: which calls to the outside may begin now.

Beside step [5], part of the courier (`processes/courier.py`). Before it: the timer of a call is due. After it: the
courier has its instance record that the attempt begins, and then it is made. A state machine: no thread, no clock.

Each `@effect` function of a class has a queue of its own, with its look: what is slow or fails holds nothing else. What
is here is in memory alone, and is made again from the timers that are armed.

Rules kept here: of one function at most `at_once` attempts run; while a class is switched off nothing of it begins;
after failures one after the other a target has a pause, and then one attempt, before all others; calls with which a
runner has ended are made one at a time after that, in a second runner of their class, so that the one that ends its
runner does so alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from ..stream import StreamId
from .methods import EffectMethod
from .results import NOT_CALLED, NOT_DONE, UNKNOWN

__all__ = ["CallQueues", "QueueFacts", "RunnerName"]

TimerType = TypeVar("TimerType")

FAILURES_MAX: Final = 5
"""Attempts one after the other that were not done, or have no known end, before a target has a pause."""

HELD_MAX: Final = 50_000
"""Calls of one function that are due and kept here, some 15 MB. Further ones are left to the timers, all of which are
looked through again when a quarter of these is left: a second for some hundred thousand."""

LOST_MAX: Final = 10_000
"""Calls whose runner has ended that are known, some 2 MB; beyond that the first ones are made beside others again."""

PAUSE_FIRST_US: Final = 1_000_000
PAUSE_MAX_US: Final = 60_000_000
"""The pause of a target, doubled each time that the attempt after it fails as well."""


class RunnerName(NamedTuple):
    """Which runner."""

    effects: str
    """Of this class, by the name of its streams."""
    alone: bool = False
    """The second one, for calls that are made one at a time."""


class QueueFacts(NamedTuple):
    """One queue, for a status."""

    effects: str
    """The class, by the name of its streams."""
    method: str
    waiting: int
    """Calls that are due and have not begun."""
    running: int
    state: str
    """`on`; `off`; `pausing`, as its target has failed; or `starting`, as calls wait for a runner."""


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


class _Running(Generic[TimerType]):
    """An attempt, or a look, that is on its way."""

    __slots__ = ("is_look", "lost", "queue", "tried")

    def __init__(self, queue: _Queue[TimerType], is_look: bool, tried: bool) -> None:
        self.queue, self.is_look, self.tried = queue, is_look, tried
        self.lost = False
        """Its runner has ended: that is not the fault of what is called."""

    def has_failed(self, result: int) -> bool:
        """Whether the target has not answered. `NOT_DONE` is an answer to a look."""
        return result == UNKNOWN or (result == NOT_DONE and not self.is_look)


class _Queue(Generic[TimerType]):
    """Of one `@effect` function."""

    def __init__(self, effects: str, method: EffectMethod, breaker: _Breaker) -> None:
        self.effects, self.method, self.breaker = effects, method, breaker
        self.waiting: OrderedDict[StreamId, TimerType] = OrderedDict()
        """By instance, in the order in which they were due. The first of a plain dict is found the slower, the more
        were taken out before it."""
        self.alone: OrderedDict[StreamId, TimerType] = OrderedDict()
        """The same of those that are made one at a time."""
        self.left = 0
        """How many more are due that are not in memory: their timers bring them again."""
        self.running = 0

    def has_room(self, now_us: int) -> bool:
        return self.running < self.method.rules.at_once and self.breaker.allows(now_us)


class CallQueues(Generic[TimerType]):
    """Of one partition. Used from one thread. `TimerType`: what is kept of a call that waits."""

    def __init__(self, classes: Mapping[str, Any]) -> None:
        """`classes`: the `Effects` classes, by the name of their streams."""
        self._by_name: dict[tuple[str, str], _Queue[TimerType]] = {}
        self._running: dict[StreamId, _Running[TimerType]] = {}
        self.off: set[str] = set()
        """The classes that are switched off."""
        self.ready: set[RunnerName] = set()
        """The runners that are there: nothing begins that is for others."""
        self._lost: dict[StreamId, None] = {}
        """Those with which a runner has ended, and which have come to nothing since."""
        self._alone: dict[str, StreamId] = {}
        """By class, what runs in the second runner."""
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

    @property
    def is_calling(self) -> bool:
        """Whether an attempt is on its way."""
        return bool(self._running)

    def knows(self, effects: str, method: str) -> bool:
        """Whether a timer of this name is that of a call."""
        return (effects, method) in self._by_name

    def put(self, stream: StreamId, method: str, timer: TimerType) -> None:
        """The call of this instance is due. One that is on its way already is no other."""
        queue = self._by_name[stream.type, method]
        if stream in self._running:
            return
        if stream in self._lost:
            queue.alone[stream] = timer
        elif len(queue.waiting) >= HELD_MAX and stream not in queue.waiting:
            queue.left += 1
        else:
            queue.waiting[stream] = timer

    def takes_again(self) -> bool:
        """Whether calls that were left to the timers are to be given again now."""
        again = [one for one in self._queues() if one.left and len(one.waiting) <= HELD_MAX // 4]
        for queue in self._queues() if again else ():
            queue.left = 0
        return bool(again)

    def take(self, now_us: int) -> Iterator[TimerType]:
        """Those that may begin now; each is to be `began`."""
        for queue in self._queues():
            for may_begin, waiting in ((self._may_begin_alone, queue.alone), (self._may_begin, queue.waiting)):
                while may_begin(queue) and queue.has_room(now_us):
                    yield waiting.popitem(last=False)[1]

    def began(self, stream: StreamId, method: str) -> None:
        """The attempt of this instance, by this function, is on its way."""
        queue = self._by_name[stream.type, method]
        if stream not in self._running:
            queue.running += 1
            self._running[stream] = _Running(queue, method != queue.method.name, queue.breaker.began())
            if stream in self._lost:
                self._alone[stream.type] = stream

    def is_alone(self, stream: StreamId) -> bool:
        """Whether the attempt that is on its way is for the second runner."""
        return self._alone.get(stream.type) == stream

    def lost(self, stream: StreamId) -> None:
        """Its runner has ended: its end does not count as a failure of its target, and it is made alone from now on."""
        if stream in self._running:
            self._running[stream].lost = True
        self._lost[stream] = None
        if len(self._lost) > LOST_MAX:
            del self._lost[next(iter(self._lost))]

    def ended(self, stream: StreamId, result: int | None, now_us: int) -> None:
        """It is over, with this result; None: it has not begun."""
        running = self._running.pop(stream, None)
        if self.is_alone(stream):
            del self._alone[stream.type]
        if result not in (None, NOT_CALLED) and not (running and running.lost):
            self._lost.pop(stream, None)
        if running is None:
            return
        running.queue.running -= 1
        breaker = running.queue.breaker
        if result is not None and result != NOT_CALLED and not running.lost:
            breaker.ended(running.has_failed(result), now_us, tried=running.tried)
        elif running.tried:
            breaker.trying = False

    def wanted(self) -> set[RunnerName]:
        """The runners that calls wait for."""
        return {name for one in self._queues() if one.effects not in self.off for name in self._wanted(one)}

    def _wanted(self, queue: _Queue[TimerType]) -> list[RunnerName]:
        names = [RunnerName(queue.effects)] if queue.waiting else []
        names += [RunnerName(queue.effects, alone=True)] if queue.alone else []
        return [one for one in names if one not in self.ready]

    def next_us(self) -> int | None:
        """When a pause is over for which calls wait; None if there is none."""
        times = [
            queue.breaker.until_us
            for queue in self._queues()
            if (self._may_begin(queue) or self._may_begin_alone(queue))
            and queue.breaker.failures >= FAILURES_MAX
            and not queue.breaker.trying
            and queue.running < queue.method.rules.at_once
        ]
        return min(times, default=None)

    def _may_begin(self, queue: _Queue[TimerType]) -> bool:
        """Whether calls wait that may begin, beside others."""
        return bool(queue.waiting) and RunnerName(queue.effects) in self.ready and queue.effects not in self.off

    def _may_begin_alone(self, queue: _Queue[TimerType]) -> bool:
        """Whether calls wait one of which may begin alone."""
        has_runner = RunnerName(queue.effects, alone=True) in self.ready and queue.effects not in self._alone
        return bool(queue.alone) and has_runner and queue.effects not in self.off

    def facts(self) -> list[QueueFacts]:
        """All queues."""
        found = []
        for queue in self._queues():
            figures = len(queue.waiting) + len(queue.alone) + queue.left, queue.running
            found.append(QueueFacts(queue.effects, queue.method.name, *figures, self._state(queue)))
        return found

    def _state(self, queue: _Queue[TimerType]) -> str:
        if queue.effects in self.off:
            return "off"
        if self._wanted(queue):
            return "starting"
        return "on" if queue.breaker.failures < FAILURES_MAX else "pausing"

    def _queues(self) -> list[_Queue[TimerType]]:
        return [queue for (_, name), queue in self._by_name.items() if name == queue.method.name]
