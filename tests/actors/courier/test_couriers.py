"""Couriers in the real thing: killed at any moment, started again, with and without what they have saved."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayfold import CodeMismatch, InvalidMessage, Runtime
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.benchmarks.torture.shop import (
    AGGREGATES,
    DEADLY,
    UNLUCKY,
    Fill,
    Fulfilment,
    Move,
    Order,
    Place,
    Stock,
    Wallet,
)
from rayfold.runtime.processes.process import End, Skip
from rayfold.runtime.store.verify import verify_store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

Shop = Callable[..., Runtime]


@pytest.fixture
def shop(cluster: Cluster, tmp_path: Path) -> Shop:
    """Makes a runtime of the shop over one directory."""

    def make(**options: Any) -> Runtime:
        options.setdefault("processes", [Fulfilment])
        options.setdefault("timeout_s", 60.0)
        return Runtime(tmp_path / "shop-data", aggregates=AGGREGATES, **options)

    return make


def rayfold(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What this command of the command line does."""
    command = [sys.executable, "-m", "rayfold.actors.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def until(found: Callable[[], Any], limit_s: float = 200.0) -> None:
    """Until this comes true."""
    end_s = time.monotonic() + limit_s
    while not await found():
        assert time.monotonic() < end_s, "it takes too long"
        await asyncio.sleep(0.02)


async def how(shop: Runtime, order: str) -> str:
    return (await shop.state_at(Order, order)).how


async def closed(shop: Runtime, *orders: str) -> None:
    """Until the process has closed these."""
    for order in orders:
        await until(lambda order=order: how(shop, order))  # type: ignore[misc]


async def stocked(shop: Runtime, money: int = 1_000_000, pieces: int = 1_000_000) -> None:
    for number in range(5):
        await shop.execute(Wallet, f"w{number}", Move(by=money))
    for number in range(3):
        await shop.execute(Stock, f"i{number}", Fill(pieces=pieces))


async def place(shop: Runtime, number: int, total: int | None = None) -> None:
    total = 1 + number % 7 if total is None else total
    await shop.execute(Order, f"o{number}", Place(wallet=f"w{number % 5}", item=f"i{number % 3}", total=total))


async def check(shop: Runtime, orders: int, money: int = 5_000_000, pieces: int = 3_000_000) -> None:
    """Money and goods are conserved, and each order was closed once."""
    sold = 0
    for number in range(orders):
        ended = await how(shop, f"o{number}")
        assert ended in ("sold;", "no_money;", "sold_out;"), (number, ended)
        if ended == "sold;":
            sold += 1
            money -= 1 + number % 7
    left = [(await shop.state_at(Wallet, f"w{number}")).balance for number in range(5)]
    stock = [(await shop.state_at(Stock, f"i{number}")).pieces for number in range(3)]
    assert (sum(left), sum(stock)) == (money, pieces - sold)


async def test_orders_are_carried_out_and_a_start_sends_nothing_again(shop: Shop) -> None:
    async with shop() as running:
        await stocked(running)
        for number in range(50):
            await place(running, number)
        await closed(running, *(f"o{number}" for number in range(50)))
        await check(running, 50)
        await until(lambda: at_rest(running))
        status = await running.status()
        heads = {one.partition: one.head for one in status.partitions}
        directory = running.store.path
    heads_now: dict[int, int] = {}
    for again in (False, True):
        if again:
            shutil.rmtree(directory / "agendas")  # it is read from the log, then
        async with shop() as running:
            await stocked(running, money=0, pieces=0)
            await check(running, 50)
            heads_now = {one.partition: one.head for one in (await running.status()).partitions}
    own = 8 * 2 + 8  # what `stocked` adds, and places of the couriers
    assert sum(heads_now.values()) <= sum(heads.values()) + own
    assert verify_store(directory).ok


async def test_a_partition_that_is_killed_goes_on_where_it_was(shop: Shop) -> None:
    async with shop() as running:
        await stocked(running)
        orders = 400

        async def kill() -> None:
            for _ in range(4):
                await asyncio.sleep(0.3)
                for one in (await running.status()).partitions:
                    if one.alive and one.pid:
                        os.kill(one.pid, signal.SIGKILL)
                        break
                await until(lambda: alive(running))

        killing = asyncio.create_task(kill())
        for number in range(orders):
            await place(running, number)
        await killing
        await closed(running, *(f"o{number}" for number in range(orders)))
        await check(running, orders)


async def at_rest(running: Runtime) -> bool:
    """Whether nothing is on its way, and no timer is armed."""
    facts = [one.courier for one in (await running.status()).partitions]
    return all(one is not None and not (one.undelivered or one.open_sends or one.timers) for one in facts)


async def alive(running: Runtime) -> bool:
    return all(one.alive for one in (await running.status()).partitions)


async def parked(running: Runtime) -> list[str]:
    partitions = (await running.status()).partitions
    return [stream for one in partitions if one.courier for stream, _ in one.courier.parked]


async def test_one_instance_that_fails_is_parked_alone_and_an_operator_decides(shop: Shop) -> None:
    async with shop() as running:
        await stocked(running)
        await place(running, 0, total=UNLUCKY)
        await place(running, 1, total=UNLUCKY)
        await place(running, 2)
        await closed(running, "o2")
        await until(lambda: _has_parked(running, 2))
        shown = await asyncio.to_thread(rayfold, "processes", running.store.path)
        assert shown.returncode == 1
        assert "Fulfilment/o0 is parked: Fulfilment.placed: ValueError: unlucky" in shown.stdout
        arguments = "processes", running.store.path, "retry", "Fulfilment/o0", "--by", "ada", "--reason", "mended"
        done = await asyncio.to_thread(rayfold, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert "Fulfilment/o0: retry, stored as version 2" in done.stdout
        assert sorted(await parked(running)) == ["Fulfilment/o0", "Fulfilment/o1"], "it fails again"
        await running.execute(Fulfilment, "o0", Skip(by="ada", reason="ticket 7"))
        await running.execute(Fulfilment, "o1", End(by="ada", reason="ticket 8"))
        await until(lambda: _has_parked(running, 0))
        shown = await asyncio.to_thread(rayfold, "processes", running.store.path)
        assert shown.returncode == 0
        refused = await asyncio.to_thread(rayfold, *arguments)
        assert refused.returncode == 2
        assert "not_parked" in refused.stderr


async def test_an_input_that_ends_its_process_is_parked_alone(shop: Shop) -> None:
    async with shop() as running:
        await stocked(running)
        await place(running, 0, total=DEADLY)
        for number in range(1, 20):
            await place(running, number)
        await until(lambda: _has_parked(running, 1))
        await closed(running, *(f"o{number}" for number in range(1, 20)))
        assert await parked(running) == ["Fulfilment/o0"]
        await running.execute(Fulfilment, "o0", Skip(by="ada", reason="ticket 9"))
        await until(lambda: _has_parked(running, 0))


async def _has_parked(running: Runtime, count: int) -> bool:
    return len(await parked(running)) == count


async def test_a_process_that_is_new_to_a_store_with_events_needs_a_since(shop: Shop) -> None:
    async with shop(processes=[]) as running:
        await stocked(running)
        await place(running, 0)
        receipt = await running.execute(Order, "o1", Place(wallet="w1", item="i1", total=2))
    with pytest.raises(CodeMismatch, match="process Fulfilment: the process is new to this store"):
        await shop().start()
    with pytest.raises(InvalidMessage, match="since: is 'later'"):
        shop(since="later")
    async with shop(since=receipt) as running:
        await place(running, 2)
        await closed(running, "o2")
        assert [await how(running, f"o{number}") for number in range(3)] == ["", "", "sold;"]
    async with shop() as running:
        await place(running, 3)
        await closed(running, "o3")


async def test_a_process_takes_part_from_the_beginning_on_if_it_is_to(shop: Shop) -> None:
    async with shop(processes=[]) as running:
        await stocked(running)
        await place(running, 0)
    async with shop(processes={Fulfilment: "beginning"}) as running:
        await closed(running, "o0")
        assert await how(running, "o0") == "sold;"
