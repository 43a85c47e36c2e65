"""Roads and calls through Ray, two ways to the same partition: which is taken when, and both keep the promises."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rayfold import Envelope, Receipt, Runtime, Unavailable, connect
from rayfold.actors.client.command_router import CommandRouter
from rayfold.actors.client.transport import PartitionTransport
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.settings import Settings
from rayfold.runtime.batch_queue import BATCH_BY_RAY_S, BATCH_BY_SOCKET_S, BATCH_ITEMS_MAX, commands_worth
from rayfold.runtime.encoding.envelope import PackedCommand, pack
from rayfold.runtime.encoding.outcome import decode_answer
from tests.actors.conftest import Bank
from tests.bank import Account, BalanceOf, Balances, Deposit, Open
from tests.support.log_walk import check_nothing_lost_nothing_twice

pytestmark = pytest.mark.slow

ONE_PARTITION = {"projections": [], "partitions": 1, "timeout_s": 30}


def partition_of(running: Runtime, cluster: Cluster) -> Any:
    """The actor of the only partition."""
    return cluster.actor_named(f"{running.store.path.name}-{running.store.store_id[:8]}/partition-0")


async def gate_of(running: Runtime, cluster: Cluster) -> str:
    told: str = await partition_of(running, cluster).socket_path.remote()
    return told


def connections(path: str) -> int:
    """How many clients are connected to the socket, by the kernel's own count: 03 is what it calls connected."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.split()[5] == "03" and line.endswith(f" {path}") for line in lines)


async def deposit_until_connected(running: Runtime, path: str) -> list[Receipt]:
    """Roads are looked for beside the work: go on working until there is one."""
    receipts = []
    while not connections(path):
        receipts.append(await running.execute(Account, "a", Deposit(amount=1)))
        assert len(receipts) < 20_000, "no socket was found"
    return receipts


def deposits(count: int) -> list[tuple[PackedCommand, bytes]]:
    return [pack(Envelope(Account, "a", Deposit(amount=1))) for _ in range(count)]


@asynccontextmanager
async def router_to(partition: Any, settings: Settings) -> AsyncIterator[CommandRouter]:
    """A further client of the partition."""

    def nobody(name: str) -> Any:
        raise ValueError(name)

    router = CommandRouter([partition], nobody, settings)
    yield router
    await router.drain(5)


async def test_a_client_learns_with_each_answer_how_many_commands_are_worth_a_batch(
    bank: Bank, cluster: Cluster
) -> None:
    async with bank(**ONE_PARTITION) as running:
        for settings in (Settings(local_sockets=False), Settings()):
            async with router_to(partition_of(running, cluster), settings) as router:
                [destination] = router._routing.partitions
                while destination.transport.has_socket() != settings.local_sockets:
                    await asyncio.gather(*[router.submit(packed, blob, 30) for packed, blob in deposits(1)])
                destination.queue.pipelined_items_min = BATCH_ITEMS_MAX + 1
                await asyncio.gather(*[router.submit(packed, blob, 30) for packed, blob in deposits(1)])
                least_s = BATCH_BY_SOCKET_S if settings.local_sockets else BATCH_BY_RAY_S
                assert commands_worth(least_s) <= destination.queue.pipelined_items_min <= BATCH_ITEMS_MAX


async def test_commands_use_a_socket_and_after_a_kill_that_of_the_next_activation(bank: Bank, cluster: Cluster) -> None:
    async with bank(**ONE_PARTITION) as running:
        receipts = [await running.execute(Account, "a", Open(owner="x"))]
        first = await gate_of(running, cluster)
        receipts += await deposit_until_connected(running, first)
        receipts += [await running.execute(Account, "a", Deposit(amount=1)) for _ in range(10)]
        [partition] = (await running.status()).partitions
        os.kill(partition.pid, signal.SIGKILL)
        receipts.append(await running.execute(Account, "a", Deposit(amount=1)))
        second = await gate_of(running, cluster)
        receipts += await deposit_until_connected(running, second)
        receipts += [await running.execute(Account, "a", Deposit(amount=1)) for _ in range(10)]
        assert first != second
        assert not Path(first).exists()
        assert [receipt.version for receipt in receipts] == list(range(1, len(receipts) + 1))
        check_nothing_lost_nothing_twice(running.store.path, receipts)
    assert not Path(second).exists()


def projector_of(running: Runtime) -> Any:
    """The actor of the only projector."""
    [[projector]] = running._here.client._serving["Balances"].actors()
    return projector


