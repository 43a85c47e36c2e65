"""TopologyFeed: which actor serves what in a system on a cluster now, published by its supervisor to every connected
program.

Beside all steps. A *topology* is everything that a client needs to find its way: the actors of the partitions, those
that are unavailable and why, the projectors of each part of each projection. Names, and not handles: they are looked up
where they are used. A program with an old topology waits at the feed until there is a new one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import NamedTuple

from ..nodes.store import ClusterStore
from ..packaging.class_names import ClassNames
from ..relay.relayed_topology import ServedParts
from ..settings import Settings

__all__ = ["Topology", "TopologyFeed"]


class Topology(NamedTuple):
    """Who does what."""

    store: ClusterStore
    partitions: tuple[str, ...]
    """The name of each partition's actor."""
    unavailable: Mapping[int, str]
    """Partition -> why no command reaches it: which node, since when, what to do."""
    projections: Mapping[str, ServedParts]
    """By the name of the projection."""
    settings: Settings
    generation: int
    """The generation of the application's code: 1, and one more with each deployment."""
    catalogue: bytes
    """The application's classes; see `shipping.py`."""
    revision: str = ""
    """Number of this topology; another one after each change."""
    classes: ClassNames = ClassNames()
    """The application's classes by name, for programs without Ray."""
    fingerprints: Mapping[str, str] = {}
    """Of these classes; see `class_fingerprints.py`."""


class TopologyFeed:
    """The present topology. Used on one event loop only."""

    def __init__(self) -> None:
        self.topology: Topology | None = None
        self._incarnation = secrets.token_hex(4)
        """Incarnation of the supervisor: the topology of an earlier one is outdated, whatever its revision."""
        self._changes = 0
        self._changed = asyncio.Event()

    def publish(self, topology: Topology) -> None:
        """Publish `topology`. An unchanged topology is ignored."""
        if self.topology is not None and topology == self.topology._replace(revision=""):
            return
        self._changes += 1
        self.topology = topology._replace(revision=f"{self._incarnation}.{self._changes}")
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self, revision: str, timeout_s: float) -> Topology | None:
        """The topology, once it differs from that one; None if it does not within so many seconds."""
        if self.topology is None or self.topology.revision == revision:
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), timeout_s)
            except TimeoutError:
                return None
        return self.topology
