"""A projector's socket, without Ray: queries, what waits, which connections are cut, and that it delays no others."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import pickle
import shutil
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayfold.actors.client import replica_pool
from rayfold.actors.client.query_protocol import Answered, QueryClientProtocol, SomeAnswered
from rayfold.actors.client.replica_pool import ReplicaPool
from rayfold.actors.partition.projector_links import ProjectorLinks
from rayfold.actors.projection import query_protocol, query_server, waiting_queries
from rayfold.actors.projection.actor import ProjectorActor, ProjectorPlan
from rayfold.actors.settings import Settings
from rayfold.actors.sockets.handshake import Handshake
from rayfold.actors.sockets.listening import CONNECTIONS_MAX, REFUSED_AT_ONCE_MAX, open_listening_socket
from rayfold.actors.sockets.query_frames import ASK, WAIT, pack_frame
from rayfold.runtime.domain.messages import Query
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.query_batch import PackedQuery, join_queries
from rayfold.runtime.errors import HandlerFailed, NotYetVisible, Overloaded, RayfoldError
from tests.bank import BalanceOf, Deposited
from tests.support.projector import BALANCE, STORE_ID, Handle, Method, Projector, has_socket

BATCH = join_queries([BALANCE])


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The path of a socket has 107 bytes, and `tmp_path` takes most of them under several workers."""
    with tempfile.TemporaryDirectory(prefix="rayfold-") as folder:
        yield Path(folder)


@pytest.fixture
def projector(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Projector]:
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    opened = Projector()
    yield opened
    opened.close()


@asynccontextmanager
async def pool_to(projector: Projector, **settings: Any) -> AsyncIterator[ReplicaPool]:
    """A client that has found the socket."""
    pool = ReplicaPool("Balances", [Handle(projector)], Settings(**settings), STORE_ID)
    await until(lambda: has_socket(pool))
    yield pool
    pool.close()
    await until(lambda: not has_socket(pool))


