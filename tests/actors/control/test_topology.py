"""The topology feed: a reader with an old topology waits until there is a new one."""

from __future__ import annotations

import asyncio

from rayfold.actors.cluster.names import supervisor_name
from rayfold.actors.control.topology import Topology, TopologyFeed
from rayfold.actors.nodes.store import ClusterStore
from rayfold.actors.relay.relayed_topology import ServedParts
from rayfold.actors.settings import Settings
from rayfold.runtime.store.partition_map import PartitionMap

STORE = ClusterStore("bank", "rayfold", PartitionMap.spread("s", 2, {"a": "node-0", "b": "node-1"}))
TOPOLOGY = Topology(STORE, ("p0", "p1"), {}, {"Balances": ServedParts(1, (("b0",),))}, Settings(), 1, b"")


async def test_a_topology_is_read_at_once_by_a_reader_that_has_none_or_another() -> None:
    feed = TopologyFeed()
    feed.publish(TOPOLOGY)
    first = await feed.read("", 0)
    assert first is not None
    assert first._replace(revision="") == TOPOLOGY
    assert await feed.read("of an earlier supervisor", 0) == first
    assert await feed.read(first.revision, 0.01) is None


async def test_a_waiting_reader_gets_the_next_topology_and_not_the_same_again() -> None:
    feed = TopologyFeed()
    waiting = asyncio.create_task(feed.read("", 30))
    await asyncio.sleep(0)
    feed.publish(TOPOLOGY)
    first = await waiting
    assert first is not None
    waiting = asyncio.create_task(feed.read(first.revision, 30))
    await asyncio.sleep(0)
    feed.publish(TOPOLOGY)
    assert feed.topology == first
    feed.publish(TOPOLOGY._replace(unavailable={1: "its home is gone"}))
    second = await waiting
    assert second is not None
    assert second.unavailable == {1: "its home is gone"}
    assert second.revision != first.revision


async def test_the_topologies_of_two_supervisors_never_have_the_same_revision() -> None:
    one, other = TopologyFeed(), TopologyFeed()
    one.publish(TOPOLOGY)
    other.publish(TOPOLOGY)
    assert one.topology is not None
    assert other.topology is not None
    assert one.topology.revision != other.topology.revision


def test_a_supervisor_is_found_by_the_name_of_its_system() -> None:
    assert supervisor_name("bank") == "bank/supervisor"
