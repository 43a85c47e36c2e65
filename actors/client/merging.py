"""Merging: `merge=` functions of queries that go to all parts of a projection, on threads beside the event loop.

Step [8] of the read path, between the answers of the parts (`query_router.py`) and the caller. A function of the user's
that is slow, or never returns, costs its own query its deadline, and the event loop nothing.

Why not the loop's own executor: its threads are few and needed elsewhere, and the end of the program waits for them.
These are daemon threads; what waits for one is bounded by the queries that may wait for their parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ...runtime.errors import HandlerFailed, Unavailable

__all__ = ["THREADS_MAX", "cannot_wait", "merge_in_thread"]

THREADS_MAX: Final = 8
"""So many functions that do not return hold up those of other queries, until their deadlines."""

_PLAIN: Final = (sum, min, max)

_IDLE_S: Final = 0.5
"""After which a thread without work ends: starting one costs 0.1 ms."""


def cannot_wait(merge: Callable[..., Any] | None, answers: list[Any]) -> bool:
    """Whether this is a function of Python's own, of numbers: called in the event loop it takes half of the CPU."""
    return any(merge is plain for plain in _PLAIN) and all(type(answer) in (int, float) for answer in answers)


async def merge_in_thread(name: str, merge: Callable[[], Any], timeout_s: float) -> Any:
    """What `merge` returns, or the error that it raises, as a value. `Unavailable` if it takes longer. `name`: what it
    merges."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    _threads.begin(future, name, merge)
    late = loop.call_later(timeout_s, _resolve, future, Unavailable(name, "its merge= did not return in time"))
    try:
        return await future
    finally:
        late.cancel()


class _Threads:
    """At most `THREADS_MAX`, each started when it is needed."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """There are none, in a forked child for example."""
        self._changed = threading.Condition()
        self._waiting: deque[tuple[asyncio.Future[Any], str, Callable[[], Any]]] = deque()
        self._done: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        """Results that the loops have yet to get: they are woken once for many."""
        self._started = self._idle = 0

    def begin(self, future: asyncio.Future[Any], name: str, merge: Callable[[], Any]) -> None:
        """Run it, and set the future on its loop."""
        with self._changed:
            self._waiting.append((future, name, merge))
            if len(self._waiting) > self._idle and self._started < THREADS_MAX:
                with contextlib.suppress(
                    RuntimeError
                ):  # there may be no more threads: the existing ones do it, or none
                    threading.Thread(target=self._work, name="rayfold merge", daemon=True).start()
                    self._started += 1
            if self._idle:
                self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._idle += 1
                    self._changed.wait_for(lambda: self._waiting, _IDLE_S)
                    self._idle -= 1
                if not self._waiting:
                    self._started -= 1
                    return
                future, name, merge = self._waiting.popleft()
            if not future.done():  # else no caller waits for it any more
                self._has_done(future, _merged(name, merge))

    def _has_done(self, future: asyncio.Future[Any], outcome: Any) -> None:
        loop = future.get_loop()
        with self._changed:
            done = self._done.setdefault(loop, [])
            done.append((future, outcome))
            wakes = len(done) == 1
        if wakes:
            try:
                loop.call_soon_threadsafe(self._resolve_all, loop)
            except RuntimeError:  # it has been closed
                with self._changed:
                    self._done.pop(loop, None)

    def _resolve_all(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._changed:
            done = self._done.pop(loop, [])
        for future, outcome in done:
            _resolve(future, outcome)


def _merged(name: str, merge: Callable[[], Any]) -> Any:
    try:
        return merge()
    except HandlerFailed as error:
        return error
    except BaseException as error:
        return HandlerFailed.caused_by("its @answer(merge=...)", name, error)


def _resolve(future: asyncio.Future[Any], outcome: Any) -> None:
    if not future.done():
        future.set_result(outcome)


_threads: Final = _Threads()
os.register_at_fork(after_in_child=_threads.forget)
