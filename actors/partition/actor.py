"""PartitionActor: one Ray actor per partition, the only writer of its log.

Step [3] of the write path. Before it: the router ([2]) sends a batch, through Ray or, on the same machine, over a
socket (`socket_server.py`). After it: the write loop ([4], [5]) in `runtime/write/write_loop.py`, whose records go out
through the broadcast ([6]).

What is here and not there: which aggregates have an actor of their own now (`own_actors.py`), and what is stale
(`request_order.py`).

The actor goes through these phases, each begun by the first call that needs it:

- load: the application's classes are imported, which takes longest (`_load`); `prepare` asks for no more
- open: the log is opened to be written (`_open_log`)
- take over: a new epoch fences the writer before, and what serves is made (`_take_over`)
- serve: commands are decided and appended, until the log is closed or a later activation ends this process
- sealed: the log is closed, and every command is answered with that (`log_owner.py`); `unseal` leads back to open

What exists only while it serves is in one `Activation` (`activation.py`), which every method that needs it gets from
`_serving`; everything else is there from the beginning.

Rules kept here: no work in `__init__` that can fail, since such an actor stays dead; whatever changes something waits
for its turn, whichever thread it came on, so it happens one at a time (`fifo_lock.py`); reads have threads of their own
and never wait for it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import ray

from ...runtime.batch_queue import BATCH_BY_RAY_S, BATCH_BY_SOCKET_S
from ...runtime.checks.standing import Alarms, StandingCheck, StreamChecks
from ...runtime.domain.aggregate import OwnActor
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.encoding.envelope import DIGEST_BYTES, FINAL, PackedCommand, new_command_id, unpack_batch
from ...runtime.encoding.outcome import Answered, Redirect, RetryAfter, encode_answer
from ...runtime.errors import Fenced, HandlerFailed, InvalidMessage, RayfoldError, Refusal, Sealed, StoreError
from ...runtime.feed.group_coordinator import GroupCoordinator
from ...runtime.in_hand import DEATHS_MAX, KEY_BYTES, REFUSED_S, Fallen, InHand
from ...runtime.log.agenda_file import open_agenda_file
from ...runtime.log.contract import Append, NewEvent, Snapshot
from ...runtime.log.sealing import Seal, WriteOwnership
from ...runtime.log.writer import LmdbLog
from ...runtime.printable import printable_log
from ...runtime.processes.agenda import Agenda
from ...runtime.processes.courier import Courier
from ...runtime.processes.delivery import is_parking
from ...runtime.processes.places import COURIER, stored_places
from ...runtime.processes.since import add_processes
from ...runtime.receipt import Receipt
from ...runtime.store.store import AGENDAS, SUBSCRIPTIONS
from ...runtime.stream import ANY, StreamId
from ...runtime.write.loading import StillLoading
from ...runtime.write.residents import Residents, SavedResident
from ...runtime.write.write_loop import WriteLoop
from ..cluster.environment import OWN_ACTOR_SLOT
from ..cluster.names import own_actor_name
from ..cluster.node import verify_node
from ..cluster.rpc import replies
from ..cluster.scheduling import on_this_node
from ..courier.courier_thread import CourierPlan, CourierThread
from ..courier.runner import RunnerHandle, RunnerPlan, start_runner
from ..nodes.store import ClusterStore, DiskStore
from ..os_process.actor_log import begin_log
from ..os_process.gc_tuning import tune_gc
from ..os_process.watchdog import ProcessWatchdog, fallen_with, in_hand_of
from ..packaging.shipping import unship
from ..settings import Settings
from .activation import Activation
from .broadcast import Broadcast
from .fifo_lock import FifoLock
from .handle import PartitionHandle
from .log_owner import LogOwner
from .own_actor import AppendAnswer, AppendRequest, OwnActorPlan, append_for, start_own_actor
from .own_actors import OwnActors
from .projector_links import ProjectorLinks
from .request_order import RequestOrder
from .socket_server import open_socket_server
from .status_records import PartitionAnswer

__all__ = ["PartitionActor", "PartitionPlan", "start_partition"]

log = printable_log(__name__)


_LOADING_S: Final = 0.1
"""After which a command to an aggregate that is being loaded is to come again: loading aside takes from 50 ms to many
seconds, and each time that it comes too early costs its client's other commands about a millisecond."""


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """All that a partition needs to start, and to start again after a crash."""

    number: int
    store: DiskStore
    catalogue: bytes
    """The application's classes; see `shipping.py`."""
    projectors: tuple[str, ...]
    """Names of the actors to broadcast to at first; not their handles, which Ray would keep in its object store."""
    name: str
    """The name of the system, with which the names of its actors begin."""
    namespace: str
    settings: Settings
    counts_slots: bool
    node_id: str = ""
    """Where its log is, if the store is spread over nodes; it is opened there and nowhere else."""
    nodes: int = 1
    """The nodes that the system is spread over: own actors run on any of them."""
    partitions: tuple[str, ...] = ()
    """Names of the actors of all partitions at first, for the courier."""


