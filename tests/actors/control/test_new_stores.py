"""A store is made anew where that was asked for, and never in the place of one whose nodes are down.

The shares of two nodes with their real node agents, in this process: no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rayfold.actors.cluster.node import DATA_VARIABLE, create_or_read_node
from rayfold.actors.cluster.ray_cluster import NodeFacts
from rayfold.actors.nodes.agent import NodeAgent, NodeAgentPlan
from rayfold.actors.nodes.agents import NodeAgents
from rayfold.runtime.errors import StoreMismatch, StoreMissing, Unavailable


class Node:
    """A data folder, and its node agent while it is up."""

    def __init__(self, folder: Path, name: str) -> None:
        self.data = folder / name
        self.identity = create_or_read_node(self.data, name)
        self.agent: NodeAgent | None = None
        self.start()

    def start(self) -> None:
        self.agent = NodeAgent(NodeAgentPlan("bank", self.identity.node_id, "rayfold"))

    def stop(self) -> None:
        assert self.agent is not None
        if self.agent._hold is not None:
            self.agent._hold.release()
        self.agent = None

    @property
    def facts(self) -> NodeFacts:
        return NodeFacts(self.identity.node_id, self.identity.name, "", "127.0.0.1", self.agent is not None)

    @property
    def has_store(self) -> bool:
        return (self.data / "bank").exists()


class SharesHere(NodeAgents):
    """Shares whose calls reach node agents of this process."""

    def __init__(self, nodes: Sequence[Node], environment: pytest.MonkeyPatch) -> None:
        super().__init__("bank", "rayfold", detached=True, silent_s=0.1)
        self._nodes = {node.identity.node_id: node for node in nodes}
        self._environment = environment

    async def call(  # type: ignore[override]
        self, node_id: str, method: Callable[[Any], Any], *arguments: Any, timeout_s: float = 30.0
    ) -> Any:
        node = self._nodes[node_id]
        assert node.agent is not None
        self._environment.setenv(DATA_VARIABLE, str(node.data))
        return method(node.agent)(*arguments).unwrap()


@pytest.fixture
def nodes(tmp_path: Path) -> list[Node]:
    return [Node(tmp_path, "node-a"), Node(tmp_path, "node-b")]


def opened(nodes: Sequence[Node], environment: pytest.MonkeyPatch, **options: Any) -> str:
    """The id of the store that a supervisor finds or makes with these nodes."""
    shares = SharesHere(nodes, environment)
    asyncio.run(shares.open([node.facts for node in nodes], None, 2, **options))
    return shares.map.store_id


def test_no_store_is_made_unless_that_was_asked_for(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreMissing, match="has a store of that name, and creation was not requested"):
        opened(nodes, monkeypatch, create=False)
    assert not any(node.has_store for node in nodes)
    assert opened(nodes, monkeypatch, create=True)
    assert all(node.has_store for node in nodes)


@pytest.mark.parametrize("create", [False, True])
def test_while_the_nodes_of_a_store_are_down_no_other_one_takes_its_place(
    nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: bool
) -> None:
    store_id = opened(nodes, monkeypatch)
    for node in nodes:
        node.stop()
    new = Node(tmp_path, "node-c")
    with pytest.raises(Unavailable, match=f"no node that is up has store {store_id}; start the nodes that have it"):
        opened([*nodes, new], monkeypatch, create=create, store_id=store_id)
    assert not new.has_store
    for node in nodes:
        node.start()
    assert opened([*nodes, new], monkeypatch, create=False, store_id=store_id) == store_id


def test_a_store_is_made_without_a_node_that_is_down_only_where_that_very_one_was_given_up(
    nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.append(Node(tmp_path, "node-c"))
    for node in nodes[1:]:
        node.stop()
    ids = [node.identity.node_id for node in nodes]
    for without in ([], ids[:2], [ids[0], ids[2]]):
        with pytest.raises(
            Unavailable, match=r"no node that answers has it, and these may: node-.* \(down\).*--without"
        ):
            opened(nodes, monkeypatch, without=without)
        assert not nodes[0].has_store
    store_id = opened(nodes, monkeypatch, without=ids[1:])
    assert nodes[0].has_store
    nodes[1].start()
    assert opened(nodes, monkeypatch, store_id=store_id, create=False) == store_id, "a given up one may come back"
    assert nodes[1].has_store


def test_a_node_that_was_given_up_and_has_a_store_after_all_keeps_it(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(nodes[1:], monkeypatch)
    nodes[1].stop()
    store_id = opened(nodes, monkeypatch, without=[nodes[1].identity.node_id])
    before = {path: path.read_bytes() for path in (nodes[1].data / "bank").rglob("*.json")}
    nodes[1].start()
    shares = SharesHere(nodes, monkeypatch)

    async def joined() -> None:
        await shares.open([nodes[0].facts], None, 2, store_id=store_id)
        shares.up.add(nodes[1].identity.node_id)
        await shares.add(nodes[1].facts)

    asyncio.run(joined())
    assert shares.map.store_id == store_id
    assert first in str(shares.troubles[nodes[1].identity.node_id])
    assert {path: path.read_bytes() for path in (nodes[1].data / "bank").rglob("*.json")} == before


def test_another_store_of_the_same_name_is_not_taken_for_the_one_that_was(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(nodes, monkeypatch)
    with pytest.raises(StoreMismatch, match=r"the nodes have store .*, and this system had store 1-2-3"):
        opened(nodes, monkeypatch, create=True, store_id="1-2-3")
