"""ProjectorActor: one projector, which is one part and one replica of a projection, as a Ray actor.

Steps [7] and [8]. Before it: the broadcast ([6]) of every partition, through Ray or, on the same machine, over a socket
(`query_server.py`). After it: the answer to a query. Everything that matters happens in `runtime/read/read_model.py`;
here are only the ways into it: concurrency groups with threads of their own, because a plain Ray actor keeps the order
of calls within a group and one group does not wait for another: `apply` (default, one thread), `ask` (one thread),
`ask_after` (some threads, since such a query may wait for events still on their way), `keep` (one thread, for
checkpoints) and `status`.

The actor goes through these phases, each begun by the first call that needs it, also after a crash and restart:

- open: the application's classes are imported, the logs opened, and what was saved is restored (`_open_model`); from
  now on there is an `OpenModel` (`open_model.py`)
- catch up: the logs are read to where they end (`_caught_up`); a query waits for that, or is answered from where the
  read model is if no other replica can answer it (`_answering`)
- serve: events are taken in as they are broadcast, and queries answered
- end: nothing more is read, and what is asked fails, for others serve (`close`)

Rules kept here: no work in `__init__`, since an actor whose `__init__` raises stays dead. A projector never depends on
being broadcast to: at every tick, and for a query that waits, it reads the log itself.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
import ray.cloudpickle

from ...runtime.checks.standing import Alarms, StandingCheck, check_read_model
from ...runtime.encoding.codec import encode_message
from ...runtime.encoding.query_batch import PackedQuery, join_queries, split_queries
from ...runtime.errors import HandlerFailed, NotYetVisible, RayfoldError, StoreInUse, Unavailable
from ...runtime.in_hand import KEY_BYTES, InHand
from ...runtime.log.contract import Reader
from ...runtime.printable import printable_log
from ...runtime.read.read_model import Quarantined, ReadModel
from ...runtime.stream import StreamId
from ..cluster.node import node_id_here
from ..cluster.retry import Patience, retried_now
from ..cluster.rpc import Reply, replies
from ..nodes.store import AnyStore
from ..os_process.actor_log import begin_log
from ..os_process.gc_tuning import tune_gc
from ..os_process.suspects import key_of_batch, record_of
from ..os_process.watchdog import ProcessWatchdog, in_hand_of
from ..packaging.shipping import unship
from ..sockets.listening import open_listening_socket
from ..sockets.query_frames import Answered, AnsweredAfter
from .answers import Answers
from .handle import ProjectorHandle
from .open_model import OpenModel
from .query_server import QueryServer
from .readiness import Probed
from .status_records import Place, ProjectorAnswer

__all__ = [
    "ASKING_AFTER_MAX",
    "ProjectorActor",
    "ProjectorPlan",
    "start_projector",
]

log = printable_log(__name__)

ASKING_AFTER_MAX: Final = 32
"""Threads for clients whose queries wait for a position. A client has three such calls at most, each of a quarter of a
second at most, however many queries wait; further ones queue in Ray."""

_BROADCAST_S: Final = 0.25
"""How long to wait for events to be broadcast before they are read from the log: some hundred times what a broadcast
takes, so it happens where one was lost or its partition is being restarted."""

_LEFTOVER_S: Final = 20.0
"""How long to wait for the projector of a program that was killed to release the database: Ray ends such processes
within seconds."""

_OPENING_S: Final = 2.0
"""How long queries wait for a projector that has just been started to catch up: longer than a checkpoint of some MB
takes."""

_RETRY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class ProjectorPlan:
    """All that a projector needs to start, and to start again after a crash."""

    projection: str
    """Its name."""
    part: int
    replica: int
    folder: Path
    """Where it keeps its checkpoint, or its database; relative to the share of its node where the store is spread."""
    catalogue: bytes
    """The application's classes; see `shipping.py`."""
    store: AnyStore
    check_share: float = 0.0
    """The share of a CPU for the standing check (`Settings.standing_check_share`)."""
    answer_max_s: float = 4.0
    """See `Settings`."""
    local_sockets: bool = True
    """The same."""


