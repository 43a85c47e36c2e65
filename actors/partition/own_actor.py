"""AggregateActor: one aggregate in an actor of its own, its own process, resources and crash domain.

Step [4] for aggregates placed as `OwnActor`. Before it: the router ([2]) sends the aggregate's commands here once its
partition has redirected them. After it: the partition appends ([5]) for it, in one call per batch.

It runs the same write loop as a partition does, over a log that is reached through Ray (`PartitionLog`). One call per
batch is enough because duplicates are found while appending: the call carries the ids of the whole batch, the
partition appends only if none of them is stored, and else answers with those that are; the loop then decides again.

Rules kept here: the partition is the only way to append; when it reports that this actor is not the valid one any more,
or does not answer in time, the actor sends its callers back there and ends itself: what was decided is forgotten.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple, cast

import ray
from ray.actor import ActorProxy

from ...runtime.batch_queue import BATCH_BY_RAY_S
from ...runtime.checks.standing import Alarms, StandingCheck, StreamChecks
from ...runtime.domain.aggregate import OwnActor
from ...runtime.encoding.envelope import PackedCommand, unpack_batch
from ...runtime.encoding.outcome import Answered, Redirect, encode_answer
from ...runtime.errors import Fenced, HandlerFailed, RayfoldError
from ...runtime.in_hand import InHand
from ...runtime.log.contract import STREAM_PAGE_BYTES, Append, Appended, CommandEntry, Log, Reader, Snapshot
from ...runtime.log.environment import COMMIT_WEIGHT
from ...runtime.stream import StreamId
from ...runtime.write.write_loop import AlreadyStored, WriteLoop
from ..cluster.environment import OWN_ACTOR_SLOT
from ..cluster.retry import Patience, retried_now
from ..cluster.rpc import Method, Reply, call_now
from ..os_process.actor_log import begin_log
from ..os_process.gc_tuning import tune_gc
from ..os_process.watchdog import ProcessWatchdog, in_hand_of, record_path
from ..packaging.shipping import unship
from ..settings import Settings
from .request_order import RequestOrder

__all__ = [
    "AggregateActor",
    "AppendAnswer",
    "AppendRequest",
    "OwnActorPlan",
    "PartitionLog",
    "append_for",
    "start_own_actor",
]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_SOON_S: Final = 0.1
"""What a batch may take, without its append, for its commands to be decided in a partition, where others wait."""

_CAREFUL_MAX: Final = 1_000
"""Commands that are reported to the partition one by one, a call each, after a process has ended: far more than can
have been in flight at it."""

_REPORT_TIMEOUT_S: Final = 2.0

_READ_ATTEMPTS: Final = 3
"""Loading an aggregate is only reading: it may be tried again while the partition restarts."""


@dataclass(frozen=True, slots=True)
class OwnActorPlan:
    """All that an own actor needs."""

    partition: int
    stream: StreamId
    name: str
    home: ActorProxy[Any]
    catalogue: bytes
    """The application's classes; see `shipping.py`."""
    settings: Settings
    careful: bool = False
    """The one before has ended while it decided: report each command to the partition before it is decided."""


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """What an own actor asks of its partition. One object, because Ray pickles each tuple of a list by itself."""

    actor: str
    stream: StreamId
    appends: Sequence[Append]
    ids: Sequence[bytes]
    """The ids of the whole batch, those of refused commands too: nothing is appended if one of them is stored."""


@dataclass(frozen=True, slots=True)
class AppendAnswer:
    """What a partition answers to an own actor: one of the two is filled."""

    appended: list[Appended]
    """Where the events are now, without their records, which the partition broadcasts."""
    stored: dict[bytes, CommandEntry]
    """Nothing was appended, because these command ids are stored already."""


