"""Couriers on several nodes: inputs and sends find partitions wherever these are, and wherever they move."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rayfold import LocalCluster, Runtime
from rayfold.benchmarks.torture.shop import AGGREGATES, Fulfilment
from tests.actors.courier.test_couriers import at_rest, check, closed, place, stocked, until
from tests.support.driver import start_driver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_orders_go_on_while_a_partition_moves(tmp_path: Path) -> None:
    program = f"import asyncio, sys; from {__name__} import moving; asyncio.run(moving(sys.argv[1]))"
    with start_driver("-c", program, str(tmp_path)) as driver:  # this process may be connected to another Ray
        _, errors = driver.communicate(timeout=500)
    assert driver.returncode == 0, errors


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
