"""A bank on one machine that runs and is under load: what the scenarios with Ray have in common.

Rules kept here: one Ray for all scenarios of a process, since its start takes seconds; everything else is fresh. The
load comes from several clients with connections of their own, a session reads its own writes meanwhile, and a watcher
reads the logs; at the end everything is checked while the runtime is still up, and then that nothing is left over.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rayfold import Aggregate, Envelope, Projection, RayfoldError, Runtime, derived_id
from rayfold.actors.client.command_router import CommandRouter
from rayfold.actors.cluster.names import partition_name, store_system
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.settings import Settings
from rayfold.runtime.log.format import stream_id
from rayfold.runtime.receipt import Receipt

from ...flights.quiet_ray import hidden_lines_about_the_lost
from ...harness.processes import pids_titled, rss_mib, title_of
from ..bank import AllTotals, Jar, OwnJar, OwnRogue, Put, Rogue, Totals, jar_names, puts_and_takes
from ..checking import Watcher, check_log, check_read_model, read_own_writes
from ..contract import Context, Findings
from ..history import History, Sender

INVARIANTS_OF_BANKS: Final = "I1 I2 I3 I4 I5 I7 I8 I9 I11"
"""What every scenario with a bank under load checks."""

OWN_ACTORS_MAX: Final = 4
"""Enough for the own jars of a scenario; each takes 45 MiB."""

CLIENTS: Final = 3
DEPTH: Final = 8
"""Commands in flight of each client."""

_GONE_TIMEOUT_S: Final = 30.0
"""For the processes of a runtime that was stopped."""

_LOOK_S: Final = 0.02

_ray: list[Cluster] = []
_quiet: Final = contextlib.ExitStack()
"""Processes are killed here on purpose, and Ray has a long line for each."""


def ray_of_this_process() -> Cluster:
    """The Ray of this process, started if there is none."""
    if not _ray:
        _ray.append(Cluster.start_or_join(num_cpus=2, own_actors_max=OWN_ACTORS_MAX))
        _quiet.enter_context(hidden_lines_about_the_lost())
    return _ray[0]


def stop_ray() -> None:
    """End the Ray that was started for the scenarios; one that was joined stays."""
    while _ray:
        _ray.pop().stop()
    _quiet.close()


@dataclass(slots=True)
class LocalBank:
    """A runtime under torture."""

    runtime: Runtime
    cluster: Cluster
    context: Context
    findings: Findings
    settings: Settings
    history: History = field(default_factory=History)
    _probes: Any = field(default_factory=itertools.count)
    _routers: list[CommandRouter] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _load: list[asyncio.Task[None]] = field(default_factory=list)
    _prober: Sender | None = None

    def actor(self, partition: int) -> Any:
        """A partition's actor."""
        store = self.runtime.store
        return self.cluster.actor_named(partition_name(store_system(store.path.name, store.store_id), partition))

    def client(self, settings: Settings | None = None, timeout_s: float = 20.0, actors: Sequence[Any] = ()) -> Sender:
        """A further client with a connection of its own, to the partitions or what is put before them."""
        actors = actors or [self.actor(number) for number in range(self.runtime.store.partitions)]
        settings, placement = settings or self.settings, self.runtime.store.placement
        router = CommandRouter(actors, self.cluster.actor_named, settings, placement)
        self._routers.append(router)
        return Sender(router, self.history, self.context.rng.randrange(1 << 32), timeout_s)

    def begin_load(self, *, own: Sequence[str] = (), timeout_s: float = 20.0, actors: Sequence[Any] = ()) -> Sender:
        """Have several clients send, and a session read, until `end_load`; one of the clients."""
        senders = [self.client(timeout_s=timeout_s, actors=actors) for _ in range(CLIENTS)]
        for number, sender in enumerate(senders):
            commands = puts_and_takes(self.context.seed, number, jar_names(40), own)
            self._load.append(asyncio.create_task(sender.drive(commands, self._stop, DEPTH)))
        self._load.append(asyncio.create_task(self._read(senders[0])))
        return senders[0]

    async def _read(self, sender: Sender) -> None:
        def unanswered(error: RayfoldError) -> None:
            self.history.refused[f"query: {type(error).__name__}"] += 1

        session = self.runtime.session()
        await read_own_writes(session, sender, "session", self._stop, self.findings, unanswered, timeout_s=30)

    async def end_load(self) -> None:
        """Stop sending, and wait until every client has its last outcome. Raises what a client's own bug raised."""
        self._stop.set()
        self.history.going.set()
        await asyncio.gather(*self._load)
        self._load.clear()
        self._stop = asyncio.Event()

    async def pause(self) -> None:
        """Have the load wait, until `history.going` is set again, and return once nothing is on its way."""
        self.history.going.clear()

        async def all_told() -> bool:
            return not self.history.on_their_way

        await until(all_told, 60.0)

    async def probe(self, partition: int) -> float:
        """Milliseconds until a command to this partition is acknowledged. It is noted like any other."""
        return await self._acknowledged(Jar, next(name for name in jar_names(1000) if self.home_of(name) == partition))

    async def probe_own(self, jar: str) -> float:
        """The same for an own jar."""
        return await self._acknowledged(OwnJar, jar)

    def home_of(self, jar: str, aggregate: type[Aggregate] = Jar) -> int:
        """The partition that a jar is in."""
        return self.runtime.store.partition_of(stream_id(aggregate.aggregate_type, jar))

    async def _acknowledged(self, aggregate: type[Jar], jar: str) -> float:
        began_s = time.monotonic()
        identity = derived_id("probe", self.context.seed, next(self._probes))
        self._prober = self._prober or self.client()
        entry = await self._prober.send(Envelope(aggregate, jar, Put(amount=1, note="probe"), identity), 60.0)
        assert isinstance(entry.outcome, Receipt), entry.outcome
        return (time.monotonic() - began_s) * 1e3

    async def own_pids(self) -> dict[str, int]:
        """Own jars that are up: id -> process."""
        return {own.stream.id: own.pid for own in (await self.runtime.status()).own_actors}

    async def memory(self) -> Callable[[], int]:
        """A function that returns by how many MiB a partition or projector has grown since now, at most."""
        status = await self.runtime.status()
        pids = [one.pid for one in status.partitions] + [one.pid for one in status.projectors]
        before = {pid: rss_mib(pid) for pid in pids}
        return lambda: max(rss_mib(pid) - mib for pid, mib in before.items())

    async def close(self) -> None:
        """End the clients."""
        self._stop.set()
        self.history.going.set()
        await asyncio.gather(*self._load, return_exceptions=True)
        await asyncio.gather(*(router.drain(5.0) for router in self._routers))

    def note_latencies(self) -> None:
        """How long the answers took, and what other answers than receipts there were."""
        self.findings.note("latency_ms", self.history.latencies_ms(), "p50 p99 p999 max")
        for name, times in self.history.refused.items():
            self.findings.figures[f"answered {name}"] = times
        self.findings.count("session_reads", 0)