class AggregateActor:
    """One aggregate, deciding in a process of its own."""

    def __init__(self, plan: OwnActorPlan) -> None:
        begin_log()
        self._plan = plan
        self._log = PartitionLog(plan)
        self._attempts = RequestOrder()
        self._deciding = threading.Lock()
        """Held while commands are decided, and while the resident is copied for the standing check."""
        self._loop: WriteLoop | None = None
        """From `start` or the first command on, and so is the check."""
        self._check: StandingCheck | None = None
        self._known_quick: set[str] = set()
        """Names of commands that were decided quickly, as reported to the partition."""

    @ray.method
    def start(self) -> int:
        """The process id: the partition hands the aggregate over once it has this answer."""
        self._started()
        return os.getpid()

    def _started(self) -> WriteLoop:
        if self._loop is None:
            plan, catalogue = self._plan, unship(self._plan.catalogue)
            in_hand = _Careful(plan) if plan.careful else in_hand_of(plan.name)
            self._log.in_hand = in_hand
            self._loop = WriteLoop(plan.partition, self._log, catalogue, residents_max=1, in_hand=in_hand)
            ProcessWatchdog(in_hand, plan.settings.decide_max_s, self._took_too_long, native=plan.name)
            tune_gc()
            where, residents = f"in its own actor, of partition {plan.partition}", self._loop.residents
            reader = cast(Reader, PartitionLog(plan))  # of its own: it only reads streams
            alarms = _AlarmsOfPartition(plan)
            streams = StreamChecks(catalogue, reader, where, alarms, lambda: self._deciding, residents.distrust)

            def checks(pause: Callable[[], None]) -> Iterator[None]:
                streams.resident(residents, pause)
                yield

            self._check = StandingCheck(where, plan.settings.standing_check_share, checks)
        return self._loop

    @ray.method
    def execute(self, client: bytes, attempt: int, predecessor: int, blob: bytes) -> bytes:
        """A batch of packed commands in, one outcome for each out; empty if it is not this batch's turn."""
        outcomes = self._attempts.run(client, attempt, predecessor, lambda: self._execute(list(unpack_batch(blob))))
        return b"" if outcomes is None else encode_answer(outcomes, BATCH_BY_RAY_S + self._log.commit_s)

    def _execute(self, commands: Sequence[PackedCommand]) -> list[Answered]:
        loop = self._started()
        outcomes: list[Answered] = [Redirect("")] * len(commands)
        if not self._log.given_up:
            began_s = time.monotonic() - self._log.waited_s
            with self._deciding:
                decided = loop.execute(commands).outcomes
            if not self._log.given_up:
                outcomes = [*decided]
            if fresh := {command.name for command in commands} - self._known_quick:
                self._report_known_quick(fresh, time.monotonic() - self._log.waited_s - began_s, outcomes)
        return outcomes

    def _report_known_quick(self, names: set[str], took_s: float, outcomes: Sequence[Answered]) -> None:
        """What was decided soon, the partition may decide itself for another aggregate."""
        self._known_quick |= names
        if took_s > _SOON_S or any(isinstance(outcome, HandlerFailed) for outcome in outcomes):
            return
        plan, version = self._plan, max((getattr(outcome, "version", 0) for outcome in outcomes), default=0)
        version = version or int(bool(self._log.read_stream(plan.stream, limit=1)))
        with suppress(Exception):  # it costs time, the next time
            call = plan.home.known_quick.remote(plan.stream, plan.name, sorted(names), version)
            ray.get(call, timeout=plan.settings.attempt_timeout_s)

    def _took_too_long(self, command_id: bytes) -> None:
        plan = self._plan
        ray.get(plan.home.took_too_long.remote(plan.stream, plan.name, command_id), timeout=_REPORT_TIMEOUT_S)


class _Careful(InHand):
    """Reports to the partition what is in hand, so that it knows if this process ends as the last one did."""

    def __init__(self, plan: OwnActorPlan) -> None:
        path = None
        with suppress(OSError, RayfoldError):
            path = record_path(plan.name)
        super().__init__(path)
        self._plan = plan

    def begin(self, key: bytes, patience: int = 1) -> None:
        """See `InHand`."""
        super().begin(key, patience)
        if self.count <= _CAREFUL_MAX:
            plan = self._plan
            with self.waiting():
                call = plan.home.deciding.remote(plan.stream, plan.name, key)
                ray.get(call, timeout=plan.settings.attempt_timeout_s)
            super().begin(key, patience)


class _AlarmsOfPartition(Alarms):
    """The alarms of an own actor are kept by its partition, which outlives it."""

    def __init__(self, plan: OwnActorPlan) -> None:
        super().__init__()
        self._plan = plan

    def raise_alarm(self, kind: str, subject: str, what: str) -> None:
        """Log it here, and notify the partition."""
        super().raise_alarm(kind, subject, what)
        self._plan.home.found_wrong.remote(kind, self._plan.stream, subject, what)


class PartitionReader(Protocol):
    """The part of a partition's actor that reads its log for others."""

    @property
    def secret(self) -> Method[Reply[bytes]]: ...
    @property
    def read(self) -> Method[Reply[list[bytes]], int, int, int]: ...
    @property
    def read_stream(self) -> Method[Reply[list[bytes]], StreamId, int, int | None, int | None, int]: ...
    @property
    def find_snapshot(self) -> Method[Reply[Snapshot | None], StreamId, bytes, int | None]: ...


