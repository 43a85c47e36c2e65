"""RelayedTopology: which actor serves what in a system, as a relay publishes it to programs without Ray; and the
records that travel between the two.

Beside all steps. What a supervisor publishes on a cluster: `../control/topology.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ...runtime.checks.standing import Alarm
from ...runtime.effects.call_queue import QueueFacts
from ...runtime.log.contract import CommandEntry, Holdings, Snapshot
from ...runtime.log.segment import LogSegment
from ...runtime.processes.courier import CourierFacts, WaitingTarget
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.store.partition_map import PartitionMap
from ...runtime.store.report import PartitionReport, Problem, Report
from ...runtime.stream import StreamId
from ..cluster.rpc import Reply
from ..nodes.move_result import MoveResult
from ..observe.status import NodeStatus, OwnActorStatus, PartitionStatus, ProjectorStatus, SinkStatus, Status
from ..packaging.class_names import ClassNames
from ..partition.status_records import PartitionAnswer
from ..projection.rebuild import RebuildProgress
from ..projection.status_records import ProjectorAnswer
from ..settings import Settings
from ..sockets.records import Records

__all__ = ["RELAYED", "RelayedTopology", "ServedParts"]


class ServedParts(NamedTuple):
    """Who answers the queries to a projection."""

    version: int
    """The version of the projection's class."""
    parts: tuple[tuple[str, ...], ...]
    """For each part the names of its replicas."""


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
    unavailable: Mapping[int, str] = {}
    """Partition -> why no command reaches it: which node, since when, what to do."""
    store_map: PartitionMap | None = None
    """Where the partitions are at home, of a store on several nodes."""
    code: str = ""
    """The digest of the deployed modules that the classes are in; empty if they are installed, or were not deployed."""


RELAYED: Final = Records(
    [
        Alarm,
        ClassNames,
        CommandEntry,
        Holdings,
        LogSegment,
        MoveResult,
        NodeStatus,
        OwnActorStatus,
        PartitionAnswer,
        PartitionMap,
        PartitionReport,
        PartitionStatus,
        CourierFacts,
        WaitingTarget,
        QueueFacts,
        Problem,
        ProjectorAnswer,
        ProjectorStatus,
        Quarantined,
        RebuildProgress,
        RelayedTopology,
        Reply,
        Report,
        ServedParts,
        Settings,
        SinkStatus,
        Snapshot,
        Status,
        StreamId,
    ]
)
"""All records that a relay and its clients send one another."""
