"""New store: which nodes have to answer before one is made. Pure: the nodes in Ray's directory in, a refusal out.

Beside all steps. `rayfold deploy` checks with it before it begins, and the supervisor (`agents.py`) before it makes the
store.

Rule kept here: a node that is down may have the store. A new one is made without it only where the deployer has named
it: then only that very node is given up, by its id.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from ...runtime.errors import CallerError, Unavailable
from ..cluster.ray_cluster import NodeFacts

__all__ = ["check_all_answered", "given_up"]


def given_up(named: Sequence[str], nodes: Iterable[NodeFacts]) -> tuple[NodeFacts, ...]:
    """The nodes that are meant by these names or ids. Raises `CallerError` for what is not a node that is down, and for
    a name that several of them have."""
    nodes = list(nodes)
    down = [node for node in nodes if not node.alive]
    found: dict[str, NodeFacts] = {}
    for one in named:
        meant = [node for node in down if one in (node.node_id, node.name)]
        if len(meant) > 1:
            raise CallerError(f"{len(meant)} nodes that are down are named {one!r}: {_ids(meant)}; give the id")
        if not meant:
            up = any(one in (node.node_id, node.name) for node in nodes)
            what = f"{one} is up, and is asked" if up else f"the cluster knows no node {one!r}"
            raise CallerError(f"{what}; only a node that is down can be left out: {_ids(down) or 'none is'}")
        found[meant[0].node_id] = meant[0]
    return tuple(found.values())


def check_all_answered(name: str, nodes: Iterable[NodeFacts], answered: Container[str]) -> None:
    """Before a store of this name is made, or one node's is taken for the whole. Raises `Unavailable` for those of
    these nodes that have not answered that they have nothing of it."""
    silent = sorted((node for node in nodes if node.node_id not in answered), key=lambda node: node.name)
    if not silent:
        return
    named = ", ".join(f"{node.name} ({'silent' if node.alive else 'down'})" for node in silent)
    remedy = "start them"
    if down := [node for node in silent if not node.alive]:
        names = [node.name for node in down]
        said = ",".join(node.node_id if names.count(node.name) > 1 else node.name for node in down)
        remedy += (
            f"; or, if those that are down have nothing of it or will never be back, name them: `--without {said}`"
        )
        remedy += " of `rayfold deploy --create`"
    raise Unavailable(f"the store {name}", f"no node that answers has it, and these may: {named}; {remedy}")


def _ids(nodes: Sequence[NodeFacts]) -> str:
    return ", ".join(f"{node.name} ({node.node_id})" for node in nodes)
