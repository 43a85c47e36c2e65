"""Retry: when a call to an actor is made again, and when not. The one policy; the caller chooses how patient it is.

Beside all steps. Ray starts a killed actor again in a second or two, and a network loses a call now and then.

Rules kept here:
- a read is made again while its actor is being started: that changes nothing
- a write is not made again, since whether the first one took effect is unknown; unless it is safe to repeat, as `open`
  is. Commands have an id for that, and a way of their own (`client/command_router.py`)
- an error of ours is an answer, and not a failure: it is raised at once, unless the caller knows that it will pass
- the last failure is raised, and the caller adds what it was waiting for

Loops without an end, which follow something (a topology, a node, a runner), and those that wait until something has
come about, are no retries of a call, and have pauses of their own.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ...runtime.errors import RayfoldError

__all__ = ["Attempts", "Patience", "retried", "retried_now"]

T = TypeVar("T")


def _nothing(_: Exception) -> None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often something is tried."""

    for_s: float = math.inf
    """No attempt begins later than this after the first."""
    attempts_max: int | None = None
    pause_s: float = 0.1
    """Between two attempts."""
    pause_max_s: float = 0.0
    """The pause doubles from one attempt to the next, up to this; one that is smaller than `pause_s` leaves it as it
    is."""
    again: tuple[type[Exception], ...] = (Exception,)
    """What may be over at the next attempt; anything else is raised at once."""
    never: tuple[type[Exception], ...] = (RayfoldError,)
    """Exceptions that end the attempts, even where `again` has their base class."""
    note: Callable[[Exception], None] = _nothing
    """Gets each failure after which there is another attempt."""


class Attempts:
    """The attempts at one thing. Decides, and waits for nothing."""

    def __init__(self, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._deadline_s = clock() + patience.for_s
        self._failed, self._pause_s = 0, patience.pause_s

    @property
    def left_s(self) -> float:
        """For an attempt that begins now."""
        return max(0.0, self._deadline_s - self._clock())

    def pause_s(self, failure: Exception) -> float:
        """How long to wait after this before the next attempt. Raises it if there is none."""
        patience, left_s = self._patience, self.left_s
        self._failed += 1
        if not isinstance(failure, patience.again) or isinstance(failure, patience.never):
            raise failure
        if not left_s or (patience.attempts_max is not None and self._failed >= patience.attempts_max):
            raise failure
        patience.note(failure)
        pause_s, self._pause_s = self._pause_s, max(patience.pause_s, min(2 * self._pause_s, patience.pause_max_s))
        return min(pause_s, left_s)


async def retried(attempt: Callable[[float], Awaitable[T]], patience: Patience) -> T:
    """What comes of the first attempt that succeeds; each is given the seconds that are left. Raises the last
    failure."""
    attempts = Attempts(patience, asyncio.get_running_loop().time)
    while True:
        try:
            return await attempt(attempts.left_s)
        except Exception as failure:
            pause_s = attempts.pause_s(failure)
        await asyncio.sleep(pause_s)


def retried_now(attempt: Callable[[float], T], patience: Patience) -> T:
    """`retried`, on a thread that may wait."""
    attempts = Attempts(patience)
    while True:
        try:
            return attempt(attempts.left_s)
        except Exception as failure:
            pause_s = attempts.pause_s(failure)
        time.sleep(pause_s)