async def until(holds: Callable[[], bool]) -> None:
    """Until it holds."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.002)


async def told(waiting: asyncio.Future[Any]) -> Any:
    async with asyncio.timeout(20):
        return await waiting


async def test_queries_are_answered_over_the_socket_and_no_call_is_made(projector: Projector) -> None:
    async with pool_to(projector) as pool:
        assert await told(pool.ask(BALANCE, {}, 5.0)) == 0
        projector.broadcast(*projector.commit(3))
        seen: list[dict[int, int]] = []
        assert await told(pool.ask(BALANCE, {0: 4}, 5.0, seen.append)) == 3
        assert seen == [{0: 4}]
        answers = [await told(one) for one in pool.ask_many([BALANCE] * 3000, {}, 5.0)]
        assert answers == [3] * 3000
        unknown = await told(pool.ask(PackedQuery("Nonsense", b""), {}, 5.0))
        assert isinstance(unknown, RayfoldError)
        [handle] = pool.actors()
        assert set(handle.calls) == {"socket_path"}


async def test_thousands_wait_without_a_thread_or_a_call_and_are_woken_by_the_batch_that_brings_their_position(
    projector: Projector,
) -> None:
    projector.log.held = True
    first, records = projector.commit(2)
    async with pool_to(projector) as pool:
        before = threading.active_count()
        waiting = [pool.ask(BALANCE, {0: first + number % 2}, 20.0) for number in range(4000)]
        await until(lambda: projector.waiting() == 4000)
        assert threading.active_count() == before
        assert await told(pool.ask(BALANCE, {}, 5.0)) == 0
        projector.broadcast(first, records[:1])
        assert [await told(one) for one in waiting[::2]] == [1] * 2000
        assert not any(one.done() for one in waiting[1::2])
        projector.broadcast(first + 1, records[1:])
        assert [await told(one) for one in waiting[1::2]] == [2] * 2000
        assert projector.waiting() == 0
        assert set(pool.actors()[0].calls) == {"socket_path"}


async def test_what_lies_beyond_the_end_of_the_log_is_refused_at_once(projector: Projector) -> None:
    async with pool_to(projector) as pool:
        late = await told(pool.ask(BALANCE, {0: 7}, 60.0))
        assert isinstance(late, NotYetVisible)
        assert (late.asked, late.reached) == (7, 1)


@pytest.mark.parametrize("timeout_s", [math.inf, 1e308])
async def test_a_query_may_wait_without_a_limit_and_disturbs_nothing_that_is_parked(
    projector: Projector, timeout_s: float
) -> None:
    projector.log.held = True
    first, records = projector.commit()
    async with pool_to(projector) as pool:
        before = pool.ask(BALANCE, {0: first}, 20.0)
        await until(lambda: projector.waiting() == 1)
        connection = pool._replicas[0].search.connection
        without_limit = pool.ask(BALANCE, {0: first}, timeout_s)
        await until(lambda: projector.waiting() == 2)
        projector.broadcast(first, records)
        assert [await told(before), await told(without_limit)] == [1, 1]
        assert pool._replicas[0].search.connection is connection


async def test_an_end_of_the_log_that_was_read_before_a_query_came_does_not_refuse_it(projector: Projector) -> None:
    """The end is read, then something is committed and asked for, and only then the end is used."""
    projector.log.held = True
    first, _ = projector.commit()
    read, go_on = threading.Event(), threading.Event()
    ends = projector.answers.ends

    def read_early(partitions: Collection[int], *, away: bool) -> dict[int, int]:
        found = ends(partitions, away=away)
        if threading.current_thread().name == "rayfold-log-reader":
            read.set()
            go_on.wait(20)
        return found

    projector.answers.ends = read_early  # type: ignore[method-assign]  # of this one alone
    async with pool_to(projector) as pool:
        earlier = pool.ask(BALANCE, {0: first}, 20.0)
        await until(read.is_set)
        second, _ = projector.commit()
        later = pool.ask(BALANCE, {0: second}, 20.0)
        await until(lambda: projector.waiting() == 2)
        go_on.set()
        await until(lambda: not projector.server._readers[False]._at_work and not projector.server._looked)
        projector.log.held = False
        assert [await told(earlier), await told(later)] == [2, 2]


async def test_what_a_lost_broadcast_has_left_out_is_read_from_the_log(projector: Projector) -> None:
    async with pool_to(projector) as pool:
        projector.commit(5)
        assert await told(pool.ask(BALANCE, {0: 6}, 20.0)) == 5


async def test_the_projector_drops_what_waits_at_its_deadline_and_when_its_connection_ends(
    projector: Projector,
) -> None:
    projector.log.held = True
    first, _ = projector.commit()
    async with pool_to(projector) as pool:
        late = [pool.ask(BALANCE, {0: first}, 0.5 if number % 2 else 20.0) for number in range(10)]
        await until(lambda: projector.waiting() == 5)
        assert {type(await told(one)) for one in late[1::2]} == {NotYetVisible}
    await until(lambda: projector.waiting() == 0)


async def test_what_waits_in_vain_for_a_stopped_projection_is_told_why(projector: Projector) -> None:
    projector.log.held = True
    first, _ = projector.commit()
    async with pool_to(projector) as pool:
        waiting = pool.ask(BALANCE, {0: first}, 20.0)
        everywhere = asyncio.ensure_future(pool.everywhere({0: first}, asyncio.get_running_loop().time() + 20))
        await until(lambda: projector.waiting() == 2)
        projector.read_model.fail(HandlerFailed("Balances.deposited", "event 2", "no"))
        assert isinstance(await told(waiting), HandlerFailed)
        with pytest.raises(HandlerFailed):
            await everywhere


async def test_more_than_may_wait_is_overloaded_and_what_waits_is_not_disturbed(
    projector: Projector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_queries, "WAITING_MAX", 100)
    projector.log.held = True
    first, records = projector.commit()
    async with pool_to(projector) as pool:
        waiting = [pool.ask(BALANCE, {0: first}, 20.0) for _ in range(150)]
        assert {type(await told(one)) for one in waiting[100:]} == {Overloaded}
        projector.broadcast(first, records)
        assert [await told(one) for one in waiting[:100]] == [1] * 100


async def test_a_call_over_the_bound_of_one_client_is_overloaded_and_its_connection_goes_on(
    projector: Projector, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert query_protocol.CALLS_WAITING_MAX >= 2 * waiting_queries.WAITING_OF_ONE_MAX
    monkeypatch.setattr(waiting_queries, "WAITING_OF_ONE_MAX", 10)
    projector.log.held = True
    first, _ = projector.commit()
    with Peer(projector) as peer:
        calls = [peer.protocol.wait(BATCH, [(20.0, {0: first})]) for _ in range(11)]
        peer.socket.sendall(b"".join(frame for _, frame in calls))
        [(call, [(_, refusal)])] = some(peer)
        assert call == calls[-1][0]
        assert isinstance(refusal, Overloaded)
        assert peer.ask() == 0
        assert projector.waiting() == 10


async def test_queries_that_name_many_partitions_are_divided_among_frames(projector: Projector) -> None:
    projector.log.held = True
    first, records = projector.commit()
    others = dict.fromkeys(range(1, 500), 70_000)
    kept: Any = projector.read_model._kept
    kept.positions.update(others)
    kept._at.positions.update(others)
    async with pool_to(projector) as pool:
        waiting = [pool.ask(BALANCE, {**others, 0: first}, 60.0) for _ in range(1400)]
        await until(lambda: projector.waiting() == 1400)
        projector.broadcast(first, records)
        assert [await told(one) for one in waiting] == [1] * 1400
        assert set(pool.actors()[0].calls) == {"socket_path"}


async def test_more_bytes_than_a_client_may_have_parked_are_overloaded_before_anything_is_sent(
    projector: Projector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_pool, "_PARKED_BYTES_MAX", 10_000)
    projector.log.held = True
    first, records = projector.commit()
    large = PackedQuery("Large", bytes(6000))
    async with pool_to(projector) as pool:
        waiting = []
        for count in (1, 2):
            waiting.append(pool.ask(large, {0: first}, 20.0))
            await until(lambda count=count: projector.waiting() == count)  # type: ignore[misc]
        with pytest.raises(Overloaded, match="bytes of queries that wait in it"):
            pool.ask(large, {0: first}, 20.0)
        projector.broadcast(first, records)
        for one in waiting:
            await told(one)
        assert pool._replicas[0].parked_bytes == 0
        assert await told(pool.ask(BALANCE, {0: first}, 5.0)) == 1


async def test_what_its_caller_has_given_up_before_it_was_sent_is_not_in_flight(projector: Projector) -> None:
    projector.log.held = True
    first, _ = projector.commit()
    async with pool_to(projector) as pool:
        for _ in range(10):
            pool.ask(BALANCE, {0: first}, 5.0).cancel()
        await until(lambda: not pool._pending)
        assert pool._replicas[0].in_flight == 0


async def test_a_wait_that_is_overloaded_keeps_no_place(projector: Projector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_pool, "_WAITING_MAX", 1)
    pool = ReplicaPool("Balances", [Handle(projector)], Settings(local_sockets=False), STORE_ID)
    deadline_s = asyncio.get_running_loop().time() + 20
    waits = [asyncio.ensure_future(pool.everywhere({0: 1}, deadline_s)) for _ in range(2)]
    ends = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(end) for end in ends if end is not None] == [Overloaded]
    assert not pool._pending


async def test_the_positions_that_come_with_an_answer_are_those_it_was_read_at(projector: Projector) -> None:
    projector.log.held = True
    first, records = projector.commit(2)
    answer_one = projector.answers.answer_one

    def then_more(query: tuple[str, bytes]) -> Any:
        answer = answer_one(query)
        projector.broadcast(first + 1, records[1:])
        return answer

    projector.answers.answer_one = then_more  # type: ignore[method-assign]  # of this one alone
    async with pool_to(projector) as pool:
        seen: list[dict[int, int]] = []
        waiting = pool.ask(BALANCE, {0: first}, 20.0, seen.append)
        await until(lambda: projector.waiting() == 1)
        projector.broadcast(first, records[:1])
        assert await told(waiting) == 1
        assert seen == [{0: first}]


def test_a_server_whose_threads_cannot_be_started_leaves_nothing_open(
    projector: Projector, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, before, refusing = threading.Thread.start, open_files(), [""]

    def refused(thread: threading.Thread) -> None:
        if thread.name == refusing[-1]:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    for name in ("rayfold-queries", "rayfold-log-reader"):
        refusing.append(name)
        listening = open_listening_socket("another")
        assert listening is not None
        with pytest.raises(OSError, match="can't start new thread"):
            query_server.QueryServer(listening, STORE_ID, projector.answers, projector.read_model.apply)
        assert not listening.path.exists()
        assert open_files() <= before


def test_a_server_that_is_closed_leaves_no_file_open(projector: Projector) -> None:
    before = open_files()
    listening = open_listening_socket("another")
    assert listening is not None
    server = query_server.QueryServer(listening, STORE_ID, projector.answers, projector.read_model.apply)
    assert open_files() - before
    server.close()
    server.notify_changed()
    server.close()
    assert open_files() <= before


def open_files() -> set[str]:
    """What this process has open: not how much, since of earlier tests something may be closed meanwhile."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.add(os.readlink(descriptor))
    return found


