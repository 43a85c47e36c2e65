"""Status records: what a projector answers to status calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...runtime.checks.standing import Alarm
from ...runtime.read.stores.checkpoint import Quarantined
from ..cluster.rpc import Reply

__all__ = ["Place", "ProjectorAnswer"]


class Place(NamedTuple):
    """How far a projector has come, of how much there is."""

    pid: int
    positions: dict[int, int]
    heads: dict[int, int]
    stopped: Reply[None]
    """With the error for which it has stopped, if it has."""
    up_to_date: bool = False
    """It has caught up once since its process began."""
    caught_up_to: Mapping[int, int] = {}
    """Where the logs ended when it last caught up."""
    quarantined: tuple[Quarantined, ...] = ()


class ProjectorAnswer(NamedTuple):
    """The state of a projector, as it reports it."""

    pid: int
    positions: dict[int, int]
    failed: str = ""
    events_applied: int = 0
    quarantined: tuple[Quarantined, ...] = ()
    replaying: bool = True
    node_id: str = ""
    """The id of the node that it runs on, if that has a data folder."""
    alarms_raised: int = 0
    alarms: tuple[Alarm, ...] = ()

    @property
    def handled(self) -> int:
        """What its rate is about."""
        return self.events_applied
