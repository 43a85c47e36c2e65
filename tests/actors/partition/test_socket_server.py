"""The socket server and the connection, without Ray: frames, bounds, who may connect, and what ended activations leave
behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayfold.actors.client.socket_client import SocketConnection
from rayfold.actors.partition.socket_server import SocketServer, open_socket_server
from rayfold.actors.sockets import greeting
from rayfold.actors.sockets.handshake import Handshake
from rayfold.actors.sockets.listening import CONNECTIONS_MAX, REFUSED_AT_ONCE_MAX
from rayfold.runtime.encoding.frames import ANSWER, REQUEST, REQUEST_BYTES_MAX

CLIENT = b"c" * 16
STORE_ID = "5" * 32
GREETING = Handshake("partition", STORE_ID).greeting()


class Partition:
    """Stands where a partition's `execute` does: remembers what it is given, and answers with it."""

    def __init__(self) -> None:
        self.executed: list[tuple[bytes, int, int, bytes]] = []
        self.busy = threading.Lock()

    def execute(self, client: bytes, attempt: int, predecessor: int, blob: bytes) -> bytes:
        with self.busy:
            if blob == b"fail":
                raise ValueError("no batch")
            self.executed.append((client, attempt, predecessor, blob))
            return b"answer to " + blob


@pytest.fixture
def partition() -> Partition:
    return Partition()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers are opened in this test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"rayfold-{os.getuid()}"


@pytest.fixture
def server(partition: Partition, folder: Path) -> Iterator[SocketServer]:
    opened = open_socket_server("store-0", STORE_ID, partition.execute)
    assert opened is not None
    yield opened
    opened.close()


def connected(server: SocketServer) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(20)
    client.connect(str(server.path))
    return client


def greeted(server: SocketServer) -> socket.socket:
    """A connection whose handshake is over."""
    client = connected(server)
    client.sendall(GREETING)
    assert received(client, len(GREETING)) == GREETING
    return client


def send(client: socket.socket, attempt: int, blob: bytes, predecessor: int = 0) -> None:
    client.sendall(REQUEST.pack(len(blob), CLIENT, attempt, predecessor) + blob)


def answer(client: socket.socket) -> tuple[int, bytes]:
    size_bytes, attempt = ANSWER.unpack(received(client, ANSWER.size))
    return attempt, received(client, size_bytes)


def received(client: socket.socket, size_bytes: int) -> bytes:
    """A socket with a timeout does not wait for all by itself."""
    found = b""
    while len(found) < size_bytes:
        found += client.recv(size_bytes - len(found))
    return found


def test_attempts_of_one_connection_are_executed_and_answered_in_order(
    server: SocketServer, partition: Partition
) -> None:
    with greeted(server) as client:
        send(client, 1, b"one")
        send(client, 2, b"", predecessor=1)
        assert [answer(client), answer(client)] == [(1, b"answer to one"), (2, b"answer to ")]
    assert partition.executed == [(CLIENT, 1, 0, b"one"), (CLIENT, 2, 1, b"")]


def test_only_the_user_of_the_process_can_open_the_socket(server: SocketServer, folder: Path) -> None:
    assert server.path.parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


def test_a_client_of_another_store_is_refused_by_name_and_executes_nothing(
    server: SocketServer, partition: Partition, caplog: pytest.LogCaptureFixture
) -> None:
    handshake = Handshake("partition", "6" * 32)
    with connected(server) as client:
        client.sendall(handshake.greeting() + REQUEST.pack(1, CLIENT, 1, 0) + b"x")
        while handshake.wanted_bytes:
            handshake.receive(client.recv(handshake.wanted_bytes))
        with contextlib.suppress(ConnectionResetError):  # the attempt was never read
            assert client.recv(1) == b""
    assert handshake.refused == (
        f"the other end refuses this one: one end has store {STORE_ID}, and the other one store {'6' * 32}"
    )
    assert "refuses a client: one end has store" in caplog.text
    assert partition.executed == []


def test_garbage_ends_its_connection_at_its_first_byte(server: SocketServer, caplog: pytest.LogCaptureFixture) -> None:
    with connected(server) as client, greeted(server) as other:
        client.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionResetError):  # some of it was never read
            while client.recv(100):
                pass
        send(other, 1, b"one")
        assert answer(other) == (1, b"answer to one")
    assert r"what came is no greeting of Rayfold's; it begins with b'GET / HTTP" in caplog.text


