"""CallAttempt: an attempt that has begun in the log, as a runner is given it: plain values.

Beside step [5]. Before it: the record with which it begins is committed. After it: a runner calls the function
(`running.py`), and what that has come to goes back to the courier.
"""

from __future__ import annotations

from typing import NamedTuple

from ..stream import StreamId

__all__ = ["CallAttempt"]


class CallAttempt(NamedTuple):
    """One attempt, or one look."""

    stream: StreamId
    """The instance."""
    method: str
    number: int
    """Of the attempt."""
    asked_at: int
    """The version of the record that asked for the call."""
    key: bytes
    head: bytes
    """Where the event is from, packed."""
    payload: bytes
    """The event."""
    begun_at_us: int
    """Microseconds since 1970: of the record with which it begins."""
    correlation_id: bytes
    unknown: bool
    """Whether the end of an earlier attempt is unknown."""
    hops: int
    """How many inputs and commands have led to it, each at once."""
    alone: bool = False
    """It is made in a runner in which nothing else is."""