async def test_a_server_that_ends_leaves_its_queries_to_ray_and_nothing_behind(projector: Projector) -> None:
    projector.log.held = True
    first, records = projector.commit()
    async with pool_to(projector) as pool:
        waiting = pool.ask(BALANCE, {0: first}, 20.0)
        await until(lambda: projector.waiting() == 1)
        projector.server.close()
        projector.broadcast(first, records)
        assert await told(waiting) == 1
        assert "ask" in pool.actors()[0].calls or "ask_after" in pool.actors()[0].calls
        assert not projector.server.path.exists()
        projector.server.close()


async def test_a_replica_in_which_something_is_parked_and_that_answers_no_more_is_left(projector: Projector) -> None:
    """As one that is stopped: the connection is open, and nothing comes."""
    projector.log.held = True
    first, records = projector.commit()
    async with pool_to(projector, attempt_timeout_s=0.2) as pool:
        waiting = pool.ask(BALANCE, {0: first}, 20.0)
        await until(lambda: projector.waiting() == 1)
        with projector.read_model._changed:
            await until(lambda: not has_socket(pool))
        projector.broadcast(first, records)
        assert await told(waiting) == 1


async def test_a_pool_that_is_closed_closes_the_connections_to_replaced_replicas_too(projector: Projector) -> None:
    projector.log.held = True
    first, _ = projector.commit()
    async with pool_to(projector) as pool:
        waiting = pool.ask(BALANCE, {0: first}, 20.0)
        await until(lambda: projector.waiting() == 1)
        pool.replace([Handle(projector)])
        await until(lambda: has_socket(pool) and len(projector.server._connections) == 2)
    await until(lambda: not projector.server._connections)
    waiting.cancel()


