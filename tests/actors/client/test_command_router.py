"""The way of a command, over actors that are pretended: the outcomes of what was sent, and of answers that are none."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from rayfold.actors.client.command_router import CommandRouter
from rayfold.actors.settings import Settings
from rayfold.runtime.batch_queue import WAITING_BYTES_MAX
from rayfold.runtime.encoding.envelope import PackedCommand, new_command_id
from rayfold.runtime.encoding.outcome import Redirect, encode_answer
from rayfold.runtime.errors import Overloaded, Unavailable
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import StreamId


class Method:
    def __init__(self, do: Callable[..., Future[Any]]) -> None:
        self._do = do

    def remote(self, *arguments: Any) -> Method:
        self._told = self._do(*arguments)
        return self

    def future(self) -> Future[Any]:
        return self._told


def told(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Actor:
    """Answers each batch with the test's function; `None` keeps it."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.answer = answer
        self.kept: list[Future[Any]] = []
        self.batches: list[bytes] = []
        self.execute, self.lost = Method(self._execute), Method(lambda *_: told(None))

    def _execute(self, client: bytes, attempt: int, predecessor: int, blob: bytes) -> Future[Any]:
        self.batches.append(blob)
        answer = self.answer(blob)
        if answer is not None:
            return told(answer)
        self.kept.append(Future())
        return self.kept[-1]


def command(ident: str) -> PackedCommand:
    return PackedCommand(new_command_id(), StreamId("Vault", ident), "Store", b"", -1, b"", b"")


def receipt_of(packed: PackedCommand) -> Receipt:
    return Receipt(packed.stream, 0, 1, 1, packed.command_id)


async def test_a_command_that_was_sent_is_never_told_that_it_was_not() -> None:
    partition, own = Actor(lambda blob: encode_answer([Redirect("own")], 0.0)), Actor(lambda blob: None)
    router = CommandRouter([partition], lambda name: own, Settings(local_sockets=False))
    sent = command("v")
    outcome = router.submit(sent, b"C", 30.0)
    async with asyncio.timeout(10):
        while not own.batches:
            await asyncio.sleep(0)
        partition.answer = lambda blob: None
        big = bytes(1 << 20)
        refused = 0
        while not refused:
            try:
                router.submit(command("other"), big, 30.0)
            except Overloaded:
                refused += 1
            await asyncio.sleep(0)
            assert len(partition.batches) < 3 + WAITING_BYTES_MAX // len(big)
        own.kept[0].set_exception(RuntimeError("its process has ended"))
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not outcome.done(), outcome
    await router.drain(0.01)
    assert isinstance(outcome.result(), Unavailable)


async def test_an_answer_that_cannot_be_read_is_none_and_holds_no_place() -> None:
    answers = [b"", b"\xff\xff\xff\xff\xc1", b"no answer at all", encode_answer([], 0.0)]
    partition = Actor(lambda blob: answers.pop() if answers else encode_answer([receipt_of(sent)], 0.0))
    router = CommandRouter([partition], lambda name: partition, Settings(local_sockets=False))
    sent = command("v")
    async with asyncio.timeout(10):
        assert await router.submit(sent, b"C", 9.0) == receipt_of(sent)
    assert len(partition.batches) == 5


async def test_a_limit_of_a_tenth_of_a_second_is_kept() -> None:
    partition = Actor(lambda blob: None)
    router = CommandRouter([partition], lambda name: partition, Settings(local_sockets=False))
    now = asyncio.get_running_loop().time
    began_s = now()
    assert isinstance(await router.submit(command("v"), b"C", 0.1), Unavailable)
    assert now() - began_s < 0.6
    await router.drain(0.01)


async def test_whose_actor_ends_is_told_so_at_the_deadline() -> None:
    partition = Actor(lambda blob: None)
    router = CommandRouter([partition], lambda name: partition, Settings(local_sockets=False))
    outcome = router.submit(command("v"), b"C", 0.5)
    async with asyncio.timeout(10):
        for sent in (1, 2):
            while len(partition.kept) < sent:
                await asyncio.sleep(0)
            partition.kept[sent - 1].set_exception(RuntimeError("its process has ended"))
        told = str(await outcome)
    assert re.search(r"v: no answer in time; .*; it was sent \d+ times to an actor that ended or took too long", told)
    await router.drain(0.01)


async def test_who_is_looked_up_holds_nobody_else_and_what_waits_for_it_keeps_its_order() -> None:
    asked, found = threading.Event(), threading.Event()

    def looked_up(name: str) -> Actor:
        asked.set()
        assert found.wait(20)
        return own

    partition, own = Actor(lambda blob: encode_answer([Redirect("own")], 0.0)), Actor(lambda blob: None)
    router = CommandRouter([partition], looked_up, Settings(local_sockets=False))
    first, second, other = command("v"), command("v"), command("other")
    try:
        async with asyncio.timeout(10):
            router.submit(first, b"A", 30.0)
            while not asked.is_set():
                await asyncio.sleep(0)
            router.submit(second, b"B", 30.0)
            partition.answer = lambda blob: encode_answer([receipt_of(other)], 0.0)
            assert await router.submit(other, b"O", 9.0) == receipt_of(other)
            assert own.batches == []
            found.set()
            while b"B" not in b"".join(own.batches):
                await asyncio.sleep(0)
        assert b"".join(own.batches).index(b"A") < b"".join(own.batches).index(b"B")
        assert b"B" not in b"".join(partition.batches)
    finally:
        found.set()
    await router.drain(0.01)


async def test_who_is_not_found_is_told_to_its_partition_which_decides() -> None:
    def looked_up(name: str) -> Actor:
        raise ValueError(name)

    answers = [encode_answer([Redirect("own")], 0.0)]
    sent = command("v")
    partition = Actor(lambda blob: answers.pop() if answers else encode_answer([receipt_of(sent)], 0.0))
    router = CommandRouter([partition], looked_up, Settings(local_sockets=False))
    async with asyncio.timeout(10):
        assert await router.submit(sent, b"C", 9.0) == receipt_of(sent)
