"""Status: what a running system consists of and how it does, for people, tests, metrics and `rayfold status`.

Beside all steps. Who asks is the runtime itself (`system/local.py`, at every tick) or another process
(`observe/attach.py`).

Rules kept here, so that the lag is right:
- whether an actor answers is separate from how far it is. One that does not answer has `alive=False` and an *unknown*
  lag (None), never a lag of 0
- the end of a log comes from the log itself, read here, and not from a projector that may be behind it
- the log is read before any actor is asked: what is counted as missing was committed by then and not applied later
- a call that was not answered is waited for and not repeated: a frozen process is not buried in questions
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, NamedTuple

from ...runtime.checks.standing import Alarm
from ...runtime.errors import RayfoldError, StoreError, Unavailable
from ...runtime.log.format import decode_record
from ...runtime.processes.courier import CourierFacts
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.stream import StreamId
from ..cluster.names import ProjectorName, projector_named
from ..nodes.store import AnyStore, ClusterStore
from ..partition.handle import PartitionHandle
from ..partition.status_records import PartitionAnswer
from ..projection.handle import ProjectorHandle
from ..projection.status_records import ProjectorAnswer

__all__ = [
    "NodeStatus",
    "Observer",
    "OwnActorStatus",
    "PartitionStatus",
    "ProjectorStatus",
    "SinkStatus",
    "Status",
]

ANSWER_TIMEOUT_S: Final = 5.0
"""After which a process counts as not answering. A partition answers between two batches, a projector at once."""

_RATE_SAMPLES_MAX: Final = 6
"""The samples that a rate is taken over: with one at every tick, the last ten seconds."""

_RATE_SHORTEST_S: Final = 0.5
"""Seconds between two samples: answers closer together give no useful rate."""


class PartitionStatus(NamedTuple):
    """One partition's actor and log."""

    partition: int
    pid: int
    """The process id in its last answer; 0 if it never gave one."""
    epoch: int
    """The epoch of its activation; grows by one whenever the actor starts."""
    head: int
    """Position of the last committed event, read from the log itself."""
    alive: bool = True
    """Whether it answered."""
    answered_s: float | None = 0.0
    """Seconds since it last answered; None if it never did."""
    commands: int = 0
    """The commands that this activation was given, refused ones and repeats too."""
    batches: int = 0
    """The batches that they came in."""
    commands_per_s: float | None = None
    """Over the last ten seconds or so; None while there is no earlier sample."""
    log_error: str = ""
    """Why the log could not be read here, if it could not; then `head` is the partition's answer."""
    node: str = ""
    """The node that it is at home on, if the store is spread over nodes."""
    alarms_raised: int = 0
    """States and snapshots that differed from the log, since its actor started."""
    alarms: tuple[Alarm, ...] = ()
    """The first 100 of them."""
    courier: CourierFacts | None = None
    """How far what is decided here is carried out; None where there is no process, or it is not known."""


class OwnActorStatus(NamedTuple):
    """One aggregate with an actor of its own now."""

    stream: StreamId
    name: str
    """Its name in Ray."""
    pid: int
    partition: int


class ProjectorStatus(NamedTuple):
    """One replica of one part of one projection."""

    projection: str
    replica: int
    pid: int
    """The process id in its last answer; 0 if it never gave one."""
    positions: dict[int, int]
    """Partition -> position up to which the read model has come; of its last answer."""
    failed: str
    """Why the projection has stopped; empty while it works."""
    part: int = 0
    """The part of a projection that is divided by key; 0 for any other."""
    alive: bool = True
    """Whether it answered. Where this is False, how far it is behind is unknown."""
    answered_s: float | None = 0.0
    """Seconds since it last answered; None if it never did."""
    behind_events: int | None = None
    """Committed events that it has not come past; None if that is unknown."""
    behind_s: float | None = None
    """Age of the oldest of those, by the writer's clock; 0 if there are none, None if that is unknown."""
    events_per_s: float | None = None
    """Applied over the last ten seconds or so; None while there is no earlier sample."""
    events_applied: int = 0
    """By this process, since it opened the read model."""
    quarantined: tuple[Quarantined, ...] = ()
    """Events that a handler raised on and that were set aside."""
    replaying: bool = False
    """Whether it still takes in events that were there when it was opened."""
    build: str = ""
    """Which building of the read model this is: `v2`. There are two of them while a projection is rebuilt."""
    node: str = ""
    """The node that it runs on, if the store is spread over nodes."""
    alarms_raised: int = 0
    """How often its read model differed from the log, since its actor started."""
    alarms: tuple[Alarm, ...] = ()
    """The first 100 of them."""

    @property
    def state(self) -> str:
        """One word: `stopped` by an error, `silent`, `replaying`, `behind` by over a second, or `live`."""
        if not self.alive:
            return "silent"
        if self.failed:
            return "stopped"
        if self.replaying:
            return "replaying"
        return "live" if self.behind_s is not None and self.behind_s < 1 else "behind"


