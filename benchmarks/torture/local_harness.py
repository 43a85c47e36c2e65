"""A bank of jars that runs and is under load: what the scenarios with Ray have in common.

Rules kept here: one Ray for all scenarios of a process, since its start takes seconds; everything else is fresh. The
load comes from several clients with connections of their own, sessions read their own writes meanwhile, and a watcher
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
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.settings import Settings
from rayfold.runtime.log.format import stream_id
from rayfold.runtime.receipt import Receipt

from ..flights.quiet_ray import without_obituaries
from .checking import Watcher, check_log, fold_of
from .child import processes_below
from .contract import Context, Findings
from .history import History, Sender
from .workload import AllTotals, Jar, OwnJar, OwnRogue, Put, Rogue, Total, Totals, jar_names, puts_and_takes

__all__ = ["OWN_ACTORS_MAX", "Living", "living", "pids_titled", "quantile", "ray_of_this_process", "stop_ray", "until"]

OWN_ACTORS_MAX: Final = 4
"""Enough for the own jars of a scenario; each takes 45 MiB."""

CLIENTS: Final = 3
DEPTH: Final = 8
"""Commands in flight of each client."""

_GONE_TIMEOUT_S: Final = 30.0
"""For the processes of a runtime that was stopped."""

_PROBE_TIMEOUT_S: Final = 0.5
_LOOK_S: Final = 0.02

_ray: list[Cluster] = []
_quiet: Final = contextlib.ExitStack()
"""Those who die here do so on purpose, and Ray has a long line for each."""


def ray_of_this_process() -> Cluster:
    """The Ray of this process, started if there is none."""
    if not _ray:
        _ray.append(Cluster.start_or_join(num_cpus=2, own_actors_max=OWN_ACTORS_MAX))
        _quiet.enter_context(without_obituaries())
    return _ray[0]


def stop_ray() -> None:
    """End the Ray that was started for the scenarios; one that was joined stays."""
    while _ray:
        _ray.pop().stop()
    _quiet.close()


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values; 0 for none."""
    return round(values[min(len(values) - 1, int(len(values) * share))], 1) if values else 0.0


@dataclass(slots=True)
class Living:
    """A runtime under torture."""

    runtime: Runtime
    cluster: Cluster
    context: Context
    findings: Findings
    settings: Settings
    history: History = field(default_factory=History)
    senders: list[Sender] = field(default_factory=list)
    sessions: int = 0
    """Reads of sessions that were looked at."""
    _prober: Sender | None = None
    _probes: Any = field(default_factory=itertools.count)
    _routers: list[CommandRouter] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _load: list[asyncio.Task[None]] = field(default_factory=list)

    def actor(self, partition: int) -> Any:
        """A partition's actor."""
        store = self.runtime.store
        return self.cluster.actor_named(f"{store.path.name}-{store.store_id[:8]}/partition-{partition}")

    def client(self, settings: Settings | None = None, timeout_s: float = 20.0, actors: Sequence[Any] = ()) -> Sender:
        """A further client with a connection of its own, to the partitions or what is put before them."""
        actors = actors or [self.actor(number) for number in range(self.runtime.store.partitions)]
        router = CommandRouter(
            actors, self.cluster.actor_named, settings or self.settings, self.runtime.store.placement
        )
        self._routers.append(router)
        sender = Sender(router, self.history, self.context.rng.randrange(1 << 32), timeout_s)
        self.senders.append(sender)
        return sender

    def begin_load(
        self,
        *,
        own: Sequence[str] = (),
        depth: int = DEPTH,
        jars: int = 40,
        spin_us: int = 0,
        timeout_s: float = 20.0,
        actors: Sequence[Any] = (),
    ) -> None:
        """Have several clients send, and a session read, until `end_load`."""
        shared = jar_names(jars)
        for number in range(CLIENTS):
            sender = self.client(timeout_s=timeout_s, actors=actors)
            commands = puts_and_takes(self.context.seed, number, shared, own, spin_us)
            self._load.append(asyncio.create_task(sender.drive(commands, self._stop, depth)))
        if Totals in self.runtime._projections:
            self._load.append(asyncio.create_task(self._session(self.senders[0])))

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

    async def probe(self, partition: int, timeout_s: float = 60.0) -> float:
        """Milliseconds until a command to this partition is acknowledged. It is noted like any other."""
        began_s = time.monotonic()
        jar = next(name for name in jar_names(1000) if self.partition(Jar, name) == partition)
        await self._until_acknowledged(Jar, jar, timeout_s)
        return (time.monotonic() - began_s) * 1e3

    def partition(self, aggregate: type[Aggregate], id: str) -> int:
        """Where an aggregate lives."""
        return self.runtime.store.partition_of(stream_id(aggregate.aggregate_type, id))

    async def probe_own(self, jar: str, timeout_s: float = 60.0) -> float:
        """The same for an own jar."""
        began_s = time.monotonic()
        await self._until_acknowledged(OwnJar, jar, timeout_s)
        return (time.monotonic() - began_s) * 1e3

    async def _until_acknowledged(self, aggregate: type[Jar], jar: str, timeout_s: float) -> Receipt:
        identity = derived_id("probe", self.context.seed, next(self._probes))
        envelope = Envelope(aggregate, jar, Put(amount=1, note="probe"), identity)
        if self._prober is None:
            self._prober = self.client()
        entry = await self._prober.send(envelope, timeout_s)
        assert isinstance(entry.outcome, Receipt), entry.outcome
        return entry.outcome

    async def _session(self, sender: Sender) -> None:
        """I9: one session writes to a jar of its own and reads it: its own writes are there, and nothing goes back."""
        seen = 0
        receipt: Receipt | None = None
        while not self._stop.is_set():
            await self.history.going.wait()
            entry = await sender.send(Envelope(Jar, "session", Put(amount=1, note=f"session {self.sessions}")))
            receipt = entry.outcome if isinstance(entry.outcome, Receipt) else receipt
            if receipt is None:
                continue
            try:
                _, events = await self.runtime.ask(Totals, Total(jar="Jar/session"), after=receipt, timeout_s=30)
            except RayfoldError as error:
                self.history.refused[f"query: {type(error).__name__}"] += 1
                continue
            self.sessions += 1
            self.findings.check("I9", events >= receipt.version, f"{events} events seen after {receipt}")
            self.findings.check("I9", events >= seen, f"{events} events seen, and {seen} before")
            seen = events

    async def own_pids(self) -> dict[str, int]:
        """Own jars that are up: id -> process."""
        return {own.stream.id: own.pid for own in (await self.runtime.status()).own_actors}

    async def check_read_models(self, events: Any, projections: Sequence[type[Projection]]) -> None:
        """I5: what the replicas answer, once they are at the end of the log, is the fold of the log."""
        expected, heads = fold_of(events), await self.runtime.heads()
        for projection in projections:
            for _ in range(3):  # they go round the replicas
                answered = await self.runtime.ask(projection, AllTotals(), after=heads, timeout_s=60)
                wrong = [
                    stream
                    for stream in expected.keys() | answered.keys()
                    if expected.get(stream) != answered.get(stream)
                ]
                self.findings.check("I5", not wrong, f"{projection.__name__} differs from the log at {wrong[:3]}")

    async def close(self) -> None:
        """Let go of the clients."""
        self._stop.set()
        self.history.going.set()
        await asyncio.gather(*self._load, return_exceptions=True)
        await asyncio.gather(*(router.drain(5.0) for router in self._routers))


