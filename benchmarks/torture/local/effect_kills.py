"""Effects under fire: partitions and the runners that call the outside are killed while calls are on their way.

What is outside is a file, to which each call appends a line, so that it is known what has reached it. Some calls raise
after they have worked, end their process, or do not come back. Afterwards each bill has been paid once, by one key, and
booked once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

from rayfold import RayfoldError, Runtime, derived_id

from ..checking import stored_events
from ..contract import Context, Findings, scenario
from ..outside import Bill, Pay, Paying, lines, paid
from ..processes import pids_titled
from .harness import ray_of_this_process, until

KILLS_SHORT: Final = 4
KILLS_LONG: Final = 100

BILLS_OPEN_MAX: Final = 150
"""Bills that are not paid yet, at once: the calls of two partitions are some hundred."""

REST_TIMEOUT_S: Final = 180.0
PAUSE_S: Final = 1.0
"""The longest between two kills."""

HOWS: Final = ("ok",) * 12 + ("slow",) * 4 + ("raise", "hang", "refuse", "exit")


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
    bank = context.folder / "bank"
    async with Runtime(
        context.folder / "s", aggregates=[Bill], effects=[Paying], partitions=2, timeout_s=60.0
    ) as running:
        stop = asyncio.Event()
        asking = asyncio.create_task(_ask(running, context, str(bank), stop))
        for _ in context.rounds(KILLS_LONG, short=KILLS_SHORT):
            await asyncio.sleep(context.rng.random() * PAUSE_S)
            runners = pids_titled("RunnerActor")
            if runners and context.rng.random() < 0.5:
                _kill(context.rng.choice(sorted(runners)))
            else:
                victim = context.rng.choice((await running.status()).partitions).pid
                _kill(victim)
                await until(lambda pid=victim: _others(running, pid), 60.0)  # type: ignore[misc]
            findings.count("killed")
        stop.set()
        bills = await asking
        rested = await until(lambda: _at_rest(running), REST_TIMEOUT_S)
        findings.check("I12", rested, f"it has not come to rest after {REST_TIMEOUT_S:g} s: {await running.status()}")
        await asyncio.to_thread(_check, running, findings, bills, context)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


async def _ask(running: Runtime, context: Context, bank: str, stop: asyncio.Event) -> list[str]:
    """Bills, each with an id of its own, so that one whose answer was lost is asked for again and once."""
    asked: list[str] = []
    while not stop.is_set():
        number = len(asked)
        command = Pay(bank=bank, how=context.rng.choice(HOWS))
        command_id = derived_id("bill", context.seed, number)
        while True:
            try:
                await running.execute(Bill, f"b{number}", command, command_id=command_id)
                break
            except RayfoldError:  # a partition is away; the same id is safe to send again
                await asyncio.sleep(0.05)
        asked.append(f"b{number}")
        if not number % 10:
            await until(lambda: _has_room(running), REST_TIMEOUT_S)
    return asked


async def _has_room(running: Runtime) -> bool:
    facts = [one.courier for one in (await running.status()).partitions]
    return sum(one.timers for one in facts if one is not None) < BILLS_OPEN_MAX


async def _others(running: Runtime, pid: int) -> bool:
    """Whether all partitions answer, and none by this process."""
    partitions = (await running.status()).partitions
    return all(one.alive and one.pid not in (0, pid) for one in partitions)


async def _at_rest(running: Runtime) -> bool:
    """Whether no call is open."""
    facts = [one.courier for one in (await running.status()).partitions]
    return all(one is not None and not (one.undelivered or one.open_sends or one.timers) for one in facts)


def _check(running: Runtime, findings: Findings, bills: list[str], context: Context) -> None:
    booked: dict[str, int] = {}
    for events in stored_events(running.store).values():
        for event in events:
            if event.name == "Booked":
                booked[event.stream.id] = booked.get(event.stream.id, 0) + 1
    bank = context.folder / "bank"
    times = paid(bank)
    findings.figures["bills"] = len(bills)
    findings.count("looks", sum(words[0] == "look" for words in lines(bank)))
    for bill in bills:
        findings.check("I13", times[bill] == 1, f"{bill} was paid {times[bill]} times")
        findings.check("I13", booked.get(bill, 0) == 1, f"{bill} was booked {booked.get(bill, 0)} times")
    keys = {(words[1], words[2]) for words in lines(bank)}
    findings.check("I13", len(keys) == len(bills), f"{len(keys)} keys for {len(bills)} bills")
