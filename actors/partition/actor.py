"""PartitionActor: one Ray actor per partition, the only writer of its log.

Step [3] of the write path. Before it: the router ([2]) sends a batch, through Ray or, on the same machine, over a
socket (`socket_server.py`). After it: the write loop ([4], [5]) in `runtime/write/write_loop.py`, whose records go out
through the broadcast ([6]).

What is here and not there: who lives in an actor of their own now (`own_actors.py`), and what is stale
(`request_order.py`).

Rules kept here: no work in `__init__` that can fail, since such an actor is dead for ever; whatever changes something
waits for its turn, whichever thread it came on, so it happens one at a time (`fifo_lock.py`); reads have threads of
their own and never wait for it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import ray

from ...runtime.batcher import BATCH_BY_RAY_S, BATCH_BY_ROAD_S
from ...runtime.checks.standing import Alarms, StandingCheck, StreamChecks
from ...runtime.domain.aggregate import OwnActor
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.encoding.envelope import PackedCommand, unpack_batch
from ...runtime.encoding.error_codec import from_wire, to_wire
from ...runtime.encoding.outcome import Answered, Later, Redirect, encode_answer
from ...runtime.errors import Fenced, HandlerFailed, RayfoldError, Refusal, Sealed, StoreError
from ...runtime.in_hand import DEATHS_MAX, KEY_BYTES, REFUSED_S, Fallen, InHand
from ...runtime.log.contract import Snapshot
from ...runtime.log.sealing import Seal, Tenure
from ...runtime.log.writer import LmdbLog
from ...runtime.printable import printable_log
from ...runtime.receipt import Receipt
from ...runtime.stream import StreamId
from ...runtime.write.loading import StillLoading
from ...runtime.write.residents import SavedResident
from ...runtime.write.write_loop import WriteLoop
from ..cluster.environment import OWN_ACTOR_SLOT
from ..cluster.node import verify_node
from ..nodes.store import AnyStore, ClusterStore
from ..packaging.shipping import unship
from ..process.actor_log import begin_log
from ..process.gc_tuning import tune_gc
from ..process.watchdog import Watch, fallen_with, in_hand_of
from ..settings import Settings
from .answers import PartitionAnswer
from .broadcast import Broadcast
from .fifo_lock import FifoLock
from .log_owner import LogOwner
from .own_actor import AppendAnswer, AppendRequest, OwnActorPlan, append_for, start_own_actor
from .own_actors import OwnActors
from .request_order import RequestOrder
from .socket_server import SocketServer, open_socket_server

__all__ = ["PartitionActor", "PartitionPlan", "start_partition"]

log = printable_log(__name__)


_LOADING_S: Final = 0.1
"""After which a command to an aggregate that is being loaded is to come again: loading aside takes from 50 ms to many
seconds, and each time that it comes too early costs its client's other commands about a millisecond."""


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """All that a partition needs to start, and to start again after a crash."""

    number: int
    store: AnyStore
    catalogue: bytes
    """The application's classes; see `shipping.py`."""
    projectors: tuple[str, ...]
    """Names of the actors to broadcast to at first; not their handles, which Ray would keep in its object store."""
    name: str
    """Of the system: what the names of its actors begin with."""
    namespace: str
    settings: Settings
    counts_slots: bool
    node_id: str = ""
    """Where its log is, if the store is spread over nodes; it is opened there and nowhere else."""
    nodes: int = 1
    """That the system is spread over: own actors run on any of them."""


_SLOTS_S: Final = 0.1

_PROVEN_MAX: Final = 10_000
_CONFINED_MAX: Final = 1_000
"""Far more than an application has commands, and than processes can end in ten minutes."""