async def test_queries_use_a_socket_wait_in_the_projector_and_after_a_kill_use_that_of_its_next_process(
    bank: Bank,
) -> None:
    async with bank(projections=[Balances], partitions=1, timeout_s=30) as running:
        await running.execute(Account, "a", Open(owner="x"))
        written = await running.execute(Account, "a", Deposit(amount=5), until=Balances)
        query, projector = BalanceOf(account="a"), projector_of(running)
        first: str = await projector.socket_path.remote()
        while not connections(first):
            assert await running.ask(Balances, query, after=written) == 5
        for amount in range(6, 30):
            written = await running.execute(Account, "a", Deposit(amount=1))
            assert await running.ask(Balances, query, after=written) == amount
        await running.caught_up()
        [status] = (await running.status()).projectors
        waiting = [running.ask(Balances, query, after=written) for _ in range(100)]
        os.kill(status.pid, signal.SIGKILL)
        assert await asyncio.gather(*waiting) == [29] * 100
        second: str = await projector.socket_path.remote()
        assert first != second
        while not connections(second):
            assert await running.ask(Balances, query, after=written) == 29
        assert not Path(first).exists()
    assert not Path(second).exists()


async def test_without_local_sockets_everything_goes_through_ray_and_survives_a_kill_as_well(
    bank: Bank, cluster: Cluster
) -> None:
    async with bank(**ONE_PARTITION, settings=Settings(local_sockets=False)) as running:
        assert await gate_of(running, cluster) == ""
        with pytest.raises(
            Unavailable, match=r"has no socket for other programs: it has Settings\(local_sockets=False\)"
        ):
            await connect(running.store.path).start()
        receipts = [await running.execute(Account, "a", Open(owner="x"))]
        sent = (Envelope(Account, "a", Deposit(amount=1)) for _ in range(1000))
        async for _, outcome in running.execute_all(sent, in_flight=100):
            assert isinstance(outcome, Receipt), outcome
            receipts.append(outcome)
            if len(receipts) == 300:
                [partition] = (await running.status()).partitions
                os.kill(partition.pid, signal.SIGKILL)
        assert [receipt.version for receipt in receipts] == list(range(1, 1002))
        check_nothing_lost_nothing_twice(running.store.path, receipts)


async def test_clients_by_socket_and_through_ray_write_to_one_account_without_losing_or_mixing_anything(
    bank: Bank, cluster: Cluster
) -> None:
    async with bank(**ONE_PARTITION) as running:
        await running.execute(Account, "a", Open(owner="x"))
        path = await gate_of(running, cluster)
        await deposit_until_connected(running, path)
        before, partition = connections(path), partition_of(running, cluster)
        async with router_to(partition, Settings(local_sockets=False)) as elsewhere:
            sent = [elsewhere.submit(packed, blob, 30) for packed, blob in deposits(500)]
            near = [running.execute(Account, "a", Deposit(amount=1)) for _ in range(500)]
            by_ray, by_socket = await asyncio.gather(*sent), await asyncio.gather(*near)
        assert connections(path) == before
        versions = [[one.version for one in outcomes if isinstance(one, Receipt)] for outcomes in (by_ray, by_socket)]
        assert [sorted(own) for own in versions] == versions
        first = min(map(min, versions))
        assert sorted(versions[0] + versions[1]) == list(range(first, first + 1000))


async def test_a_transport_continues_through_ray_when_its_socket_is_lost_and_reports_the_attempt_at_once(
    bank: Bank, cluster: Cluster
) -> None:
    async with bank(**ONE_PARTITION) as running:
        told: asyncio.Queue[tuple[int, bytes | None]] = asyncio.Queue()
        transport = PartitionTransport(
            partition_of(running, cluster), b"w" * 16, lambda *answer: told.put_nowait(answer), by_socket=True
        )
        attempt = 0
        while not transport.has_socket():
            attempt += 1
            transport.execute(attempt, 0, b"")
            number, answer = await told.get()
            assert answer is not None
            assert (number, decode_answer(answer, [])[0]) == (attempt, [])
        [partition] = (await running.status()).partitions
        os.kill(partition.pid, signal.SIGSTOP)
        transport.execute(attempt + 1, 0, b"")
        os.kill(partition.pid, signal.SIGKILL)
        assert await told.get() == (attempt + 1, None)
        assert not transport.has_socket()
        transport.close()
