"""Processes under fire: partitions, which their couriers go with, are killed at any moment while orders are placed.

Afterwards the store is left until nothing is on its way, and then its logs are walked: each input reacted to once, each
command that was sent executed or refused once and its sender informed, no timer early, money and goods conserved.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack, closing
from typing import Any, Final

from rayfold import RayfoldError, Runtime, derived_id

from ..contract import Context, Findings, scenario
from ..process_checking import ProcessWalk, check_processes
from ..shop import AGGREGATES, Fill, Fulfilment, Move, Order, Place, Stock, Wallet
from .harness import ray_of_this_process, until

KILLS_SHORT: Final = 3
KILLS_LONG: Final = 200

WALLETS: Final = 7
ITEMS: Final = 3
MONEY: Final = 400
PIECES: Final = 60
LONG: Final = 20
"""Little enough that some orders are refused for either; the long form has so many times as much."""

IN_FLIGHT: Final = 16
REST_TIMEOUT_S: Final = 180.0
PAUSE_S: Final = 0.5
"""The longest between two kills."""


@scenario(
    "kill-couriers",
    "kill -9 of partitions and their couriers while processes run",
    "I12 I13 I14",
    counts="killed orders sold",
    times=(40, 120, 2.0),
)
async def kill_couriers(context: Context, findings: Findings) -> None:
    """Orders all the time; a partition is killed again and again."""
    ray_of_this_process()
    money, pieces = (MONEY, PIECES) if context.short else (MONEY * LONG, PIECES * LONG)
    options: dict[str, Any] = {"aggregates": AGGREGATES, "processes": [Fulfilment], "timeout_s": 60.0}
    async with Runtime(context.folder / "s", partitions=2, **options) as shop:
        for number in range(WALLETS):
            await shop.execute(Wallet, f"w{number}", Move(by=money))
        for number in range(ITEMS):
            await shop.execute(Stock, f"i{number}", Fill(pieces=pieces))
        stop = asyncio.Event()
        placing = asyncio.create_task(_place(shop, context, findings, stop))
        recoveries = []
        for _ in context.rounds(KILLS_LONG, short=KILLS_SHORT):
            await asyncio.sleep(context.rng.random() * PAUSE_S)
            victim = context.rng.choice((await shop.status()).partitions)
            began_s = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            findings.count("killed")
            await until(lambda pid=victim.pid: _others(shop, pid), 60.0)  # type: ignore[misc]
            recoveries.append((time.monotonic() - began_s) * 1e3)
        stop.set()
        orders = await placing
        findings.figures["orders"] = len(orders)
        findings.note("recovery_ms", recoveries)
        rested = await until(lambda: _at_rest(shop), REST_TIMEOUT_S)
        findings.check("I12", rested, f"it has not come to rest after {REST_TIMEOUT_S:g} s: {await shop.status()}")
        await asyncio.to_thread(_check, shop, findings, orders, WALLETS * money, ITEMS * pieces)


async def _place(shop: Runtime, context: Context, findings: Findings, stop: asyncio.Event) -> list[str]:
    """Orders, each with an id of its own, so that one whose answer was lost is placed again and once."""
    placed: list[str] = []

    async def one(number: int) -> None:
        order = Place(wallet=f"w{number % WALLETS}", item=f"i{number % ITEMS}", total=1 + number % 11)
        while True:
            try:
                await shop.execute(Order, f"o{number}", order, command_id=derived_id("order", context.seed, number))
            except RayfoldError:  # a partition is away; the same id is safe to send again
                await asyncio.sleep(0.05)
            else:
                placed.append(f"o{number}")
                return

    waiting: set[asyncio.Task[None]] = set()
    number = 0
    while not stop.is_set():
        while len(waiting) < IN_FLIGHT:
            task = asyncio.create_task(one(number))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            number += 1
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.002)
    await asyncio.gather(*waiting)
    return placed


async def _others(shop: Runtime, pid: int) -> bool:
    """Whether all partitions answer, and none by this process."""
    partitions = (await shop.status()).partitions
    return all(one.alive and one.pid not in (0, pid) for one in partitions)


async def _at_rest(shop: Runtime) -> bool:
    """Whether nothing is on its way, and no timer is armed."""
    facts = [one.courier for one in (await shop.status()).partitions]
    return all(one is not None and not (one.undelivered or one.open_sends or one.timers) for one in facts)


def _check(shop: Runtime, findings: Findings, orders: list[str], money: int, pieces: int) -> None:
    """`money`, `pieces`: what there was at first."""
    with ExitStack() as opened:
        readers = {
            number: opened.enter_context(closing(shop.store.open_reader(number)))
            for number in range(shop.store.partitions)
        }
        walk = ProcessWalk.of(readers)
    check_processes(walk, findings, "Placed")
    left = sum(_payload(event)["by"] for event in walk.events if event.name == "Moved")
    there = sum(_payload(event)["pieces"] for event in walk.events if event.name == "Filled")
    closed = {event.stream.id: _payload(event)["how"] for event in walk.events if event.name == "Closed"}
    times = [event.stream.id for event in walk.events if event.name == "Closed"]
    sold = [order for order in orders if closed.get(order) == "sold"]
    paid = sum(1 + int(order[1:]) % 11 for order in sold)
    findings.figures["sold"] = len(sold)
    findings.check("I14", left == money - paid, f"{left} is left of {money}, and {paid} was paid")
    findings.check("I14", there == pieces - len(sold), f"{there} of {pieces} are left, and {len(sold)} were sold")
    findings.check("I13", sorted(times) == sorted(orders), lambda: _unequal(times, orders))


def _unequal(times: list[str], orders: list[str]) -> str:
    twice = [order for order in set(times) if times.count(order) > 1]
    return f"not closed: {sorted(set(orders) - set(times))[:9]}; closed twice: {sorted(twice)[:9]}"


def _payload(event: Any) -> dict[str, Any]:
    from rayfold.runtime.encoding.codec import decode_payload

    return decode_payload(event.payload, event.name)
