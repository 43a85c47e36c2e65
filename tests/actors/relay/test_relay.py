"""The relay without Ray: who is let in, what is passed on, and that a bad program is cut off and no other delayed."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import socket
import stat
import struct
import tempfile
import threading
import warnings
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from rayfold.actors.client.relay_connection import ActorDiedError, RelayConnection, RelayedActor
from rayfold.actors.packaging.class_names import ClassNames
from rayfold.actors.relay import relay as relay_module
from rayfold.actors.relay.relay import Relay, open_relay
from rayfold.actors.relay.relayed_topology import RELAYED, RelayedTopology
from rayfold.actors.settings import Settings
from rayfold.actors.sockets.calls import CALL, CALL_BYTES_MAX
from rayfold.actors.sockets.framing import FrameReader, frame
from rayfold.actors.sockets.handshake import Handshake
from rayfold.runtime.errors import InvalidMessage, NotYetVisible, Overloaded, Unavailable
from rayfold.runtime.stream import StreamId

STORE, OTHER = "5" * 32, "6" * 32
GREETING = Handshake("system", STORE).greeting()


class Partition:
    """Stands where a handle of Ray does: answers when a test lets it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.answers: list[Future[Any]] = []
        self.held = {"head"}
        """Methods that wait until the test answers them."""

    def __getattr__(self, method: str) -> Any:
        return _Method(self, method)


class _Method:
    def __init__(self, partition: Partition, name: str) -> None:
        self._partition, self._name = partition, name

    def remote(self, *arguments: Any) -> _Method:
        self._partition.calls.append((self._name, arguments))
        return self

    def future(self) -> Future[Any]:
        answer: Future[Any] = Future()
        self._partition.answers.append(answer)
        if self._name not in self._partition.held:
            answer.set_result(b"done")
        return answer


@pytest.fixture
def partition() -> Partition:
    return Partition()


async def _echo(text: str) -> str:
    if text == "fail":
        raise Unavailable("the bank", "it is closed")
    return text


def _no_actor(name: str) -> Any:
    raise ValueError(f"no actor {name}")


@pytest.fixture
async def relay(monkeypatch: pytest.MonkeyPatch, partition: Partition) -> AsyncIterator[Relay]:
    folder = tempfile.mkdtemp(prefix="rayfold-")  # `tmp_path` is too long for the path of a socket
    monkeypatch.setattr(tempfile, "tempdir", folder)
    opened = open_relay(STORE, "bank", _no_actor, {"echo": (_echo, (str,))})
    assert opened is not None
    opened.publish(RelayedTopology(("p0",), {}, {"p0": "ab"}, Settings(), ClassNames()), {"p0": partition})
    yield opened
    opened.close()
    shutil.rmtree(folder)


async def connected(relay: Relay, store_id: str = STORE) -> RelayConnection:
    connection = RelayConnection(store_id, RELAYED)
    await asyncio.get_running_loop().create_unix_connection(lambda: connection, str(relay.path))
    await asyncio.wait_for(connection.greeted, 20)
    return connection


async def called(connection: RelayConnection, method: str, *arguments: Any, target: str = "") -> Any:
    return await asyncio.wait_for(asyncio.wrap_future(connection.call(target, method, 20, arguments)), 20)