def test_a_client_that_does_not_greet_is_cut_off(server: SocketServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "HANDSHAKE_S", 0.05)
    with connected(server) as silent, connected(server) as slow:
        slow.sendall(GREETING[:5])
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""


async def test_a_connection_to_something_else_is_never_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def greet_wrongly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(GREETING))
        writer.write(Handshake("projector", STORE_ID).greeting())
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(greet_wrongly, str(tmp_path / "socket")):
        answers = Answers()
        await answers.connect(tmp_path / "socket")
        assert answers.connection.lost
    assert (
        "is not used, and calls take longer: one end is for a partition, and the other one for a projector"
        in caplog.text
    )


def test_a_batch_over_the_bound_ends_its_connection_before_it_is_read(
    server: SocketServer, partition: Partition
) -> None:
    with greeted(server) as client:
        client.sendall(REQUEST.pack(REQUEST_BYTES_MAX + 1, CLIENT, 1, 0))
        assert client.recv(1) == b""
    with greeted(server) as client:
        send(client, 1, bytes(REQUEST_BYTES_MAX))
        assert len(answer(client)[1]) > REQUEST_BYTES_MAX
    assert len(partition.executed) == 1


def test_a_client_that_dies_within_a_frame_executes_nothing(server: SocketServer, partition: Partition) -> None:
    for part in (REQUEST.pack(5, CLIENT, 1, 0)[:10], REQUEST.pack(5, CLIENT, 1, 0) + b"ab"):
        with greeted(server) as client:
            client.sendall(part)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    assert partition.executed == []


def test_a_batch_that_cannot_be_executed_ends_its_connection_and_no_other(
    server: SocketServer, caplog: pytest.LogCaptureFixture
) -> None:
    with greeted(server) as other, greeted(server) as client:
        send(client, 1, b"fail")
        assert client.recv(1) == b""
        send(other, 1, b"one")
        assert answer(other) == (1, b"answer to one")
    assert "a batch could not be executed; its client will send it again" in caplog.text


def test_connections_beyond_the_bound_are_refused_by_name_until_another_leaves(server: SocketServer) -> None:
    with contextlib.ExitStack() as inside:
        clients = [inside.enter_context(greeted(server)) for _ in range(CONNECTIONS_MAX)]
        for client in clients:  # answered, so let in
            send(client, 1, b"x")
            answer(client)
        with connected(server) as refused:
            refused.sendall(GREETING)
            assert b"64 programs are connected, and no more are taken in" in refused.recv(500)
            assert refused.recv(1) == b""
        silent = [inside.enter_context(connected(server)) for _ in range(REFUSED_AT_ONCE_MAX + 1)]
        assert silent[-1].recv(1) == b"", "more are not even greeted"
        for client in silent:
            client.close()
        clients[0].shutdown(socket.SHUT_WR)
        assert clients[0].recv(1) == b""  # its thread has ended, or is about to: the place is free soon
        assert let_in_some_time(server)


def let_in_some_time(server: SocketServer) -> bool:
    for _ in range(100):
        with connected(server) as client, contextlib.suppress(OSError):
            client.sendall(GREETING)
            if client.recv(1):
                return True
    return False


def test_a_client_that_does_not_read_stops_nobody_else(server: SocketServer) -> None:
    with greeted(server) as deaf, greeted(server) as client:
        deaf.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            for attempt in range(1, 100):  # until its answers fill the socket
                send(deaf, attempt, bytes(100_000))
        send(client, 1, b"one")
        assert answer(client) == (1, b"answer to one")


