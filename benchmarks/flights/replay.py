"""The replay: every command of the feed through a running system, in order, with two outages on the way.

Rule kept here: nothing here knows how the runtime does it. Commands go in and outcomes come out; a command that could
not be sent is sent again under the same id (`sending.py`), and that is all the care a caller has to take. The same
lines run over a directory of this machine and over the nodes of a cluster.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from rayfold import Projection, Query, Runtime, Subscription
from rayfold.actors.cluster.ray_cluster import Cluster

from .delays import WORST, Delays, EveryDelay, WorstDelays
from .domain import Aircraft, Airport
from .feed import Feed
from .figures import AirportHours, Distances, EveryAircraft, EveryCarrier, EveryHour, EveryRoute, Punctuality, Routes
from .ledger import Ledger
from .outage import Killer
from .progress_watchdog import Lookout
from .quiet_ray import without_obituaries
from .run import Replay, Watcher
from .sending import Sending
from .timetable import YEAR, Publish, Timetable
from .verification import walk
from .visitors import GuestBook, Guests

__all__ = ["APPLICATION", "OnCluster", "replay"]

APPLICATION: Final = "flights"
"""Its name on a cluster: what other programs connect to, and the folder of its store in the nodes' data folders."""

VISIBLE_TIMEOUT_S: Final = 600.0
"""For the read models to have seen everything."""


class OnCluster(NamedTuple):
    """Where the store of a run is, if it is spread over the nodes of a cluster."""

    address: str
    """`auto`, or `HOST:PORT`."""
    flights: int
    """That this run is about."""
    partitions: int | None = None
    """Of a new store; as many as nodes if not chosen."""


async def replay(
    path: Path, feed: Feed, watcher: Watcher, *, kill: bool, replicas: int = 1, cluster: OnCluster | None = None
) -> Replay:
    """Start the runtime, send everything, ask the read models once they have seen it, and stop.

    path: of an existing store, or with `cluster`, the name of the application. Raises `Rejected` for a store that is
    about more flights.
    """
    run = Replay(Ledger(len(feed)), Killer(len(feed), armed=kill))
    watcher.waiting_for("starting Ray, the partitions and the read models")
    begun_s = time.monotonic()
    flown = [Punctuality, Routes, AirportHours, Distances, Delays]
    runtime = Runtime(
        path,
        aggregates=[Airport, Aircraft, GuestBook, Timetable],
        projections=[*flown, Guests],
        replicas=dict.fromkeys(flown, replicas),
        partitions=cluster.partitions if cluster else None,
        cluster=cluster.address if cluster else None,
    )
    with ExitStack() as to_the_end:
        async with runtime as bank:
            to_the_end.enter_context(without_obituaries())
            ray = Cluster.inside()
            lookout = Lookout(ray.nodes, ray.is_attached, lambda: run.progress, watcher.lost, watcher.back)
            run.losses, run.start_s = lookout.losses, time.monotonic() - begun_s
            try:
                await lookout.over(_flown(bank, feed, run, watcher, lookout, cluster))
            finally:
                watcher.waiting_for("stopping")
    return run


async def _flown(
    bank: Runtime, feed: Feed, run: Replay, watcher: Watcher, lookout: Lookout, cluster: OnCluster | None
) -> None:
    """Everything that a run does while the runtime runs."""
    if cluster is not None:
        nodes = (await lookout.patiently(bank.status)).nodes
        lookout.homes, run.nodes = {node.name: node.partitions for node in nodes}, len(nodes)
    run.stored_before = sum((await lookout.patiently(bank.heads)).values())
    if cluster is not None:
        await lookout.patiently(partial(bank.execute, Timetable, YEAR, Publish(flights=cluster.flights)))
    sending_s = time.monotonic()
    watcher.sending(len(feed))
    await Sending(bank, feed, run, watcher).to_the_end()
    answered_s = time.monotonic()
    watcher.waiting_for("waiting until the read models have seen everything")
    await _ask_all(bank, run, lookout)
    run.seconds, run.visible_s = answered_s - sending_s, time.monotonic() - answered_s
    if cluster is not None:
        await _read_back(bank, feed, run, watcher, lookout)
        watcher.waiting_for("verifying the store, each node its own logs")
        run.integrity = await lookout.patiently(bank.verify)
        run.read_back_s = time.monotonic() - answered_s - run.visible_s


async def _ask_all(bank: Runtime, run: Replay, lookout: Lookout) -> None:
    """Every row of every read model, as of now."""
    now = await lookout.patiently(bank.heads)
    asked: list[tuple[str, type[Projection], Query[tuple[Any, ...]]]] = [
        ("Punctuality", Punctuality, EveryCarrier()),
        ("Routes", Routes, EveryRoute()),
        ("AirportHours", AirportHours, EveryHour()),
        ("Distances", Distances, EveryAircraft()),
        ("Delays", Delays, EveryDelay()),
        (WORST, Delays, WorstDelays()),
    ]
    for name, projection, query in asked:
        asking = partial(bank.ask, projection, query, after=now, timeout_s=VISIBLE_TIMEOUT_S)
        run.rows[name] = await lookout.patiently(asking)


async def _read_back(bank: Runtime, feed: Feed, run: Replay, watcher: Watcher, lookout: Lookout) -> None:
    """Every event, as any program reads it, against what its sender was told."""
    heads = await lookout.patiently(bank.heads)
    watcher.measuring("reading every event back", sum(heads.values()))

    async def subscribed() -> Subscription:
        return bank.subscribe()

    def read(events: int) -> None:
        run.read_back = events
        watcher.done(events)

    async with await lookout.patiently(subscribed) as events:
        run.walk = await walk(events, heads, feed, run.ledger, read)