async def raw(relay: Relay) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A program that speaks for itself, after the handshake."""
    reader, writer = await asyncio.open_unix_connection(str(relay.path))
    writer.write(GREETING)
    await reader.readexactly(len(GREETING))
    return reader, writer


async def is_cut_off(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), 20) == b""
    except ConnectionResetError:  # some of what it has sent was never read
        return True


async def test_calls_are_passed_on_and_answered_in_any_order(relay: Relay, partition: Partition) -> None:
    connection = await connected(relay)
    actor = RelayedActor(connection, "p0", "ab")
    slow = actor.head.remote().future()
    quick = actor.execute.remote(b"c" * 16, 1, 0, b"batch").future()
    assert await asyncio.wait_for(asyncio.wrap_future(quick), 20) == b"done"
    assert not slow.done()
    partition.answers[0].set_result(7)
    assert await asyncio.wait_for(asyncio.wrap_future(slow), 20) == 7
    assert partition.calls == [("head", ()), ("execute", (b"c" * 16, 1, 0, b"batch"))]
    assert actor._actor_id is not None
    assert actor._actor_id.hex() == "ab"
    connection.close()


async def test_the_system_itself_answers_and_its_errors_keep_their_type(relay: Relay) -> None:
    connection = await connected(relay)
    assert await called(connection, "echo", "hello") == "hello"
    with pytest.raises(Unavailable, match="the bank: it is closed"):
        await called(connection, "echo", "fail")
    connection.close()


async def test_a_program_that_waits_gets_the_next_topology_at_once(relay: Relay, partition: Partition) -> None:
    connection = await connected(relay)
    first = await called(connection, "topology", 0, 20)
    assert (first.revision, first.partitions) == (1, ("p0",))
    waiting = asyncio.ensure_future(called(connection, "topology", 1, 20))
    await called(connection, "echo", "it waits by now")
    relay.publish(first._replace(partitions=("p1",)), {"p1": partition})
    assert (await waiting).partitions == ("p1",)
    assert await called(connection, "topology", 2, 0.01) is None
    with pytest.raises(ActorDiedError, match="p0 does not serve any more"):
        await called(connection, "socket_path", target="p0")
    connection.close()


@pytest.mark.parametrize(
    ("target", "method", "arguments"),
    [
        ("p0", "close", ()),
        ("p0", "__init__", ()),
        ("p0", "execute", (b"c", "1", 0, b"")),
        ("p0", "head", (1,)),
        ("", "stop", ()),
        ("", "echo", (1,)),
    ],
)
async def test_what_no_program_may_call_is_refused_by_name(
    target: str, method: str, arguments: tuple[Any, ...], relay: Relay, partition: Partition
) -> None:
    connection = await connected(relay)
    with pytest.raises(InvalidMessage, match=rf"{method}: (cannot be called|was called with other arguments)"):
        await called(connection, method, *arguments, target=target)
    assert await called(connection, "echo", "and goes on") == "and goes on"
    assert partition.calls == []
    connection.close()


async def test_actors_of_other_systems_cannot_be_reached(relay: Relay) -> None:
    connection = await connected(relay)
    with pytest.raises(ActorDiedError, match="other:Account/alice does not serve"):
        await called(connection, "socket_path", target="other:Account/alice")
    with pytest.raises(ActorDiedError, match="no actor bank:Account/gone"):
        await called(connection, "socket_path", target="bank:Account/gone")
    connection.close()


async def test_a_relay_may_be_closed_at_any_moment_of_its_start(relay: Relay) -> None:
    for _ in range(50):
        opened = open_relay(STORE, "bank", _no_actor, {})
        assert opened is not None
        opened.close()
        opened.close()
    assert list(relay.path.parent.iterdir()) == [relay.path]


async def test_only_the_user_of_the_process_can_open_the_socket(relay: Relay) -> None:
    assert stat.S_IMODE(relay.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(relay.path.stat().st_mode) == 0o600


async def test_a_socket_whose_file_was_removed_is_made_again_and_who_is_connected_stays(
    partition: Partition, relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relay_module, "_CHECK_S", 0.01)
    opened = open_relay(STORE, "bank", _no_actor, {"echo": (_echo, (str,))})
    assert opened is not None
    before = await connected(opened)
    shutil.rmtree(opened.path.parent)  # as what cleans temporary folders does
    while not opened.path.exists():
        await asyncio.sleep(0.01)
    after = await connected(opened)
    assert await called(after, "echo", "found") == "found"
    assert await called(before, "echo", "still") == "still"
    assert [stat.S_IMODE(one.stat().st_mode) for one in (opened.path.parent, opened.path)] == [0o700, 0o600]
    opened.path.unlink()
    opened.path.write_text("another program's")
    while "cannot be made again" not in caplog.text:
        await asyncio.sleep(0.01)
    assert opened.path.read_text() == "another program's"
    assert await called(after, "echo", "still") == "still"
    opened.close()


async def test_a_program_of_another_store_is_given_the_reason(relay: Relay, caplog: pytest.LogCaptureFixture) -> None:
    connection = await connected(relay, OTHER)
    assert f"the other end refuses this one: one end has store {STORE}" in connection.lost
    assert "refuses a program: one end has store" in caplog.text


async def test_more_programs_than_allowed_are_refused_until_one_goes(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PROGRAMS_MAX", 1)
    first = await connected(relay)
    second = await connected(relay)
    assert second.lost.endswith("1 programs are connected, and no more are taken in")
    assert await called(first, "echo", "a") == "a"
    first.close()


@pytest.mark.parametrize(("programs", "store_id"), [(1, OTHER), (0, STORE)])
async def test_a_call_behind_a_greeting_that_is_refused_is_not_executed(
    programs: int, store_id: str, relay: Relay, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PROGRAMS_MAX", programs)
    reader, writer = await asyncio.open_unix_connection(str(relay.path))
    writer.write(Handshake("system", store_id).greeting() + frame(1, CALL, RELAYED.pack(["p0", "head", 20, []])))
    assert b"refused" in await asyncio.wait_for(reader.read(), 20)
    while relay.programs:
        await asyncio.sleep(0)
    assert partition.calls == []
    writer.close()


async def test_an_answer_that_comes_late_is_not_given_to_another_call_of_the_same_number(
    relay: Relay, partition: Partition
) -> None:
    reader, writer = await raw(relay)
    answers = FrameReader(1 << 20)
    writer.write(frame(1, CALL, RELAYED.pack(["p0", "head", 0, []])))
    writer.write(frame(2, CALL, RELAYED.pack(["", "topology", 20, [0, 20]])))
    assert [one.number for one in answers.receive(await reader.read(1 << 20))] == [2]  # the time of 1 is over
    writer.write(frame(1, CALL, RELAYED.pack(["p0", "head", 20, []])))
    while len(partition.answers) < 2:
        await asyncio.sleep(0)
    partition.answers[0].set_result("the first")
    partition.answers[1].set_result("the second")
    (answer,) = answers.receive(await asyncio.wait_for(reader.read(1 << 20), 20))
    assert RELAYED.unpack(answer.content) == "the second"
    writer.close()


@pytest.mark.parametrize(("bound", "most"), [("_RUNNING_MAX", 3), ("_RUNNING_BYTES_MAX", 3 * 400)])
async def test_calls_that_go_on_after_their_time_count_as_well(
    bound: str, most: int, relay: Relay, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, bound, most)
    reader, writer = await raw(relay)
    answers = FrameReader(1 << 20)
    whole = RELAYED.pack(["p0", "lost", 0, [StreamId("Account", "alice"), "x" * 300, True]])
    assert 300 < len(whole) <= 400
    partition.held.add("lost")
    for number in range(4):
        writer.write(frame(number, CALL, whole))
    (refused,) = answers.receive(await asyncio.wait_for(reader.read(1 << 20), 20))
    assert (refused.number, type(RELAYED.unpack(refused.content))) == (3, Overloaded)
    assert len(partition.calls) == 3
    partition.answers[0].set_result(None)
    good = RELAYED.pack(["p0", "status", 20, []])
    came: list[object] = []
    for number in itertools.count(4):
        if b"done" in came:
            break
        writer.write(frame(number, CALL, good))
        came += [
            RELAYED.unpack(one.content) for one in answers.receive(await asyncio.wait_for(reader.read(1 << 20), 20))
        ]
    writer.close()


async def test_a_program_that_breaks_the_protocol_is_cut_off_and_no_other(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    good = await connected(relay)
    for bad in (
        frame(1, 3, b""),
        frame(1, CALL, b"\xc1"),
        frame(1, CALL, RELAYED.pack(["", "echo", "soon", []])),
        frame(1, CALL, RELAYED.pack(["", "echo", 1e9])),
        frame(1, CALL, RELAYED.pack(["p0", "head", 20, []])) * 2,
        struct.pack(">IQB", CALL_BYTES_MAX + 1, 1, CALL),
    ):
        reader, writer = await raw(relay)
        writer.write(bad)
        assert await is_cut_off(reader)
        writer.close()
        assert await called(good, "echo", "on") == "on"
    reader, writer = await asyncio.open_unix_connection(str(relay.path))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 20)).startswith(b"rayfold")
    writer.close()
    assert caplog.text.count("cuts a program off") == 6
    assert "it begins with b'GET / HTTP" in caplog.text
    good.close()


async def test_a_program_may_end_at_any_byte(relay: Relay, partition: Partition) -> None:
    good = await connected(relay)
    whole = GREETING + frame(1, CALL, RELAYED.pack(["", "echo", 20, ["x"]]))
    for end in range(len(whole)):
        with socket.socket(socket.AF_UNIX) as dying:
            dying.connect(str(relay.path))
            dying.sendall(whole[:end])
    assert await called(good, "echo", "on") == "on"
    good.close()


async def test_a_program_that_does_not_greet_or_read_is_cut_off(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "HANDSHAKE_S", 0.05)
    monkeypatch.setattr(relay_module, "UNREAD_S", 0.05)
    reader, silent = await asyncio.open_unix_connection(str(relay.path))
    assert await is_cut_off(reader)
    silent.close()
    good = await connected(relay)
    _, deaf = await raw(relay)
    for number in range(100):
        deaf.write(frame(number, CALL, RELAYED.pack(["", "echo", 20, ["x" * 500_000]])))
    while len(relay.programs) > 1:
        assert await called(good, "echo", "on") == "on"
    deaf.close()
    good.close()


async def test_a_program_that_reads_slowly_is_not_cut_off(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "UNREAD_S", 0.5)
    reader, slow = await raw(relay)
    for number in range(20):
        slow.write(frame(number, CALL, RELAYED.pack(["", "echo", 20, ["x" * 500_000]])))
    answers = FrameReader(1 << 20)
    came: list[int] = []
    while len(came) < 20:
        came += [one.number for one in answers.receive(await asyncio.wait_for(reader.read(150_000), 20))]
        await asyncio.sleep(0.02)  # over a second in all
    assert came == list(range(20))
    slow.close()


async def test_an_error_that_ray_has_wrapped_keeps_its_type(relay: Relay, partition: Partition) -> None:
    connection = await connected(relay)
    waiting = asyncio.ensure_future(called(connection, "head", target="p0"))
    await called(connection, "echo", "it waits by now")
    wrapped = RayTaskError("head", "Traceback ...", NotYetVisible("Balances", 0, 5, 4)).as_instanceof_cause()
    partition.answers[0].set_exception(wrapped)
    with pytest.raises(NotYetVisible, match="5"):
        await waiting
    connection.close()


async def test_no_client_holds_a_thread_of_a_replica_for_longer_than_it_needs(
    relay: Relay, partition: Partition
) -> None:
    connection = await connected(relay)
    for wait_s in (1e9, float("nan"), -1, 0.25):
        await called(connection, "ask_after", b"", [], wait_s, True, target="p0")
    assert [arguments[2] for _, arguments in partition.calls] == [1.0, 0.0, 0.0, 0.25]
    connection.close()


async def test_a_call_that_the_programs_event_loop_does_not_come_to_in_time_is_never_done(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This loop is busy; another thread asks."""
    monkeypatch.setattr(relay_module, "_BUSY_S", 0.05)
    done: list[str] = []

    async def noted(text: str) -> str:
        done.append(text)
        return text

    def begun(method: str, text: str) -> Future[str]:
        started: Future[Future[str]] = Future()
        relay.loop.call_soon_threadsafe(lambda: started.set_result(relay.begin("", method, [text])))
        return started.result(20)

    relay._control = {"noted": (noted, (str,)), "anywhere": (noted, (str,))}
    relay._anywhere = {"anywhere"}
    late = begun("noted", "late")
    assert begun("anywhere", "at once").result(20) == "at once"
    with pytest.raises(Unavailable, match=r"has been busy with something else for 0\.05 s; noted was not begun"):
        late.result(20)
    assert await asyncio.wrap_future(begun("noted", "in time")) == "in time"
    assert done == ["at once", "in time"]