@contextlib.asynccontextmanager
async def living(
    context: Context,
    findings: Findings,
    *,
    partitions: int = 2,
    replicas: int = 1,
    projections: Sequence[type[Projection]] = (Totals,),
    compared: Sequence[type[Projection]] | None = None,
    settings: Settings | None = None,
    others: int = 0,
    name: str = "store",
) -> AsyncIterator[Living]:
    """A fresh runtime to be tortured. At the end everything is checked: log, history, read models, leftovers."""
    cluster = ray_of_this_process()
    settings = settings or Settings(timeout_s=30.0, own_actors_max=OWN_ACTORS_MAX)
    runtime = Runtime(
        context.folder / name,
        aggregates=[Jar, OwnJar, Rogue, OwnRogue],
        projections=list(projections),
        partitions=partitions,
        replicas=replicas,
        settings=settings,
    )
    before = pids_titled("Actor")
    async with runtime:
        bank = Living(runtime, cluster, context, findings, settings)
        watcher = Watcher(runtime.store)
        try:
            yield bank
            await bank.end_load()
        finally:
            await bank.close()
        watcher.end(findings)
        events = check_log(runtime.store, bank.history, findings, others=others)
        await bank.check_read_models(events, projections if compared is None else compared)
        _note_latencies(bank)
        ours = pids_titled("Actor") - before
    left = await _left(ours)
    findings.figures["processes_left"] = len(left)
    findings.check(
        "I11", not left, lambda: f"left over after the runtime was stopped: {'; '.join(map(_look_at, left))}"
    )


def _note_latencies(bank: Living) -> None:
    latencies, figures = bank.history.latencies_ms(), bank.findings.figures
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)):
        figures[f"latency_ms_{name}"] = quantile(latencies, share)
    for name, times in bank.history.refused.items():
        figures[f"told {name}"] = times
    figures["session_reads"] = bank.sessions


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float) -> bool:
    """Wait for a fact, at most so long; whether it came."""
    end_s = time.monotonic() + timeout_s
    while not await holds():
        if time.monotonic() > end_s:
            return False
        await asyncio.sleep(_LOOK_S)
    return True


async def _left(pids: set[int]) -> set[int]:
    async def gone() -> bool:
        return not pids & pids_titled("Actor")

    await until(gone, _GONE_TIMEOUT_S)
    return pids & pids_titled("Actor")


def _look_at(pid: int) -> str:
    """What a process is doing that should have ended: whether it was killed and cannot end, or nobody has ended it."""
    told = ("State", "SigPnd", "ShdPnd")
    with contextlib.suppress(OSError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - _started_s(pid)
        state = ", ".join(" ".join(line.split()) for line in lines if line.startswith(told))
        return f"process {pid}, {title}, started {age_s:.0f} s ago, {state}"
    return f"process {pid}, which has ended by now"


def _started_s(pid: int) -> float:
    """Seconds from the boot of the machine to the start of a process."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def pids_titled(part: str, below: int | None = None) -> set[int]:
    """The workers of Ray below a process (this one) whose title has this in it: `ray::PartitionActor.execute`."""
    found: set[int] = set()
    for pid in processes_below(os.getpid() if below is None else below):
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            if title.startswith("ray::") and part in title:
                found.add(pid)
    return found
