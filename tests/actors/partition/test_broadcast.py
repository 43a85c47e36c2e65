"""Broadcasts over sockets, without Ray: a partition's links, and a projector that reads them. What each end sends, what
it bounds, and what becomes of events when the other one is hostile, stops reading or ends at any byte."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.actors.partition.broadcast import Broadcast
from rayfold.actors.partition.broadcast_protocol import BroadcastClientProtocol
from rayfold.actors.partition.projector_links import ProjectorLink, ProjectorLinks
from rayfold.actors.projection import broadcast_reader
from rayfold.actors.projection.broadcast_protocol import BroadcastServerProtocol, Committed
from rayfold.actors.sockets.broadcast_frames import (
    BROADCAST_BYTES_MAX,
    BROADCAST_FRAME_BYTES_MAX,
    COMMITTED,
    committed_frame,
)
from rayfold.actors.sockets.framing import frame
from rayfold.actors.sockets.greeting import greet_client
from rayfold.actors.sockets.handshake import Handshake
from rayfold.actors.sockets.query_frames import pack_frame
from rayfold.runtime.errors import StorageFailed
from tests.support.projector import BALANCE, STORE_ID, Handle, Method, Projector

GREETING = Handshake("broadcast", STORE_ID).greeting()


@pytest.fixture(autouse=True)
def short_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of a socket has 107 bytes, and `tmp_path` takes most of them under several workers."""
    with tempfile.TemporaryDirectory(prefix="rayfold-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def projector() -> Iterator[Projector]:
    opened = Projector()
    yield opened
    opened.close()


class Clock:
    """Passes when a test sets it."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Partition:
    """A broadcast to these handles, with links of its own."""

    def __init__(self, *handles: Any, store_id: str = STORE_ID) -> None:
        self.clock = Clock()
        self.links = ProjectorLinks(0, store_id)
        by_name = {str(number): handle for number, handle in enumerate(handles)}
        self.broadcast = Broadcast(0, by_name.__getitem__, self.links, now_s=self.clock)
        self.broadcast.set_projectors(by_name)

    def linked(self) -> bool:
        """Every projector is sent to over a socket."""
        return all(one._choice.connection is not None for one in self.broadcast._recipients.values())

    @property
    def protocol(self) -> BroadcastClientProtocol:
        """Of the link to the first of them."""
        link = self.broadcast._recipients["0"]._choice.connection
        assert isinstance(link, ProjectorLink)
        return link._protocol


@pytest.fixture
def partition_of() -> Iterator[Callable[..., Partition]]:
    made: list[Partition] = []

    def make(*handles: Any, **options: Any) -> Partition:
        made.append(Partition(*handles, **options))
        return made[-1]

    yield make
    for one in made:
        one.broadcast.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.002)


def applied(projector: Projector) -> int:
    return projector.read_model.positions[0]


class Stand:
    """Stands where a projector listens, and does with its partition's connection what a test needs."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "stand")
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(self.path)
        self.listening.listen()
        self.listening.settimeout(20)
        self.applied: list[tuple[Any, ...]] = []
        """What came through Ray."""
        self.searched = 0
        self._accepted: list[socket.socket] = []

    @property
    def socket_path(self) -> Method:
        def told() -> str:
            self.searched += 1
            return self.path

        return Method(told)

    @property
    def apply(self) -> Method:
        return Method(lambda *arguments: self.applied.append(arguments))

    async def accept(self, greets: bool = True) -> socket.socket:
        """The next connection, greeted."""
        connected, _ = await asyncio.to_thread(self.listening.accept)
        connected.settimeout(20)
        self._accepted.append(connected)
        if greets:
            assert not await asyncio.to_thread(greet_client, connected, Handshake("broadcast", STORE_ID))
        return connected

    def close(self) -> None:
        for one in (self.listening, *self._accepted):
            one.close()


async def ended(connected: socket.socket) -> None:
    """Until the other end has ended it."""
    with contextlib.suppress(ConnectionError):  # it has left something unread
        while await asyncio.to_thread(connected.recv, 1_000):
            pass


@pytest.fixture
def stand(short_folder: Path) -> Iterator[Stand]:
    made = Stand(short_folder)
    yield made
    made.close()


# What is sent arrives ---------------------------------------------------------------------------------------------


async def test_what_is_committed_arrives_over_the_sockets_of_all_projectors_and_no_call_is_made(
    projector: Projector, partition_of: Callable[..., Partition]
) -> None:
    projector.log.held = True  # what arrives was broadcast
    handles = [Handle(projector), Handle(projector)]
    partition = partition_of(*handles)
    await until(partition.linked)
    for events in (1, 3, 300):
        first, records = projector.commit(events)
        partition.broadcast.send(records)
        await until(lambda first=first, events=events: applied(projector) == first + events - 1)  # type: ignore[misc]
    assert [handle.calls for handle in handles] == [["socket_path"], ["socket_path"]]


async def test_a_commit_that_is_too_large_is_reported_and_read_from_the_log(
    projector: Projector, partition_of: Callable[..., Partition], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayfold.actors.partition.broadcast.BROADCAST_BYTES_MAX", 1_000)
    partition = partition_of(Handle(projector))
    await until(partition.linked)
    first, records = projector.commit(50)
    partition.broadcast.send(records)
    await until(lambda: applied(projector) == first + 49)


async def test_a_projector_that_takes_no_events_in_is_left_to_ray(
    projector: Projector, partition_of: Callable[..., Partition], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Handle(projector)
    partition = partition_of(handle)
    await until(partition.linked)
    projector.commit()  # a gap
    _, records = projector.commit()

    def broken(*_: Any) -> list[bytes]:
        raise StorageFailed("the log", "no medium found")

    with monkeypatch.context() as failing:
        failing.setattr(projector.log, "read", broken)
        partition.broadcast.send(records)
        await until(lambda: "apply" in handle.calls)
    await until(lambda: applied(projector) == projector.log.head())


async def test_a_projector_of_another_store_is_left_to_ray(
    projector: Projector, partition_of: Callable[..., Partition], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    handle = Handle(projector)
    partition = partition_of(handle, store_id="f" * 16)
    await until(lambda: "one end has store" in caplog.text)
    partition.broadcast.send(projector.commit()[1])
    await until(lambda: applied(projector) == projector.log.head())
    assert not partition.linked()
    assert handle.calls == ["socket_path", "apply"]


# A projector that is hostile, full, or gone -----------------------------------------------------------------------


async def test_a_projector_that_stops_reading_delays_nothing_is_bounded_and_gets_the_head_in_the_end(
    projector: Projector, stand: Stand, partition_of: Callable[..., Partition], monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = partition_of(stand)
    connected = await stand.accept()
    await until(partition.linked)
    batches = [projector.commit(200)[1] for _ in range(40)]
    monkeypatch.setattr(partition.protocol, "_bytes_max", 200_000)
    for records in batches:
        partition.broadcast.send(records)
        assert partition.protocol._waiting_bytes <= 200_000
    reads = BroadcastServerProtocol({0})
    came: list[Committed] = []
    while not came or came[-1].head < partition.broadcast.head:
        came += reads.receive(await asyncio.to_thread(connected.recv, 50_000))
    assert not reads.refused
    sent = [record for records in batches for record in records]
    got = [record for one in came for record in one.records]
    assert got == sent[: len(got)]
    assert len(got) < len(sent)
    assert (came[-1].records, came[-1].head) == ((), projector.log.head())
    partition.broadcast.send(more := projector.commit(2)[1])
    [last] = reads.receive(await asyncio.to_thread(connected.recv, 50_000))
    assert list(last.records) == more
    assert not stand.applied


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
async def test_a_projector_that_dies_at_any_byte_is_told_the_head_through_ray_and_searched_again(
    projector: Projector, stand: Stand, partition_of: Callable[..., Partition], share: float
) -> None:
    partition = partition_of(stand)
    connected = await stand.accept()
    await until(partition.linked)
    partition.clock.now_s = 10.0
    first, records = projector.commit(20)
    partition.broadcast.send(records)
    size_bytes = int(share * len(committed_frame(0, first, records, first + 19)))
    if size_bytes:
        assert await asyncio.to_thread(connected.recv, size_bytes)
    connected.close()
    await until(lambda: bool(stand.applied))
    assert stand.applied == [(0, first + 20, [], first + 19)]
    (await stand.accept()).close()
    assert stand.searched == 2


async def test_links_that_end_at_once_are_not_made_again_and_again(
    projector: Projector, stand: Stand, partition_of: Callable[..., Partition]
) -> None:
    partition = partition_of(stand)
    choice = partition.broadcast._recipients["0"]._choice
    partition.broadcast.send(projector.commit()[1])
    for _ in range(3):
        (await stand.accept()).close()
        await until(lambda: choice._look_at_s > partition.clock.now_s)
        partition.broadcast.send(projector.commit()[1])
        await until(lambda: stand.applied[-1][3] == projector.log.head())
        searched = stand.searched
        partition.broadcast.send(projector.commit()[1])
        await until(lambda: stand.applied[-1][3] == projector.log.head())
        assert stand.searched == searched
        partition.clock.now_s += 100.0
        partition.broadcast.send(projector.commit()[1])


@pytest.mark.parametrize("greets", [True, False])
async def test_a_projector_that_speaks_unasked_is_left_to_ray(
    projector: Projector, stand: Stand, partition_of: Callable[..., Partition], greets: bool
) -> None:
    partition = partition_of(stand)
    connected = await stand.accept(greets)
    connected.sendall(b"hello" * 4)
    await ended(connected)
    partition.broadcast.send(projector.commit()[1])
    await until(lambda: bool(stand.applied))


async def test_a_projector_that_does_not_greet_is_given_up(
    projector: Projector, stand: Stand, partition_of: Callable[..., Partition], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayfold.actors.partition.projector_links.HANDSHAKE_S", 0.01)
    partition = partition_of(stand)
    connected = await stand.accept(greets=False)
    await ended(connected)
    partition.broadcast.send(projector.commit()[1])
    await until(lambda: bool(stand.applied))


# A partition that is hostile --------------------------------------------------------------------------------------


def connected_to(projector: Projector, greeting: bytes = GREETING) -> socket.socket:
    """As a partition that is greeted."""
    partition = socket.socket(socket.AF_UNIX)
    partition.settimeout(20)
    partition.connect(str(projector.server.path))
    partition.sendall(greeting)
    handshake = Handshake("broadcast", STORE_ID)
    while wanted := handshake.wanted_bytes:
        handshake.receive(partition.recv(wanted))
    assert handshake.done
    return partition


NONE = {
    "garbage": b"\xff" * 64,
    "too long": frame(0, COMMITTED, bytes(BROADCAST_FRAME_BYTES_MAX + 1))[:64],
    "no msgpack": frame(0, COMMITTED, b"\xc1" * 20),
    "another kind": pack_frame(1, 0, (0, 2, 2, ())),
    "another form": pack_frame(COMMITTED, 0, (0, 2, 2)),
    "an unknown partition": pack_frame(COMMITTED, 0, (7, 2, 2, ())),
    "no partition": pack_frame(COMMITTED, 0, (True, 2, 2, ())),
    "no position": pack_frame(COMMITTED, 0, (0, -1, 2, ())),
    "no head": pack_frame(COMMITTED, 0, (0, 2, "2", ())),
    "a position beyond any": pack_frame(COMMITTED, 0, (0, 1 << 63, 2, ())),
    "no records": pack_frame(COMMITTED, 0, (0, 2, 2, ("text",))),
}


@pytest.mark.parametrize("sent", NONE.values(), ids=list(NONE))
def test_a_partition_that_sends_no_broadcast_is_cut_off_by_name_and_nothing_is_taken_in(
    projector: Projector, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with connected_to(projector) as partition:
        partition.sendall(sent)
        assert partition.recv(1) == b""
    assert f"cuts process {os.getpid()} off" in caplog.text
    assert applied(projector) == 1


async def test_a_frame_that_does_not_come_to_its_end_is_cut_off(
    projector: Projector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(broadcast_reader, "_STALLED_S", 0.01)
    first, records = projector.commit()
    with connected_to(projector) as partition:
        partition.sendall(committed_frame(0, first, records, first)[:-1])
        assert await asyncio.to_thread(partition.recv, 1) == b""
    assert "the rest of a frame" in caplog.text
    assert applied(projector) == 1


async def test_records_that_are_damaged_or_of_elsewhere_are_read_from_the_log_and_none_counts_twice(
    projector: Projector,
) -> None:
    first, records = projector.commit(4)
    damaged = [records[0][:-1] + bytes([records[0][-1] ^ 1]), *records[1:]]
    sent = [(first, damaged), (first, records), (first + 1, records[:2]), (first, records[::-1]), (first, records)]
    with connected_to(projector) as partition:
        for at, some in sent:
            partition.sendall(committed_frame(0, at, some, at + len(some) - 1))
        more = projector.commit()
        partition.sendall(committed_frame(0, *more, more[0]))
        await until(lambda: applied(projector) == more[0])
    [balance] = projector.read_model.answer([(BALANCE.name, BALANCE.payload)], list)
    assert balance == 5


async def test_a_partition_that_dies_within_a_frame_leaves_what_came_before_it(projector: Projector) -> None:
    first, records = projector.commit(2)
    projector.log.held = True
    whole = committed_frame(0, first, records[:1], first)
    with connected_to(projector) as partition:
        partition.sendall(whole + committed_frame(0, first + 1, records[1:], first + 1)[:-1])
    await until(lambda: applied(projector) == first)
    await until(lambda: not projector.server._broadcasts._connections)
    assert applied(projector) == first


async def test_more_connections_than_a_projector_takes_are_ended(
    projector: Projector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast_reader, "CONNECTIONS_MAX", 2)
    first, records = projector.commit()
    with connected_to(projector) as one, connected_to(projector), connected_to(projector) as third:
        assert await asyncio.to_thread(third.recv, 1) == b""
        one.sendall(committed_frame(0, first, records, first))
        await until(lambda: applied(projector) == first)


# Ends -------------------------------------------------------------------------------------------------------------


async def test_what_is_closed_leaves_no_file_and_no_thread(projector: Projector) -> None:
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    partition = Partition(Handle(projector), Handle(projector))
    await until(partition.linked)
    partition.broadcast.close()
    partition.broadcast.close()
    await until(lambda: not projector.server._broadcasts._connections)
    await until(lambda: threading.active_count() <= threads)
    assert len(os.listdir("/proc/self/fd")) == files


async def test_a_projector_that_is_sent_to_no_more_has_its_link_ended(
    projector: Projector, partition_of: Callable[..., Partition]
) -> None:
    handle = Handle(projector)
    partition = partition_of(handle)
    await until(partition.linked)
    partition.broadcast.set_projectors(())
    await until(lambda: not projector.server._broadcasts._connections)
    partition.broadcast.send(projector.commit()[1])
    assert handle.calls == ["socket_path"]


@pytest.mark.slow
async def test_a_forked_child_keeps_no_end_of_a_connection(
    projector: Projector, partition_of: Callable[..., Partition]
) -> None:
    partition = partition_of(Handle(projector))
    await until(partition.linked)
    await until(lambda: bool(projector.server._broadcasts._connections))
    inherited = [*partition.links._links, *(one.fileno() for one in projector.server._broadcasts._connections)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads do not go on in the child, which looks and ends
        child = os.fork()
    if not child:
        os._exit(sum(os.path.exists(f"/proc/self/fd/{one}") for one in inherited))
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert (len(inherited), status) == (2, 0)
    first, records = projector.commit()
    partition.broadcast.send(records)
    await until(lambda: applied(projector) == first)


async def test_a_process_of_another_user_is_sent_nothing(
    projector: Projector, stand: Stand, partition_of: Callable[..., Partition], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayfold.actors.sockets.listening.other_end", lambda _: (1, os.geteuid() + 1))
    partition = partition_of(stand)
    assert await asyncio.to_thread((await stand.accept(greets=False)).recv, 1) == b""
    partition.broadcast.send(projector.commit()[1])
    await until(lambda: bool(stand.applied))


# Both protocols, one after the other ------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    moves=st.lists(st.integers(0, 60), max_size=60),
    frames_max=st.integers(1, 5),
)
def test_whatever_a_socket_takes_what_arrives_is_in_order_and_ends_with_the_head(
    sizes: list[int], moves: list[int], frames_max: int
) -> None:
    ends, reads = BroadcastClientProtocol(0, frames_max=frames_max), BroadcastServerProtocol({0})
    room, head, came = iter(moves), 0, list[Committed]()

    def send(room_bytes: int) -> None:
        while room_bytes and (unsent := ends.unsent()) is not None:
            taken = bytes(unsent[:room_bytes])
            ends.sent(len(taken))
            room_bytes -= len(taken)
            came.extend(reads.receive(taken))

    for size in sizes:
        head += 1
        ends.put(committed_frame(0, head, [b"r" * size], head), head)
        assert len(ends._waiting) <= frames_max
        send(next(room, 0))
    send(1 << 30)
    assert not reads.refused
    assert not reads.within
    assert ends.unsent() is None
    assert came[-1].head == head
    positions = [one.first + at for one in came for at in range(len(one.records))]
    assert positions == sorted(set(positions))
    assert all(one.head >= one.first + len(one.records) - 1 for one in came)


def test_frames_whose_records_adjoin_come_out_as_one() -> None:
    reads = BroadcastServerProtocol({0, 1})
    frames = [
        committed_frame(0, 2, [b"a", b"b"], 3),
        committed_frame(0, 4, [b"c"], 4),
        committed_frame(0, 9, [b"d"], 9),
        committed_frame(1, 10, [b"e"], 10),
    ]
    assert reads.receive(b"".join(frames)) == [(0, 2, (b"a", b"b", b"c"), 4), (0, 9, (b"d",), 9), (1, 10, (b"e",), 10)]


def test_the_largest_broadcast_fits_into_a_frame() -> None:
    records = [b"r" * 50] * (BROADCAST_BYTES_MAX // 50)
    assert len(committed_frame(0, 1 << 62, records, 1 << 62)) <= BROADCAST_FRAME_BYTES_MAX
