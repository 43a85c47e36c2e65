"""Processes and effects under fire: partitions, which their couriers go with, and runners are killed at any moment.

Couriers: orders are placed all the time. Effects: bills are to be paid, by calls to a file outside, to which each call
appends a line, so that it is known what has reached it; some calls raise after they have worked, end their process, or
do not come back.

Afterwards the store is left until nothing is on its way, and then its logs are walked: each input reacted to once, each
command that was sent executed or refused once and its sender informed, no timer early, money and goods conserved; each
bill paid once, by one key, and booked once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections import Counter
from typing import Any, Final
from uuid import UUID

from rayfold import Aggregate, Command, RayfoldError, Runtime, derived_id
from rayfold.runtime.encoding.codec import decode_payload
from rayfold.runtime.log.contract import StoredEvent

from ...harness.couriers import open_work
from ...harness.processes import pids_titled
from ..checking import stored_events
from ..contract import Context, Findings, scenario
from ..outside import Bill, Pay, Paying, lines, paid
from ..process_checking import ProcessWalk, check_processes
from ..shop import AGGREGATES, Fill, Fulfilment, Move, Order, Place, Stock, Wallet
from .harness import ray_of_this_process, until

KILLS_SHORT: Final = 3
KILLS_LONG: Final = 200
PAUSE_S: Final = 0.5
"""The longest between two kills."""

WALLETS: Final = 7
ITEMS: Final = 3
MONEY: Final = 400
PIECES: Final = 60
LONG: Final = 20
"""Little enough that some orders are refused for either; the long form has so many times as much."""

IN_FLIGHT: Final = 16

EFFECT_KILLS_SHORT: Final = 4
EFFECT_KILLS_LONG: Final = 100
EFFECT_PAUSE_S: Final = 1.0

BILLS_OPEN_MAX: Final = 150
"""Bills that are not paid yet, at once: the calls of two partitions are some hundred."""

HOWS: Final = ("ok",) * 12 + ("slow",) * 4 + ("raise", "hang", "refuse", "exit")

REST_TIMEOUT_S: Final = 180.0
BACK_TIMEOUT_S: Final = 60.0
AGAIN_S: Final = 0.05


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
        placing = asyncio.create_task(_place(shop, context, stop, more_than=ITEMS * pieces))
        recoveries = []
        for _ in context.rounds(KILLS_LONG, short=KILLS_SHORT):
            await asyncio.sleep(context.rng.random() * PAUSE_S)
            recoveries.append(await _kill_partition(shop, context, findings))
        stop.set()
        orders = await placing
        findings.figures["orders"] = len(orders)
        findings.note("recovery_ms", recoveries)
        await _come_to_rest(shop, findings)
        await asyncio.to_thread(_check_orders, shop, findings, orders, WALLETS * money, ITEMS * pieces)


@scenario(
    "kill-effects",
    "kill -9 of partitions and runners while effects call the outside",
    "I12 I13",
    counts="killed bills looks",
    times=(60, 150, 2.0),
)
async def kill_effects(context: Context, findings: Findings) -> None:
    """Bills all the time; a partition or a runner is killed again and again."""
    ray_of_this_process()
    options: dict[str, Any] = {"aggregates": [Bill], "effects": [Paying], "timeout_s": 60.0}
    async with Runtime(context.folder / "s", partitions=2, **options) as running:
        stop = asyncio.Event()
        asking = asyncio.create_task(_ask(running, context, stop))
        for _ in context.rounds(EFFECT_KILLS_LONG, short=EFFECT_KILLS_SHORT):
            await asyncio.sleep(context.rng.random() * EFFECT_PAUSE_S)
            runners = pids_titled("RunnerActor")
            if runners and context.rng.random() < 0.5:
                _kill(context.rng.choice(sorted(runners)), findings)
            else:
                await _kill_partition(running, context, findings)
        stop.set()
        bills = await asking
        await _come_to_rest(running, findings)
        await asyncio.to_thread(_check_bills, running, findings, bills, context)


# --- what both do -----------------------------------------------------------------------------------------------------


async def _kill_partition(running: Runtime, context: Context, findings: Findings) -> float:
    """Milliseconds until all partitions answer, by another process than the one that was killed."""
    pid, began_s = context.rng.choice((await running.status()).partitions).pid, time.monotonic()
    _kill(pid, findings)

    async def others() -> bool:
        partitions = (await running.status()).partitions
        return all(one.alive and one.pid not in (0, pid) for one in partitions)

    await until(others, BACK_TIMEOUT_S)
    return (time.monotonic() - began_s) * 1e3


def _kill(pid: int, findings: Findings) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    findings.count("killed")


async def _have_done(
    running: Runtime, aggregate: type[Aggregate], ident: str, command: Command, command_id: UUID
) -> None:
    """Sent again under the same id while a partition is away, so that it is done once."""
    while True:
        try:
            await running.execute(aggregate, ident, command, command_id=command_id)
            return
        except RayfoldError:
            await asyncio.sleep(AGAIN_S)


async def _come_to_rest(running: Runtime, findings: Findings) -> None:
    """I12: after a while nothing is on its way, and no timer is armed."""

    async def at_rest() -> bool:
        return not open_work(await running.status())

    rested = await until(at_rest, REST_TIMEOUT_S)
    findings.check("I12", rested, f"it has not come to rest after {REST_TIMEOUT_S:g} s: {await running.status()}")


# --- orders -----------------------------------------------------------------------------------------------------------


def _total(number: int) -> int:
    """What an order costs."""
    return 1 + number % 11


async def _place(shop: Runtime, context: Context, stop: asyncio.Event, more_than: int) -> list[str]:
    """So many at once, each with an id of its own, until it is enough, and in the short form `more_than` there are
    pieces, so that some are refused also on a machine on which few are placed until then."""
    placed: list[str] = []
    numbers = itertools.count()

    async def work() -> None:
        while not stop.is_set() or (context.short and len(placed) <= more_than):
            number = next(numbers)
            order = Place(wallet=f"w{number % WALLETS}", item=f"i{number % ITEMS}", total=_total(number))
            await _have_done(shop, Order, f"o{number}", order, derived_id("order", context.seed, number))
            placed.append(f"o{number}")
            await asyncio.sleep(0.002)

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return placed


def _check_orders(shop: Runtime, findings: Findings, orders: list[str], money: int, pieces: int) -> None:
    """`money`, `pieces`: what there was at first."""
    walk = ProcessWalk.of(shop.store)
    check_processes(walk, findings, "Placed")
    left = sum(_payload(event)["by"] for event in walk.events if event.name == "Moved")
    there = sum(_payload(event)["pieces"] for event in walk.events if event.name == "Filled")
    closed = {event.stream.id: _payload(event)["how"] for event in walk.events if event.name == "Closed"}
    times = [event.stream.id for event in walk.events if event.name == "Closed"]
    sold = [order for order in orders if closed.get(order) == "sold"]
    charged = sum(_total(int(order[1:])) for order in sold)
    findings.figures["sold"] = len(sold)
    findings.check("I14", left == money - charged, f"{left} is left of {money}, and {charged} was paid")
    findings.check("I14", there == pieces - len(sold), f"{there} of {pieces} are left, and {len(sold)} were sold")
    findings.check("I13", sorted(times) == sorted(orders), lambda: _unequal(times, orders))


def _unequal(times: list[str], orders: list[str]) -> str:
    twice = [order for order in set(times) if times.count(order) > 1]
    return f"not closed: {sorted(set(orders) - set(times))[:9]}; closed twice: {sorted(twice)[:9]}"


def _payload(event: StoredEvent) -> dict[str, Any]:
    return decode_payload(event.payload, event.name)


# --- bills ------------------------------------------------------------------------------------------------------------


async def _ask(running: Runtime, context: Context, stop: asyncio.Event) -> list[str]:
    """One after the other, each with an id of its own, and no more than may be open."""

    async def has_room() -> bool:
        return open_work(await running.status(), "timers") < BILLS_OPEN_MAX

    asked: list[str] = []
    while not stop.is_set():
        number = len(asked)
        command = Pay(bank=str(context.folder / "bank"), how=context.rng.choice(HOWS))
        await _have_done(running, Bill, f"b{number}", command, derived_id("bill", context.seed, number))
        asked.append(f"b{number}")
        if not number % 10:
            await until(has_room, REST_TIMEOUT_S)
    return asked


def _check_bills(running: Runtime, findings: Findings, bills: list[str], context: Context) -> None:
    stored = (event for events in stored_events(running.store).values() for event in events)
    booked = Counter(event.stream.id for event in stored if event.name == "Booked")
    bank = context.folder / "bank"
    times, noted = paid(bank), lines(bank)
    findings.figures["bills"] = len(bills)
    findings.count("looks", sum(words[0] == "look" for words in noted))
    for bill in bills:
        findings.check("I13", times[bill] == 1, f"{bill} was paid {times[bill]} times")
        findings.check("I13", booked[bill] == 1, f"{bill} was booked {booked[bill]} times")
    keys = {(words[1], words[2]) for words in noted}
    findings.check("I13", len(keys) == len(bills), f"{len(keys)} keys for {len(bills)} bills")