class ProjectorActor:
    """A read model in a process of its own."""

    def __init__(self, plan: ProjectorPlan) -> None:
        begin_log()
        self._plan = plan
        self._name = f"{plan.projection} {plan.part}-{plan.replica}"
        self._opening = threading.Lock()
        self._beginning = threading.Lock()
        self._reading: threading.Thread | None = None
        """Opens it at the first call that needs it."""
        self._opened: OpenModel | None = None
        """From the end of the phase "open" on."""
        self._check: StandingCheck | None = None
        """From then on, too."""
        self._ending = threading.Event()
        """Set in the phase "end"."""
        self._answers: Answers | None = None
        """From the end of the phase "open" on, too."""
        self._server: QueryServer | None = None
        """From the first question for its socket on."""
        self._serving = threading.Lock()
        """Held while that is made, and ended."""
        self._served = False
        """Whether opening the query server was tried."""
        self._alarms = Alarms()
        self._in_hand = InHand(None)
        self._watched = False
        self._door = threading.Lock()
        """Held for a moment, while the two above are made."""
        self._reads_since_s = 0.0

    @ray.method
    @replies
    def open(self) -> None:
        """Catch up with the log as it is now. Safe to repeat."""
        self._caught_up().catch_up(self._keep)

    @ray.method
    def apply(self, partition: int, first: int, records: Sequence[bytes], head: int) -> None:
        """Step [7]: take in committed records at `first, first + 1, …`, and whatever is missing up to `head`."""
        self._caught_up().read_model.apply(partition, first, records, head)

    @ray.method(concurrency_group="ask")
    def ask(self, batch: bytes, needs: Mapping[int, int], alone: bool = True, apart: bool = False) -> Answered:
        """Step [8]: answers to a batch of queries, pickled as one list. They are empty if this replica has not come to
        what the batch `needs`: the caller's information was outdated, perhaps from an earlier process.

        `alone`: there is no other replica, so this one answers from where it is while it is still reading the log.
        `apart`: each answer is pickled by itself, so that one that cannot be decoded spoils no other."""
        self._answering(alone)
        return self._answers_here().ask(split_queries(batch), batch, needs, apart)

    @ray.method(concurrency_group="ask_after")
    def ask_after(self, batch: bytes, afters: Sequence[Mapping[int, int]], wait_s: float, look: bool) -> AnsweredAfter:
        """The same for queries of which each must see its `after` (partition -> position): once any of them can be
        answered, or `wait_s` has passed, the answers of all that can. One without a name only asks for the positions.

        `look`: they have waited before, so read the log, for a broadcast may have been lost."""
        opened = self._answering(alone=True)
        read_model, deadline_s = opened.read_model, time.monotonic() + wait_s
        if look:
            opened.read_for(afters, deadline_s)
        read_model.wait_until(
            lambda: any(_has(read_model.positions, after) for after in afters), deadline_s - time.monotonic()
        )
        stopped = read_model.failed
        ready = {index for index, after in enumerate(afters) if _has(read_model.positions, after)}
        queries = split_queries(batch)
        asked = [index for index in sorted(ready) if queries[index][0]]
        answers: dict[int, Any] = dict.fromkeys(ready)
        if stopped is not None:
            answers |= dict.fromkeys(set(range(len(afters))) - ready, stopped)
        reached = dict(read_model.positions)
        if asked:
            one_batch = join_queries([PackedQuery(*queries[index]) for index in asked])
            answering = self._answers_here()
            blob, reached = answering.answered([queries[index] for index in asked], key_of_batch(one_batch), apart=True)
            answers |= dict(zip(asked, pickle.loads(blob), strict=True))
            answering.note([queries[index] for index in asked])
        self._check_going_on()
        wanted = {partition for index, after in enumerate(afters) if index not in answers for partition in after}
        ends = opened.ends(wanted, away=look)
        return AnsweredAfter(ray.cloudpickle.dumps(answers), reached, self._in_hand.incarnation, ends)

    @ray.method(concurrency_group="ask_after")
    @replies
    def come_to(self, after: Mapping[int, int], timeout_s: float) -> None:
        """Wait until `after` is visible here, for the fleet. Clients wait with `ask_after`."""
        opened = self._caught_up()
        read_model, deadline_s = opened.read_model, time.monotonic() + timeout_s
        try:
            read_model.wait_for(after, min(timeout_s, _BROADCAST_S))
        except NotYetVisible:
            opened.read_for([after], deadline_s)
            read_model.wait_for(after, max(deadline_s - time.monotonic(), 0.0))
        finally:
            self._check_going_on()

    @ray.method(concurrency_group="ask_after")
    def socket_path(self) -> str:
        """The path of the socket at which this process takes queries and broadcasts too (`query_server.py`); empty if
        it has none. Raises `Unavailable` while it is still reading."""
        self._answering(alone=False)
        with self._serving:
            if self._server is not None and self._server.ended and not self._ending.is_set():
                self._server.close()
                self._served, self._server = False, None
            if not self._served and self._plan.local_sockets and not self._ending.is_set():
                self._served = True
                self._server = self._serve()
            if self._server is not None:
                self._server.put_back()
            return "" if self._server is None else str(self._server.path)

    def _serve(self) -> QueryServer | None:
        plan, answers = self._plan, self._answers_here()
        opened, store_id = self._caught_up(), str(plan.store.store_id)
        folder = hashlib.blake2b(str(plan.folder).encode(), digest_size=6).hexdigest()
        listening = open_listening_socket(f"{store_id[:12]}-{folder}")
        if listening is None:
            return None
        try:
            server = QueryServer(listening, store_id, answers, opened.read_model.apply)
        except OSError as error:
            log.warning("no socket for %s, so its clients use Ray: %s", self._name, error)
            return None
        opened.read_model.notify_changed = server.notify_changed
        return server

    @ray.method(concurrency_group="heartbeat")
    @replies
    def process_id(self) -> int:
        """Of this process."""
        return os.getpid()

    @ray.method(concurrency_group="status")
    def incarnation(self) -> bytes:
        """Which process of this projector it is."""
        self._watch_over()
        return self._in_hand.incarnation

    @ray.method(concurrency_group="status")
    @replies
    def status(self) -> ProjectorAnswer:
        """How far the read model is, and what is wrong with it. Takes no lock: it is answered while events arrive."""
        opened = self._opened
        answer = ProjectorAnswer(os.getpid(), {}) if opened is None else _answer_of(opened)
        return answer._replace(node_id=node_id_here(), alarms_raised=self._alarms.count, alarms=self._alarms.kept)

    @ray.method(concurrency_group="status")
    @replies
    def place(self) -> Place:
        """How far it has come, also while it is catching up."""
        opened = self._opened
        if opened is None:  # what it has saved is not known yet
            return Place(os.getpid(), {}, {}, Reply())
        read_model = opened.read_model
        return Place(
            os.getpid(),
            dict(read_model.positions),
            opened.heads(),
            Reply.failed(read_model.failed),
            opened.up_to_date,
            dict(opened.caught_up_to or {}),
            tuple(read_model.quarantined),
        )

    @ray.method(concurrency_group="status")
    @replies
    def asked(self) -> list[PackedQuery]:
        """The last query of each kind that was asked here."""
        answering = self._answers
        kept = {} if answering is None else answering.asked.copy()
        return [PackedQuery(name, payload) for name, payload in kept.items()]

    @ray.method(concurrency_group="ask_after")
    @replies
    def probe(self, asked: Sequence[PackedQuery]) -> list[Probed]:
        """What becomes of these queries, and of those of other kinds that need no value: for `readiness.py`."""
        self._caught_up()
        queries = [*asked, *self._without_values({query.name for query in asked})]
        if not queries:
            return []
        blob, _ = self._answers_here().answered(queries, bytes(KEY_BYTES), apart=False)
        answers = ray.cloudpickle.loads(blob)
        failed = (str(one) if isinstance(one, HandlerFailed) else "" for one in answers)
        return [Probed(query.name, error) for query, error in zip(queries, failed, strict=True)]

    @ray.method(concurrency_group="keep")
    def tick(self) -> None:
        """What has to happen now and then: read what no broadcast has brought, make a checkpoint when one is due."""
        opened = self._caught_up()
        opened.catch_up(self._keep)
        self._keep(opened.read_model)

    @ray.method
    @replies
    def rebuild_stream(self, stream: StreamId) -> None:
        """Forget what one aggregate has contributed and apply its events again."""
        partition = self._plan.store.partition_of(stream)
        self._mend(lambda read_model: read_model.rebuild_stream(stream, partition))

    @ray.method
    @replies
    def retry_quarantined(self) -> tuple[Quarantined, ...]:
        """Apply the events in quarantine again. What is in it still."""
        return self._mend(ReadModel.retry_quarantined).quarantined

    @ray.method(concurrency_group="ask")
    @replies
    def close(self, save: bool) -> None:
        """Stop, once all queries that came before are answered, and `save` where it is. The actor is of no further
        use."""
        with self._serving:
            self._served = True
            if self._server is not None:
                self._server.close()
        self._ending.set()
        if self._check is not None:
            self._check.stop()
        with self._opening:
            if self._opened is not None:
                if save:
                    self._checkpoint(self._opened.read_model)
                self._opened.read_model.close()

    def _check_going_on(self) -> None:
        """Raises when this projector ends: then the call has failed, and the caller asks the present projectors."""
        if self._ending.is_set():
            raise Unavailable(self._name, "it has ended")

    def _answers_here(self) -> Answers:
        """The answers of the read model. The caller has made sure that it is open."""
        answers = self._answers
        assert answers is not None, "it is open"
        return answers

    # --- the phases ----------------------------------------------------------------------------------------------

    def _answering(self, alone: bool) -> OpenModel:
        """The read model, if it has caught up soon. If it still has to read, it answers from where it is, or, where
        another replica may answer meanwhile, raises `Unavailable`."""
        if (opened := self._opened) is not None and opened.up_to_date:
            return opened
        with self._beginning:
            if self._reading is None or not self._reading.is_alive():
                self._reading = threading.Thread(target=self._caught_up, name="rayfold-opening", daemon=True)
                self._reading.start()
            self._reads_since_s = self._reads_since_s or time.monotonic()
        self._reading.join(max(0.0, self._reads_since_s + _OPENING_S - time.monotonic()))
        while alone and self._opened is None and self._reading.is_alive():
            self._reading.join(_RETRY_S)
        opened = self._opened
        if opened is None or not (alone or opened.up_to_date):
            raise Unavailable(self._name, "it is still reading")
        return opened

    def _caught_up(self) -> OpenModel:
        """The read model, once it is open and has caught up with the logs."""
        if (opened := self._opened) is not None and opened.up_to_date:
            return opened
        with self._opening:
            if self._opened is None:
                self._opened = self._open_model()
            if not self._opened.up_to_date:
                self._opened.catch_up(self._keep)
            return self._opened

    def _open_model(self) -> OpenModel:
        plan = self._plan
        catalogue = unship(plan.catalogue)
        projection, folder = catalogue.projection(plan.projection), plan.store.folder_here() / plan.folder
        self._watch_over()
        with ExitStack() as on_failure:
            readers: dict[int, Reader] = {}
            for number in range(plan.store.partitions):
                readers[number] = plan.store.open_reader(number)
                on_failure.callback(readers[number].close)
            read_model = _restored(
                lambda: ReadModel(
                    projection, catalogue, readers, directory=folder, part=plan.part, in_hand=self._in_hand
                )
            )
            on_failure.callback(read_model.close)
            tune_gc()
            if why := read_model.other_history:  # it is made anew, and that must not pass in silence
                self._alarms.raise_alarm("checkpoint", f"{plan.projection}, part {plan.part}", why)
            opened = OpenModel(plan.projection, read_model, readers, self._ending)
            self._answers = Answers(plan.projection, self._name, opened, self._in_hand, self._ending)

            def checks(pause: Callable[[], None]) -> Iterator[None]:
                if not opened.up_to_date:
                    return iter(())
                return check_read_model(read_model, projection, catalogue, readers, plan.part, self._alarms, pause)

            self._check = StandingCheck(f"{plan.projection} part {plan.part}", plan.check_share, checks)
            on_failure.pop_all()
        return opened

    def _watch_over(self) -> None:
        """Find out what the last process of this projector had in hand when it ended, and have this one ended if a
        query or an event takes too long."""
        with self._door:
            if not self._watched:
                self._in_hand = in_hand_of(record_of(_actor_id() or f"{self._plan.store.store_id} {self._plan.folder}"))
                ProcessWatchdog(self._in_hand, self._plan.answer_max_s)
                self._watched = True

    # -------------------------------------------------------------------------------------------------------------

    def _without_values(self, but: set[str]) -> list[PackedQuery]:
        """A query of each kind that can be made without knowing anything."""
        made = []
        for cls in unship(self._plan.catalogue).projection(self._plan.projection).answers:
            if cls.message_name not in but:
                with suppress(Exception):  # it needs a value
                    made.append(PackedQuery(cls.message_name, encode_message(cls())))
        return made

    def _mend(self, mending: Callable[[ReadModel], object]) -> ReadModel:
        """Change what no event in the log will change again: a start from an older checkpoint would undo it."""
        read_model = self._caught_up().read_model
        mending(read_model)
        self._checkpoint(read_model)
        return read_model

    def _keep(self, read_model: ReadModel) -> None:
        if read_model.checkpoint_due() and not self._ending.is_set():
            self._checkpoint(read_model)

    def _checkpoint(self, read_model: ReadModel) -> None:
        """A checkpoint that cannot be written costs time at the next start, and nothing now."""
        try:
            read_model.checkpoint()
        except RayfoldError as error:
            log.error("projection %s goes on without a checkpoint: %s", self._plan.projection, error)


