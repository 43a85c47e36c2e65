"""RelayedTopology: which actor serves what in a system on one machine, as its relay publishes it to other programs; and
the records that travel between the two.

Beside all steps. Its counterpart on a cluster: `../control/topology.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ...runtime.checks.standing import Alarm
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.stream import StreamId
from ..cluster.rpc import Reply
from ..control.topology import ServedParts
from ..observe.status import NodeStatus, OwnActorStatus, PartitionStatus, ProjectorStatus, Status
from ..packaging.class_names import ClassNames
from ..partition.status_records import PartitionAnswer
from ..projection.rebuild import RebuildProgress
from ..projection.status_records import ProjectorAnswer
from ..settings import Settings
from ..sockets.records import Records

__all__ = ["RELAYED", "RelayedTopology"]


class RelayedTopology(NamedTuple):
    """Who does what."""

    partitions: tuple[str, ...]
    """The name of each partition's actor."""
    projections: Mapping[str, ServedParts]
    """By the name of the projection."""
    actor_ids: Mapping[str, str]
    """The id in Ray of each of these actors, by its name."""
    settings: Settings
    classes: ClassNames
    revision: int = 0
    """Number of this topology; another one after each change."""
    fingerprints: Mapping[str, str] = {}
    """Of the classes that decide and answer; see `class_fingerprints.py`."""


RELAYED: Final = Records(
    [
        Alarm,
        ClassNames,
        NodeStatus,
        OwnActorStatus,
        PartitionAnswer,
        PartitionStatus,
        ProjectorAnswer,
        ProjectorStatus,
        Quarantined,
        RebuildProgress,
        RelayedTopology,
        Reply,
        ServedParts,
        Settings,
        Status,
        StreamId,
    ]
)
"""All records that a relay and its clients send one another."""
