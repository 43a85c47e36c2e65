"""Routing: which actor a command goes to, when, and again where; and what its caller gets. Without any I/O.

Step [2] of the write path. Around it: `CommandRouter` (`command_router.py`), which sends, waits and resolves futures. A
state machine after the manner of dask's worker: what happens is a call of one of the events below, with the time at
which it happened; the actions that follow are in `instructions` afterwards, and are carried out before the next event.
No event loop, no thread, no clock, no socket, no Ray: how an actor is reached (`transport`) and who waits for an
outcome (`caller`) are handed in, and handed back.

One queue (`runtime/batch_queue.py`) leads to each partition, and one to each own actor that is known. Two batches of it
are in flight, so that the actor decides one while the next is made. When one is lost, gets no answer, or sends commands
elsewhere, the actor refuses the one behind it (`../partition/request_order.py`); then nothing leaves until nothing is
in flight, and everything that was not answered is sent again in order, with backoff and jitter, until its deadline. So
the order of one caller's commands to one aggregate is kept through losses and moves, and the same ids make sure that
nothing takes effect twice.

An aggregate with a long history is loaded aside by its partition (`runtime/write/loading.py`), which answers
`RetryAfter` meanwhile. Its commands are parked here, in order, and sent again after a pause; those to other
aggregates go on. So are those to an aggregate whose own actor has to be found by its name, since Ray may take long for
it.

Rules kept here: every command has a deadline, after which its caller gets `Unavailable`; what waits is bounded; retries
are made here and nowhere else (Ray's own would run a command again unnoticed).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from ...runtime.batch_queue import BatchQueue, commands_worth
from ...runtime.encoding.envelope import PackedCommand, join
from ...runtime.encoding.outcome import Outcome, Redirect, RetryAfter, decode_answer
from ...runtime.errors import Fenced, Overloaded, Unavailable
from ...runtime.stream import OLD_PLACEMENT, StreamId, partition_of

__all__ = [
    "IN_FLIGHT_MAX",
    "Caller",
    "Destination",
    "Execute",
    "FindActors",
    "Instruction",
    "PendingCommand",
    "ReportLost",
    "ReportUnreadable",
    "Resolve",
    "Routing",
    "Schedule",
]

IN_FLIGHT_MAX = 2
"""Batches on their way to one actor: one that it works on, and one that is made and carried meanwhile."""

_ROUTES_MAX: Final = 1024
"""Own actors remembered: some times as many as run at once. A dropped one is asked for at its partition again."""

_FOUND_AT_ONCE: Final = 64
"""Own actors that are looked up before their commands go on: less than a tenth of a second."""

_PARKED_BYTES_MAX: Final = 64 << 20
"""The size of all commands that are parked for that; their number is bounded by `Settings.in_flight_max`."""

_BACKOFF_FIRST_S: Final = 0.02
_BACKOFF_MAX_S: Final = 0.5
_SWEEP_S: Final = 0.05
"""How precise deadlines are."""

_PRECISE_S: Final = 1.0
"""A command with a shorter limit has a timer of its own, and is not answered later than that."""

_new: Final = tuple.__new__
"""Makes a named tuple in half the time (0.2 us): the class's own `__new__` is a function in Python."""


class Caller(Protocol):
    """The future of a command's outcome. Only read here; see `Resolve`."""

    def done(self) -> bool:
        """Whether it has an outcome, or its caller does not wait any more."""
        ...

    def set_result(self, outcome: Outcome, /) -> None:
        """Set the outcome."""
        ...


class PendingCommand:
    """A command on its way, until its caller has an outcome."""

    __slots__ = ("blob", "caller", "command_id", "deadline_s", "lost_attempts", "stream")

    def __init__(self, packed: PackedCommand, blob: bytes, caller: Caller, deadline_s: float) -> None:
        self.command_id, self.stream = packed[:2]
        self.blob, self.caller, self.deadline_s = blob, caller, deadline_s
        self.lost_attempts = 0


