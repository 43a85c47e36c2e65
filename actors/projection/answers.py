"""The answers of a projector to status calls."""

from __future__ import annotations

from typing import NamedTuple

from ...runtime.checks.standing import Alarm
from ...runtime.read.stores.checkpoint import Quarantined

__all__ = ["ProjectorAnswer"]


class ProjectorAnswer(NamedTuple):
    """The state of a projector, as it reports it."""

    pid: int
    positions: dict[int, int]
    failed: str = ""
    events_applied: int = 0
    quarantined: tuple[Quarantined, ...] = ()
    replaying: bool = True
    node_id: str = ""
    """Of the node that it runs on, if that has a data folder."""
    alarms_raised: int = 0
    alarms: tuple[Alarm, ...] = ()
