"""The replay: every command of the feed through a running system, in order, with two outages on the way.

Rule kept here: nothing here knows how the runtime does it. Commands go in and outcomes come out; a command whose
answer never came is sent again under the same id, and that is all the care a caller has to take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from rayfold import Envelope, Receipt, Runtime, Unavailable

from .delays import WORST, Delays, EveryDelay, WorstDelays
from .domain import Aircraft, Airport
from .feed import Feed
from .figures import AirportHours, Distances, EveryAircraft, EveryCarrier, EveryHour, EveryRoute, Punctuality, Routes
from .ledger import Ledger
from .obituaries import without_obituaries
from .outage import Killer, Outage

__all__ = ["Replay", "Watcher", "ask_all", "replay"]

IN_FLIGHT: Final = 8_192
"""Commands on their way at once. Enough that each of two partitions and three airports has a batch of many to
take while the last one is on its way, and below the client's limit of 10,000."""

TIMEOUT_S: Final = 60.0
"""For one command, with all the attempts that the runtime makes: a killed process is back long before."""

VISIBLE_TIMEOUT_S: Final = 600.0
"""For the read models to have seen everything."""

SENDINGS_MAX: Final = 3
"""How often a command is sent whose answer never came; each sending has `TIMEOUT_S`."""


class Watcher(Protocol):
    """Who is told how it goes."""

    def waiting_for(self, what: str) -> None:
        """Something without a measure has begun."""

    def sending(self, commands: int) -> None:
        """The commands are being sent now."""

    def answered(self, commands: int) -> None:
        """So many have their answer."""

    def killed(self, outage: Outage) -> None:
        """A process was killed."""

    def recovered(self, outage: Outage) -> None:
        """Its work was acknowledged again."""


@dataclass(slots=True)
class Replay:
    """What a run told its caller."""

    ledger: Ledger
    killer: Killer
    stored_before: int = 0
    """Events in the store when it was opened."""
    start_s: float = 0.0
    seconds: float = 0.0
    visible_s: float = 0.0
    rows: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Every row of the read models, by name."""
    sent: int = 0


async def replay(directory: Path, feed: Feed, watcher: Watcher, *, kill: bool, replicas: int = 1) -> Replay:
    """Start the runtime on an existing store, send everything, ask the read models once they have seen it, and stop."""
    run = Replay(Ledger(len(feed)), Killer(len(feed), armed=kill))
    watcher.waiting_for("starting Ray, the partitions and the read models")
    begun_s = time.monotonic()
    runtime = Runtime(
        directory,
        aggregates=[Airport, Aircraft],
        projections=[Punctuality, Routes, AirportHours, Distances, Delays],
        replicas=replicas,
        timeout_s=TIMEOUT_S,
    )
    with ExitStack() as to_the_end:
        async with runtime as bank:
            to_the_end.enter_context(without_obituaries())
            try:
                run.stored_before = sum((await bank.heads()).values())
                sending_s = time.monotonic()
                watcher.sending(len(feed))
                await _send_until_answered(bank, feed, run, watcher)
                answered_s = time.monotonic()
                watcher.waiting_for("waiting until the read models have seen everything")
                run.rows = await ask_all(bank)
                visible_s = time.monotonic()
            finally:
                watcher.waiting_for("stopping")
    run.start_s, run.seconds, run.visible_s = sending_s - begun_s, answered_s - sending_s, visible_s - answered_s
    return run


async def ask_all(bank: Runtime) -> dict[str, tuple[Any, ...]]:
    """Every row of every read model, as of now."""
    now = await bank.heads()
    return {
        "Punctuality": await bank.ask(Punctuality, EveryCarrier(), after=now, timeout_s=VISIBLE_TIMEOUT_S),
        "Routes": await bank.ask(Routes, EveryRoute(), after=now, timeout_s=VISIBLE_TIMEOUT_S),
        "AirportHours": await bank.ask(AirportHours, EveryHour(), after=now, timeout_s=VISIBLE_TIMEOUT_S),
        "Distances": await bank.ask(Distances, EveryAircraft(), after=now, timeout_s=VISIBLE_TIMEOUT_S),
        "Delays": await bank.ask(Delays, EveryDelay(), after=now, timeout_s=VISIBLE_TIMEOUT_S),
        WORST: await bank.ask(Delays, WorstDelays(), after=now, timeout_s=VISIBLE_TIMEOUT_S),
    }


async def _send_until_answered(bank: Runtime, feed: Feed, run: Replay, watcher: Watcher) -> None:
    """Send all commands; then, if any, those whose answer never came."""
    numbers: Sequence[int] = range(len(feed))
    for sending in range(SENDINGS_MAX):
        if sending:
            numbers = run.ledger.take_unanswered()
        await _send(bank, feed, numbers, run, watcher)
        if not run.ledger.unanswered:
            return


async def _send(bank: Runtime, feed: Feed, numbers: Sequence[int], run: Replay, watcher: Watcher) -> None:
    in_order = iter(numbers)
    kills: list[asyncio.Task[None]] = []
    async for _, outcome in bank.execute_all(_envelopes(feed, numbers, run), in_flight=IN_FLIGHT):
        number = next(in_order)
        run.ledger.note(number, outcome)
        watcher.answered(run.ledger.told)
        if len(run.ledger.unanswered) > IN_FLIGHT:
            raise Unavailable("the demo", f"more than {IN_FLIGHT:,} commands had no answer within {TIMEOUT_S:.0f} s")
        if isinstance(outcome, Receipt):
            for outage in run.killer.watch(number, outcome):
                watcher.recovered(outage)
        if what := run.killer.take_due(run.sent):
            kills.append(asyncio.create_task(_kill(what, bank, run, watcher)))
        if kills and run.sent >= run.killer.last_call:
            await kills.pop()
    await asyncio.gather(*kills)


def _envelopes(feed: Feed, numbers: Sequence[int], run: Replay) -> Iterator[Envelope]:
    """The commands as they are asked for, with count kept of how far the sending has come."""
    for number in numbers:
        run.sent = max(run.sent, number + 1)
        yield feed.envelope(number)


async def _kill(what: str, bank: Runtime, run: Replay, watcher: Watcher) -> None:
    outage = await run.killer.kill(what, bank, lambda: run.sent)
    if outage is not None:
        watcher.killed(outage)
