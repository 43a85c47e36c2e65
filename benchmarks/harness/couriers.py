"""What couriers have to do still, by a system's status: when processes and effects have come to rest."""

from __future__ import annotations

from math import inf
from typing import Final

from rayfold.actors.observe.status import Status

KINDS: Final = ("undelivered", "open_sends", "timers")
"""Fields of `CourierFacts`: events, commands, and timers; an open call of an effect has a timer."""


def open_work(status: Status, *kinds: str) -> float:
    """How much of these kinds, of all if none is given, is open in all partitions; infinite while a courier does not
    answer."""
    facts = [one.courier for one in status.partitions]
    return sum(inf if one is None else sum(getattr(one, kind) for kind in kinds or KINDS) for one in facts)
