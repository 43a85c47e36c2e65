"""ProjectorMoves: brings projectors to nodes that have joined, or are back, one after the other.

Beside steps [7] and [8], on the event loop of the supervising process. Projectors are dealt out over the nodes that
there are when they start, and when a node is lost Ray starts its projectors on others. A node that joins later would
have none: so the supervisor checks whether they are spread unevenly, and has one of them at a time followed by another
one on the node that has the fewest (`ClusterProjectorFleet.move`).

Rules kept here:
- the present projector serves until the following one has caught up and is healthy, so that there are never fewer
- nothing begins, and what has begun is called off, while partitions move, code is deployed, something is replaced, or a
  projection is scaled or built anew: no caller waits for a move of a projector
- replicas of one part never come to one node by it
- each step makes the placement more even, and for one set of nodes there are no more steps than projectors, failed
  ones included
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from ...runtime.printable import printable_log
from ..cluster.rpc import one_line
from .system_state import SystemState

__all__ = ["PlacedProjector", "ProjectorMoves", "next_move"]

log = printable_log(__name__)

_SETTLED_S: Final = 10.0
"""For how long the nodes must have been the same: one that comes and goes causes no moves."""

_PAUSE_S: Final = 5.0
"""Seconds between two moves, so that clients learn of the first."""

_AFTER_FAILURE_S: Final = 300.0
"""After one that failed: what cannot be built on a node now mostly cannot be a moment later."""


class PlacedProjector(NamedTuple):
    """One projector that serves, and where it is."""

    name: str
    group: tuple[str, int]
    """Its projection and part: what it shares with its replicas."""
    node_id: str


def next_move(placed: Sequence[PlacedProjector], nodes: Mapping[str, str]) -> tuple[str, str] | None:
    """Which projector is to go to which of these nodes (id -> name); None if they are spread evenly enough."""
    counts = Counter(one.node_id for one in placed)
    for target in sorted(nodes, key=lambda node_id: (counts[node_id], nodes[node_id])):
        there = {one.group for one in placed if one.node_id == target}
        may_go = [
            one
            for one in placed
            if (one.node_id not in nodes or counts[one.node_id] >= counts[target] + 2) and one.group not in there
        ]
        if may_go:
            beside = Counter((one.group, one.node_id) for one in placed)
            chosen = max(
                may_go,
                key=lambda one: (
                    one.node_id not in nodes,
                    counts[one.node_id],
                    beside[one.group, one.node_id],
                    one.name,
                ),
            )
            return chosen.name, target
    return None


class ProjectorMoves:
    """Of one system."""

    def __init__(self, system: SystemState) -> None:
        self._system = system
        self._nodes: set[str] = set()
        """The nodes over which to spread them, as at the last check."""
        self._left = 0
        """How many moves there may still be, for these nodes; 0 as soon as nothing has to move."""
        self._not_before_s = 0.0
        """The earliest time of the next move, by the event loop's clock."""

    def is_due(self) -> bool:
        """Whether `step` may find something to do. Costs nothing."""
        now_s, nodes = asyncio.get_running_loop().time(), self._system.scheduling.nodes.keys()
        if self._nodes != nodes:
            self._nodes, self._left = set(nodes), len(self._system.projections.names())
            self._not_before_s = now_s + _SETTLED_S
        return bool(self._left) and now_s >= self._not_before_s and len(nodes) > 1 and not self._is_busy()

    async def step(self) -> None:
        """Have at most one projector go to another node."""
        loop, projections, nodes = asyncio.get_running_loop(), self._system.projections, self._system.scheduling.nodes
        self._not_before_s = loop.time() + _PAUSE_S
        found = await projections.placed()
        if found is None or self._nodes != nodes.keys():  # one does not answer, or is still reading; or a node joined
            return
        chosen = next_move([PlacedProjector(*one) for one in found], nodes)
        if chosen is None:
            self._left = 0
            return
        name, node_id = chosen
        log.warning("projector %s goes to node %s, which has fewer", name, nodes[node_id])
        try:
            moved = await projections.move(name, node_id, lambda: not self._is_busy() and node_id in self._nodes)
        except Exception as error:  # it goes on where it is
            log.warning("projector %s stays where it is: %s", name, one_line(error))
            self._left -= 1
            self._not_before_s = loop.time() + _AFTER_FAILURE_S
            return
        if moved:
            self._left -= 1
        else:
            log.warning("projector %s stays where it is for now: something else is being changed", name)
        self._not_before_s = max(self._not_before_s, loop.time() + _PAUSE_S)

    def _is_busy(self) -> bool:
        return self._system.changing.locked() or self._system.projections.is_changing()