_SLOTS_S: Final = 0.1
_NONE: Final[Mapping[bytes, HandlerFailed]] = {}

_KNOWN_QUICK_MAX: Final = 10_000
_ISOLATED_MAX: Final = 1_000
"""Far more than an application has commands, and than processes can end in ten minutes."""


class PartitionActor:
    """One log, one writer, thousands of aggregates."""

    def __init__(self, plan: PartitionPlan) -> None:
        begin_log()
        self._plan = plan
        self._catalogue: Catalogue | None = None
        """From the phase "load" on."""
        self._activation: Activation | None = None
        """In the phase "serve"."""
        self._saved: list[SavedResident] = []
        """What the last actor had in memory, for the next activation."""
        self._attempts = RequestOrder()
        self._commands = self._batches = 0
        self._alarms = Alarms()
        self._owner = LogOwner(
            f"partition {plan.number}",
            open_log=self._open_log,
            let_go=self._let_go,
            serves=lambda: self._activation is not None,
            map_here=lambda: self._spread_store().map_here(),
        )
        self._in_hand = InHand(None)
        self._watch: ProcessWatchdog | None = None
        self._known_quick: set[tuple[str, str]] = set()
        """Aggregate types and commands of theirs that an own actor has decided, and soon: others may be decided here
        while their own actor starts."""
        self._slots = True, 0.0
        """Whether there was room for an own actor at the last look, and when that was."""
        self._isolated: dict[StreamId, float] = {}
        """Aggregates that are decided in an own actor only, until then (`time.monotonic`): a process has ended on
        them."""
        self._deciding: dict[StreamId, tuple[str, bytes]] = {}
        """Careful own actors by stream: their name, and the command that each is deciding."""
        self._names: tuple[tuple[str, ...], Mapping[int, str]] = plan.partitions, {}
        """Of the actors of all partitions, and those that are away, for the courier."""
        self._writing = FifoLock()
        """Taken by everything but reads: Ray's own thread for calls, and one for each connection of the socket
        server."""

    @ray.method
    @replies
    def open(self) -> None:
        """Open the log and take it over. Safe to repeat."""
        with self._writing:
            self._serving()

    @ray.method
    @replies
    def prepare(self, saved: Sequence[SavedResident]) -> None:
        """Load the application's code, which takes longest, before it is this actor's turn, and keep what the last
        actor has in memory."""
        self._saved += saved
        self._load()

    @ray.method
    @replies
    def residents(self, first: int) -> list[SavedResident]:
        """Some of what is in memory, for the next actor to `prepare` with (see `Residents.saved`)."""
        with self._writing:
            return self._serving().loop.residents.saved(first)

    @ray.method
    def socket_path(self) -> str:
        """The path of the socket at which this activation takes commands too (see `socket_server.py`); empty if it has
        none."""
        with self._writing:
            server = self._serving().server
            if server is not None:
                server.put_back()
        return "" if server is None else str(server.path)

    @ray.method
    def execute(self, client: bytes, attempt: int, predecessor: int, blob: bytes) -> bytes:
        """Step [3]: a batch of packed commands in, one outcome for each out; empty if it is not this batch's turn."""
        return self._execute_in_order(BATCH_BY_RAY_S, client, attempt, predecessor, blob)

    def _execute_in_order(self, transit_s: float, client: bytes, attempt: int, predecessor: int, blob: bytes) -> bytes:
        """Whichever way the batch came, through Ray or over a socket, which takes that much of every batch."""
        with self._writing:
            answers = self._attempts.run(client, attempt, predecessor, lambda: self._execute(list(unpack_batch(blob))))
            serving = self._activation
            commit_s = 0.0 if serving is None else serving.log.environment.commit_s
        return b"" if answers is None else encode_answer(answers, transit_s + commit_s)

    def _execute(self, commands: Sequence[PackedCommand]) -> Sequence[Answered]:
        try:
            serving = self._serving()
        except Sealed:
            self._owner.released = True
            return self._turned_away(commands)
        except RayfoldError as error:
            return [error] * len(commands)
        if self._owner.released:
            return self._turned_away(commands)
        serving.leave_to_own_actors()
        self._count(len(commands))
        careful = self._in_hand.fallen or self._isolated
        answers = self._answer_fallen(serving, commands) if careful else self._answer(serving, commands)
        kinds = set(map(type, answers))
        if Fenced in kinds:
            self._end_fenced()
        if StillLoading in kinds:
            answers = [RetryAfter(_LOADING_S) if isinstance(answer, StillLoading) else answer for answer in answers]
        return answers

    def _turned_away(self, commands: Sequence[PackedCommand]) -> list[Answered]:
        return [Fenced(f"partition {self._plan.number}", 0, 0)] * len(commands)

    def _answer(
        self, serving: Activation, commands: Sequence[PackedCommand], fallen: Mapping[bytes, HandlerFailed] = _NONE
    ) -> list[Answered]:
        """Decide the commands to aggregates here, and return for the others where they are. `fallen`: those that have
        failed, see `WriteLoop.execute`."""
        records, placements = serving.own_actors.by_stream, serving.placements
        later = self._not_known_quick(serving, commands) if placements else ()
        here = [command for command in commands if command.stream not in records] if records else commands
        if later:
            here = [command for command in here if command.stream not in later]
        serving.loop.residents.begin_batch()
        batch = serving.loop.execute(here, fallen)
        serving.broadcast.send(batch.records)
        if serving.courier is not None and batch.records:
            serving.courier.wake()
        for outcome in batch.outcomes if placements else ():
            if isinstance(outcome, Receipt) and outcome.stream.type in placements:
                serving.own_actors.consider(outcome.stream, placements[outcome.stream.type])
        if len(here) == len(commands):
            return [*batch.outcomes]
        outcomes = iter(batch.outcomes)
        return [
            Redirect(records[command.stream].name)
            if command.stream in records
            else (StillLoading(str(command.stream)) if command.stream in later else next(outcomes))
            for command in commands
        ]

    def _not_known_quick(self, serving: Activation, commands: Sequence[PackedCommand]) -> Container[StreamId]:
        """Have aggregates decided in their own actor that get a command which is not known to be quick. Returns those
        that have to wait until there may be one; without room they are decided here."""
        later = set[StreamId]()
        for command in commands:
            stream = command.stream
            if stream.type not in serving.placements or (stream.type, command.name) in self._known_quick:
                continue
            if not self._confine(serving, stream, careful=False) and serving.own_actors.may_soon_begin():
                later.add(stream)
        return later

    def _confine(self, serving: Activation, stream: StreamId, *, careful: bool) -> bool:
        """Have this aggregate decided in its own actor from now on, and wait for that. False if there is no room."""
        if stream in serving.own_actors.by_stream:
            return True
        if not serving.own_actors.may_begin() or not self._slots_free():
            return False
        began = serving.own_actors.begin(stream, serving.placements[stream.type], careful=careful)
        if began is not None:
            serving.loop.residents.forget(stream)
        return began is not None

    def _slots_free(self) -> bool:
        """Whether there is room for an own actor on any node, by Ray's resources: a call of a millisecond at a time."""
        if not self._plan.counts_slots:
            return True
        free, at_s = self._slots
        if time.monotonic() - at_s > _SLOTS_S:
            free = bool(ray.available_resources().get(OWN_ACTOR_SLOT, 0))
            self._slots = free, time.monotonic()
        return free

    def _answer_fallen(self, serving: Activation, commands: Sequence[PackedCommand]) -> list[Answered]:
        """As `_answer`, after something has ended a process: what is not to be tried again is refused, and what was in
        hand at a death is decided in an own actor, if its aggregate may have one."""
        answers: dict[int, Answered] = {}
        final: dict[bytes, HandlerFailed] = {}
        now = time.monotonic()
        for stream in [stream for stream, until_s in self._isolated.items() if until_s < now]:
            del self._isolated[stream]
        for index, command in enumerate(commands):
            stream, own = command.stream, command.stream.type in serving.placements
            fallen = self._in_hand.find(command.command_id) or self._in_hand.find(_content_key(command))
            if fallen is not None and fallen.refused and not is_parking(command):
                if fallen.key == command.command_id and self._in_hand.find(content := _content_key(command)) is None:
                    self._in_hand.note(content, stuck=fallen.stuck, deaths=DEATHS_MAX)  # under another id as well
                failed = self._failed(command, fallen)
                if command.decisive >= FINAL:  # its failure is stored, as any outcome of it is
                    final[command.command_id] = failed
                else:
                    answers[index] = failed
            elif own and (fallen is not None or stream in self._isolated):
                self._isolated.setdefault(stream, now + REFUSED_S)
                if not self._confine(serving, stream, careful=True) and self._plan.settings.own_actors_max:
                    answers[index] = StillLoading(str(stream))
        others = [command for index, command in enumerate(commands) if index not in answers]
        rest = iter(self._answer(serving, others, final))
        whole = [answers[index] if index in answers else next(rest) for index in range(len(commands))]
        for command, answer in zip(commands, whole, strict=True):
            if isinstance(answer, Receipt | Refusal):
                self._in_hand.forgive(command.command_id)
        return whole

    def _failed(self, command: PackedCommand, fallen: Fallen) -> HandlerFailed:
        took = "it ran longer than decide_max_s; its process was ended"
        ended = "its process ended while it was being decided, more than once"
        what = f"{took if fallen.stuck else ended}; this command is refused for {REFUSED_S / 60:g} minutes"
        return HandlerFailed(f"the code of {command.name}", str(command.stream), what)

    @ray.method
    def deciding(self, stream: StreamId, actor: str, command_id: bytes) -> None:
        """A careful own actor is about to decide this command."""
        with self._writing:
            if self._activation is not None:
                self._deciding[stream] = actor, command_id

    @ray.method
    def took_too_long(self, stream: StreamId, actor: str, command_id: bytes) -> None:
        """An own actor ends itself because of this command."""
        with self._writing:
            if (serving := self._activation) is not None:
                self._in_hand.note(command_id, stuck=True)
                self._give_up_on(serving, stream, actor, died=True)

    @ray.method
    def known_quick(self, stream: StreamId, actor: str, names: Sequence[str], version: int) -> None:
        """An own actor has decided commands of these names, and soon. The next aggregates that get one need not wait
        for their own actor. One that has no events needs no actor."""
        with self._writing:
            if (serving := self._activation) is None:
                return
            if len(self._known_quick) < _KNOWN_QUICK_MAX:
                self._known_quick.update((stream.type, name) for name in names)
            if not version:
                serving.own_actors.lost(stream, actor)

    @ray.method
    @replies
    def append(self, request: AppendRequest) -> AppendAnswer:
        """Append what an own actor has decided, if that actor is the one at home (see `own_actors.py`)."""
        with self._writing:
            return self._append(request)

    def _append(self, request: AppendRequest) -> AppendAnswer:
        try:
            serving = self._serving()
        except RayfoldError as error:
            raise Fenced(request.actor, 0, 0) from error
        epoch = serving.loop.epoch
        if self._owner.released or not serving.own_actors.may_append(request.stream, request.actor):
            raise Fenced(request.actor, 0, 0)
        self._count(len(request.appends))
        try:
            answer = append_for(serving.log, epoch, request)
        except Fenced:
            self._end_fenced()
            raise
        serving.broadcast.send([record for done in answer.appended for record in done.records])
        if serving.courier is not None:
            serving.courier.wake()
        return replace(answer, appended=[done._replace(records=()) for done in answer.appended])

    def _count(self, commands: int) -> None:
        """One more batch, for the status."""
        self._commands += commands
        self._batches += 1

    @ray.method
    def lost(self, stream: StreamId, actor: str, died: bool = False) -> None:
        """A client reports that this own actor does not answer, or that its process has ended. From now on the
        aggregate is here again; after a death its commands are decided in another own actor, one by one."""
        self._report_lost(stream, actor, died)

    def _report_lost(self, stream: StreamId, actor: str, died: bool) -> None:
        """... or the courier here does."""
        with self._writing:
            self._give_up_on(self._serving(), stream, actor, died)

    def _give_up_on(self, serving: Activation, stream: StreamId, actor: str, died: bool) -> None:
        record = serving.own_actors.by_stream.get(stream)
        if record is None or record.name != actor:
            return
        if died and len(self._isolated) < _ISOLATED_MAX:
            self._isolated[stream] = time.monotonic() + REFUSED_S
        careful, command_id = self._deciding.pop(stream, ("", b""))
        fallen = fallen_with(actor) if died else None
        if fallen is not None:
            self._in_hand.note(fallen.key, stuck=fallen.stuck)
        elif died and careful == actor:
            self._in_hand.note(command_id, deaths=DEATHS_MAX)
        serving.own_actors.lost(stream, actor)

    @ray.method
    def tick(self) -> None:
        """What has to happen now and then: hand over to actors that came up, end idle ones."""
        with self._writing, suppress(StoreError):  # a command, or a call for the head, gets the error
            self._tick()

    @ray.method
    @replies
    def set_projectors(self, names: tuple[str, ...]) -> None:
        """Broadcast to these from now on. Called at every change, and with every tick, since a restart loses the
        list."""
        with self._writing, suppress(StoreError):
            self._serving().broadcast.set_projectors(names)

    @ray.method
    def set_partitions(self, names: tuple[str, ...], unavailable: Mapping[int, str]) -> None:
        """The actors of all partitions have these names, and these partitions are away. Called at every change, and
        with every tick, where this partition has a courier."""
        self._names = names, unavailable
        if (serving := self._activation) is not None and serving.courier is not None:
            serving.courier.name(names, unavailable)

    @ray.method
    @replies
    def status(self) -> PartitionAnswer:
        """Who this activation is, how far its log is, which own actors there are, and what it was given to do."""
        with self._writing:
            serving = self._tick()
            up = [record for record in serving.own_actors.by_stream.values() if record.started.done()]
            own = [(one.stream, one.name, one.started.result()) for one in up if not one.started.exception()]
            courier = None if serving.courier is None else serving.courier.facts()
            given = self._commands, self._batches, self._alarms.count, self._alarms.kept, courier
            return PartitionAnswer(os.getpid(), serving.loop.epoch, serving.log.head(), own, *given)

    @ray.method
    @replies
    def subscription(self, method: str, arguments: Sequence[Any]) -> object:
        """What this partition keeps for subscriptions of a name, read or changed (`feed/group_coordinator.py`)."""
        if method not in GroupCoordinator.METHODS:
            raise InvalidMessage("subscription", f"a partition is not asked for {method!r}", "")
        with self._writing:
            serving = self._serving()
            if self._owner.released:
                raise Sealed(f"partition {self._plan.number}", "another node")
            try:
                found: object = getattr(serving.coordinator, method)(*arguments)
            except Fenced:
                self._end_fenced()
                raise
            return found

    @ray.method(concurrency_group="reads")
    @replies
    def renew_member(self, name: str, member: int, grant: int) -> None:
        """The holder of this grant has a member of a subscription open; never waits for a batch."""
        self._reading().coordinator.renew(name, member, grant)

    @ray.method
    @replies
    def seal(self, successor: str) -> Seal:
        """Take no command any more: the partition goes on at `successor` (see `moves.py`). What the log ends with. Safe
        to repeat."""
        with self._writing:
            return self._owner.seal(successor)

    @ray.method
    @replies
    def hand_over(self, successor: str, epoch: int, version: int) -> WriteOwnership:
        """Make the seal of this epoch final: the step of a move that counts. Since when the successor has the
        partition. Safe to repeat."""
        with self._writing:
            return self._owner.hand_over(successor, epoch, version)

    @ray.method
    @replies
    def unseal(self, successor: str, epoch: int) -> None:
        """The move for which the log was sealed with this epoch was called off: take commands again."""
        with self._writing:
            self._owner.unseal(successor, epoch)
            self._serving()

    def _spread_store(self) -> ClusterStore:
        assert isinstance(self._plan.store, ClusterStore)
        return self._plan.store

    def _let_go(self) -> None:
        """The end of the phase "serve", if this is it."""
        serving, self._activation = self._activation, None
        if serving is not None:
            serving.close()

    @ray.method
    @replies
    def close(self) -> None:
        """End the own actors and close the log. The actor is of no further use."""
        serving = self._activation
        if serving is not None and serving.courier is not None:
            serving.courier.stop()  # which stores how far it is, and needs its turn for that
        if serving is not None and serving.server is not None:
            serving.server.close()  # before this waits for its turn, which others may have for long
        with self._writing:
            self._owner.released = True
            self._let_go()

    @ray.method(concurrency_group="reads")
    @replies
    def read_stream(
        self, stream: StreamId, from_version: int, to_version: int | None, limit: int | None, bytes_max: int
    ) -> list[bytes]:
        """Records of a stream, for an own actor that loads its aggregate; never waits for a batch."""
        return self._reading().log.read_stream(stream, from_version, to_version, limit, bytes_max)

    @ray.method(concurrency_group="reads")
    @replies
    def find_snapshot(self, stream: StreamId, schema: bytes, at_or_before: int | None) -> Snapshot | None:
        """The latest usable snapshot of a stream, for an own actor that loads its aggregate."""
        serving = self._reading()
        if serving.loop.residents.is_distrusted(stream):
            return None
        return serving.log.find_snapshot(stream, schema, at_or_before)

    @ray.method(concurrency_group="reads")
    @replies
    def read(self, after: int, limit: int, bytes_max: int) -> list[bytes]:
        """Records of the log, for an own actor whose command was refused before."""
        return self._reading().log.read(after, limit, bytes_max)

    @ray.method(concurrency_group="reads")
    @replies
    def secret(self) -> bytes:
        """With which an own actor keys the digests of its commands."""
        return self._reading().log.secret()

    @ray.method(concurrency_group="reads")
    @replies
    def process_id(self) -> int:
        """Of this process."""
        return os.getpid()

    @ray.method(concurrency_group="reads")
    @replies
    def head(self) -> int:
        """The position of the last committed event."""
        return self._reading().log.head()

    def _end_fenced(self) -> None:
        """Another activation has taken the log over. If it is Ray's opinion that this process is the partition, Ray
        starts it again, with a new epoch; if it is a leftover, that was the end of it."""
        log.error("%s partition %d: a later activation has taken the log over", self._plan.name, self._plan.number)
        os._exit(1)

    def _reading(self) -> Activation:
        """On a thread for reads: has the thread for everything else go through the phases, and waits for it."""
        if (serving := self._activation) is None:
            ray.get(ray.get_runtime_context().current_actor.open.remote()).unwrap()
            if (serving := self._activation) is None:
                raise Sealed(f"partition {self._plan.number}", "another node")
        return serving

    # --- the phases ----------------------------------------------------------------------------------------------

    def _serving(self) -> Activation:
        """Go through the phases that are left. Raises what keeps one from ending, and `Sealed`; the next call tries
        again."""
        if self._activation is None:
            self._owner.check()
            if self._plan.node_id:
                verify_node(self._plan.store.folder_here().parent, self._plan.node_id)
            catalogue = self._load()
            with ExitStack() as on_failure:
                opened = self._open_log()
                on_failure.callback(opened.close)
                self._activation = self._take_over(opened, catalogue, on_failure)
                on_failure.pop_all()
            self._saved = []
            tune_gc()
        return self._activation

    def _load(self) -> Catalogue:
        if self._catalogue is None:
            self._catalogue = unship(self._plan.catalogue)
        return self._catalogue

    def _open_log(self) -> LmdbLog:
        return self._plan.store.open_log(self._plan.number)

    def _take_over(self, opened: LmdbLog, catalogue: Catalogue, on_failure: ExitStack) -> Activation:
        plan = self._plan
        self._watch_over()
        loop = WriteLoop(
            plan.number, opened, catalogue, residents_max=plan.settings.residents_max, in_hand=self._in_hand
        )
        loop.residents.load_aside()
        loop.residents.offer(self._saved)
        epoch = loop.activate()
        broadcast = Broadcast(plan.number, lambda name: ray.get_actor(name, plan.namespace), self._links())
        on_failure.callback(broadcast.close)
        broadcast.set_projectors(plan.projectors)
        own_actors = OwnActors(
            self._start_own_actor,
            ray.kill,
            lambda stream, count: own_actor_name(plan.name, stream, plan.number, epoch, count),
            own_actors_max=plan.settings.own_actors_max * plan.nodes,
            idle_s=plan.settings.own_actor_idle_s,
        )
        placements = {
            name: cls.placement for name, cls in catalogue.aggregates.items() if isinstance(cls.placement, OwnActor)
        }
        check, server = self._checking(opened, catalogue, loop.residents), None
        on_failure.callback(check.stop)
        if plan.settings.local_sockets:
            name = f"{plan.store.store_id[:12]}-{plan.number}"
            by_socket = partial(self._execute_in_order, BATCH_BY_SOCKET_S)
            server = open_socket_server(name, plan.store.store_id, by_socket)
        courier = self._start_courier(opened, loop, broadcast, catalogue)
        coordinator = self._coordinating(opened, epoch)
        return Activation(opened, loop, broadcast, own_actors, placements, check, coordinator, server, courier)

    def _coordinating(self, opened: LmdbLog, epoch: int) -> GroupCoordinator:
        """What keeps how far subscriptions are, with what an earlier release has kept of that in files."""
        plan, change = self._plan, partial(opened.change_rows, epoch)
        files = plan.store.folder_here() / SUBSCRIPTIONS
        found = GroupCoordinator(opened, change, plan.number, plan.store.partitions, plan.store.store_id, files)
        try:
            found.take_over_files()
        except RayfoldError as error:  # commands are decided all the same; who opens a name gets the error
            log.error("partition %d takes over no places of subscriptions: %s", plan.number, error)
        return found

    def _start_courier(
        self, opened: LmdbLog, loop: WriteLoop, broadcast: Broadcast, catalogue: Catalogue
    ) -> CourierThread | None:
        """Have what is decided here carried out, if anything can be. Raises what keeps it from being known since when a
        process takes part."""
        if not catalogue.has_outputs:
            return None
        plan = self._plan

        def store(places: NewEvent) -> None:
            append = Append(COURIER, ANY, (places,), new_command_id(), bytes(DIGEST_BYTES))
            [done] = opened.append(loop.epoch, [append])
            broadcast.send(done.records)

        def store_in_order(places: NewEvent) -> None:
            with self._writing:
                store(places)

        places, classes = stored_places(opened), catalogue.processes
        here, other = plan.store.store_id, plan.store.open_reader
        of_another = places.taken_over(here, opened.head())
        if add_processes(places, classes, catalogue.since, plan.number, opened, here, other) or of_another:
            store(places.event())
        start = partial(self._start_runner, scheduling=on_this_node())
        courier_plan = CourierPlan(
            plan.number, *self._names, plan.settings, plan.store.placement, plan.store.store_id, start
        )
        new_courier = partial(self._new_courier, opened, catalogue)
        execute = partial(self._execute_in_order, BATCH_BY_SOCKET_S)
        actor_named = partial(ray.get_actor, namespace=plan.namespace)
        return CourierThread(courier_plan, new_courier, actor_named, execute, self._report_lost, store_in_order)

    def _start_runner(self, effects: str, scheduling: dict[str, Any]) -> RunnerHandle:
        plan = self._plan
        return start_runner(RunnerPlan(effects, plan.number, plan.catalogue), plan.namespace, scheduling)

    def _new_courier(self, opened: LmdbLog, catalogue: Catalogue) -> Courier:
        """From what is stored; the agenda from its file, if there is one of this very log."""
        plan, file = self._plan, None
        try:
            folder = plan.store.folder_here() / AGENDAS / f"partition-{plan.number:05d}"
            file = open_agenda_file(folder, f"agenda of partition {plan.number}")
        except RayfoldError as error:
            log.warning("partition %d reads its log anew for its agenda: %s", plan.number, error)
        agenda = Agenda(file)
        agenda.open(opened)
        places = stored_places(opened)
        store = plan.store
        own = os.urandom(16)
        return Courier(plan.number, store.partitions, store.partition_of, catalogue, opened, agenda, places, own)

    def _links(self) -> ProjectorLinks | None:
        """The sockets to projectors of this machine; None where they are switched off, or cannot be watched."""
        if not self._plan.settings.local_sockets:
            return None
        try:
            return ProjectorLinks(self._plan.number, self._plan.store.store_id)
        except OSError as error:
            log.warning("partition %d broadcasts through Ray alone: %s", self._plan.number, error)
            return None

    def _watch_over(self) -> None:
        """Find out what the last process of this partition had in hand when it ended, and have this one ended if
        something takes too long: others wait for it."""
        if self._watch is None:
            plan = self._plan
            limit_s = min(plan.settings.decide_max_s, plan.settings.attempt_timeout_s * 0.8)
            what = f"partition {plan.number} of {plan.store.store_id} on {plan.node_id}"
            self._in_hand = in_hand_of(what)
            self._watch = ProcessWatchdog(self._in_hand, limit_s, native=what)

    def _checking(self, opened: LmdbLog, catalogue: Catalogue, residents: Residents) -> StandingCheck:
        """Compares residents and snapshots with the log, for as long as this log is open."""
        where = f"in partition {self._plan.number}"
        streams = StreamChecks(catalogue, opened, where, self._alarms, lambda: self._writing, self._distrust)

        def checks(pause: Callable[[], None]) -> Iterator[None]:
            streams.resident(residents, pause)
            yield
            streams.snapshot(pause)
            yield

        return StandingCheck(where, self._plan.settings.standing_check_share, checks)

    # -------------------------------------------------------------------------------------------------------------

    def _distrust(self, stream: StreamId) -> None:
        if (serving := self._activation) is not None:
            serving.distrust(stream)

    @ray.method(concurrency_group="reads")
    def found_wrong(self, kind: str, stream: StreamId, subject: str, what: str) -> None:
        """An own actor has found that its state differs from the log, and has dropped it."""
        self._alarms.raise_alarm(kind, subject, what)
        with self._writing:
            if (serving := self._activation) is not None:
                serving.loop.residents.distrust(stream)

    def _tick(self) -> Activation:
        serving = self._serving()
        serving.leave_to_own_actors()
        serving.own_actors.passivate_idle()
        return serving

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


def start_partition(plan: PartitionPlan, name: str, scheduling: Mapping[str, Any] | None = None) -> PartitionHandle:
    """A partition that Ray restarts without limit. Ray never retries its calls: the router does, with the same ids.

    `name`: of the actor in Ray. `scheduling`: options that choose its node (`scheduling.py`).
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
    started: PartitionActor = options.remote(plan)
    return started
