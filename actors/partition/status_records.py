"""Status records: what a partition's actor answers to status calls."""

from __future__ import annotations

from typing import NamedTuple

from ...runtime.checks.standing import Alarm
from ...runtime.processes.courier import CourierFacts
from ...runtime.stream import StreamId

__all__ = ["PartitionAnswer"]


class PartitionAnswer(NamedTuple):
    """The state of a partition's actor, as it reports it."""

    pid: int
    epoch: int
    head: int
    own_actors: list[tuple[StreamId, str, int]]
    """Stream, name, process id."""
    commands: int
    batches: int
    alarms_raised: int = 0
    alarms: tuple[Alarm, ...] = ()
    courier: CourierFacts | None = None

    @property
    def handled(self) -> int:
        """What its rate is about."""
        return self.commands