class PartitionActor:
    """One log, one writer, thousands of aggregates."""

    def __init__(self, plan: PartitionPlan) -> None:
        begin_log()
        self._plan = plan
        self._log: LmdbLog | None = None
        self._gate: SocketServer | None = None
        self._catalogue: Catalogue | None = None
        self._saved: list[SavedResident] = []
        self._attempts = RequestOrder()
        self._commands = self._batches = 0
        self._alarms = Alarms()
        self._check: StandingCheck | None = None
        self._owner = LogOwner(
            f"partition {plan.number}",
            open_log=self._open_log,
            let_go=self._let_go,
            serves=lambda: self._log is not None,
            map_here=lambda: self._spread_store().map_here(),
        )
        self._in_hand = InHand(None)
        self._watch: Watch | None = None
        self._proven: set[tuple[str, str]] = set()
        """Aggregate types and commands of theirs that an own actor has decided, and soon: others may be decided here
        while their own actor starts."""
        self._slots = True, 0.0
        """Whether there was room for an own actor at the last look, and when that was."""
        self._confined: dict[StreamId, float] = {}
        """Aggregates that are decided in an own actor only, until then (`time.monotonic`): a process has ended on
        them."""
        self._deciding: dict[StreamId, tuple[str, bytes]] = {}
        """Of careful own actors: their name, and the command that each is deciding."""
        self._writing = FifoLock()
        """Taken by everything but reads: Ray's own thread for calls, and one for each connection of the gate."""

    @ray.method
    def open(self) -> list[Any]:
        """Open the log and take it over. Returns an error as `to_wire` packs it, or nothing. Safe to repeat."""
        with self._writing:
            try:
                self._opened()
            except RayfoldError as error:
                return to_wire(error)
        return []

    @ray.method
    def prepare(self, saved: Sequence[SavedResident] = ()) -> list[Any]:
        """Load the application's code, which takes longest, before it is this actor's turn, and keep what the last
        actor has in memory. An error as `to_wire` packs it, or nothing."""
        self._saved += saved
        try:
            self._application()
        except RayfoldError as error:
            return to_wire(error)
        return []

    @ray.method
    def residents(self, first: int) -> list[SavedResident]:
        """Some of what is in memory, for the next actor to `prepare` with (see `Residents.saved`)."""
        with self._writing:
            self._opened()
            return self._loop.residents.saved(first)

    def _application(self) -> Catalogue:
        if self._catalogue is None:
            self._catalogue = unship(self._plan.catalogue)
        return self._catalogue

    @ray.method
    def road(self) -> str:
        """The path of the socket at which this activation takes commands too (see `socket_server.py`); empty if it has
        none."""
        with self._writing:
            self._opened()
        return "" if self._gate is None else str(self._gate.path)

    @ray.method
    def execute(self, client: bytes, attempt: int, predecessor: int, blob: bytes) -> bytes:
        """Step [3]: a batch of packed commands in, one outcome for each out; empty if it is not this batch's turn."""
        return self._execute_in_turn(BATCH_BY_RAY_S, client, attempt, predecessor, blob)

    def _execute_in_turn(self, way_s: float, client: bytes, attempt: int, predecessor: int, blob: bytes) -> bytes:
        """Whichever way the batch came, through Ray or over a road, which takes that much of every batch."""
        with self._writing:
            answers = self._execute(client, attempt, predecessor, blob)
            commit_s = 0.0 if self._log is None else self._log.environment.commit_s
        return b"" if answers is None else encode_answer(answers, way_s + commit_s)

    def _execute(self, client: bytes, attempt: int, predecessor: int, blob: bytes) -> Sequence[Answered] | None:
        if not self._attempts.admit(client, attempt, predecessor):
            return None
        commands = list(unpack_batch(blob))
        try:
            self._opened()
        except Sealed:
            self._owner.handed_over = True
        except RayfoldError as error:
            return [error] * len(commands)
        if self._owner.handed_over:
            return [Fenced(f"partition {self._plan.number}", 0, 0)] * len(commands)
        self._take_over()
        self._count(len(commands))
        answers = self._answer_fallen(commands) if self._in_hand.fallen or self._confined else self._answer(commands)
        kinds = set(map(type, answers))
        if Fenced in kinds:
            self._end_fenced()
        if StillLoading in kinds:
            answers = [Later(_LOADING_S) if isinstance(answer, StillLoading) else answer for answer in answers]
        if Redirect in kinds or StillLoading in kinds:  # those are sent again, before what is on its way behind them
            self._attempts.bar(client)
        return answers

    def _answer(self, commands: Sequence[PackedCommand]) -> list[Answered]:
        """Decide what lives here, and say of the rest where it lives."""
        homes = self._homes.by_stream
        later = self._unproven(commands) if self._own_placements else ()
        here = [command for command in commands if command.stream not in homes] if homes else commands
        if later:
            here = [command for command in here if command.stream not in later]
        self._loop.residents.begin_batch()
        batch = self._loop.execute(here)
        self._broadcast.send(batch.records)
        for outcome in batch.outcomes if self._own_placements else ():
            if isinstance(outcome, Receipt) and outcome.stream.type in self._own_placements:
                self._homes.consider(outcome.stream, self._own_placements[outcome.stream.type])
        if len(here) == len(commands):
            return [*batch.outcomes]
        outcomes = iter(batch.outcomes)
        return [
            Redirect(homes[command.stream].name)
            if command.stream in homes
            else (StillLoading(str(command.stream)) if command.stream in later else next(outcomes))
            for command in commands
        ]

    def _unproven(self, commands: Sequence[PackedCommand]) -> Container[StreamId]:
        """Have aggregates decided in their own actor that get a command which is not known to be quick. Returns those
        that have to wait until there may be one; without room they are decided here."""
        later = set[StreamId]()
        for command in commands:
            stream = command.stream
            if stream.type not in self._own_placements or (stream.type, command.name) in self._proven:
                continue
            if not self._confine(stream, careful=False) and self._homes.may_soon_begin():
                later.add(stream)
        return later

    def _confine(self, stream: StreamId, *, careful: bool) -> bool:
        """Have this aggregate decided in its own actor from now on, and wait for that. False if there is no room."""
        if stream in self._homes.by_stream:
            return True
        if not self._homes.may_begin() or not self._slots_free():
            return False
        began = self._homes.begin(stream, self._own_placements[stream.type], careful=careful)
        if began is not None:
            self._loop.residents.forget(stream)
        return began is not None

    def _slots_free(self) -> bool:
        """Whether there is room for an own actor on any node, as Ray knows it: a call of a millisecond at a time."""
        if not self._plan.counts_slots:
            return True
        free, at_s = self._slots
        if time.monotonic() - at_s > _SLOTS_S:
            free = bool(ray.available_resources().get(OWN_ACTOR_SLOT, 0))
            self._slots = free, time.monotonic()
        return free

    def _answer_fallen(self, commands: Sequence[PackedCommand]) -> list[Answered]:
        """As `_answer`, after something has ended a process: what is not to be tried again is refused, and what was in
        hand at a death is decided in an own actor, if its aggregate may have one."""
        answers: dict[int, Answered] = {}
        now = time.monotonic()
        for stream in [stream for stream, until_s in self._confined.items() if until_s < now]:
            del self._confined[stream]
        for index, command in enumerate(commands):
            stream, own = command.stream, command.stream.type in self._own_placements
            fallen = self._in_hand.find(command.command_id) or self._in_hand.find(_content_key(command))
            if fallen is not None and fallen.refused:
                if fallen.key == command.command_id and self._in_hand.find(content := _content_key(command)) is None:
                    self._in_hand.note(content, stuck=fallen.stuck, deaths=DEATHS_MAX)  # under another id as well
                answers[index] = self._failed(command, fallen)
            elif own and (fallen is not None or stream in self._confined):
                self._confined.setdefault(stream, now + REFUSED_S)
                if not self._confine(stream, careful=True) and self._plan.settings.own_actors_max:
                    answers[index] = StillLoading(str(stream))
        rest = iter(self._answer([command for index, command in enumerate(commands) if index not in answers]))
        told = [answers[index] if index in answers else next(rest) for index in range(len(commands))]
        for command, answer in zip(commands, told, strict=True):
            if isinstance(answer, Receipt | Refusal):
                self._in_hand.forgive(command.command_id)
        return told

    def _failed(self, command: PackedCommand, fallen: Fallen) -> HandlerFailed:
        took = "it took longer than it may (settings: decide_max_s), and its process was ended for it"
        ended = "its process ended while it was being decided, more than once"
        what = f"{took if fallen.stuck else ended}; it is not tried again for {REFUSED_S / 60:g} minutes"
        return HandlerFailed(f"the code of {command.name}", str(command.stream), what)

    @ray.method
    def deciding(self, stream: StreamId, actor: str, command_id: bytes) -> None:
        """A careful own actor is about to decide this command."""
        with self._writing:
            if self._log is not None:
                self._deciding[stream] = actor, command_id

    @ray.method
    def took_too_long(self, stream: StreamId, actor: str, command_id: bytes) -> None:
        """An own actor ends itself because of this command."""
        with self._writing:
            if self._log is not None:
                self._in_hand.note(command_id, stuck=True)
                self._give_up_on(stream, actor, died=True)

    @ray.method
    def proven(self, stream: StreamId, actor: str, names: Sequence[str], version: int) -> None:
        """An own actor has decided commands of these names, and soon. The next aggregates that get one need not wait
        for their own actor. One that has no events needs no actor."""
        with self._writing:
            if self._log is None:
                return
            if len(self._proven) < _PROVEN_MAX:
                self._proven.update((stream.type, name) for name in names)
            if not version:
                self._homes.lost(stream, actor)

    @ray.method
    def append(self, request: AppendRequest) -> AppendAnswer:
        """Append what an own actor has decided, if that actor is the one at home (see `aggregate.py`)."""
        with self._writing:
            return self._append(request)

    def _append(self, request: AppendRequest) -> AppendAnswer:
        self._opened()
        if self._owner.handed_over or not self._homes.may_append(request.stream, request.actor):
            return AppendAnswer([], {}, to_wire(Fenced(request.actor, 0, self._loop.epoch)))
        self._count(len(request.appends))
        answer = append_for(self._writer, self._loop.epoch, request)
        if answer.error and answer.error[0] == Fenced.__name__:
            self._end_fenced()
        self._broadcast.send([record for done in answer.appended for record in done.records])
        return replace(answer, appended=[done._replace(records=()) for done in answer.appended])

    def _count(self, commands: int) -> None:
        """One more batch, for the status."""
        self._commands += commands
        self._batches += 1

    @ray.method
    def lost(self, stream: StreamId, actor: str, died: bool = False) -> None:
        """A client says that this own actor does not answer, or that its process has ended. From now on the aggregate
        lives here again; after a death its commands are decided in another own actor, one by one."""
        with self._writing:
            self._opened()
            self._give_up_on(stream, actor, died)

    def _give_up_on(self, stream: StreamId, actor: str, died: bool) -> None:
        home = self._homes.by_stream.get(stream)
        if home is None or home.name != actor:
            return
        if died and len(self._confined) < _CONFINED_MAX:
            self._confined[stream] = time.monotonic() + REFUSED_S
        careful, command_id = self._deciding.pop(stream, ("", b""))
        fallen = fallen_with(actor) if died else None
        if fallen is not None:
            self._in_hand.note(fallen.key, stuck=fallen.stuck)
        elif died and careful == actor:
            self._in_hand.note(command_id, deaths=DEATHS_MAX)
        self._homes.lost(stream, actor)

    @ray.method
    def tick(self) -> None:
        """What has to happen now and then: hand over to actors that came up, end idle ones."""
        with self._writing, suppress(StoreError):  # whoever sends a command, or asks for the head, is told
            self._tick()

    @ray.method
    def set_projectors(self, names: tuple[str, ...]) -> None:
        """Broadcast to these from now on. Told at every change, and with every tick, since a restart forgets it."""
        with self._writing, suppress(StoreError):
            self._opened()
            self._broadcast.set_projectors(names)

    @ray.method
    def status(self) -> PartitionAnswer:
        """Who this activation is, how far its log is, which own actors there are, and what it was given to do."""
        with self._writing:
            self._tick()
            up = [home for home in self._homes.by_stream.values() if home.started.done()]
            own = [(home.stream, home.name, home.started.result()) for home in up if not home.started.exception()]
            given = self._commands, self._batches, self._alarms.count, self._alarms.kept
            return PartitionAnswer(os.getpid(), self._loop.epoch, self._writer.head(), own, *given)

    @ray.method
    def seal(self, heir: str) -> tuple[list[Any], Seal | None]:
        """Take no command any more: the partition goes on at `heir` (see `moves.py`). An error as `to_wire` packs it,
        or nothing; and what the log ends with. Safe to repeat."""
        with self._writing:
            try:
                return [], self._owner.seal(heir)
            except RayfoldError as error:
                return to_wire(error), None

    @ray.method
    def hand_over(self, heir: str, epoch: int, version: int) -> tuple[list[Any], Tenure | None]:
        """Make the seal of this epoch final: the step of a move that counts. An error as `to_wire` packs it, or
        nothing; and since when the heir has the partition. Safe to repeat."""
        with self._writing:
            try:
                return [], self._owner.hand_over(heir, epoch, version)
            except RayfoldError as error:
                return to_wire(error), None

    @ray.method
    def unseal(self, heir: str, epoch: int) -> list[Any]:
        """The move for which the log was sealed with this epoch was called off: take commands again. An error as
        `to_wire` packs it, or nothing."""
        with self._writing:
            try:
                self._owner.unseal(heir, epoch)
                self._opened()
            except RayfoldError as error:
                return to_wire(error)
        return []

    def _open_log(self) -> LmdbLog:
        return self._plan.store.open_log(self._plan.number)

    def _spread_store(self) -> ClusterStore:
        assert isinstance(self._plan.store, ClusterStore)
        return self._plan.store

    def _let_go(self) -> None:
        """End the own actors and close the log, if it is open."""
        opened, self._log = self._log, None
        if self._check is not None:
            self._check.stop()
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.close()
        if opened is not None:
            self._homes.end_all()
            opened.close()

    @ray.method
    def close(self) -> None:
        """End the own actors and close the log. The actor is of no further use."""
        if (gate := self._gate) is not None:
            gate.close()
        with self._writing:
            self._owner.handed_over = True
            self._let_go()

    @ray.method(concurrency_group="reads")
    def read_stream(
        self, stream: StreamId, from_version: int, to_version: int | None, limit: int | None, bytes_max: int
    ) -> list[bytes]:
        """Records of a stream, for an own actor that loads its aggregate; never waits for a batch."""
        return self._reader().read_stream(stream, from_version, to_version, limit, bytes_max)

    @ray.method(concurrency_group="reads")
    def find_snapshot(self, stream: StreamId, schema: bytes, at_or_before: int | None) -> Snapshot | None:
        """The latest usable snapshot of a stream, for an own actor that loads its aggregate."""
        reader = self._reader()
        if self._loop.residents.is_distrusted(stream):
            return None
        return reader.find_snapshot(stream, schema, at_or_before)

    @ray.method(concurrency_group="reads")
    def read(self, after: int, limit: int, bytes_max: int) -> list[bytes]:
        """Records of the log, for an own actor whose command was refused before."""
        return self._reader().read(after, limit, bytes_max)

    @ray.method(concurrency_group="reads")
    def secret(self) -> bytes:
        """With which an own actor keys the digests of its commands."""
        return self._reader().secret()

    @ray.method(concurrency_group="reads")
    def process_id(self) -> int:
        """Of this process."""
        return os.getpid()

    @ray.method(concurrency_group="reads")
    def head(self) -> int:
        """The position of the last committed event."""
        return self._reader().head()

    def _end_fenced(self) -> None:
        """Another activation has taken the log over. If it is Ray's opinion that this process is the partition, Ray
        starts it again, with a new epoch; if it is a leftover, that was the end of it."""
        log.error("%s partition %d: a later activation has taken the log over", self._plan.name, self._plan.number)
        os._exit(1)

    @property
    def _writer(self) -> LmdbLog:
        assert self._log is not None
        return self._log

    def _reader(self) -> LmdbLog:
        if self._log is None:
            told = ray.get(ray.get_runtime_context().current_actor.open.remote())
            if told:
                raise from_wire(told)
        return self._writer

    def _opened(self) -> None:
        """Open the log and take it over, at the first call."""
        if self._log is not None:
            return
        plan = self._plan
        self._owner.check()
        if plan.node_id:
            verify_node(plan.store.folder_here().parent, plan.node_id)
        catalogue = self._application()
        self._own_placements = {
            name: cls.placement for name, cls in catalogue.aggregates.items() if isinstance(cls.placement, OwnActor)
        }
        self._broadcast = Broadcast(plan.number, lambda name: ray.get_actor(name, plan.namespace))
        self._broadcast.set_projectors(plan.projectors)
        opened = self._open_log()
        self._watch_over()
        try:
            residents_max = plan.settings.residents_max
            self._loop = WriteLoop(plan.number, opened, catalogue, residents_max=residents_max, in_hand=self._in_hand)
            self._loop.residents.load_aside()
            self._loop.residents.offer(self._saved)
            epoch = self._loop.activate()
        except BaseException:
            opened.close()
            raise
        self._homes = OwnActors(
            self._start_own_actor,
            ray.kill,
            name_prefix=f"{plan.name}:",
            name_suffix=f"@{plan.number}.{epoch}",
            own_actors_max=plan.settings.own_actors_max * plan.nodes,
            idle_s=plan.settings.own_actor_idle_s,
        )
        self._log, self._saved = opened, []
        self._check = self._checking(opened, catalogue)
        if plan.settings.local_sockets:
            name = f"{plan.store.store_id[:12]}-{plan.number}"
            self._gate = open_socket_server(name, lambda *batch: self._execute_in_turn(BATCH_BY_ROAD_S, *batch))
        tune_gc()

    def _checking(self, opened: LmdbLog, catalogue: Catalogue) -> StandingCheck:
        """Compares residents and snapshots with the log, for as long as this log is open."""
        where, residents = f"in partition {self._plan.number}", self._loop.residents
        streams = StreamChecks(catalogue, opened, where, self._alarms, lambda: self._writing, self._distrust)

        def checks(pause: Callable[[], None]) -> Iterator[None]:
            streams.resident(residents, pause)
            yield
            streams.snapshot(pause)
            yield

        return StandingCheck(where, self._plan.settings.standing_check_share, checks)

    def _distrust(self, stream: StreamId) -> None:
        """Load it from its events from now on; an own actor, which began with the same snapshot, ends."""
        self._loop.residents.distrust(stream)
        if (home := self._homes.by_stream.get(stream)) is not None:
            self._homes.lost(stream, home.name)

    @ray.method(concurrency_group="reads")
    def found_wrong(self, kind: str, stream: StreamId, subject: str, what: str) -> None:
        """An own actor has found that its state is not what the log says, and has dropped it."""
        self._alarms.raise_alarm(kind, subject, what)
        with self._writing:
            self._loop.residents.distrust(stream)

    def _watch_over(self) -> None:
        """Find out what the last process of this partition had in hand when it ended, and have this one ended if
        something takes too long: others wait for it."""
        if self._watch is None:
            plan = self._plan
            limit_s = min(plan.settings.decide_max_s, plan.settings.attempt_timeout_s * 0.8)
            what = f"partition {plan.number} of {plan.store.store_id} on {plan.node_id}"
            self._in_hand = in_hand_of(what)
            self._watch = Watch(self._in_hand, limit_s, native=what)

    def _tick(self) -> None:
        self._opened()
        self._take_over()
        self._homes.passivate_idle()

    def _take_over(self) -> None:
        """Let go of aggregates whose own actor has come up: from now on it decides, and not we."""
        for stream in self._homes.take_over():
            self._loop.residents.forget(stream)

    def _start_own_actor(
        self, name: str, stream: StreamId, placement: OwnActor, careful: bool
    ) -> tuple[Any, Future[int]]:
        itself, own = ray.get_runtime_context().current_actor, self._plan
        plan = OwnActorPlan(own.number, stream, name, itself, own.catalogue, own.settings, careful)
        return start_own_actor(plan, placement, self._plan.namespace, counts_slot=self._plan.counts_slots)


def _content_key(command: PackedCommand) -> bytes:
    """The same for the same command to the same aggregate under another id."""
    content = b"%b\0%b\0%b" % (command.stream.key, command.name.encode(), command.payload)
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def start_partition(plan: PartitionPlan, name: str, scheduling: Mapping[str, Any] | None = None) -> Any:
    """A partition that Ray restarts for ever. Ray never retries its calls: the router does, with the same ids.

    `name`: of the actor in Ray. `scheduling`: options that say where (`scheduling.py`).
    """
    remote: Any = ray.remote  # its types do not know concurrency groups
    actor = remote(concurrency_groups={"reads": 2})(PartitionActor)
    options = actor.options(
        name=name,
        namespace=plan.namespace,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        enable_task_events=False,
        **(scheduling or {}),
    )
    return options.remote(plan)
