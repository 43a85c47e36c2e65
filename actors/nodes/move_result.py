"""MoveResult: what a move of a partition from one node to another was, as its caller gets it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MoveResult"]


class MoveResult(NamedTuple):
    """What a move of a partition was. Returned by `move`, `rebalance` and `drain`.

    Example:
        moved = await bank.move(3, "two")
        print(f"{moved.events} events in {moved.seconds:.1f} s; commands waited {moved.waited_ms:.0f} ms")
    """

    partition: int
    source: str
    """The name of the node that it has left."""
    to: str
    """The name of the node that it is at home on now."""
    events: int
    """In its log."""
    seconds: float
    """All of it."""
    waited_ms: float
    """How long no command was taken."""