async def test_a_topology_that_comes_after_the_end_is_nobodys(relay: Relay) -> None:
    relay.close()
    relay.publish(RelayedTopology((), {}, {}, Settings(), ClassNames()), {})


async def test_without_a_thread_there_is_no_relay_and_its_socket_is_gone(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert open_relay(STORE, "bank", _no_actor, {}) is None
    assert "no other program can connect by the path of the store: can't start new thread" in caplog.text
    assert list(relay.path.parent.iterdir()) == [relay.path]


async def test_a_call_whose_time_is_over_is_never_answered_and_its_number_is_free(
    relay: Relay, partition: Partition
) -> None:
    connection = await connected(relay)
    with pytest.raises(TimeoutError):
        await asyncio.wrap_future(connection.call("p0", "head", 0.01, ()))
    partition.answers[0].set_result(1)
    assert await called(connection, "echo", "on") == "on"
    assert not connection._waiting
    given_up = connection.call("p0", "head", 600, ())
    given_up.cancel()
    assert await called(connection, "echo", "on") == "on"
    assert not connection._waiting
    connection.close()


def test_a_call_to_an_actor_ends_with_its_callers_patience_and_not_before() -> None:
    limits: list[float] = []

    class Connection:
        def call(self, target: str, method: str, timeout_s: float, arguments: tuple[Any, ...]) -> Future[Any]:
            limits.append(timeout_s)
            return Future()

    connection: Any = Connection()
    RelayedActor(connection, "p0").execute.remote(b"c" * 16, 1, 0, b"batch")
    assert limits == [relay_module.TIMEOUT_MAX_S]


@pytest.mark.slow
async def test_a_forked_child_keeps_no_program_connected(relay: Relay) -> None:
    connection = await connected(relay)
    waiting = asyncio.wrap_future(connection.call("p0", "head", 600, ()))
    await called(connection, "echo", "it waits by now")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads do not go on in the child, which does nothing
        child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    try:
        relay.close()
        with pytest.raises(Exception, match="the connection was lost"):
            await asyncio.wait_for(waiting, 20)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def test_when_the_relay_closes_every_waiting_call_fails_at_once(relay: Relay) -> None:
    connection = await connected(relay)
    waiting = [asyncio.wrap_future(connection.call("p0", "head", 600, ())) for _ in range(3)]
    await called(connection, "echo", "they wait by now")
    relay.close()
    for one in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20):
        assert str(one) == "the connection was lost"
    with pytest.raises(Exception, match="the connection was lost"):
        await called(connection, "echo", "late")
    assert not relay.path.exists()
