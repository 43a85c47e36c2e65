"""Sinks to a real NATS server: what is confirmed is in the stream, once, also when the server was away."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from rayfold.runtime.effects.backoff import Backoff
from rayfold.runtime.sinks.nats import Nats
from rayfold.runtime.sinks.publisher import Publisher
from rayfold.runtime.sinks.sink import Sink
from tests.bank import Deposited
from tests.runtime.sinks.test_sinks import World

pytestmark = pytest.mark.slow

QUICK = Backoff(first_s=0.05, max_s=0.2)


class Server:
    """A server of the test's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [str(Path(sys.executable).parent / "nats-server"), "--addr", "127.0.0.1", "--port", str(self.port)]
        log = (self._folder / "nats.log").open("ab")
        self._process = subprocess.Popen(
            [*command, "--jetstream", "--store_dir", str(self._folder)], stdout=log, stderr=log
        )
        log.close()

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """What comes of a question to its streams."""

        async def asked() -> Any:
            connection = Client()
            async with asyncio.timeout(60):
                await connection.connect(self.url, max_reconnect_attempts=-1, reconnect_time_wait=1)
            try:
                return await question(connection.jetstream())
            finally:
                await connection.close()

        return asyncio.run(asked())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    running.ask(lambda streams: streams.add_stream(name="bank", subjects=["bank.>"]))
    yield running
    running.stop()


@pytest.fixture
def published() -> Iterator[Callable[[World, Sink], Publisher]]:
    with ExitStack() as started:

        def start(world: World, sink: Sink) -> Publisher:
            publisher = world.publisher(sink)
            started.callback(publisher.stop, 20.0)
            publisher.start()
            return publisher

        yield start


def in_stream(server: Server) -> list[tuple[str, int]]:
    """Subject and amount of each message."""

    async def read(streams: Any) -> list[tuple[str, int]]:
        info = await streams.stream_info("bank")
        found = []
        for number in range(info.state.first_seq, info.state.last_seq + 1):
            message = await streams.get_msg("bank", number)
            found.append((message.subject, json.loads(message.data)["data"]["amount"]))
        return found

    found: list[tuple[str, int]] = server.ask(read)
    return found


def until_published(publisher: Publisher, count: int) -> None:
    while publisher.facts().published < count:
        assert "ERROR" not in publisher.facts().failure


def test_what_is_confirmed_is_in_the_stream_in_order_and_once(
    server: Server, published: Callable[[World, Sink], Publisher]
) -> None:
    world = World()
    world.write(*(Deposited(amount=number) for number in range(20)))
    sink = Sink("bank", Deposited, to=Nats(server.url, subject="bank.{aggregate}.{type}"), since="beginning")
    publisher = published(world, sink)
    until_published(publisher, 20)
    publisher.stop(10)
    assert in_stream(server) == [("bank.Account.Deposited", number) for number in range(20)]
    again = Sink("again", Deposited, to=sink.to, since="beginning")
    until_published(published(world, again), 20)
    assert len(in_stream(server)) == 20, "the server knows the ids"


def test_a_server_that_is_killed_and_comes_back_gets_everything(
    server: Server, published: Callable[[World, Sink], Publisher]
) -> None:
    world = World()
    world.write(*(Deposited(amount=number) for number in range(5)))
    to = Nats(server.url, subject="bank.{type}", timeout_s=1)
    publisher = published(world, Sink("bank", Deposited, to=to, since="beginning", retry=QUICK))
    until_published(publisher, 5)
    server.stop()
    world.write(*(Deposited(amount=number) for number in range(5, 10)))
    while not publisher.facts().failure:
        assert publisher.facts().published < 10
    server.start()
    until_published(publisher, 10)
    publisher.stop(10)
    assert in_stream(server) == [("bank.Deposited", number) for number in range(10)]


def test_a_subject_that_no_stream_takes_is_a_failure_that_is_shown(
    server: Server, published: Callable[[World, Sink], Publisher]
) -> None:
    world = World()
    world.write(Deposited(amount=1))
    to = Nats(server.url, subject="other.{type}", timeout_s=1)
    publisher = published(world, Sink("bank", Deposited, to=to, since="beginning", retry=QUICK))
    while "NoStreamResponse" not in publisher.facts().failure:
        assert publisher.facts().published == 0
