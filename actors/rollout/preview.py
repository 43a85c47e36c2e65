"""Preview: what a deployment would do, shown before it is done. Pure: the running and the requested plan in, sentences
out.

Beside all steps. `rayfold deploy --dry-run` prints it; a deployment checks with it whether a new store would be made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..packaging.builds import ProjectionFacts

__all__ = ["Preview", "Seats", "preview_of"]


class Seats(NamedTuple):
    """What runs of an application."""

    generation: int
    projections: Mapping[str, tuple[int, int]]
    """By name: the version of the class that serves, and how many replicas of each part."""
    partitions: Mapping[int, str]
    """The node that each is at home on."""
    down: Sequence[str]
    """Nodes of the store that are down."""


class Preview(NamedTuple):
    """What a deployment would do."""

    name: str
    makes_store: bool
    """A new, empty store would be made."""
    lines: tuple[str, ...]
    """One sentence for each thing that would happen, in the order in which it would."""


def preview_of(
    name: str,
    wanted: Mapping[str, ProjectionFacts],
    replicas: Mapping[str, int],
    *,
    running: Seats | None,
    store_id: str,
    nodes: Sequence[str],
    partitions: int,
    without: Sequence[str] = (),
) -> Preview:
    """What deploying these projections would do.

    running: what runs now; None if nothing of that name does. store_id: of the store that is there; empty if there is
    none. nodes: those that are up. partitions: of the store, or of the one that would be made. without: nodes that are
    down, and that it would be made without.
    """
    if not store_id:
        store = f"a new, empty store with {partitions} partitions is made on {', '.join(nodes) or 'no node'}"
        store += f", without {', '.join(without)}" if without else ""
    else:
        store = f"it goes on with store {store_id}, which has {partitions} partitions"
    lines = [store]
    lines += [_built(facts, replicas[one], running) for one, facts in wanted.items()]
    if running is None:
        lines.append(f"{partitions} partitions start")
    else:
        lines += [f"projection {one} is taken out" for one in running.projections if one not in wanted]
        for number, node in sorted(running.partitions.items()):
            when = " when that node is back" if node in running.down else ""
            lines.append(f"partition {number} on {node} is given the new code{when}")
    return Preview(name, not store_id, tuple(lines))


def _built(facts: ProjectionFacts, replicas: int, running: Seats | None) -> str:
    name, version = facts.projection_name, facts.projection_version
    count = facts.parts * replicas
    by = f"by {count} projectors" if count > 1 else "by one projector"
    how = f"{by}, from the whole log"
    if running is None:
        return f"projection {name} version {version} is opened or built, {by}"
    if name not in running.projections:
        return f"projection {name} version {version} is new and built, {how}"
    present, _ = running.projections[name]
    if present == version:
        return f"projection {name} version {version} is built anew beside the one that serves, {how}"
    relation = "follows" if version > present else "goes back before"
    return f"projection {name} version {version} {relation} version {present} and is built beside it, {how}"