class NodeStatus(NamedTuple):
    """One node of a cluster."""

    name: str
    node_id: str
    """The id of its data folder."""
    address: str
    """Where Ray has seen it last; empty if it never has."""
    up: bool
    gone_since: str
    """ISO 8601, UTC; empty while it is up, and where the time is unknown."""
    partitions: tuple[int, ...]
    """The partitions that are at home there."""
    drained: bool
    """It is to have none."""
    trouble: str
    """Why its share of the store cannot be used, though it is up."""


class SinkStatus(NamedTuple):
    """One sink."""

    name: str
    pid: int
    """Of the process of the sinks; 0 if it never answered."""
    alive: bool
    """Whether that answered. Where this is False, the rest is unknown."""
    on: bool | None = None
    """Whether it is switched on; None if that is unknown."""
    positions: dict[int, int] = {}  # noqa: RUF012 - a tuple's default
    """Partition -> position up to which everything was confirmed."""
    behind_events: int | None = None
    """Events of the log, of any type, that it has not come past; None if that is unknown."""
    published: int = 0
    """Events since its process was started."""
    failing_s: float = 0.0
    """For how long nothing was confirmed although it was tried, in seconds; 0 if all is well."""
    failure: str = ""
    """Why not; empty if all is well."""
    unconfirmed: tuple[str, ...] = ()
    """Ids of the events that were tried and not confirmed."""


class Status(NamedTuple):
    """A system at one moment. Own actors of a partition that does not answer are missing.

    Example:
        for projector in (await bank.status()).projectors:
            print(projector.projection, projector.state, projector.behind_events, projector.behind_s)
    """

    partitions: list[PartitionStatus]
    own_actors: list[OwnActorStatus]
    projectors: list[ProjectorStatus]
    nodes: list[NodeStatus] = []
    """The nodes of a store that is spread over nodes."""
    sinks: list[SinkStatus] = []
    """What publishes events to other systems."""


