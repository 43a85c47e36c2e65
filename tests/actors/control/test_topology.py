"""The board: whoever has an old notice waits until there is a new one."""

from __future__ import annotations

import asyncio

from rayfold.actors.control.topology import ServedParts, Topology, TopologyFeed, supervisor_name
from rayfold.actors.nodes.store import ClusterStore
from rayfold.actors.settings import Settings
from rayfold.runtime.store.partition_map import PartitionMap

STORE = ClusterStore("bank", "rayfold", PartitionMap.spread("s", 2, {"a": "node-0", "b": "node-1"}))
NOTICE = Topology(STORE, ("p0", "p1"), {}, {"Balances": ServedParts(1, (("b0",),))}, Settings(), 1, b"")


async def test_a_notice_is_read_at_once_by_whoever_has_none_or_another() -> None:
    board = TopologyFeed()
    board.put_up(NOTICE)
    first = await board.read("", 0)
    assert first is not None
    assert first._replace(edition="") == NOTICE
    assert await board.read("of an earlier supervisor", 0) == first
    assert await board.read(first.edition, 0.01) is None


async def test_whoever_waits_is_told_of_the_next_notice_and_not_of_the_same_again() -> None:
    board = TopologyFeed()
    waiting = asyncio.create_task(board.read("", 30))
    await asyncio.sleep(0)
    board.put_up(NOTICE)
    first = await waiting
    assert first is not None
    waiting = asyncio.create_task(board.read(first.edition, 30))
    await asyncio.sleep(0)
    board.put_up(NOTICE)
    assert board.notice == first
    board.put_up(NOTICE._replace(unavailable={1: "its home is gone"}))
    second = await waiting
    assert second is not None
    assert second.unavailable == {1: "its home is gone"}
    assert second.edition != first.edition


async def test_the_notices_of_two_supervisors_are_never_the_same_edition() -> None:
    one, other = TopologyFeed(), TopologyFeed()
    one.put_up(NOTICE)
    other.put_up(NOTICE)
    assert one.notice is not None
    assert other.notice is not None
    assert one.notice.edition != other.notice.edition


def test_a_supervisor_is_found_by_the_name_of_its_system() -> None:
    assert supervisor_name("bank") == "bank/supervisor"