class Destination:
    """An actor that executes commands, the queue and the transport to it, and the batches in flight."""

    def __init__(self, partition: int, name: str, transport: Any, start: Callable[[Destination, float], None]) -> None:
        self.partition = partition
        self.name = name
        """The name of an own actor; empty for a partition."""
        self.transport = transport
        """Its transport: not used here."""
        to = f"the queue to {name or f'partition {partition}'}"
        self.queue = BatchQueue[PendingCommand](to, in_flight_max=IN_FLIGHT_MAX)
        self.flights: dict[int, list[PendingCommand]] = {}
        """By attempt, in the order they left."""
        self.held: dict[int, list[PendingCommand]] = {}
        """What came back unanswered, by attempt. While there is any, nothing leaves: order would be lost."""
        self.moved: dict[StreamId, str] = {}
        """Where some aggregates are now, as the actor has reported."""
        self.loading: dict[StreamId, float] = {}
        """Aggregates that it is loading aside, and after how long to ask again."""
        self.failures = 0
        """In a row; sets the backoff."""
        self.again = 0
        """Numbers the wait after which what is held is sent on; 0 while there is none."""
        self.cut_off = False
        """Whether an own actor was not lost, but this program's connection to the cluster was."""
        self.start = Schedule(0.0, partial(start, self))
        """Has what is put into the queue in the same moment leave together. Made once: it is needed for every batch."""


class Execute(NamedTuple):
    """Have the destination execute this batch. What comes back is `answered`, and so is nothing within `timeout_s`."""

    destination: Destination
    attempt: int
    predecessor: int
    batch: bytes
    timeout_s: float


class Resolve(NamedTuple):
    """Resolve the futures of the callers that still wait."""

    outcomes: Sequence[tuple[PendingCommand, Outcome]]


class Schedule(NamedTuple):
    """Call `event` after so long, with the time that it is then; with no delay as soon as what happens now is over."""

    delay_s: float
    event: Callable[[float], None]


class FindActors(NamedTuple):
    """Find the actors of these names. There is one such search at a time; its end is `found`."""

    names: Sequence[str]


class ReportLost(NamedTuple):
    """Notify the partition that one of its own actors does not answer."""

    partition: Destination
    stream: StreamId
    name: str
    transport: Any
    """How it was reached; None if it was not found."""


class ReportUnreadable(NamedTuple):
    """A destination has given an answer that is not Rayfold's."""

    name: str
    error: Exception


Instruction = Execute | Resolve | Schedule | FindActors | ReportLost | ReportUnreadable