async def test_a_connection_to_a_replaced_replica_is_closed_once_nothing_is_in_flight_on_it(
    projector: Projector,
) -> None:
    projector.log.held = True
    first, records = projector.commit()
    async with pool_to(projector) as pool:
        waiting = pool.ask(BALANCE, {0: first}, 20.0)
        await until(lambda: projector.waiting() == 1)
        for _ in range(3):
            pool.replace([Handle(projector)])
            await until(lambda: has_socket(pool) and len(projector.server._connections) == 2)
        projector.broadcast(first, records)
        assert await told(waiting) == 1
        await until(lambda: len(projector.server._connections) == 1)


async def test_an_actor_stays_the_same_replica_whichever_handle_leads_to_it(projector: Projector) -> None:
    projector.log.held = True
    first, records = projector.commit()
    pool = ReplicaPool("Balances", [Handle(projector, b"an actor")], Settings(), STORE_ID)
    await until(lambda: has_socket(pool))
    everywhere = asyncio.ensure_future(pool.everywhere({0: first}, asyncio.get_running_loop().time() + 20))
    [replica] = pool._replicas
    waiting = []
    latest = [Handle(projector, b"an actor") for _ in range(3)]
    for one in latest:
        pool.replace([one])
        waiting.append(pool.ask(BALANCE, {0: first}, 20.0))
    await until(lambda: projector.waiting() == 4)
    assert pool._replicas == [replica]
    assert pool.actors() == latest[-1:]
    assert len(projector.server._connections) == 1
    projector.broadcast(first, records)
    assert [await told(one) for one in waiting] == [1, 1, 1]
    await everywhere
    pool.close()


