"""The relay of a node agent without Ray: what it makes of topologies, and what it passes on."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from rayfold.actors.client.relay_connection import ActorDiedError, RelayConnection
from rayfold.actors.control import node_relay
from rayfold.actors.control.node_relay import NodeRelay
from rayfold.actors.control.topology import Topology
from rayfold.actors.nodes.local_shares import NO_SOCKETS
from rayfold.actors.nodes.store import ClusterStore
from rayfold.actors.relay.relayed_topology import RELAYED, RelayedTopology
from rayfold.actors.settings import Settings
from rayfold.runtime.errors import CallerError, InvalidMessage, Unavailable
from rayfold.runtime.store.partition_map import PartitionMap

STORE = "5" * 32
MAP = PartitionMap(STORE, 1, ("one",), (1,), {"one": "node-1"})


class Link:
    """Stands where the way to the supervisor is."""

    def __init__(self) -> None:
        self.next: asyncio.Queue[Topology] = asyncio.Queue()
        self.asked: list[tuple[Any, ...]] = []
        self.handles: dict[str, Any] = {"p0": SimpleNamespace(_actor_id=b"\xab")}

    async def read(self, revision: str) -> Topology | None:
        return await self.next.get()

    async def handles_of(self, topology: Topology) -> dict[str, Any]:
        return dict(self.handles)

    async def call(self, method: Any, *arguments: Any, timeout_s: float) -> Any:
        return method(_Supervisor(self))(*arguments)

    def actor_named(self, name: str) -> Any:
        if "gone" in name:
            raise ValueError(name)
        raise TimeoutError("the head at one:6379 has been away since")


class _Supervisor:
    def __init__(self, link: Link) -> None:
        self._link = link

    def __getattr__(self, method: str) -> Any:
        def called(*arguments: Any) -> Any:
            self._link.asked.append((method, *arguments))
            if method == "scale":
                raise CallerError("no")
            return {0: 7} if method == "heads" else None

        return called


def topology(revision: str, *, sockets: bool = True, partitions: tuple[str, ...] = ("p0",)) -> Topology:
    settings, catalogue = Settings(local_sockets=sockets), msgpack.packb(["", b"", []])
    store = ClusterStore("bank", "rayfold", MAP)
    return Topology(store, partitions, {0: "down"}, {}, settings, 1, catalogue, revision)


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Link, list[Mapping[str, str]], NodeRelay]]:
    folder = tempfile.mkdtemp(prefix="rayfold-")  # `tmp_path` is too long for the path of a socket
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(node_relay, "node_id_here", lambda: "node-id")
    link, published = Link(), list[Mapping[str, str]]()
    relay = NodeRelay("bank", published.append)
    monkeypatch.setattr(relay, "_linked", link)
    running = asyncio.create_task(relay.run())
    yield link, published, relay
    running.cancel()
    if relay._relay is not None:
        relay._relay.close()
    shutil.rmtree(folder)


async def until(count: int, published: list[Mapping[str, str]]) -> Mapping[str, str]:
    async with asyncio.timeout(20):
        while len(published) < count:
            await asyncio.sleep(0.01)
    return published[-1]


async def connected(at: Mapping[str, str]) -> RelayConnection:
    connection = RelayConnection(STORE, RELAYED)
    await asyncio.get_running_loop().create_unix_connection(lambda: connection, at["relay"])
    assert await asyncio.wait_for(connection.greeted, 20) == ""
    return connection


async def asked(connection: RelayConnection, method: str, *arguments: Any, target: str = "") -> Any:
    return await asyncio.wait_for(asyncio.wrap_future(connection.call(target, method, 20, arguments)), 20)


async def test_it_publishes_the_topology_and_passes_questions_on(
    served: tuple[Link, list[Mapping[str, str]], NodeRelay],
) -> None:
    link, published, _ = served
    link.next.put_nowait(topology("a.1"))
    at = await until(1, published)
    assert at["system"] == "bank"
    connection = await connected(at)
    found = await asked(connection, "topology", 0, 0.0)
    assert isinstance(found, RelayedTopology)
    assert (found.partitions, found.actor_ids, found.unavailable) == (("p0",), {"p0": "ab"}, {0: "down"})
    assert (found.store_map, found.code) == (MAP, "")
    assert await asked(connection, "heads") == {0: 7}
    assert await asked(connection, "move", 0, "two") is None
    with pytest.raises(CallerError, match="no"):
        await asked(connection, "scale", "Balances", 2)
    assert link.asked == [("heads",), ("move", 0, "two"), ("scale", "Balances", 2)]
    assert await asked(connection, "code", "another digest") is None
    bad: tuple[Any, ...]
    for bad in (("read", 0, "close", []), ("read", 1, "head", []), ("move", "0", "two"), ("stop",)):
        with pytest.raises(InvalidMessage):
            await asked(connection, *bad)
    connection.close()


async def test_an_own_actor_that_cannot_be_looked_up_without_the_head_has_not_ended_for_good(
    served: tuple[Link, list[Mapping[str, str]], NodeRelay],
) -> None:
    link, published, _ = served
    link.next.put_nowait(topology("a.1"))
    connection = await connected(await until(1, published))
    with pytest.raises(Unavailable, match="the head at one:6379 has been away since"):
        await asked(connection, "socket_path", target="bank:Account/alice@0.1.1")
    with pytest.raises(ActorDiedError):
        await asked(connection, "socket_path", target="bank:Account/gone@0.1.1")
    connection.close()


async def test_a_partition_that_is_being_replaced_is_waited_for(
    served: tuple[Link, list[Mapping[str, str]], NodeRelay],
) -> None:
    link, published, relay = served
    link.next.put_nowait(topology("a.1", partitions=("p1",)))
    async with asyncio.timeout(20):
        while not link.next.empty():
            await asyncio.sleep(0.01)
    assert (published, relay._topology) == ([], None)
    link.next.put_nowait(topology("a.2"))
    assert "relay" in await until(1, published)


async def test_new_settings_end_and_open_the_relay(
    served: tuple[Link, list[Mapping[str, str]], NodeRelay],
) -> None:
    link, published, _ = served
    link.next.put_nowait(topology("a.1"))
    connection = await connected(await until(1, published))
    link.next.put_nowait(topology("a.2", sockets=False))
    assert await until(2, published) == NO_SOCKETS
    async with asyncio.timeout(20):
        while not connection.lost:
            await asyncio.sleep(0.01)
    link.next.put_nowait(topology("a.3"))
    (await connected(await until(3, published))).close()