class Routing:
    """All commands of one client that have no outcome yet."""

    def __init__(
        self,
        transports: Sequence[Any],
        *,
        in_flight_max: int,
        attempt_timeout_s: float,
        uniform: Callable[[float, float], float],
        placement_rule: str = OLD_PLACEMENT,
        store_id: str = "",
    ) -> None:
        """`transports`: one to each partition. `placement_rule`: the rule by which the store places streams in
        partitions (`stream.partition_of`); `store_id`: its id, for the receipts. `uniform`: draws the jitter."""
        self.instructions: list[Instruction] = []
        """The actions to take now, in order. The driver that takes them empties it."""
        self.partitions = [
            Destination(number, "", transport, self._start) for number, transport in enumerate(transports)
        ]
        self.routes: dict[StreamId, Destination] = {}
        """Aggregates that are known to have an own actor, or had one at the last answer."""
        self.pending: set[PendingCommand] = set()
        self.unavailable: dict[int, str] = {}
        """Partition -> why nothing reaches it: what is sent to it is refused at once, so that it takes no place from
        commands to others."""
        self.closed = False
        self._placement_rule, self._store_id, self._uniform = placement_rule, store_id, uniform
        self._in_flight_max, self._attempt_timeout_s = in_flight_max, attempt_timeout_s
        self._now_s = 0.0
        """The time of the event that is happening."""
        self._attempts = self._waits = 0
        self._attempted: dict[int, Destination] = {}
        """Where each attempt in flight is; at most `IN_FLIGHT_MAX` for each destination."""
        self._lost: OrderedDict[str, None] = OrderedDict()
        """Own actors that were given up. A partition that has not learned of it yet still redirects to them."""
        self._parked: dict[StreamId, list[PendingCommand]] = {}
        """What waits for an aggregate that is being loaded, or whose own actor is being looked up, in order."""
        self._parked_bytes = 0
        self._sought: dict[StreamId, tuple[int, str]] = {}
        """Aggregates whose own actor has to be found: their partition, and its name."""
        self._looked_up: dict[StreamId, tuple[int, str]] | None = None
        """Those of them that are being found now."""
        self._detached_meanwhile = False
        """What is being found was found before the routing was detached, and counts no more."""
        self._sweeping = False

    # Events ------------------------------------------------------------------------------------------------------

    def submit(self, now_s: float, packed: PackedCommand, blob: bytes, caller: Caller, timeout_s: float) -> None:
        """A caller has sent a command. Raises `Overloaded`, or `Unavailable` if nothing reaches its partition; it was
        not sent then."""
        if len(self.pending) >= self._in_flight_max:
            raise Overloaded("the client", self._in_flight_max, "commands in flight")
        stream = packed.stream
        if self.closed:
            raise Unavailable(str(stream), "the runtime is stopped")
        if self.unavailable and (why := self._why_not(stream)):
            raise Unavailable(str(stream), f"it was not sent: {why}")
        pending = PendingCommand(packed, blob, caller, now_s + timeout_s)
        if stream in self._parked:
            self._park(pending)
        else:
            destination = self._destination(stream)
            if destination.queue.put(pending, len(blob)):
                self.instructions.append(destination.start)
        self.pending.add(pending)
        if timeout_s < _PRECISE_S:
            self._schedule(timeout_s, partial(self._expire, pending))
        if not self._sweeping:
            self._sweeping = True
            self._schedule(_SWEEP_S, self._sweep)

    def answered(self, now_s: float, attempt: int, answer: bytes | None) -> None:
        """An attempt has been answered, or (without an answer) has failed or taken too long."""
        self._now_s = now_s
        destination = self._attempted.pop(attempt, None)
        if destination is None:  # it was given up: its commands are on their way again
            return
        batch = destination.flights.pop(attempt)
        if not answer:
            destination.failures = destination.failures + 1 if answer is None else 0
            unanswered = batch
            for pending in batch if answer is None else ():
                pending.lost_attempts += 1
        else:
            try:
                unanswered = self._read_answer(destination, batch, answer)
            except Exception as error:  # it is not an answer of Rayfold's: treated as lost, and the batcher continues
                self.instructions.append(ReportUnreadable(destination.queue.name, error))
                destination.failures += 1
                unanswered = [pending for pending in batch if not pending.caller.done()]
        if unanswered:
            destination.held[attempt] = unanswered
        if not destination.held:
            if destination.queue.batch_done():
                self._flush(destination)
        elif not destination.flights:
            self._send_again_after(self._backoff_s(destination.failures), destination)

    def found(self, now_s: float, transports: Mapping[str, Any]) -> None:
        """The actors of these names were found, each with its transport, of those that were searched for."""
        self._now_s = now_s
        looked_up, self._looked_up = self._looked_up or {}, None
        for stream, (partition, actor) in looked_up.items():
            if stream in self._sought:  # it has moved again meanwhile
                continue
            if not self._detached_meanwhile:
                self._open_route(stream, actor, partition, transports.get(actor))
            self._bring_back(stream)
        self._find()

    def replaced(self, now_s: float, partition: int, transport: Any) -> None:
        """The partition is reached by this transport from now on. What is on its way to the other actor is sent again
        if it fails."""
        self._now_s = now_s
        destination = self.partitions[partition]
        destination.transport = transport
        destination.failures = 0
        if destination.again:  # it was the other one that had to be waited for
            self._send_again_after(0.0, destination)

    def detached(self, now_s: float, why: str) -> None:
        """Nothing reaches any actor until each partition is `replaced`, and `unavailable` allows its use: what is
        submitted is refused at once with this reason. What is on its way has failed, and is sent again then, or is
        `Unavailable` at its deadline."""
        self._now_s = now_s
        self.unavailable = dict.fromkeys(range(len(self.partitions)), why)
        self._detached_meanwhile = True
        for route in self.routes.values():
            route.cut_off = True
        for attempt in list(self._attempted):
            self.answered(now_s, attempt, None)
        for stream, route in list(self.routes.items()):
            if not route.held and not len(route.queue):
                del self.routes[stream]

    def close(self) -> None:
        """Nothing is sent any more; what has no outcome yet is `Unavailable`."""
        self.closed = True
        self.give_up("the runtime was stopped before it was answered")

    def give_up(self, what: str) -> None:
        """What has no outcome yet is `Unavailable`, for this reason."""
        for pending in list(self.pending):
            self._resolve(pending, Unavailable(str(pending.stream), what))

    # Where to ----------------------------------------------------------------------------------------------------

    def _destination(self, stream: StreamId) -> Destination:
        return self.routes.get(stream) or self.partitions[self._partition_of(stream)]

    def _partition_of(self, stream: StreamId) -> int:
        return partition_of(stream, len(self.partitions), self._placement_rule)

    def _why_not(self, stream: StreamId) -> str:
        """Why nothing reaches the partition of a stream; empty if something does, as far as is known."""
        partition = self._partition_of(stream)
        why = self.unavailable.get(partition)
        return f"partition {partition}: {why}" if why else ""

    # On its way --------------------------------------------------------------------------------------------------

    def _start(self, destination: Destination, now_s: float) -> None:
        self._now_s = now_s
        self._flush(destination)

    def _flush(self, destination: Destination) -> None:
        while batch := destination.queue.next_batch():
            self._send(destination, batch)

    def _send(self, destination: Destination, batch: list[PendingCommand]) -> None:
        """Start one attempt. What has been given up since is left out."""
        if destination.held:
            self._attempts += 1
            destination.held[self._attempts] = batch
            return
        batch = [pending for pending in batch if not pending.caller.done()]
        if not batch or self.closed:
            destination.queue.batch_done()  # the next one leaves in the loop that this one has left in
            return
        self._attempts += 1
        attempt, predecessor = self._attempts, next(reversed(destination.flights), 0)
        destination.flights[attempt] = batch
        self._attempted[attempt] = destination
        blob, timeout_s = join(pending.blob for pending in batch), self._attempt_limit_s(destination, batch)
        self.instructions.append(_new(Execute, (destination, attempt, predecessor, blob, timeout_s)))

    def _attempt_limit_s(self, destination: Destination, batch: Sequence[PendingCommand]) -> float:
        """How long an attempt may take. A partition has many aggregates, which a lost request must not hold up. An own
        actor has one, and one that decides for long is waited for: Ray itself reports that its process has ended."""
        if not destination.name:
            return self._attempt_timeout_s
        return max(self._attempt_timeout_s, max(pending.deadline_s for pending in batch) - self._now_s)

    def _read_answer(
        self, destination: Destination, batch: Sequence[PendingCommand], blob: bytes
    ) -> list[PendingCommand]:
        """Resolve the futures. Returns the commands that must be sent again, here or elsewhere. A batch that is fenced
        off is one failure, however many commands it has: during a move that is for a tenth of a second."""
        unanswered: list[PendingCommand] = []
        outcomes: list[tuple[PendingCommand, Outcome]] = []
        fenced = False
        answers, batch_cost_s = decode_answer(blob, batch, self._store_id)
        destination.queue.pipelined_items_min = commands_worth(batch_cost_s)
        for pending, answered in zip(batch, answers, strict=True):  # both are ours
            if isinstance(answered, Redirect):
                unanswered.append(pending)
                destination.moved[pending.stream] = answered.actor
            elif isinstance(answered, RetryAfter):
                unanswered.append(pending)
                destination.loading[pending.stream] = answered.pause_s
            elif isinstance(answered, Fenced):
                unanswered.append(pending)
                fenced = True
            else:
                self.pending.discard(pending)
                outcomes.append((pending, answered))
        destination.failures = destination.failures + 1 if fenced else 0
        if outcomes:
            self.instructions.append(_new(Resolve, (outcomes,)))
        return unanswered

    # Again -------------------------------------------------------------------------------------------------------

    def _backoff_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row: doubling, with jitter, so that clients spread out."""
        if not failures:
            return 0.0
        return min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2.0 ** min(failures, 10)) * self._uniform(0.5, 1.0)

    def _send_again_after(self, delay_s: float, destination: Destination) -> None:
        """A wait for the same before is over by that: only the last one counts."""
        self._waits += 1
        destination.again = self._waits
        self._schedule(delay_s, partial(self._waited, destination, self._waits))

    def _waited(self, destination: Destination, wait: int, now_s: float) -> None:
        if destination.again == wait:
            destination.again = 0
            self._now_s = now_s
            if not self.closed:
                self._send_again(destination)

    def _send_again(self, destination: Destination) -> None:
        """Nothing is in flight, and some commands were not answered: send them on in the order in which they came,
        before everything that waits, to where their aggregates are now."""
        again = [pending for _, batch in sorted(destination.held.items()) for pending in batch]
        destination.held.clear()
        moved = {stream: actor for stream, actor in destination.moved.items() if actor}
        destination.moved.clear()
        if destination.name:
            self._take_back(destination, again)
            return
        loading, destination.loading = destination.loading, {}
        for stream in moved:  # it waits for its actor to be found, and for nothing else
            loading.pop(stream, None)
        for stream, pause_s in loading.items():
            self._schedule(pause_s * self._uniform(0.5, 1.0), partial(self._loaded, stream))
        if loading or moved:
            again = self._park_streams(destination, {*loading, *moved}, again)
        if moved:
            self._look_up(destination.partition, moved)
        elsewhere = [pending for pending in again if pending.stream in self.routes]
        waiting = destination.queue.take_waiting(lambda pending: pending.stream in self.routes)
        for pending in [*elsewhere, *(pending for pending, _ in waiting)]:
            self._put(pending)
        here = [(pending, len(pending.blob)) for pending in again if pending.stream not in self.routes]
        if destination.queue.restart(here):
            self._flush(destination)

    def _take_back(self, destination: Destination, again: Sequence[PendingCommand]) -> None:
        """An own actor does not answer: its partition takes the aggregate back, and everything goes there."""
        stream = next((stream for stream, route in self.routes.items() if route is destination), None)
        if stream is not None:
            del self.routes[stream]
            if not destination.cut_off:
                partition = self.partitions[destination.partition]
                self.instructions.append(ReportLost(partition, stream, destination.name, destination.transport))
                self._lost[destination.name] = None
            if len(self._lost) > _ROUTES_MAX:
                self._lost.popitem(last=False)
        waiting = destination.queue.take_waiting(lambda _: True)
        for pending in [*again, *(pending for pending, _ in waiting)]:
            self._put(pending)

    def _put(self, pending: PendingCommand) -> None:
        if (
            pending.caller.done() or pending.deadline_s <= self._now_s
        ):  # its caller gets the outcome with the next sweep
            return
        destination = self._destination(pending.stream)
        if destination.queue.put(pending, len(pending.blob), again=True):
            self.instructions.append(destination.start)

    # Parked ------------------------------------------------------------------------------------------------------

    def _park_streams(
        self, destination: Destination, streams: Set[StreamId], again: Sequence[PendingCommand]
    ) -> list[PendingCommand]:
        """Park what is for these aggregates, until it is brought back. Returns the others of `again`."""
        for stream in streams:
            self._parked.setdefault(stream, [])
        waiting = destination.queue.take_waiting(lambda pending: pending.stream in streams)
        for pending in [*again, *(pending for pending, _ in waiting)]:
            if pending.stream in streams:
                self._park(pending, again=True)
        return [pending for pending in again if pending.stream not in streams]

    def _park(self, pending: PendingCommand, *, again: bool = False) -> None:
        """`again`: it was sent before, so it is not refused."""
        if self._parked_bytes + len(pending.blob) > _PARKED_BYTES_MAX and self._parked_bytes and not again:
            raise Overloaded("the queue for aggregates that are being loaded", _PARKED_BYTES_MAX, "bytes")
        self._parked[pending.stream].append(pending)
        self._parked_bytes += len(pending.blob)

    def _loaded(self, stream: StreamId, now_s: float) -> None:
        """The aggregate may be loaded by now."""
        self._now_s = now_s
        self._bring_back(stream)

    def _bring_back(self, stream: StreamId) -> None:
        """Send on what waits for an aggregate, in order."""
        waiting = self._parked.pop(stream, [])
        self._parked_bytes -= sum(len(pending.blob) for pending in waiting)
        for pending in waiting:
            self._put(pending)

    # Own actors --------------------------------------------------------------------------------------------------

    def _look_up(self, partition: int, moved: Mapping[StreamId, str]) -> None:
        """Have own actors found by their names: Ray takes a millisecond for each, and a minute while the head is away.
        What is for their aggregates is parked, in order, and everything else goes on."""
        for stream, actor in moved.items():
            self._sought[stream] = partition, actor
        if self._looked_up is None:
            self._find()

    def _find(self) -> None:
        if self._sought and not self.closed:
            self._looked_up = {stream: self._sought.pop(stream) for stream in list(self._sought)[:_FOUND_AT_ONCE]}
            self._detached_meanwhile = False
            names = [actor for _, actor in self._looked_up.values() if actor not in self._lost]
            self.instructions.append(FindActors(names))

    def _open_route(self, stream: StreamId, actor: str, partition: int, transport: Any) -> None:
        if transport is None:  # it has ended since, or is as good as that; its partition finds out from us
            self.instructions.append(ReportLost(self.partitions[partition], stream, actor, None))
            return
        if len(self.routes) >= _ROUTES_MAX:  # one in use stays; there are at most as many as commands in flight
            for known, route in list(self.routes.items()):
                if not route.flights and not route.held and not len(route.queue):
                    del self.routes[known]
                if len(self.routes) < _ROUTES_MAX:
                    break
        self.routes[stream] = Destination(partition, actor, transport, self._start)

    # The end of each ---------------------------------------------------------------------------------------------

    def _resolve(self, pending: PendingCommand, outcome: Outcome) -> None:
        self.pending.discard(pending)
        self.instructions.append(Resolve([(pending, outcome)]))

    def _expire(self, pending: PendingCommand, _: float = 0.0) -> None:
        """Its deadline has passed."""
        if pending not in self.pending:  # its caller has the outcome
            return
        what = "no answer in time; it may have taken effect; send it again with the same command id"
        why = self._why_not(pending.stream)
        if not why and pending.lost_attempts:
            times = "once" if pending.lost_attempts == 1 else f"{pending.lost_attempts} times"
            why = (
                f"it was sent {times} to an actor that ended or took too long, for which `rayfold logs` has the reason"
            )
        self._resolve(pending, Unavailable(str(pending.stream), f"{what}; {why}" if why else what))

    def _sweep(self, now_s: float) -> None:
        """Fail those whose deadline has passed, and drop those whose caller has gone."""
        due = [pending for pending in self.pending if pending.deadline_s <= now_s or pending.caller.done()]
        for pending in sorted(due, key=lambda pending: (pending.deadline_s, pending.command_id)):
            self._expire(pending)
        self._sweeping = bool(self.pending)
        if self._sweeping:
            self._schedule(_SWEEP_S, self._sweep)

    def _schedule(self, delay_s: float, event: Callable[[float], None]) -> None:
        self.instructions.append(Schedule(delay_s, event))
