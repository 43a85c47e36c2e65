"""A client of a relay without Ray: what it takes from whom, and what it makes of each topology."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayfold.actors.client import relay_connection
from rayfold.actors.client.query_connection import QueryConnection
from rayfold.actors.client.relay_connection import RelayConnection
from rayfold.actors.packaging.class_fingerprints import class_fingerprints
from rayfold.actors.packaging.class_names import ClassNames
from rayfold.actors.relay.relay import Control, Relay, open_relay
from rayfold.actors.relay.relayed_topology import RELAYED, RelayedTopology, ServedParts
from rayfold.actors.settings import Settings
from rayfold.actors.system import relayed
from rayfold.actors.system.relayed import RelayedSystem
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.errors import NotPrivate, Unavailable
from rayfold.runtime.store.store import open_or_create_store
from tests.bank import Account, BalanceOf, Balances
from tests.other_user import NOBODY, needs_root
from tests.support import projector as projectors
from tests.support.projector import Handle, Projector, has_socket

CLASSES = Catalogue([Account], [Balances])


class Partition(Handle):
    """The handle of a partition that has no socket."""

    def do_socket_path(self) -> str:
        return ""


class Running:
    """What a program that runs a system shows to others: a store that it holds, a relay, and one projector."""

    def __init__(self, path: Path) -> None:
        self.path = path
        store = open_or_create_store(path, 1, 1)
        self.store_id = store.store_id
        self.projector = Projector()
        self.handle, self.partition = Handle(self.projector), Partition(self.projector)
        self.hold = store.hold("a test")
        self.relays: list[Relay] = []

    def open_relay(self, control: Control | None = None) -> Relay:
        """As `Runtime` does."""
        relay = open_relay(self.store_id, "bank", str, control or {})
        assert relay is not None
        self.relays.append(relay)
        self.hold.publish({"relay": str(relay.path)})
        return relay

    def topology(self, classes: ClassNames | None = None) -> RelayedTopology:
        """One partition, and one projector."""
        parts = {"Balances": ServedParts(1, (("proj",),))}
        return RelayedTopology(("p0",), parts, {"p0": "ab", "proj": "cd"}, Settings(), classes or ClassNames())

    def publish(self, topology: RelayedTopology | None = None) -> None:
        """At the last relay."""
        actors: dict[str, Any] = {"p0": self.partition, "proj": self.handle}
        self.relays[-1].publish(topology or self.topology(), actors)

    def close(self) -> None:
        """End it."""
        for relay in self.relays:
            relay.close()
        self.hold.release()
        self.projector.close()


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    tmp_path_factory.getbasetemp()  # it is made now, and not in the folder of one test
    folder = tempfile.mkdtemp(prefix="rayfold-")  # `tmp_path` is too long for the path of a socket
    monkeypatch.setattr(tempfile, "tempdir", folder)
    path = Path(folder) / "bank"
    monkeypatch.setattr(projectors, "STORE_ID", open_or_create_store(path, 1, 1).store_id)
    started = Running(path)
    yield started
    started.close()
    shutil.rmtree(folder)


def listen_as_nobody(listening: socket.socket) -> None:
    """From now on the kernel names user `nobody` to each end that connects."""
    os.seteuid(NOBODY)
    try:
        listening.listen(8)
    finally:
        os.seteuid(0)


@needs_root
async def test_nothing_is_imported_or_unpickled_from_another_users_process(running: Running, tmp_path: Path) -> None:
    (tmp_path / "module_of_nobody.py").write_text("")
    relay = running.open_relay()
    running.publish(running.topology(ClassNames(("module_of_nobody:Account",), folders=(str(tmp_path),))))
    loop, before = asyncio.get_running_loop(), RelayConnection(running.store_id, RELAYED)
    await loop.create_unix_connection(lambda: before, str(relay.path))
    assert await asyncio.wait_for(before.greeted, 20) == ""  # it listens by now
    before.close()
    client = RelayedSystem(running.path, None)
    listen_as_nobody(relay._listening.socket)
    with pytest.raises(NotPrivate, match=f"user {NOBODY} runs the process that listens there"):
        await client.start()
    await client.stop(1)
    assert "module_of_nobody" not in sys.modules
    assert str(tmp_path) not in sys.path

    listen_as_nobody(running.projector.server._listening.socket)
    connection = QueryConnection(lambda _: None, lambda _: None, running.store_id)
    path = str(running.projector.server.path)
    await loop.create_unix_connection(lambda: connection, path)
    await asyncio.wait_for(connection.greeted, 20)
    assert connection.lost


HIDDEN = """
import asyncio, ctypes, os, sys
from pathlib import Path
from rayfold.actors.system.relayed import RelayedSystem
from tests.actors.system.test_relayed import CLASSES

libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # what is mounted from now on is seen here alone
assert libc.mount(b"tmpfs", sys.argv[2].encode(), b"tmpfs", 0, None) == 0
assert not os.listdir(sys.argv[2])

async def main():
    client = RelayedSystem(Path(sys.argv[1]), CLASSES)
    await client.start()
    print("connected")
    await client.stop(1)

asyncio.run(main())
"""


@needs_root
@pytest.mark.slow
async def test_a_program_with_another_folder_for_temporary_files_is_found(running: Running) -> None:
    relay = running.open_relay()
    running.publish()
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HIDDEN, str(running.path), str(relay.path.parent)),
        cwd=Path(__file__).parents[3],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaint = await asyncio.wait_for(program.communicate(), 120)
    assert printed == b"connected\n", complaint


async def test_a_socket_that_is_not_found_is_named_within_seconds(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = running.open_relay()
    running.publish()
    relay.path.unlink()
    monkeypatch.setattr(relayed, "_ABSENT_S", 0.1)
    with pytest.raises(Unavailable, match=r"a test .* does not answer: .*; its socket is not found here, .*PrivateTmp"):
        await asyncio.wait_for(RelayedSystem(running.path, CLASSES).start(), 20)
    client = RelayedSystem(running.path, CLASSES)
    monkeypatch.setattr(relayed, "_ABSENT_S", 60.0)
    starting = asyncio.ensure_future(client.start())
    await asyncio.wait([starting], timeout=0.1)
    running.open_relay()
    running.publish()
    await asyncio.wait_for(starting, 20)
    await client.stop(1)


async def test_another_topology_leaves_the_way_to_a_projector_that_stays_as_it_is(running: Running) -> None:
    relay = running.open_relay()
    running.publish()
    client = RelayedSystem(running.path, CLASSES)
    await client.start()
    pool: Any = client.client._serving["Balances"]._parts[0]
    while not has_socket(pool):
        await asyncio.sleep(0.01)
    replica, connection = pool._replicas[0], pool._replicas[0].search.connection
    for _ in range(3):
        await _followed(client, running)
    assert pool._replicas == [replica]
    assert replica.search.connection is connection
    other = running.topology()._replace(actor_ids={"p0": "ab", "proj": "ef"})
    running.publish(other)  # the name is another actor's now
    while pool._replicas == [replica]:
        await asyncio.sleep(0.01)
    await client.stop(1)
    assert await _no_program(relay)


async def test_topologies_are_followed_after_one_could_not_be_asked_for(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.open_relay()
    running.publish()
    client = RelayedSystem(running.path, CLASSES)
    await client.start()
    await _followed(client, running)
    with monkeypatch.context() as patched:
        patched.setattr(relay_connection, "CALLS_MAX", 0)
        await _followed(client, running)
        with pytest.raises(Unavailable, match="0 calls have no answer yet"):
            await client.heads()
    await _followed(client, running)
    await client.stop(1)


async def test_a_projection_in_another_number_of_parts_is_refused_by_name_until_it_is_back(running: Running) -> None:
    running.open_relay()
    running.publish()
    client = RelayedSystem(running.path, CLASSES)
    await client.start()
    query = BalanceOf(account="alice")
    assert await client.client.ask(Balances, query, {}, 20) == 0
    parts = {"Balances": ServedParts(2, (("b",), ("c",)))}
    await _followed(client, running, running.topology()._replace(projections=parts))
    with pytest.raises(Unavailable, match="version 2 serves in 2 parts, and this program's class has 1"):
        await client.client.ask(Balances, query, {}, 20)
    await _followed(client, running)
    assert await client.client.ask(Balances, query, {}, 20) == 0
    await client.stop(1)


async def test_a_start_that_is_given_up_leaves_no_connection(running: Running) -> None:
    relay = running.open_relay()  # has no topology yet
    starting = asyncio.create_task(RelayedSystem(running.path, CLASSES).start())
    while not relay.programs:
        await asyncio.sleep(0.01)
    starting.cancel()
    await asyncio.wait({starting})
    assert await _no_program(relay)


async def test_a_connection_that_ends_while_it_connects_again_leaves_none(running: Running) -> None:
    relay = running.open_relay()
    running.publish()
    client = RelayedSystem(running.path, CLASSES)
    await client.start()
    again = running.open_relay()  # which has no topology yet
    relay.close()
    while not again.programs:
        await asyncio.sleep(0.01)
    await client.stop(1)
    assert await _no_program(again)


async def frozen_until(relay: Relay) -> threading.Event:
    """The relay answers nothing until this is set."""
    frozen, awake = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    relay.loop.call_soon_threadsafe(lambda: (loop.call_soon_threadsafe(frozen.set), awake.wait(60)))
    await frozen.wait()
    return awake


async def test_a_frozen_program_is_named_within_seconds(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = running.open_relay()
    running.publish()
    client = RelayedSystem(running.path, CLASSES)
    await client.start()
    monkeypatch.setattr(relayed, "_SILENT_S", 0.2)
    monkeypatch.setattr(relayed, "_PING_S", 0.01)
    monkeypatch.setattr(relayed, "_CONNECT_S", 0.2)
    awake = await frozen_until(relay)
    try:
        async with asyncio.timeout(20):
            silent = r"a test \(process \d+ on .*\) has answered nothing for 0.2 s: it is frozen, or"
            for asking in (client.heads(), client.status()):
                with pytest.raises(Unavailable, match=silent):
                    await asking
            with pytest.raises(Unavailable, match=r"a test .* listens, and has answered nothing for 0.2 s: it is fro"):
                await RelayedSystem(running.path, CLASSES).start()
    finally:
        awake.set()
    await _followed(client, running)  # it is as before
    await client.stop(1)


async def test_an_answer_that_takes_long_is_waited_for_while_the_program_answers(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def heads() -> dict[int, int]:
        asked.set()
        await go_on.wait()
        return {0: 7}

    running.open_relay({"heads": (heads, ())})
    running.publish()
    client = RelayedSystem(running.path, CLASSES)
    await client.start()
    monkeypatch.setattr(relayed, "_PING_S", 0.0)
    answer = asyncio.ensure_future(client.heads())
    await asked.wait()
    before = client._line and client._line.connection._calls
    while client._line and client._line.connection._calls < (before or 0) + 5:
        await asyncio.sleep(0.01)
    go_on.set()
    assert await asyncio.wait_for(answer, 20) == {0: 7}
    await client.stop(1)


async def test_a_program_that_accepts_nothing_more_is_not_taken_for_another_users(running: Running) -> None:
    relay = running.open_relay()
    running.publish()
    awake = await frozen_until(relay)
    relay._listening.socket.listen(0)
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(str(relay.path))
    try:
        with pytest.raises(Unavailable, match="does not take this program in: the process .* takes no connection"):
            await asyncio.wait_for(RelayedSystem(running.path, CLASSES).start(), 20)
    finally:
        awake.set()
        for one in waiting:
            one.close()


async def test_a_program_whose_code_differs_from_that_of_the_system_is_warned_once(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.open_relay()
    same = running.topology()._replace(fingerprints=class_fingerprints(CLASSES))
    running.publish(same)
    client = RelayedSystem(running.path, CLASSES)
    await client.start()
    await _followed(client, running, same)
    assert caplog.text == ""
    other = same._replace(fingerprints={**same.fingerprints, "fields Deposit of Account": "cents"})
    for _ in range(3):
        await _followed(client, running, other)
    fields = "Deposit of Account has the fields amount here, and cents there"
    assert caplog.text.count(fields) == 1
    assert re.search(r"run by a test \(process .*: the system decides and answers by its own code", caplog.text)
    await client.stop(1)


async def _followed(client: RelayedSystem, running: Running, topology: RelayedTopology | None = None) -> None:
    """Publish, and wait until the client has it; it asks for the next one by then."""
    before = client._topology
    running.publish(topology)
    async with asyncio.timeout(20):
        while client._topology is before:
            await asyncio.sleep(0.01)


async def _no_program(relay: Relay) -> bool:
    """Wait until none is connected."""
    async with asyncio.timeout(20):
        while relay.programs:
            await asyncio.sleep(0.01)
    return True


@pytest.mark.slow
async def test_a_forked_child_keeps_no_connection_of_a_client(running: Running) -> None:
    relay = running.open_relay()
    running.publish()
    client = RelayedSystem(running.path, CLASSES)
    await client.start()
    pool: Any = client.client._serving["Balances"]._parts[0]
    while not has_socket(pool):
        await asyncio.sleep(0.01)
    connections = [client._line and client._line.connection, pool._replicas[0].search.connection]
    inherited = [one._transport.get_extra_info("socket").fileno() for one in connections if one is not None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads do not go on in the child, which looks and ends
        child = os.fork()
    if not child:
        os._exit(sum(stat.S_ISSOCK(os.fstat(one).st_mode) for one in inherited))
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert (len(inherited), status) == (2, 0)
    assert len(relay.programs) == 1  # the client's own end is as before
    await client.stop(1)
