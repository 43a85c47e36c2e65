"""Scheduling: on which node Ray starts the actors of a system, and for how long they run.

Beside steps [3], [7] and [8]. A system on one machine is where its program is, and ends with it; the Ray that it uses
may have other nodes, which do not have its store. Of a system on several nodes:

- a partition is bound hard to the node where its log is: anywhere else it could do nothing
- the projectors of a system are dealt out, each to the node that has the fewest; when that one is lost, Ray starts them
  on any other that has a data folder
- own actors need a free slot, of which each node has as many as it was started with (`OWN_ACTOR_SLOT`)

Rule kept here: what makes a name one that was never given (`names.py`) is never made twice.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

from .names import seat_in
from .node import NODE_LABEL

__all__ = ["Scheduling", "ClusterScheduling", "on_this_node"]


def on_this_node(*, soft: bool = False) -> dict[str, Any]:
    """Options for what is to run on the node of this process; `soft`: elsewhere, if that is gone."""
    import ray  # only processes that are connected to Ray call this
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=soft)}


class Scheduling:
    """Of a system on one machine. `here`: what binds its actors to it (`on_this_node`)."""

    def __init__(self, here: Mapping[str, Any] | None = None) -> None:
        self._here = dict(here or {})
        self._unused = count(1)

    def unused(self, generation: int | None = None) -> str:
        """What to add to a name that must never have been given before. `generation`: of the code that its actor runs,
        if it is not the one that the system runs."""
        return str(next(self._unused))

    def partition(self, node_id: str) -> dict[str, Any]:
        """Options for the actor of a partition that is at home there."""
        return self._here

    def projector(self, name: str, among: Iterable[str]) -> dict[str, Any]:
        """Options for the projector of this name, which will be one of those."""
        return self._here


class ClusterScheduling(Scheduling):
    """Of a system on several nodes. `nodes` is what may be used now, id -> name; kept up to date by the supervisor."""

    def __init__(self, *, detached: bool, generation: int) -> None:
        """`generation`: of the code that is run."""
        super().__init__()
        self.nodes: Mapping[str, str] = {}
        self._lifetime = {"lifetime": "detached"} if detached else {}
        self._generation = generation
        self._incarnation = secrets.token_hex(3)
        """A supervisor that is started again counts from 1 again."""
        self._dealt: dict[str, str] = {}
        """By a projector's name, without what makes it one that was never given: the node."""

    def unused(self, generation: int | None = None) -> str:
        """See `Scheduling`."""
        return f"{generation or self._generation}.{self._incarnation}.{super().unused()}"

    def partition(self, node_id: str) -> dict[str, Any]:
        """See `Scheduling`."""
        return {"label_selector": {NODE_LABEL: node_id}, **self._lifetime}

    def sits(self, name: str, node_id: str) -> None:
        """An earlier supervisor has dealt this projector to that node."""
        self._dealt[seat_in(name)] = node_id

    def node_of(self, name: str) -> str:
        """The node that this projector was dealt to; empty if that is not known."""
        return self._dealt.get(seat_in(name), "")

    def projector(self, name: str, among: Iterable[str]) -> dict[str, Any]:
        """See `Scheduling`. One that takes the seat of another comes to its node, where its checkpoint is."""
        if not self.nodes:
            return dict(self._lifetime)
        seat, present = seat_in(name), {seat_in(one) for one in among}
        counts = Counter(node_id for other, node_id in self._dealt.items() if other in present)
        chosen = self._dealt.get(seat, "")
        if chosen not in self.nodes:
            chosen = min(self.nodes, key=lambda node_id: (counts[node_id], self.nodes[node_id]))
        self._dealt = {one: node_id for one, node_id in self._dealt.items() if one in present} | {seat: chosen}
        return {
            "label_selector": {NODE_LABEL: chosen},
            "fallback_strategy": [{"label_selector": {NODE_LABEL: f"in({','.join(self.nodes)})"}}],
            **self._lifetime,
        }