@contextlib.asynccontextmanager
async def local_bank(
    context: Context,
    findings: Findings,
    *,
    partitions: int = 2,
    replicas: int = 1,
    projections: Sequence[type[Projection]] = (Totals,),
    compared: Sequence[type[Projection]] | None = None,
    settings: Settings | None = None,
    others: int = 0,
) -> AsyncIterator[LocalBank]:
    """A fresh runtime to be tortured. At the end everything is checked: log, history, read models, leftovers."""
    cluster = ray_of_this_process()
    settings = settings or Settings(timeout_s=30.0, own_actors_max=OWN_ACTORS_MAX)
    runtime = Runtime(
        context.folder / "store",
        aggregates=[Jar, OwnJar, Rogue, OwnRogue],
        projections=list(projections),
        partitions=partitions,
        replicas=replicas,
        settings=settings,
    )
    before = pids_titled("Actor")
    async with runtime:
        bank = LocalBank(runtime, cluster, context, findings, settings)
        watcher = Watcher(runtime.store)
        try:
            yield bank
            await bank.end_load()
        finally:
            await bank.close()
        watcher.end(findings)
        events, heads = check_log(runtime.store, bank.history, findings, others=others), await runtime.heads()
        for projection in projections if compared is None else compared:
            for _ in range(3):  # they go round the replicas
                answered = await runtime.ask(projection, AllTotals(), after=heads, timeout_s=60)
                check_read_model(projection.__name__, answered, events, findings)
        bank.note_latencies()
        ours = pids_titled("Actor") - before

    async def gone() -> bool:
        return not ours & pids_titled("Actor")

    await until(gone, _GONE_TIMEOUT_S)
    left = ours & pids_titled("Actor")
    findings.figures["processes_left"] = len(left)
    findings.check("I11", not left, lambda: f"left after the runtime was stopped: {'; '.join(map(_look_at, left))}")


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float) -> bool:
    """Wait for a fact, at most so long; whether it came."""
    end_s = time.monotonic() + timeout_s
    while not await holds():
        if time.monotonic() > end_s:
            return False
        await asyncio.sleep(_LOOK_S)
    return True


def _look_at(pid: int) -> str:
    """What a process is doing that should have ended: whether it was killed and cannot end, or was never ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])  # from the boot to its start
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        state = ", ".join(" ".join(line.split()) for line in lines if line.startswith(("State", "SigPnd", "ShdPnd")))
        return f"process {pid}, {title_of(pid)}, started {age_s:.0f} s ago, {state}"
    return f"process {pid}, which has ended by now"
