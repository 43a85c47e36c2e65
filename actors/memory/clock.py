"""Clock: the time of a system in memory, which stands still until a test moves it.

Beside step [5]: where the time of an event comes from. In production that is the clock of the machine, and nothing can
be put in its place: a clock belongs to the logs of one system in memory, and no other code asks it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from ...runtime.errors import InvalidMessage
from ...runtime.read.time_travel import microseconds

__all__ = ["FIRST_TIME", "Clock"]

FIRST_TIME: Final = datetime(2024, 1, 1, tzinfo=UTC)
"""What a clock shows at first: the time of the first event in a specification (`runtime/testing.py`), too."""


class Clock:
    """The clock of a system in memory: `bank.clock`. It stands still until it is moved, so that a test gives the same
    every day. May be moved from any thread.

    Timers of processes that are due by then have been fired when it returns, in order, each at its time.

    What is recorded carries its time, so `state_at(at=)`, `as_of` and `recorded.recorded_at` follow it. Timeouts do
    not: a call that waits does so by the clock of the machine.

    Example:
        bank.clock.advance(timedelta(days=30))
        bank.clock.set(datetime(2026, 12, 24, 18, tzinfo=UTC))
    """

    def __init__(self, now: datetime = FIRST_TIME) -> None:
        self._now_us = _checked("now", now)
        self.moved: Callable[[int], None] | None = None
        """Called with the time that it is to show; what it calls has it show that. None: nothing waits for the time."""

    def __repr__(self) -> str:
        return f"Clock({self.now.isoformat()})"

    @property
    def now(self) -> datetime:
        """What it shows, in UTC."""
        return _EPOCH + timedelta(microseconds=self._now_us)

    def now_us(self) -> int:
        """The same in microseconds since 1970."""
        return self._now_us

    def advance(self, by: timedelta) -> None:
        """Move it by so much, which may be negative: the clock of a machine is put back now and then. Raises
        `InvalidMessage`."""
        if not isinstance(by, timedelta):
            raise InvalidMessage("clock", f"{by!r} is not a timedelta", "give timedelta(days=30), for example")
        try:
            now_us = _checked("clock", self.now + by)
        except OverflowError:
            what = f"{by} from {self.now.isoformat()} is outside of the years 1 to 9999"
            raise InvalidMessage("clock", what, "move it by less") from None
        self._move(now_us)

    def set(self, at: datetime) -> None:
        """Have it show this time, which may be before what it shows. Raises `InvalidMessage` for one without a zone."""
        self._move(_checked("clock", at))

    def show(self, now_us: int) -> None:
        """Have it show this time, in microseconds since 1970, with nothing carried out."""
        self._now_us = now_us

    def _move(self, now_us: int) -> None:
        if self.moved is None:
            self._now_us = now_us
        else:
            self.moved(now_us)


def _checked(argument: str, at: datetime) -> int:
    """In microseconds since 1970. Raises `InvalidMessage`, also for what is no time in UTC."""
    now_us = microseconds(at, argument)
    try:
        _ = _EPOCH + timedelta(microseconds=now_us)
    except OverflowError:
        raise InvalidMessage(argument, f"{at.isoformat()} is outside of the years 1 to 9999 in UTC") from None
    return now_us


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
