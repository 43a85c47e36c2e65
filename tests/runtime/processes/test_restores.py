"""Whatever is lost, repeated, ended and restored: nothing is charged or paid back twice, and nothing hangs."""

from __future__ import annotations

import random
from collections import Counter

import msgpack
import pytest

from examples.shop import Fill, Fulfilment, Order, Place, Stock, Supply, Wallet
from rayfold.runtime.log.format import decode_record
from tests.support.process_world import World

ORDERS = 30


def shop(seed: int) -> World:
    """Orders in three partitions, with faults, so far that some are in the middle."""
    chance = random.Random(seed)
    world = World([Order, Wallet, Stock], [Fulfilment], partitions=3, seed=seed)
    for number in range(4):
        world.execute(Wallet, f"w{number}", Fill(amount=60))
    for number in range(2):
        world.execute(Stock, f"p{number}", Supply(pieces=10))
    for number in range(ORDERS):
        place = Place(wallet=f"w{number % 4}", item=f"p{number % 2}", total=1 + number % 13)
        world.execute(Order, f"o{number}", place)
        if chance.random() < 0.2:
            world.run(for_us=chance.randrange(1_000_000))
    world.run(for_us=chance.randrange(20 * 60_000_000))
    return world


def restore_some(world: World, seed: int) -> None:
    """One of the logs is an older one, which ends with a whole command."""
    chance = random.Random(seed)
    partition = chance.randrange(3)
    commands = [decode_record(record).command_id for record in world.logs[partition].read(0, 1 << 20)]
    cut = chance.randrange(10, len(commands))
    while cut < len(commands) and commands[cut] == commands[cut - 1]:
        cut += 1
    for number in range(3):
        world.save_places(number)
    world.restore(partition, cut)
    for number in range(3):
        world.crash(number)


def paid(world: World, name: str) -> Counter[str]:
    """How often each order was charged, or paid back."""
    stored = [decode_record(record) for log in world.logs for record in log.read(0, 1 << 20)]
    return Counter(msgpack.unpackb(one.payload)["order"] for one in stored if one.name == name)


@pytest.mark.parametrize("seed", range(6))
def test_an_order_is_charged_once_and_paid_back_once_whichever_log_is_an_older_one(seed: int) -> None:
    world = shop(seed)
    restore_some(world, seed)
    world.calm()
    world.run(for_us=40 * 60_000_000)
    assert set(paid(world, "Charged").values()) == {1}
    assert set(paid(world, "Refunded").values()) <= {1}
    for number in range(ORDERS):
        order, one = world.state(Order, f"o{number}"), world.state(Fulfilment, f"o{number}")
        assert isinstance(order, Order)
        assert isinstance(one, Fulfilment)
        assert not order.state or one.progress.ended is not None or one.progress.parked


@pytest.mark.parametrize("seed", range(6))
def test_an_order_is_paid_for_if_it_is_shipped_and_only_then(seed: int) -> None:
    world = shop(seed)
    world.calm()
    world.run(for_us=40 * 60_000_000)
    charged, refunded = paid(world, "Charged"), paid(world, "Refunded")
    for number in range(ORDERS):
        order = world.state(Order, f"o{number}")
        assert isinstance(order, Order)
        assert order.state in ("shipped", "cancelled")
        assert charged[f"o{number}"] - refunded[f"o{number}"] == (order.state == "shipped")
