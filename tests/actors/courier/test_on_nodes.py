"""Couriers on several nodes: inputs and sends find partitions wherever these are, and wherever they move."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from rayfold import LocalCluster, Runtime, Unavailable, derived_id
from rayfold.actors.cluster.local import LocalNodes
from rayfold.benchmarks.torture.outside import Bill, Pay, Paying, paid
from rayfold.benchmarks.torture.shop import AGGREGATES, Fulfilment, Order, Place
from tests.actors.courier.test_couriers import at_rest, check, closed, place, stocked, until
from tests.support.driver import start_driver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run_apart(name: str, folder: Path) -> None:
    """Run a function of this file in a program of its own: this process may be connected to another Ray."""
    program = f"import asyncio, sys; from {__name__} import {name}; asyncio.run({name}(sys.argv[1]))"
    with start_driver("-c", program, str(folder)) as driver:
        _, errors = driver.communicate(timeout=500)
    assert driver.returncode == 0, errors


def test_orders_go_on_while_a_partition_moves(tmp_path: Path) -> None:
    run_apart("moving", tmp_path)


def test_orders_go_on_when_a_node_that_was_killed_is_back(tmp_path: Path) -> None:
    run_apart("killing", tmp_path)


async def moving(folder: str) -> None:
    cluster = LocalCluster(nodes=2, cpus=1)
    runtime = Runtime(
        Path(folder) / "shop", aggregates=AGGREGATES, processes=[Fulfilment], cluster=cluster, timeout_s=60.0
    )
    async with runtime as shop:
        await stocked(shop)

        async def orders() -> None:
            for number in range(120):
                await place(shop, number)
                await asyncio.sleep(0.01)

        placing = asyncio.create_task(orders())
        status = await shop.status()
        homes = {one.partition: one.node for one in status.partitions}
        other = next(one.name for one in status.nodes if one.name != homes[0])
        moved = await shop.move(0, other)
        assert moved.to == other
        await placing
        await closed(shop, *(f"o{number}" for number in range(120)))
        await check(shop, 120)
        await until(lambda: at_rest(shop))
        assert (await shop.verify()).ok


async def killing(folder: str) -> None:
    with LocalNodes(LocalCluster(nodes=2, cpus=1), Path(folder) / "nodes") as nodes:
        runtime = Runtime(
            Path(folder) / "shop",
            aggregates=AGGREGATES,
            processes=[Fulfilment],
            partitions=4,
            cluster=nodes.address,
            timeout_s=20.0,  # also of a send that is under way to the node when it is killed
        )
        async with runtime as shop:
            await stocked(shop)
            placing = [asyncio.create_task(place(shop, number)) for number in range(60)]
            await asyncio.gather(*placing)
            await asyncio.to_thread(nodes.kill_node, 1)
            placing = [asyncio.create_task(placed(shop, number)) for number in range(60, 120)]
            await until(lambda: waits(shop), limit_s=200.0)
            await asyncio.to_thread(nodes.start_node, 1)
            await asyncio.gather(*placing)
            await closed(shop, *(f"o{number}" for number in range(120)))
            await check(shop, 120)
            await until(lambda: at_rest(shop))
            assert (await shop.verify()).ok


async def placed(shop: Runtime, number: int) -> None:
    """Until it is placed: what was not sent, or has no answer in time, is sent again."""
    command = Place(wallet=f"w{number % 5}", item=f"i{number % 3}", total=1 + number % 7)
    while True:
        with contextlib.suppress(Unavailable):
            await shop.execute(Order, f"o{number}", command, command_id=derived_id("order", number))
            return
        await asyncio.sleep(0.1)


async def waits(shop: Runtime) -> bool:
    """Whether a courier has something for a partition that is away."""
    facts = [one.courier for one in (await shop.status()).partitions if one.alive]
    return any("has been down" in one.why for courier in facts if courier for one in courier.waiting)


def test_calls_go_on_while_a_partition_moves_and_none_is_made_twice(tmp_path: Path) -> None:
    run_apart("moving_effects", tmp_path)


async def moving_effects(folder: str) -> None:
    bank = Path(folder) / "bank"
    runtime = Runtime(
        Path(folder) / "bills",
        aggregates=[Bill],
        effects=[Paying],
        cluster=LocalCluster(nodes=2, cpus=1),
        timeout_s=60.0,
    )
    bills = [f"b{number}" for number in range(60)]
    async with runtime as running:

        async def asked() -> None:
            for number, bill in enumerate(bills):
                await running.execute(Bill, bill, Pay(bank=str(bank), how="slow" if number % 5 == 0 else "ok"))
                await asyncio.sleep(0.02)

        asking = asyncio.create_task(asked())
        await until(lambda: paid_any(bank))
        status = await running.status()
        homes = {one.partition: one.node for one in status.partitions}
        other = next(one.name for one in status.nodes if one.name != homes[0])
        assert (await running.move(0, other)).to == other
        await asking
        for bill in bills:
            await until(lambda bill=bill: booked(running, bill), limit_s=120.0)  # type: ignore[misc]
        assert [len(await booked(running, bill)) for bill in bills] == [1] * len(bills)
        assert paid(bank) == dict.fromkeys(bills, 1)
        await running.switch_effects(Paying, False, by="ada", reason="ticket 7")
        assert not await running.effects()
        assert (await running.verify()).ok


async def paid_any(bank: Path) -> bool:
    return len(paid(bank)) > 5


async def booked(running: Runtime, bill: str) -> list[str]:
    return (await running.state_at(Bill, bill)).booked
