"""The replay: every command of the feed through a running system, in order, with two outages on the way.

Rule kept here: nothing here knows how the runtime does it. Commands go in and outcomes come out; a command that could
not be sent is sent again under the same id (`Sending`), and that is all the care a caller has to take. The same
lines run over a directory of this machine and over the nodes of a cluster.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from rayfold import Envelope, Projection, Query, Receipt, Runtime, Subscription
from rayfold.actors.cluster.ray_cluster import Cluster

from ..harness.couriers import open_work
from .compensation import Authority, Claim, Claims, EveryClaim, Fund
from .domain import YEAR, Aircraft, Airport, Publish, Timetable
from .feed import Feed
from .figures import (
    WORST,
    AirportHours,
    Delays,
    Distances,
    EveryAircraft,
    EveryCarrier,
    EveryDelay,
    EveryHour,
    EveryRoute,
    Punctuality,
    Routes,
    WorstDelays,
)
from .outage import Killer
from .progress_watchdog import AGAIN_S, PATIENCE_S, ProgressWatchdog
from .quiet_ray import hidden_lines_about_the_lost
from .run import Replay
from .screen import Screen
from .verification import Ledger, walk
from .visitors import GuestBook, Guests

APPLICATION: Final = "flights"
"""Its name on a cluster: what other programs connect to, and the folder of its store in the nodes' data folders."""

VISIBLE_TIMEOUT_S: Final = 600.0
"""For the read models to have seen everything."""

LOOK_S: Final = 0.2
"""Seconds between two checks whether claims are still open: a call to each partition."""

IN_FLIGHT: Final = 8_192
"""Commands on their way at once. Enough that each of two partitions and three airports has a batch of many to
take while the last one is on its way, and below the client's limit of 32,768."""

TIMEOUT_S: Final = PATIENCE_S + 60.0
"""For one command, with all the attempts that the runtime makes: the watchdog gives up before."""


class OnCluster(NamedTuple):
    """Where the store of a run is, if it is spread over the nodes of a cluster."""

    address: str
    """`auto`, or `HOST:PORT`."""
    flights: int
    """That this run is about."""
    partitions: int | None = None
    """Of a new store; as many as nodes if not chosen."""


async def replay(
    path: Path, feed: Feed, screen: Screen, *, kill: bool, replicas: int = 1, cluster: OnCluster | None = None
) -> Replay:
    """Start the runtime, send everything, ask the read models once they have seen it, and stop.

    path: of an existing store, or with `cluster`, the name of the application. Raises `Rejected` for a store that is
    about more flights.
    """
    run = Replay(Ledger(len(feed)), Killer(len(feed), armed=kill))
    screen.waiting_for("starting Ray, the partitions and the read models")
    begun_s = time.monotonic()
    flown = [Punctuality, Routes, AirportHours, Distances, Delays, Claims]
    runtime = Runtime(
        path,
        aggregates=[Airport, Aircraft, GuestBook, Timetable, Fund, Authority],
        processes=[Claim],
        since="beginning",
        projections=[*flown, Guests],
        replicas=dict.fromkeys(flown, replicas),
        partitions=cluster.partitions if cluster else None,
        cluster=cluster.address if cluster else None,
    )
    with ExitStack() as to_the_end:
        async with runtime as bank:
            to_the_end.enter_context(hidden_lines_about_the_lost())
            ray = Cluster.inside()
            watchdog = ProgressWatchdog(ray.nodes, ray.is_attached, lambda: run.progress, screen.lost, screen.back)
            run.losses, run.start_s = watchdog.losses, time.monotonic() - begun_s
            try:
                await watchdog.over(_flown(bank, feed, run, screen, watchdog, cluster))
            finally:
                screen.waiting_for("stopping")
    return run


async def _flown(
    bank: Runtime, feed: Feed, run: Replay, screen: Screen, watchdog: ProgressWatchdog, cluster: OnCluster | None
) -> None:
    """Everything that a run does while the runtime runs."""
    if cluster is not None:
        nodes = (await watchdog.patiently(bank.status)).nodes
        watchdog.homes, run.nodes = {node.name: node.partitions for node in nodes}, len(nodes)
    run.heads_before = await watchdog.patiently(bank.heads)
    if cluster is not None:
        await watchdog.patiently(partial(bank.execute, Timetable, YEAR, Publish(flights=cluster.flights)))
    sending_s = time.monotonic()
    screen.sending(len(feed))
    await Sending(bank, feed, run, screen).to_the_end()
    answered_s = time.monotonic()
    screen.waiting_for("waiting until all claims are settled")
    await _settled(bank, run, watchdog)
    run.settled_s = time.monotonic() - answered_s
    screen.waiting_for("waiting until the read models have seen everything")
    await _ask_all(bank, run, watchdog)
    run.seconds, run.visible_s = answered_s - sending_s, time.monotonic() - answered_s - run.settled_s
    if cluster is not None:
        await _read_back(bank, feed, run, screen, watchdog)
        screen.waiting_for("verifying the store, each node its own logs")
        run.integrity = await watchdog.patiently(bank.verify)
        run.read_back_s = time.monotonic() - answered_s - run.settled_s - run.visible_s