async def test_a_search_that_is_closed_while_the_other_end_has_not_greeted_leaves_no_connection(
    tmp_path: Path, projector: Projector
) -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            began.set()
        writer.close()
        ended.set()

    began = asyncio.Event()
    async with await asyncio.start_unix_server(silent, str(tmp_path / "silent")):
        handle = Handle(projector)
        handle.do_socket_path = lambda: str(tmp_path / "silent")  # type: ignore[method-assign]  # of this one alone
        pool = ReplicaPool("Balances", [handle], Settings(), STORE_ID)
        await asyncio.wait_for(began.wait(), 20)
        pool.close()
        await asyncio.wait_for(ended.wait(), 20)


async def test_what_goes_wrong_at_the_end_of_one_connection_ends_no_other(
    projector: Projector, caplog: pytest.LogCaptureFixture
) -> None:
    projector.log.held = True
    first, _ = projector.commit()
    with Peer(projector) as good:
        async with pool_to(projector) as pool:
            waiting = pool.ask(BALANCE, {0: first}, 20.0)
            await until(lambda: projector.waiting() == 1)
            projector.server._waiting._by_deadline._items.clear()  # a fault of ours, as it were
        await until(lambda: len(projector.server._connections) == 1)
        assert good.ask() == 0
        assert not projector.server.ended
        waiting.cancel()
    assert "has parked could not be forgotten" in caplog.text


async def test_a_projector_whose_file_was_removed_is_found_again_by_queries_and_broadcasts(
    projector: Projector,
) -> None:
    store: Any = SimpleNamespace(store_id=STORE_ID)
    actor: Any = ProjectorActor(ProjectorPlan("Balances", 0, 0, Path("here"), b"", store))
    actor._opened, actor._answers, actor._server = projector.opened, projector.answers, projector.server
    actor._served = True
    async with pool_to(projector) as before:
        for _ in range(2):
            shutil.rmtree(projector.server.path.parent)  # as what cleans temporary folders does
            assert actor.socket_path() == actor.socket_path() == str(projector.server.path)
            async with pool_to(projector) as after:
                assert await told(after.ask(BALANCE, {}, 20.0)) == 0
        assert await told(before.ask(BALANCE, {}, 20.0)) == 0
    links = ProjectorLinks(0, STORE_ID)
    projector.server.path.unlink()
    found: Future[Any] = Future()
    links.search(SimpleNamespace(socket_path=Method(actor.socket_path)), found.set_result, lambda _: None)
    assert found.result(20) is not None
    links.close()


def test_an_actor_whose_server_has_ended_opens_a_new_one_when_it_is_asked_for_its_socket(projector: Projector) -> None:
    store: Any = SimpleNamespace(store_id=STORE_ID)
    actor: Any = ProjectorActor(ProjectorPlan("Balances", 0, 0, Path("here"), b"", store))
    actor._opened, actor._answers = projector.opened, projector.answers
    path = actor.socket_path()
    assert path
    assert actor.socket_path() == path
    ended = actor._server
    assert ended is not None
    ended.close()
    assert ended.ended
    again = actor.socket_path()
    assert again != path
    assert Path(again).is_socket()
    assert not Path(path).exists()
    assert actor._server is not None
    actor._server.close()


class Whole(Query[list[int]]):
    """All that there is."""


class Large(Projection):
    """Answers that fill a socket."""

    numbers: list[int] = []

    @project
    def deposited(self, event: Deposited) -> None:
        self.numbers += range(200_000)

    @answer
    def whole(self, query: Whole) -> list[int]:
        return self.numbers


class Peer:
    """The other end of a connection, which sends what it likes."""

    def __init__(self, projector: Projector, greeting: bytes | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(projector.server.path))
        self.socket.settimeout(20)
        self.protocol = QueryClientProtocol()
        handshake = Handshake("projector", STORE_ID)
        if greeting is None:
            self.socket.sendall(handshake.greeting())
            while handshake.wanted_bytes:
                handshake.receive(self.socket.recv(handshake.wanted_bytes))
            assert handshake.done
        elif greeting:  # to send nothing fails as well where the other end has closed
            self.socket.sendall(greeting)

    def ask(self) -> Any:
        """One query alone."""
        _, frame = self.protocol.ask(BATCH, {}, True, False)
        self.socket.sendall(frame)
        while not (answers := self.protocol.receive(self.socket.recv(65_536))):
            assert not self.protocol.refused
        [(_, told)] = answers
        assert isinstance(told, Answered)
        return pickle.loads(told.answers)[0]

    def is_cut_off(self) -> bool:
        """Reads until there is nothing more."""
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(65_536):
                pass
        return True

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


