"""A client of a cluster without Ray, and without a cluster: relays stand where the agents of two nodes are."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayfold.actors.nodes.local_shares import LocalShare
from rayfold.actors.observe.attach import RunningSystem
from rayfold.actors.packaging.class_names import ClassNames
from rayfold.actors.relay.relay import Control, Relay, open_relay
from rayfold.actors.relay.relayed_topology import RelayedTopology
from rayfold.actors.settings import Settings
from rayfold.actors.system import node_system
from rayfold.actors.system.node_system import NodeSystem
from rayfold.actors.system.relayed import RelayedSystem
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.errors import Sealed, StorageFailed, Unavailable
from rayfold.runtime.log.contract import Holdings
from rayfold.runtime.store.partition_map import PartitionMap
from rayfold.runtime.store.store import open_or_create_store, open_store
from rayfold.runtime.store.store_lock import StoreLock
from rayfold.runtime.stream import StreamId
from tests.bank import Account, Balances
from tests.support.projector import Handle

CLASSES = Catalogue([Account], [Balances])
STORE, TOKEN = "5" * 32, "a token"


class Partition(Handle):
    """The handle of a partition that has no socket."""

    def __init__(self) -> None:
        """It answers what is asked here."""

    def do_socket_path(self) -> str:
        return ""


class Agent:
    """What the agent of a node shows to programs: a share that it holds, and a relay."""

    def __init__(self, share: Path, loop: asyncio.AbstractEventLoop) -> None:
        """`loop`: on which it answers what is asked of the system, as in a process of its own."""
        self.share, self._loop = share, loop
        self.asked: list[tuple[Any, ...]] = []
        open_or_create_store(share, 1, 1)
        self.hold = StoreLock(share, f"the node agent of {share.parent.name}")
        self.relay: Relay | None = None

    def serve(self, partitions: tuple[str, ...] = ("p0",), unavailable: dict[int, str] | None = None) -> Relay:
        self.relay = relay = asyncio.run_coroutine_threadsafe(self._opened(), self._loop).result(20)
        self.publish(partitions, unavailable or {})
        self.hold.publish({"relay": str(relay.path), "system": "bank"})
        return relay

    def publish(self, partitions: tuple[str, ...] = ("p0",), unavailable: dict[int, str] | None = None) -> None:
        store_map = PartitionMap(STORE, 1, ("one",), (1,), {"one": "node-1"})
        topology = RelayedTopology(
            partitions,
            {},
            dict.fromkeys(partitions, "ab"),
            Settings(),
            ClassNames(),
            unavailable=unavailable or {},
            store_map=store_map,
        )
        assert self.relay is not None
        self.relay.publish(topology, dict.fromkeys(partitions, Partition()))

    async def _opened(self) -> Relay:
        control: Control = {"heads": (self._heads, ()), "read": (self._read, (int, str, list))}
        relay = open_relay(STORE, "bank", str, control, node=self.share.parent.name, token=TOKEN)
        assert relay is not None
        return relay

    async def _heads(self) -> dict[int, int]:
        return {0: 7}

    async def _read(self, partition: int, what: str, arguments: list[Any]) -> object:
        self.asked.append((partition, what, *arguments))
        if what == "read":
            raise Sealed(f"partition {partition}", "node-2")
        return {"head": 7, "holdings": Holdings({("Opened", 1): b"s"}, frozenset({"Account"}))}.get(what)

    def end(self) -> None:
        """As if the process was killed."""
        if self.relay is not None:
            self.relay.close()
        self.hold.release()


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    tmp_path_factory.getbasetemp()
    folder = Path(tempfile.mkdtemp(prefix="rayfold-"))  # `tmp_path` is too long for the path of a socket
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started = [Agent(folder / name / "bank", loop) for name in ("node-1", "node-2")]
    shares = [LocalShare("one:6379", agent.share) for agent in started]
    monkeypatch.setattr(node_system, "local_shares", lambda *_: shares)
    yield started
    for agent in started:
        agent.end()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    shutil.rmtree(folder)


def client() -> NodeSystem:
    return NodeSystem("bank", CLASSES, "one:6379", Path.cwd())


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_program_uses_the_agent_that_is_there_and_another_one_when_that_has_ended(agents: list[Agent]) -> None:
    first, second = agents
    relay = second.serve()
    bank = client()
    await bank.start()
    assert (bank.address, bank.store.store_id, bank.name_in_log.split(",")[0]) == ("one:6379", STORE, "bank")
    assert await bank.heads() == {0: 7}
    relay_of_first = first.serve()
    second.end()
    assert await bank.heads() == {0: 7}
    await until(lambda: relay_of_first.programs)
    assert (relay.programs, bank.cut_off_by) == (set(), "")
    assert (await bank.health(1)).connected
    await bank.stop(1)
    await until(lambda: not relay_of_first.programs)


async def test_a_program_that_no_agent_serves_is_cut_off_by_name_and_connects_again(
    agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_system, "_AWAY_S", 0.05)
    agents[0].serve()
    bank = client()
    await bank.start()
    agents[0].end()
    await until(lambda: bank.cut_off_by)
    lost = r"the connection to the node agent of node-1 \(.*\), on one:6379, was lost at 20.*; this program connects"
    with pytest.raises(Unavailable, match=lost):
        await bank.heads()
    health = await bank.health(1)
    assert (health.ok, health.connected) == (False, False)
    agents[1].serve()
    await until(lambda: not bank.cut_off_by)
    assert await bank.heads() == {0: 7}
    await bank.stop(1)


async def test_a_program_without_the_token_of_the_cluster_is_not_taken_in(
    agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    agents[0].serve()
    for other in ("another", ""):
        monkeypatch.setenv("RAY_AUTH_TOKEN", other)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", os.devnull)
        bank = client()
        with pytest.raises(Unavailable, match="the cluster has a token, and this program has none or another one"):
            await bank.start()
        await bank.stop(1)


async def test_where_no_agent_runs_the_error_names_the_remedy(
    agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_system, "_AWAY_S", 0.05)
    for agent in agents:
        agent.end()
    bank = client()
    with pytest.raises(Unavailable, match="nothing of that name runs on the nodes of this machine; `rayfold dep"):
        await bank.start()
    await bank.stop(1)
    monkeypatch.setattr(node_system, "local_shares", lambda *_: [])
    bank = client()
    with pytest.raises(Unavailable, match="no node of one:6379 that this user runs on this machine has a share of it"):
        await bank.start()
    await bank.stop(1)


async def test_a_share_is_not_taken_for_a_whole_store(agents: list[Agent]) -> None:
    agents[0].serve()
    share = agents[0].share
    with pytest.raises(Unavailable, match="it is the share of a node, held by .*; connect by the name 'bank'"):
        await RelayedSystem(share, CLASSES).start()
    with pytest.raises(Unavailable, match="it is the share of a node, held by .*; ask by its name"):
        RunningSystem(open_store(share))


async def test_a_partition_that_is_unavailable_or_has_moved_is_known_with_the_topology(agents: list[Agent]) -> None:
    agents[0].serve(unavailable={0: "its home, node two, is down"})
    bank = client()
    await bank.start()
    [(_, before, why)] = bank.client.partitions_reached()
    assert why == "its home, node two, is down"
    agents[0].publish(("p0@two#1.1",))
    await until(lambda: bank.client.partitions_reached()[0][1] is not before)
    [(_, after, why)] = bank.client.partitions_reached()
    assert (after.name, why) == ("p0@two#1.1", "")
    await bank.stop(1)


async def test_logs_are_read_over_a_connection_of_their_own_from_any_thread_and_on_the_loop(
    agents: list[Agent],
) -> None:
    relay = agents[0].serve()
    bank = client()
    await bank.start()
    assert len(relay.programs) == 1
    reader = bank.store.open_reader(0)
    assert reader.head() == 7  # the loop is blocked meanwhile
    stream = StreamId("Account", "a")
    assert await asyncio.to_thread(reader.version, stream) is None
    assert reader.holdings() == Holdings({("Opened", 1): b"s"}, frozenset({"Account"}))
    with pytest.raises(Sealed, match="node-2"):
        reader.read(3, 10)
    assert agents[0].asked == [(0, "head"), (0, "version", stream), (0, "holdings"), (0, "read", 3, 10, 1 << 62)]
    assert (reader.local, len(relay.programs)) == (False, 2)
    agents[1].serve()
    agents[0].end()
    await until(lambda: not relay.programs)
    assert reader.head() == 7  # by the other agent
    agents[1].end()
    with pytest.raises(Unavailable, match="no agent of a node of this machine takes this program in: none is ready"):
        reader.head()
    reader.close()
    with pytest.raises(StorageFailed, match="partition 0 was closed"):
        reader.head()
    await bank.stop(1)
    with pytest.raises(Unavailable, match="the connection was closed"):
        bank.store.open_reader(0).head()
