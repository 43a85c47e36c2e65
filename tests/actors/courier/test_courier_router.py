"""How a courier reaches the partition of its own process, and others by their names."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rayfold.actors.courier.courier_router import CourierRouter, LocalPartition, NamedPartition
from rayfold.actors.settings import Settings
from rayfold.runtime.encoding.envelope import Envelope, pack, unpack_batch
from rayfold.runtime.encoding.outcome import Outcome, encode_answer
from rayfold.runtime.errors import Unavailable
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import StreamId
from tests.bank import Account, Deposit

ALICE = StreamId("Account", "alice")


class Waiting:
    """Waits for one outcome."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def done(self) -> bool:
        return self.future.done()

    def set_result(self, outcome: Outcome) -> None:
        self.future.set_result(outcome)


def _none(name: str) -> Any:
    raise ValueError(f"no actor {name}")


async def test_a_command_to_its_own_partition_stays_in_the_process() -> None:
    executed: list[str] = []
    lost: list[tuple[StreamId, str, bool]] = []

    def execute(client: bytes, attempt: int, predecessor: int, blob: bytes) -> bytes:
        commands = list(unpack_batch(blob))
        executed.extend(command.name for command in commands)
        return encode_answer([Receipt(one.stream, 0, 1, 1, one.command_id, event_count=1) for one in commands], 0.0)

    def report(stream: StreamId, name: str, died: bool) -> None:
        lost.append((stream, name, died))

    with ThreadPoolExecutor(1) as worker:
        here = LocalPartition(worker, execute, report)
        router = CourierRouter(0, ["s/partition-0"], _none, here, Settings(), "crc32", "")
        waiting = Waiting()
        router.send(pack(Envelope(Account, "alice", Deposit(amount=1)))[0], waiting, 5.0)
        assert isinstance(await waiting.future, Receipt)
        [(_, actor, _)] = router.reached()
        actor.lost.remote(ALICE, "own", True)
        await router.drain(0.0)
    assert executed == ["Deposit"]
    assert lost == [(ALICE, "own", True)], "that an own actor is lost is reported to the partition of this process"


async def test_a_partition_that_is_away_is_named_at_once_and_found_under_its_next_name() -> None:
    with ThreadPoolExecutor(1) as worker:
        here = LocalPartition(worker, lambda *_: b"", lambda *_: None)
        router = CourierRouter(0, ["a", ""], _none, here, Settings(), "crc32", "")
        router.name(["a", "b"], {1: "its node is down"})
        assert [getattr(actor, "name", "here") for _, actor, _ in router.reached()] == ["here", "b"]
        away = next(one for one in map(str, range(99)) if router.reached() and _partition(one) == 1)
        waiting = Waiting()
        router.send(pack(Envelope(Account, away, Deposit(amount=1)))[0], waiting, 5.0)
        outcome = await waiting.future
        assert isinstance(outcome, Unavailable)
        assert "its node is down" in str(outcome)
        await router.drain(0.0)
    assert isinstance(router.reached()[1][1], NamedPartition)


def _partition(ident: str) -> int:
    from rayfold.runtime.stream import partition_of

    return partition_of(StreamId("Account", ident), 2)