class _Seen:
    """What is known of one actor: its last answer, when that was, and how its count grew."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.answered_at_s = 0.0
        self.count = 0
        self.counts: deque[tuple[float, int]] = deque(maxlen=_RATE_SAMPLES_MAX)

    def answered(self, answer: Any, count: int) -> None:
        """It has answered just now; `count` is what the rate is about."""
        now_s = time.monotonic()
        if count < self.count:
            self.counts.clear()  # it was started again and counts from 0
        if not self.counts or now_s - self.counts[-1][0] >= _RATE_SHORTEST_S:
            self.counts.append((now_s, count))
        self.answer, self.answered_at_s, self.count = answer, now_s, count

    @property
    def silent_s(self) -> float | None:
        return None if self.answer is None else time.monotonic() - self.answered_at_s

    @property
    def per_s(self) -> float | None:
        if not self.counts:
            return None
        since_s, counted = self.counts[0]
        over_s = self.answered_at_s - since_s
        return (self.count - counted) / over_s if over_s >= _RATE_SHORTEST_S else None


class Observer:
    """Asks the actors of one store for their state, and keeps their answers. Used on one event loop only."""

    def __init__(
        self,
        store: AnyStore,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """`now_us`: the clock for ages, microseconds since 1970."""
        self._store = store
        self._now_us = now_us
        self._answer_timeout_s = answer_timeout_s
        self._seen: dict[str, _Seen] = {}
        """By actor, those of the last look alone."""
        self._unanswered: dict[str, asyncio.Future[Any]] = {}

    async def observe(
        self, partitions: Mapping[int, PartitionHandle], projectors: Mapping[str, ProjectorHandle]
    ) -> Status:
        """Everything at one moment. Takes as long as the slowest answer, five seconds if one is silent. `projectors`:
        by name; what has another name is none."""
        heads = await self._heads()
        seats = {name: seat for name in projectors if (seat := projector_named(name)) is not None}
        actors: dict[str, PartitionHandle | ProjectorHandle] = {
            f"partition {number}": actor for number, actor in partitions.items()
        }
        actors |= {name: projectors[name] for name in seats}
        seen = self._seen = {name: self._seen.get(name) or _Seen() for name in actors}
        for gone in self._unanswered.keys() - actors.keys():
            del self._unanswered[gone]
        asking = [self._ask(name, seen[name], actor) for name, actor in actors.items()]
        alive = dict(zip(actors, await asyncio.gather(*asking), strict=True))
        listed, own = [], []
        for number in partitions:
            name = f"partition {number}"
            listed.append(_partition(number, seen[name], alive[name], heads[number]))
            if alive[name]:
                answer: PartitionAnswer = seen[name].answer
                own += [OwnActorStatus(stream, actor, pid, number) for stream, actor, pid in answer.own_actors]
        now_us = self._now_us()
        asked = [(seat, seen[name], alive[name], heads, self._store, now_us) for name, seat in seats.items()]
        return Status(listed, own, [await asyncio.to_thread(_projector, *one) for one in asked])

    async def _heads(self) -> dict[int, int | RayfoldError]:
        """Where the logs end. On this machine that takes microseconds each, elsewhere calls."""
        numbers = range(self._store.partitions)
        if isinstance(self._store, ClusterStore):
            heads = await asyncio.gather(*(asyncio.to_thread(_head, self._store, number) for number in numbers))
            return dict(zip(numbers, heads, strict=True))
        return {number: _head(self._store, number) for number in numbers}

    async def _ask(self, name: str, seen: _Seen, actor: PartitionHandle | ProjectorHandle) -> bool:
        """Whether it answers in time; the answer is noted down. An earlier call that still waits is waited for first:
        its answer may be older than this question, so that it does not do instead."""
        deadline_s = time.monotonic() + self._answer_timeout_s
        earlier = self._unanswered.get(name)
        if earlier is not None and not await _done(earlier, self._answer_timeout_s):
            return False
        with suppress(Exception):  # the actor is gone, or is being started again
            sent: Future[Any] = actor.status.remote().future()
            self._unanswered[name] = asked = asyncio.wrap_future(sent)
            asked.add_done_callback(_taken)
            if not await _done(asked, deadline_s - time.monotonic()):
                return False
            if self._unanswered.get(name) is asked:
                del self._unanswered[name]
            answer = asked.result().unwrap()
            seen.answered(answer, answer.handled)
            return True
        return False


async def _done(asked: asyncio.Future[Any], timeout_s: float) -> bool:
    """Whether it was answered in time, or failed. It goes on waiting otherwise."""
    await asyncio.wait({asked}, timeout=max(timeout_s, 0))
    return asked.done()


def _taken(asked: asyncio.Future[Any]) -> None:
    """The failure was handled already: a late one without a waiting caller is ignored."""
    if not asked.cancelled():
        asked.exception()


def _partition(number: int, seen: _Seen, alive: bool, head: int | RayfoldError) -> PartitionStatus:
    answer: PartitionAnswer = seen.answer or PartitionAnswer(0, 0, 0, [], 0, 0)
    return PartitionStatus(
        number,
        answer.pid,
        answer.epoch,
        head if isinstance(head, int) else answer.head,
        alive,
        0.0 if alive else seen.silent_s,
        answer.commands,
        answer.batches,
        seen.per_s if alive else None,
        "" if isinstance(head, int) else str(head),
        alarms_raised=answer.alarms_raised,
        alarms=answer.alarms,
        courier=answer.courier if alive else None,
    )


def _projector(
    seat: ProjectorName,
    seen: _Seen,
    alive: bool,
    heads: Mapping[int, int | RayfoldError],
    store: AnyStore,
    now_us: int,
) -> ProjectorStatus:
    answer: ProjectorAnswer = seen.answer or ProjectorAnswer(0, {})
    behind = _behind(store, answer.positions, heads, now_us) if alive and answer.positions else (None, None)
    return ProjectorStatus(
        seat.projection,
        seat.replica,
        answer.pid,
        answer.positions,
        answer.failed,
        seat.part,
        alive,
        0.0 if alive else seen.silent_s,
        *behind,
        seen.per_s if alive else None,
        answer.events_applied,
        answer.quarantined,
        answer.replaying,
        seat.build,
        answer.node_id,
        answer.alarms_raised,
        answer.alarms,
    )


def _head(store: AnyStore, partition: int) -> int | RayfoldError:
    """Where the log ends, from the log. It is opened for this only, which takes 0.2 ms: within one process LMDB refuses
    to open for writing what is open for reading, and the status must not block an opening."""
    try:
        reader = store.open_reader(partition)
        try:
            return reader.head()
        finally:
            reader.close()
    except (StoreError, Unavailable) as error:
        return error


def _behind(
    store: AnyStore, positions: Mapping[int, int], heads: Mapping[int, int | RayfoldError], now_us: int
) -> tuple[int | None, float | None]:
    """How many of the events that were there are missing, and the age of the oldest; unknown without the logs."""
    events, oldest_us = 0, now_us
    for partition, head in heads.items():
        if not isinstance(head, int):
            return None, None
        position = positions.get(partition, 0)
        if position < head:
            events += head - position
            try:
                reader = store.open_reader(partition)
                try:
                    [record] = reader.read(position, 1)
                finally:
                    reader.close()
                oldest_us = min(oldest_us, decode_record(record).recorded_at_us)
            except (StoreError, Unavailable):
                return events, None
    return events, (now_us - oldest_us) / 1_000_000