class PartitionLog:
    """The log as an own actor sees it: its partition, over Ray."""

    def __init__(self, plan: OwnActorPlan) -> None:
        self.given_up = False
        """The partition refused or did not answer: this actor is not the valid one, and nothing it decides counts."""
        self.commit_s = 0.0
        """What an append takes, there and back: a moving average."""
        self.waited_s = 0.0
        """For the partition, in all."""
        self.in_hand = InHand(None)
        """What is being decided, which may need to be loaded first."""
        self._plan = plan
        self._ids: list[bytes] = []

    def activate(self) -> int:
        """The epoch is the partition's; an own actor is fenced by its name."""
        return 0

    def find_commands(self, command_ids: Sequence[bytes]) -> dict[bytes, CommandEntry | RayfoldError]:
        """Not known here: the ids are asked about with the next append."""
        self._ids.extend(command_ids)
        return {}

    def declare(self, shapes: Mapping[tuple[str, int], bytes]) -> None:
        """The partition has declared them."""

    def secret(self) -> bytes:
        """Of the partition's log."""
        return self._read(lambda home: home.secret)

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """Records of the partition's log, read by it."""
        return self._read(lambda home: home.read, after, limit, bytes_max)

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        """One call to the partition. Raises `AlreadyStored`, and what `Log.append` raises."""
        ids, self._ids = self._ids, []
        plan, asked_s = self._plan, time.perf_counter()
        asked = plan.home.append.remote(AppendRequest(plan.name, plan.stream, appends, ids))
        try:
            reply: Reply[AppendAnswer] = ray.get(asked, timeout=plan.settings.attempt_timeout_s)
        except (ray.exceptions.RayError, TimeoutError) as error:
            self.given_up = True
            raise Fenced(plan.name, epoch, epoch) from error
        finally:
            self.waited_s += time.perf_counter() - asked_s
        self.commit_s += (time.perf_counter() - asked_s - self.commit_s) * COMMIT_WEIGHT
        try:
            answer = reply.unwrap()
        except Fenced:
            self.given_up = True
            raise
        if answer.stored:
            raise AlreadyStored(answer.stored)
        return answer.appended

    def read_stream(
        self,
        stream: StreamId,
        from_version: int = 1,
        to_version: int | None = None,
        limit: int | None = None,
        bytes_max: int = STREAM_PAGE_BYTES,
    ) -> list[bytes]:
        """The records of the aggregate, read by its partition."""
        return self._read(lambda home: home.read_stream, stream, from_version, to_version, limit, bytes_max)

    def find_snapshot(self, stream: StreamId, schema: bytes, at_or_before: int | None = None) -> Snapshot | None:
        """The latest usable snapshot of the aggregate, found by its partition."""
        return self._read(lambda home: home.find_snapshot, stream, schema, at_or_before)

    def _read(self, method: Callable[[PartitionReader], Method[Reply[T], *Arguments]], *arguments: *Arguments) -> T:
        home: Any = self._plan.home
        timeout_s, asked_s = self._plan.settings.attempt_timeout_s, time.perf_counter()
        lost = (ray.exceptions.ActorUnavailableError, TimeoutError)
        try:
            with self.in_hand.waiting():
                return retried_now(
                    lambda _: call_now(method(home), *arguments, timeout_s=timeout_s),
                    Patience(attempts_max=_READ_ATTEMPTS, pause_s=0.0, again=lost, never=()),
                )
        except lost as error:
            self.given_up = True
            raise Fenced(self._plan.name, 0, 0) from error
        finally:
            self.waited_s += time.perf_counter() - asked_s


def append_for(writer: Log, epoch: int, request: AppendRequest) -> AppendAnswer:
    """The partition's half of `PartitionLog.append`. The records of what was appended are still in the answer. Raises
    what `Log.append` raises."""
    stored: dict[bytes, CommandEntry] = {}
    for command_id, entry in writer.find_commands(request.ids).items():
        if isinstance(entry, RayfoldError):
            raise entry
        stored[command_id] = entry
    return AppendAnswer([] if stored else writer.append(epoch, request.appends), stored)


def start_own_actor(
    plan: OwnActorPlan, placement: OwnActor, namespace: str, *, counts_slot: bool
) -> tuple[Any, Future[int]]:
    """A named actor for the aggregate, starting in the background, and its process id once it is up.

    It is never restarted: when it is lost, its partition takes the aggregate back at once and starts a new one.
    It ends with its partition's process, as Ray ends every actor whose owner is gone.
    """
    options = ray.remote(AggregateActor).options(
        name=plan.name,
        namespace=namespace,
        num_cpus=placement.num_cpus,
        num_gpus=placement.num_gpus,
        resources={OWN_ACTOR_SLOT: 1} if counts_slot else None,
        max_restarts=0,
        max_task_retries=0,
        enable_task_events=False,
    )
    actor = options.remote(plan)
    return actor, actor.start.remote().future()
