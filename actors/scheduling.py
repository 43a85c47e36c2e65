"""Scheduling: on which node Ray is to start the actors of a system, and for how long they live.

Beside steps [3], [7] and [8]. On one machine there is nothing to decide, and everything ends with the program that has
started it. On several nodes:

- a partition is bound hard to the node where its log is: anywhere else it could do nothing
- the projectors of a system are dealt out, each to the node that has the fewest; when that one is lost, Ray starts them
  on any other that has a data folder
- own actors need a free slot, of which each node has as many as it was started with (`OWN_ACTOR_SLOT`)

Rule kept here: a name is never given twice, so that no two incarnations are ever mistaken.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from itertools import count
from typing import Any

from .node import NODE_LABEL

__all__ = ["Scheduling", "SpreadScheduling"]


class Scheduling:
    """Of a system on one machine."""

    def __init__(self) -> None:
        self._unused = count(1)

    def unused(self) -> str:
        """What to add to a name that must never have been given before."""
        return str(next(self._unused))

    def partition(self, node_id: str) -> dict[str, Any]:
        """Options for the actor of a partition that is at home there."""
        return {}

    def projector(self, name: str) -> dict[str, Any]:
        """Options for the projector of this name."""
        return {}


class SpreadScheduling(Scheduling):
    """Of a system on several nodes. `nodes` is what may be used now, id -> name; whoever watches them keeps it so."""

    def __init__(self, *, detached: bool) -> None:
        super().__init__()
        self.nodes: Mapping[str, str] = {}
        self._lifetime = {"lifetime": "detached"} if detached else {}
        self._incarnation = secrets.token_hex(3)
        """Of this object: a supervisor that is started again counts from 1 again."""
        self._dealt: Counter[str] = Counter()
        """Projectors by node, as they were dealt out."""

    def unused(self) -> str:
        """See `Scheduling`."""
        return f"{self._incarnation}.{super().unused()}"

    def partition(self, node_id: str) -> dict[str, Any]:
        """See `Scheduling`."""
        return {"label_selector": {NODE_LABEL: node_id}, **self._lifetime}

    def projector(self, name: str) -> dict[str, Any]:
        """See `Scheduling`."""
        if not self.nodes:
            return dict(self._lifetime)
        chosen = min(self.nodes, key=lambda node_id: (self._dealt[node_id], self.nodes[node_id]))
        self._dealt[chosen] += 1
        return {
            "label_selector": {NODE_LABEL: chosen},
            "fallback_strategy": [{"label_selector": {NODE_LABEL: f"in({','.join(self.nodes)})"}}],
            **self._lifetime,
        }