class Fate(BaseException):
    """Raised by code of the user's that nothing is known of."""


FATES: dict[str, type[BaseException]] = {
    kind.__name__: kind for kind in (SystemExit, KeyboardInterrupt, GeneratorExit, Fate, ValueError)
}


class Parcel:
    """An answer that does not let itself be packed."""

    def __init__(self, fate: str) -> None:
        self.fate = fate

    def __reduce__(self) -> Any:
        raise FATES[self.fate]


class Packed(Query[object]):
    fate: str


class Parcels(Projection):
    @project
    def deposited(self, event: Deposited) -> None: ...

    @answer
    def packed(self, query: Packed) -> object:
        return Parcel(query.fate)

    @answer
    def balance(self, query: BalanceOf) -> int:
        return 7


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("fate", FATES)
async def test_an_answer_whose_packing_raises_is_the_failure_of_its_query_whatever_it_is(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, fate: str, waits: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    projector = Projector(Parcels)
    bad = PackedQuery(Packed.message_name, encode_message(Packed(fate=fate)))
    async with pool_to(projector) as pool:
        first, records = projector.commit()
        after = {0: first} if waits else {}
        asked = [pool.ask(one, after, 5.0) for one in (BALANCE, bad, BALANCE)]
        projector.broadcast(first, records)
        before, failed, behind = [await told(one) for one in asked]
        assert (before, behind) == (7, 7)
        assert isinstance(failed, HandlerFailed)
        assert fate in str(failed)
        assert await told(pool.ask(BALANCE, {}, 5.0)) == 7
        assert not projector.server.ended
        assert has_socket(pool)
    projector.close()


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"\0" * 13, "that is no call"),
        (pack_frame(0, 1, {}), "a frame of kind 0 that is no call"),
        (b"\xff" * 64, "bytes, over"),
        (b"GET / HTTP/1.1\r\n\r\n", "bytes, over"),
        (pack_frame(ASK, 1, ({}, True, False, b"\xc1")), "that is no call"),
        (pack_frame(WAIT, 1, (BATCH, [(math.nan, {})])), "a number of seconds expected"),
    ],
)
def test_a_client_that_sends_what_is_no_call_is_cut_off_by_name_and_no_other(
    projector: Projector, sent: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(projector) as good, Peer(projector) as bad:
        bad.socket.sendall(sent)
        assert bad.is_cut_off()
        assert good.ask() == 0
    assert why in caplog.text
    assert "cuts process" in caplog.text


@pytest.mark.parametrize(
    ("greeting", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no greeting of Rayfold's"),
        (Handshake("partition", STORE_ID).greeting(), "partition"),
        (Handshake("projector", "another store").greeting(), "another store"),
    ],
)
def test_a_client_of_something_else_is_refused_by_name(
    projector: Projector, greeting: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(projector) as good, Peer(projector, greeting) as bad:
        assert bad.is_cut_off()
        assert good.ask() == 0
    assert why in caplog.text


@pytest.mark.parametrize(
    ("greeting", "sent", "owed"),
    [
        (b"rayf", b"", "its greeting"),
        (None, pack_frame(ASK, 1, ({}, True, False, BATCH))[:-3], "the rest of a frame"),
        (None, b"\0", "the rest of a frame"),
    ],
)
def test_a_client_that_begins_and_does_not_go_on_is_cut_off_by_name(
    projector: Projector,
    greeting: bytes | None,
    sent: bytes,
    owed: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for limit in ("_STALLED_S", "HANDSHAKE_S", "_PAUSE_S"):
        monkeypatch.setattr(query_server, limit, 0.1)
    with Peer(projector) as good, Peer(projector, greeting) as bad:
        bad.socket.sendall(sent)
        for _ in range(10):
            assert good.ask() == 0
        assert bad.is_cut_off()
        assert good.ask() == 0
    assert f"it owes {owed}" in caplog.text


def test_a_client_that_does_not_read_delays_nobody_and_is_cut_off_by_name(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    projector = Projector(Large)
    projector.broadcast(*projector.commit())
    query = join_queries([PackedQuery(Whole.message_name, encode_message(Whole()))])
    with Peer(projector) as good, Peer(projector) as deaf:
        calls = [deaf.protocol.ask(query, {}, True, False)[1] for _ in range(200)]
        calls += [deaf.protocol.wait(query, [(20.0, {0: 1})])[1] for _ in range(200)]
        deaf.socket.sendall(b"".join(calls))  # 200 MB of answers, if they were all made
        for _ in range(20):
            assert isinstance(good.ask(), RayfoldError)
        unsent = max(len(one.unsent) for one in projector.server._connections.values())
        assert 0 < unsent < query_server._UNSENT_MAX + 2_000_000
        for limit in ("_STALLED_S", "_PAUSE_S"):
            monkeypatch.setattr(query_server, limit, 0.2)
        assert deaf_is_cut_off(deaf, good)
    projector.close()
    assert "it owes to read its answers" in caplog.text


def test_woken_answers_stop_where_a_client_that_does_not_read_has_enough_of_them(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    projector = Projector(Large)
    projector.log.held = True
    first, records = projector.commit()
    query = PackedQuery(Whole.message_name, encode_message(Whole()))
    with Peer(projector) as good, Peer(projector) as deaf:
        deaf.socket.sendall(deaf.protocol.wait(join_queries([query] * 32), [(20.0, {0: first})] * 32)[1])
        while projector.waiting() < 32:
            assert isinstance(good.ask(), RayfoldError)
        projector.broadcast(first, records)
        unsent = 0
        for _ in range(20):
            assert isinstance(good.ask(), RayfoldError)
            unsent = max(len(one.unsent) for one in projector.server._connections.values())
            assert unsent < query_server._UNSENT_MAX + 2_000_000
        assert unsent
    projector.close()


def deaf_is_cut_off(deaf: Peer, good: Peer) -> bool:
    """Without reading: sending fails once the other end has gone."""
    try:
        while True:
            good.ask()
            deaf.socket.send(b"\0", socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        return True


def test_a_client_that_dies_at_any_byte_leaves_nothing_behind(projector: Projector) -> None:
    projector.log.held = True
    first, _ = projector.commit()
    protocol = QueryClientProtocol()
    calls = protocol.ask(BATCH, {}, True, False)[1] + protocol.wait(BATCH, [(20.0, {0: first})])[1]
    sent = Handshake("projector", STORE_ID).greeting() + calls
    with Peer(projector) as good:
        for size in range(len(sent) + 1):
            with Peer(projector, sent[:size]):
                pass
            if size % 50 == 0:
                assert good.ask() == 0
        while len(projector.server._connections) > 1:
            assert good.ask() == 0
        assert projector.waiting() == 0


def test_connections_beyond_the_bound_are_refused_by_name_and_the_others_served(projector: Projector) -> None:
    with contextlib.ExitStack() as inside:
        peers = [inside.enter_context(Peer(projector)) for _ in range(CONNECTIONS_MAX)]
        with Peer(projector, b"") as refused:
            refused.socket.sendall(Handshake("projector", STORE_ID).greeting())
            assert b"64 programs are connected, and no more are taken in" in refused.socket.recv(500)
            assert refused.is_cut_off()
        silent = [inside.enter_context(Peer(projector, b"")) for _ in range(REFUSED_AT_ONCE_MAX + 1)]
        assert silent[-1].is_cut_off(), "more are not even greeted"
        assert [peer.ask() for peer in peers] == [0] * CONNECTIONS_MAX


def test_answers_come_as_they_can_be_given_whatever_was_asked_before(projector: Projector) -> None:
    projector.log.held = True
    first, records = projector.commit(2)
    with Peer(projector) as peer:
        later, frame = peer.protocol.wait(
            join_queries([BALANCE, BALANCE]), [(20.0, {0: first + 1}), (20.0, {0: first})]
        )
        peer.socket.sendall(frame)
        assert peer.ask() == 0
        projector.broadcast(first, records[:1])
        assert some(peer) == [(later, [(1, 1)])]
        projector.broadcast(first + 1, records[1:])
        assert some(peer) == [(later, [(0, 2)])]


def some(peer: Peer) -> list[tuple[int, list[tuple[int, Any]]]]:
    while not (answers := peer.protocol.receive(peer.socket.recv(65_536))):
        pass
    return [
        (call, [(index, pickle.loads(blob or b"")) for index, blob in answer.answers])
        for call, answer in answers
        if isinstance(answer, SomeAnswered)
    ]