async def _settled(bank: Runtime, run: Replay, watchdog: ProgressWatchdog) -> None:
    """Return once no process has anything to do any more, and no timer is armed."""
    while True:
        run.unsettled = open_work(await watchdog.patiently(bank.status))
        if not run.unsettled:
            return
        await asyncio.sleep(LOOK_S)


async def _ask_all(bank: Runtime, run: Replay, watchdog: ProgressWatchdog) -> None:
    """Every row of every read model, as of now."""
    now = await watchdog.patiently(bank.heads)
    asked: list[tuple[str, type[Projection], Query[tuple[Any, ...]]]] = [
        ("Punctuality", Punctuality, EveryCarrier()),
        ("Routes", Routes, EveryRoute()),
        ("AirportHours", AirportHours, EveryHour()),
        ("Distances", Distances, EveryAircraft()),
        ("Delays", Delays, EveryDelay()),
        ("Claims", Claims, EveryClaim()),
        (WORST, Delays, WorstDelays()),
    ]
    for name, projection, query in asked:
        asking = partial(bank.ask, projection, query, after=now, timeout_s=VISIBLE_TIMEOUT_S)
        run.rows[name] = await watchdog.patiently(asking)


async def _read_back(bank: Runtime, feed: Feed, run: Replay, screen: Screen, watchdog: ProgressWatchdog) -> None:
    """Every event, as any program reads it, against what its sender was answered."""
    heads = await watchdog.patiently(bank.heads)
    screen.measuring("reading every event back", sum(heads.values()))

    async def subscribed() -> Subscription:
        return bank.subscribe()

    def read(events: int) -> None:
        run.read_back = events
        screen.done(events)

    async with await watchdog.patiently(subscribed) as events:
        run.walk = await walk(events, heads, feed, run.ledger, read, run.heads_before)


class Sending:
    """The commands of one run, on their way, in order, until each has an answer that settles it.

    Commands are `Unavailable` while their partition's node is gone: those that are on their way wait, since the runtime
    sends them again by itself, and those that come later are refused at once. Then nothing new is taken from the feed;
    one command is sent again and again until it is taken; and the feed goes on from there, under the same ids.

    The commands to one aggregate arrive in the order of the feed, whatever is lost on the way. So what was refused is
    sent again before anything behind it. `execute_all` does its part: it lets nothing to an aggregate go past a command
    that was refused, until this class has seen the refusal.
    """

    def __init__(self, bank: Runtime, feed: Feed, run: Replay, screen: Screen) -> None:
        self._bank, self._feed, self._run, self._screen = bank, feed, run, screen
        self._again: deque[int] = deque()
        """Numbers of commands that were refused, in order; all of them come before `_ahead`."""
        self._ahead = iter(range(len(feed)))
        self._on_their_way: deque[int] = deque()
        self._kills: list[asyncio.Task[None]] = []

    async def to_the_end(self) -> None:
        """Return once every command has its answer."""
        while self._run.ledger.told < len(self._feed):
            if await self._sent(len(self._feed)):  # all of them, or those before the killer's last call
                kills, self._kills = self._kills, []
                await asyncio.gather(*kills)
                continue
            while not await self._sent(1):  # alone: packing thousands again four times a second takes half a core
                await asyncio.sleep(AGAIN_S)

    async def _sent(self, at_most: int) -> bool:
        """Send so many, or until one is refused, or a kill has to happen before the next one. Whether none was
        refused."""
        run = self._run
        envelopes = self._envelopes(at_most)
        async for _, outcome in self._bank.execute_all(envelopes, in_flight=IN_FLIGHT, timeout_s=TIMEOUT_S):
            number = self._on_their_way.popleft()
            run.ledger.note(number, outcome)
            self._screen.answered(run.ledger.told)
            if isinstance(outcome, Receipt):
                for outage in run.killer.watch(number, outcome):
                    self._screen.recovered(outage)
            if what := run.killer.take_due(run.sent):
                self._kills.append(asyncio.create_task(self._kill(what)))
        refused = run.ledger.take_unanswered()
        self._again.extendleft(reversed(refused))
        return not refused

    def _envelopes(self, at_most: int) -> Iterator[Envelope]:
        """The commands as they are asked for, with count kept of how far the sending has come.

        They are held back here, and not where the outcomes are read: thousands are asked for before the next outcome
        comes, and a kill that has begun would be too late.
        """
        for _ in range(at_most):
            held = self._run.ledger.unanswered or (self._kills and self._run.sent >= self._run.killer.last_call)
            number = None if held else self._next()
            if number is None:
                return
            self._on_their_way.append(number)
            self._run.sent = max(self._run.sent, number + 1)
            yield self._feed.envelope(number)

    def _next(self) -> int | None:
        return self._again.popleft() if self._again else next(self._ahead, None)

    async def _kill(self, what: str) -> None:
        outage = await self._run.killer.kill(what, self._bank, lambda: self._run.sent)
        if outage is not None:
            self._screen.killed(outage)
        elif what in self._run.killer.spared:
            self._screen.spared(what)
