"""Status: what a running system consists of, for people, tests and `rayfold status`."""

from __future__ import annotations

from typing import NamedTuple

from ..runtime.stream import StreamId

__all__ = ["OwnActorStatus", "PartitionStatus", "ProjectorStatus", "Status"]


class PartitionStatus(NamedTuple):
    """One partition's actor and log."""

    partition: int
    pid: int
    epoch: int
    """Of its activation; grows by one whenever the actor starts."""
    head: int
    """Position of the last committed event."""


class OwnActorStatus(NamedTuple):
    """One aggregate that lives in an actor of its own now."""

    stream: StreamId
    name: str
    """Its name in Ray."""
    pid: int
    partition: int


class ProjectorStatus(NamedTuple):
    """One replica of one projection."""

    projection: str
    replica: int
    pid: int
    positions: dict[int, int]
    """Partition -> position up to which the read model has come."""
    failed: str
    """Why the projection has stopped; empty while it works."""


class Status(NamedTuple):
    """A runtime at one moment. What did not answer in time is missing."""

    partitions: list[PartitionStatus]
    own_actors: list[OwnActorStatus]
    projectors: list[ProjectorStatus]