def _answer_of(opened: OpenModel) -> ProjectorAnswer:
    read_model = opened.read_model
    progress, quarantined = read_model.progress(), tuple(read_model.quarantined)
    failed, replaying = str(progress.failed or ""), progress.replaying or not opened.up_to_date
    return ProjectorAnswer(os.getpid(), progress.positions, failed, progress.events_applied, quarantined, replaying)


def _restored(make: Callable[[], ReadModel]) -> ReadModel:
    """A read model with what its folder holds. Raises `StoreInUse` if another process keeps the folder too long."""

    def opened(_: float) -> ReadModel:
        read_model = make()
        read_model.open()
        return read_model

    return retried_now(opened, Patience(_LEFTOVER_S, pause_s=_RETRY_S, again=(StoreInUse,), never=()))


def _actor_id() -> str:
    try:
        return ray.get_runtime_context().get_actor_id() or ""
    except Exception:  # it is not an actor
        return ""


def _has(positions: Mapping[int, int], after: Mapping[int, int]) -> bool:
    return all(positions.get(partition, 0) >= position for partition, position in after.items())


def start_projector(
    plan: ProjectorPlan, name: str, namespace: str, scheduling: Mapping[str, Any] | None = None
) -> ProjectorHandle:
    """A projector that Ray restarts without limit. `scheduling`: options that choose its node (`scheduling.py`)."""
    remote: Any = ray.remote  # its types do not know concurrency groups
    threads = {"ask": 1, "ask_after": ASKING_AFTER_MAX, "keep": 1, "status": 1, "heartbeat": 1}
    actor = remote(concurrency_groups=threads)(ProjectorActor)
    options = actor.options(
        name=name,
        namespace=namespace,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        enable_task_events=False,
        **(scheduling or {}),
    )
    started: ProjectorActor = options.remote(plan)
    return started