def test_what_dead_activations_left_is_removed_and_what_lives_is_left(
    server: SocketServer, folder: Path, partition: Partition
) -> None:
    for name in ("store-0.dead", "store-1.dead", "store-01.dead", "store-1.long-dead"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(str(folder / name))
    os.utime(folder / "store-1.long-dead", (0, 0))
    os.utime(server.path, (0, 0))
    later = open_socket_server("store-0", STORE_ID, partition.execute)
    assert later is not None
    assert {path.name for path in folder.iterdir()} == {
        server.path.name,
        later.path.name,
        "store-1.dead",
        "store-01.dead",
    }
    later.close()
    assert not later.path.exists()


def test_a_closed_server_ends_its_connections_and_leaves_no_file(server: SocketServer) -> None:
    with greeted(server) as client:
        send(client, 1, b"one")
        answer(client)
        server.close()
        server.close()
        assert client.recv(1) == b""
    assert not server.path.exists()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as late, pytest.raises(FileNotFoundError):
        late.connect(str(server.path))


def test_a_socket_whose_file_was_removed_is_made_again_and_who_is_connected_stays(
    server: SocketServer, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with greeted(server) as before:
        server.put_back()
        assert not caplog.text
        for number in (1, 2):
            shutil.rmtree(folder)  # as what cleans temporary folders does
            server.put_back()
            with greeted(server) as after:
                send(after, number, b"found")
                assert answer(after) == (number, b"answer to found")
        send(before, 1, b"still")
        assert answer(before) == (1, b"answer to still")
        server.path.unlink()
        server.path.write_text("another program's")
        server.put_back()
        server.put_back()
        assert caplog.text.count("cannot be made again") == 1
        send(before, 2, b"still")
        assert answer(before) == (2, b"answer to still")
    server.close()
    assert server.path.read_text() == "another program's"


@pytest.mark.parametrize("how", ["a link", "a file"])
def test_without_a_private_folder_there_is_no_gate_and_the_log_says_why(
    how: str, folder: Path, partition: Partition, caplog: pytest.LogCaptureFixture
) -> None:
    if how == "a link":
        elsewhere = folder.parent / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        folder.symlink_to(elsewhere)
    else:
        folder.touch(mode=0o600)
    assert open_socket_server("store-0", STORE_ID, partition.execute) is None
    told = f"no socket for store-0, so its clients use Ray: {folder}: it is not a folder of mode 0700"
    assert told in caplog.text


def test_a_path_too_long_for_a_socket_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition: Partition, caplog: pytest.LogCaptureFixture
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert open_socket_server("store-0", STORE_ID, partition.execute) is None
    assert "is too long for a socket, over 107 bytes; set TMPDIR to a shorter one" in caplog.text


class Answers:
    """What a connection reports to its owner."""

    def __init__(self) -> None:
        self.told: list[tuple[int, bytes | None]] = []
        self.lost: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.enough = asyncio.Event()
        self.connection = SocketConnection(
            CLIENT, self.batch_done, lambda connection: self.lost.set_result(connection.answered), STORE_ID
        )

    async def connect(self, path: Path) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self.connection, str(path))
        await asyncio.wait_for(self.connection.greeted, 20)

    def batch_done(self, attempt: int, blob: bytes | None) -> None:
        self.told.append((attempt, blob))
        self.enough.set()

    async def next(self) -> tuple[int, bytes | None]:
        await asyncio.wait_for(self.enough.wait(), 20)
        self.enough.clear()
        return self.told[-1]


async def test_a_connection_brings_each_answer_to_its_attempt_also_when_it_comes_in_many_pieces(
    server: SocketServer,
) -> None:
    answers = Answers()
    await answers.connect(server.path)
    answers.connection.send(7, 0, bytes(1_000_000))
    assert await answers.next() == (7, b"answer to " + bytes(1_000_000))
    answers.connection.send(8, 7, b"x")
    assert await answers.next() == (8, b"answer to x")
    answers.connection.close()
    assert await answers.lost is True


async def test_a_lost_connection_fails_what_is_in_flight_at_once(server: SocketServer, partition: Partition) -> None:
    answers = Answers()
    await answers.connect(server.path)
    with partition.busy:
        answers.connection.send(1, 0, b"one")
        answers.connection.send(2, 1, b"two")
        server.close()
        assert await asyncio.wait_for(answers.lost, 20) is False
        assert answers.told == [(1, None), (2, None)]


@pytest.mark.parametrize(
    "reply", [ANSWER.pack(0xFFFFFFFF, 1), ANSWER.pack(0, 9)], ids=["over the bound", "of no attempt"]
)
async def test_an_answer_that_cannot_be_one_ends_the_connection(
    reply: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    async def reply_wrongly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(GREETING))
        writer.write(GREETING)
        await reader.readexactly(REQUEST.size)
        writer.write(reply)
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(reply_wrongly, str(tmp_path / "socket")):
        answers = Answers()
        await answers.connect(tmp_path / "socket")
        answers.connection.send(1, 0, b"")
        assert await asyncio.wait_for(answers.lost, 20) is False
    assert answers.told == [(1, None)]
