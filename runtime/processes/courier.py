"""Courier: carries out what is decided in one partition. Its events become inputs of processes, what processes have
sent becomes commands, their outcomes become inputs again, and timers wake. Without any I/O but reading its log.

Beside step [5]. Before it: a commit, after which it reads on. After it: commands, which its driver
(`actors/partition/courier.py`) has routed like those of any client. A state machine: what happens is a call of `read`,
`take` or `outcome` with the time at which it happened. No thread, no event loop, no clock.

Everything that is to be sent waits in the queue of its target, an instance or an aggregate, in order; of one queue one
batch is on its way. Where its target does not answer, a queue waits, and waits alone. How far events were
delivered is known by *route*: to one process type in one partition. A route whose partition is away falls behind, keeps
its position, and reads the log again from there when it is back; the others go on.

Rules kept here: every id is derived from what is stored, so what is sent again after a crash is a repeat; a place moves
only behind what is certain; nothing is sent of what the log has an outcome of; what is in memory is bounded, in queues
by commands and in routes by positions; the inputs that an event leads to have arrived before what was sent with it
leaves, or are refused by an instance in which too much waits; a command of which an outcome that it took effect is
stored here is in the log of its target, or what became of it is stored in the parked instance.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Final, NamedTuple, Protocol

from ..domain.aggregate import Woken
from ..effects.call_attempt import CallAttempt
from ..effects.call_queue import CallQueues, QueueFacts, RunnerName
from ..encoding.catalogue import Catalogue
from ..encoding.envelope import HOPS_MAX, PackedCommand
from ..encoding.outcome import Outcome
from ..errors import (
    CommandIdReused,
    Conflict,
    HandlerFailed,
    Overloaded,
    Rejected,
    StoreError,
    Unavailable,
)
from ..log.contract import StoredEvent
from ..log.format import HEADER_HOPS, decode_record
from ..printable import printable_log
from ..receipt import Receipt
from ..stream import ANY, StreamId
from .agenda import Agenda
from .delivery import (
    Reactions,
    begin_inputs,
    called_input,
    lost_input,
    outcome_input,
    parked_input,
    resume_input,
    send_command,
    woken_input,
)
from .places import COURIER, SENDS_OF_AGGREGATES, SENDS_OF_PROCESSES, Place, Places
from .step import SWITCHES, SWITCHES_MAX
from .stored_step import Sent, StoredStep, call_attempt, step_in
from .timers import Timer

__all__ = ["Courier", "CourierFacts", "CourierLog", "Delivery", "WaitingTarget"]

logger = printable_log(__name__)

PAGE_RECORDS: Final = 512
PAGE_BYTES: Final = 1 << 20
"""What is read of the log at once."""

OUT_MAX: Final = 2_048
"""Commands on their way to one partition: as many as it decides in a tenth of a second, so it never runs dry."""

TARGET_OUT_MAX: Final = 64
"""... and to one aggregate, which others must not wait for."""

TROUBLED_OUT_MAX: Final = 512
"""... and to aggregates of one partition that did not answer the last time: they hold a place until their timeout."""

WINDOW_MAX: Final = 4_096
"""Events whose delivery by one route is not certain yet. Beyond that the route stops and keeps its position."""

WINDOW_BYTES_MAX: Final = 16 << 20
"""... and their bytes."""

KEPT_BYTES_MAX: Final = 64 << 20
"""Of the commands of sends that are kept as they were read, all together."""

KEPT_STEPS_MAX: Final = 64
"""Commands of one queue that are kept as they were read; further ones are read again when their turn comes."""

WOKEN_OUT_MAX: Final = 2_048
"""Timers that are being fired: the others that are due follow as fast as these come back."""

AT_ONCE_US: Final = 1_000_000
"""A timer that is due sooner after it was armed counts as one more hop; a later one begins anew (`HOPS_MAX`)."""

RETRY_FIRST_US: Final = 50_000
RETRY_MAX_US: Final = 5_000_000
"""The pause of a queue whose target does not answer, doubled each time."""

TRIES_OF_INPUT: Final = 2
"""After so many failures outside of its step an input is parked: it ends the process that takes it."""

SETTLE_US: Final = 5_000_000
"""How long timers wait, where the agenda was read from the log, for what was on its way to arrive: after a restore they
are overdue, and their outcomes may be known already. Chains of some steps take a tenth of a second."""

TRIES_OF_PROBE: Final = 3
"""After so many failures to find out whether a log has lost something, what is for it is sent without knowing that."""

STEPS_PAGE: Final = 64
"""Records of an instance that are read at once to find what it has sent: its outcome comes some records later."""

TROUBLES_SHOWN: Final = 20
"""Queues that wait, in a status."""

PARKED_SHOWN: Final = 200
"""Instances that are parked: people work through them. Some 40 KB."""


class CourierLog(Protocol):
    """As much of a log as a courier reads. Safe beside its writer."""

    def head(self) -> int:
        """See `Reader`."""
        ...

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """See `Reader`."""
        ...

    def read_stream(
        self, stream: StreamId, from_version: int = 1, to_version: int | None = None, limit: int | None = None
    ) -> list[bytes]:
        """See `Reader`."""
        ...

    def version(self, stream: StreamId) -> int:
        """See `Reader`."""
        ...


class WaitingTarget(NamedTuple):
    """What waits for one target."""

    stream: str
    commands: int
    why: str


class CourierFacts(NamedTuple):
    """How far a courier is, for a status."""

    position: int
    """Up to here its log was read."""
    head: int
    timers: int
    open_sends: int
    """Sends whose outcome is not stored yet."""
    undelivered: int
    """Events before the head that were not delivered for certain, by the route that is farthest behind."""
    waiting: tuple[WaitingTarget, ...]
    """Targets that do not answer, those with the most commands first; at most 20."""
    waiting_count: int
    parked: tuple[tuple[str, str], ...]
    """Instances that stand still, and why; at most 200."""
    parked_count: int
    refused: int
    """Sends and timers of ordinary aggregates that were refused or failed, since the start: nothing is informed of that
    but this number."""
    calls: tuple[QueueFacts, ...] = ()
    """Calls to the outside, by function."""
    trouble: str = ""
    """Why it has failed and begun anew, lately; empty while it is well."""


INPUT, SEND, OUTCOME, WOKEN, PROBE, BEGIN, RESEND, LOST, REPORT = range(9)
"""Kinds of deliveries. `PROBE`: whether a log still has what was delivered to it last; `RESEND`: of a command that had
taken effect; `LOST`: that it has another outcome now; `REPORT`: what a call has come to."""


class _Group:
    """The inputs that one append leads to, and what waits until they have arrived."""

    __slots__ = ("inputs", "sends")

    def __init__(self, inputs: int, sends: list[Delivery]) -> None:
        self.inputs, self.sends = inputs, sends


class Delivery:
    """One command that is to be sent, until its outcome is known."""

    __slots__ = (
        *(
            "alone",
            "command",
            "failures",
            "group",
            "kind",
            "queue",
            "number",
            "position",
            "route",
            "size_bytes",
            "source",
        ),
        *("step", "timer"),
    )

    def __init__(self, kind: int, command: PackedCommand | None = None) -> None:
        self.kind, self.command = kind, command
        self.queue: _TargetQueue | None = None
        self.route: _Route | None = None
        self.position = 0
        """Of the event that an input is of; of a stored outcome for what was sent."""
        self.alone = True
        """Of a probe: nothing else of its event is for this route, so any other outcome than a repeat is a loss."""
        self.source: tuple[StreamId, int, int] | None = None
        """Of a send: the instance, its number, and the version of its step."""
        self.step: StoredStep | None = None
        self.timer: Timer | None = None
        self.group: _Group | None = None
        self.failures = 0
        self.size_bytes = 0
        """What it counts for, of what is kept."""
        self.number = 0
        """The order in which they came."""


class _TargetQueue:
    """What is to be sent to one aggregate."""

    __slots__ = ("again", "listed", "out", "partition", "pause_us", "stream", "trouble", "waiting", "why")

    def __init__(self, stream: StreamId, partition: int) -> None:
        self.stream, self.partition = stream, partition
        self.waiting: deque[Delivery] = deque()
        self.again: list[Delivery] = []
        """What has come back without an outcome."""
        self.out = 0
        self.pause_us = 0
        self.trouble = ""
        """What the last one that has no outcome got."""
        self.why = ""
        """The same of the last batch, while that is sent again; empty if all of it has outcomes."""
        self.listed = False
        """It is ready to be sent from, or pauses."""


@dataclass(slots=True)
class _Route:
    """From this log to one process type in one partition."""

    name: str
    partition: int
    since: int
    cursor: int
    """Up to here it has taken what is for it."""
    unacked: dict[int, int]
    """Position -> commands of its event that are not certain yet. In order."""
    witness: int = 0
    witness_at: int = 0
    """Where the witness's input is in the other log."""
    size_bytes: int = 0
    """Of these commands."""
    reading: bool = False
    """A page is being read for it."""
    again_to: int = 0
    """Where what is lost is sent again: up to here."""

    @property
    def place(self) -> int:
        """Up to here everything is certain."""
        return next(iter(self.unacked)) - 1 if self.unacked else self.cursor

    def has_room(self, share: int = 1) -> bool:
        """Whether more may be delivered, up to this part of its bounds."""
        return len(self.unacked) < WINDOW_MAX // share and self.size_bytes < WINDOW_BYTES_MAX // share

    def ack(self, position: int, size_bytes: int) -> None:
        """One command of this event has arrived."""
        self.size_bytes = max(self.size_bytes - size_bytes, 0)
        left = self.unacked.get(position, 0)
        if left > 1:
            self.unacked[position] = left - 1
        else:
            self.unacked.pop(position, None)


class Courier:
    """Of one partition. Used from one thread."""

    def __init__(
        self,
        partition: int,
        partitions: int,
        partition_of: Callable[[StreamId], int],
        catalogue: Catalogue,
        log: CourierLog,
        agenda: Agenda,
        places: Places,
        own: bytes = b"courier",
    ) -> None:
        """`places`: those that the log has, with the present processes; `agenda`: opened; `own`: a name that
        no other courier ever has: it makes the calls that begin under it, and no others."""
        self._partition, self._partitions, self._partition_of = partition, partitions, partition_of
        self._log, self.agenda, self._places = log, agenda, places
        self._reactions = Reactions(catalogue)
        self.has_moved = False
        """Whether there was anything since this was reset but the places themselves."""
        self._known_head = log.head()
        self._activated_at = self._known_head
        """What lies before may have been delivered by an earlier courier."""
        self._settling = not agenda.position and self._known_head > 0
        """Whether no timer is fired yet: the log may be a restored one."""
        self._settles_us = 0
        """... until then at the latest; 0 before it has caught up."""
        self._caught_up = False
        """Whether the agenda has come to where the log ended at the activation: only then it is acted on."""
        self._queues: dict[StreamId, _TargetQueue] = {}
        self._ready: list[deque[_TargetQueue]] = [deque() for _ in range(partitions)]
        self._troubled: list[deque[_TargetQueue]] = [deque() for _ in range(partitions)]
        """Ready ones whose last batch had no outcome."""
        self._out = [0] * partitions
        self._troubled_out = [0] * partitions
        self._pausing: list[tuple[int, int, _TargetQueue]] = []
        self._numbers = count(1)
        self._woken_out = self._kept_bytes = 0
        self._own = own
        effects = {one: cls for one, cls in catalogue.processes.items() if cls.is_effects}
        self._calls: CallQueues[Timer] = CallQueues(effects)
        self._calls.off = {one for one in places.off if one in effects}
        self._to_make: list[CallAttempt] = []
        self._read_switches(effects)
        self._refused = 0
        self._routes: dict[tuple[str, int], _Route] = {}
        self._by_name: dict[str, list[_Route]] = {}
        for name in [*catalogue.processes, SENDS_OF_AGGREGATES]:
            since = places.since.setdefault(name, self._known_head)
            to = places.to.setdefault(name, {})
            self._by_name[name] = []
            for number in range(partitions):
                place = to.setdefault(number, Place(since))
                self._by_name[name].append(_route(name, number, since, place))
        first = min((places.since[name] for name in catalogue.processes), default=self._known_head)
        sends = places.to.setdefault(SENDS_OF_PROCESSES, {})
        self._sends = [
            _route(SENDS_OF_PROCESSES, number, first, sends.setdefault(number, Place(self._known_head)))
            for number in range(partitions)
        ]
        """By partition: up to which outcome of what processes have sent the target was found to still have it."""
        self._by_name[SENDS_OF_PROCESSES] = self._sends
        self._routes |= {(one.name, one.partition): one for routes in self._by_name.values() for one in routes}
        self._held: dict[int, list[Delivery]] = {}
        """By partition, what is sent to it once it has what it had, or that is known."""
        self._receipts: dict[tuple[StreamId, int], tuple[int, int]] = {}
        """Of commands, by instance and number, whose outcome is not read here yet: partition and position."""
        for number in range(partitions):
            self.probe(number)
        for command in begin_inputs(catalogue):
            if partition_of(command.stream) == partition:
                self._put(Delivery(BEGIN, command))

    # --- what happens --------------------------------------------------------------------------------------------

    def read(self) -> bool:
        """Read one page of the log, if there is any to read. False: there is nothing to read now."""
        agenda = self.agenda
        at = agenda.position
        if at >= self._known_head:
            self._known_head = self._log.head()
        if at < self._known_head:
            records = self._log.read(at, PAGE_RECORDS, PAGE_BYTES)
            routes = [
                one for one in self._routes.values() if one.cursor >= at and one.has_room()
            ]  # those that are behind read on by themselves
            self._take_in(at, records, routes, fold=True)
            if records:
                agenda.reached(records[-1], at + len(records))
        if not self._caught_up and agenda.position >= self._activated_at:
            self._caught_up = True
            for one in agenda.open_sends():
                self._put_send(one.stream, one.number, one.version, None)
        behind = self._read_behind()
        return behind or agenda.position < self._known_head

    def take(self, now_us: int) -> list[Delivery]:
        """What is to be sent now, each with its `command`. The outcome of each is to be reported, once."""
        while self._pausing and self._pausing[0][0] <= now_us:
            queue = heapq.heappop(self._pausing)[2]
            self._troubled[queue.partition].append(queue)
        if self._caught_up:
            self._wake(now_us)
            if self._calls:
                self._begin_calls(now_us)
        taken: list[Delivery] = []
        for number in range(self._partitions):
            ready, troubled = self._ready[number], self._troubled[number]
            while ready and self._out[number] < OUT_MAX:
                self._take_from(ready.popleft(), taken)
            while troubled and self._troubled_out[number] < TROUBLED_OUT_MAX:
                self._take_from(troubled.popleft(), taken)
        return taken

    def outcome(self, delivery: Delivery, outcome: Outcome, now_us: int) -> None:
        """What has become of a delivery that was taken."""
        queue = delivery.queue
        assert queue is not None  # what was taken came from one
        queue.out -= 1
        if queue.why:
            self._troubled_out[queue.partition] -= 1
        else:
            self._out[queue.partition] -= 1
        if self._is_certain(delivery, outcome):
            self._finish(delivery, outcome)
        else:
            queue.again.append(delivery)
            queue.trouble = str(outcome)
            if delivery.kind == PROBE and delivery.route is not None:
                delivery.failures += 1
                if delivery.failures >= TRIES_OF_PROBE and delivery.route.name == SENDS_OF_PROCESSES:
                    self._release(delivery.route)
        if queue.out:
            return
        if queue.again:
            self._pause(queue, now_us)
        else:
            queue.pause_us, queue.why = 0, ""
            self._list(queue)

    def wanted_runners(self) -> set[RunnerName]:
        """The runners that calls wait for."""
        return self._calls.wanted() if self._caught_up else set()

    def runner_is_up(self, runner: RunnerName, up: bool) -> None:
        """Whether this runner is there; nothing that is for it begins without."""
        (self._calls.ready.add if up else self._calls.ready.discard)(runner)

    @property
    def is_calling(self) -> bool:
        """Whether an attempt is beginning, or has begun and has no end in the log."""
        return self._calls.is_calling

    def take_calls(self) -> list[CallAttempt]:
        """The attempts that have begun and are to be made now. What each comes to is to be reported with `called`."""
        taken, self._to_make = self._to_make, []
        return taken

    def called(self, call: CallAttempt, result: bytes, now_us: int, *, lost: bool = False) -> None:
        """What an attempt has come to, packed. `lost`: its runner has ended."""
        if lost:
            self._calls.lost(call.stream)
        at_once = now_us - call.begun_at_us < AT_ONCE_US
        self._put(Delivery(REPORT, called_input(call, result, at_once=at_once)))

    def next_us(self) -> int | None:
        """When `take` has something to do next, if nothing else happens; None if never."""
        times = [self._pausing[0][0]] if self._pausing else []
        if self._caught_up and self._woken_out < WOKEN_OUT_MAX and (due_us := self.agenda.timers.next_due_us()):
            times.append(max(due_us, self._settles_us) if self._settling else due_us)
        if self._caught_up and (pause_us := self._calls.next_us()) is not None:
            times.append(pause_us)
        return min(times, default=None)

    def probe(self, partition: int) -> None:
        """Have what was delivered to this partition last delivered again, at a start, and when it was away: its log may
        be an older one. It has to be a repeat."""
        for routes in self._by_name.values():
            self._probe(routes[partition])

    # --- what is known -------------------------------------------------------------------------------------------

    def present_places(self) -> Places:
        """The places as they are now, to be stored."""
        for (name, number), route in self._routes.items():
            place = self._places.to[name][number]
            place.position = max(route.place, route.since)
            place.witness, place.witness_at = route.witness, route.witness_at
        self._places.switches_read = max(self._places.switches_read, self.agenda.position)
        return self._places

    def facts(self) -> CourierFacts:
        """For a status."""
        troubled = sorted(
            (queue for queue in list(self._queues.values()) if queue.why), key=lambda queue: -len(queue.waiting)
        )
        shown = [
            WaitingTarget(str(queue.stream), len(queue.waiting) + queue.out + len(queue.again), queue.why)
            for queue in troubled[:TROUBLES_SHOWN]
        ]
        agenda, head = self.agenda, self._log.head()
        parked = [(str(stream), why) for stream, why in list(agenda.parked.items())[:PARKED_SHOWN]]
        behind = min((route.place for route in self._routes.values()), default=head)
        return CourierFacts(
            agenda.position,
            head,
            agenda.timers.count,
            agenda.open_count,
            max(head - behind, 0),
            tuple(shown),
            len(troubled),
            tuple(parked),
            len(agenda.parked),
            self._refused,
            tuple(self._calls.facts()),
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way, and nothing waits but timers."""
        return not self._queues and not self._held and self.agenda.position >= self._log.head()

    # --- reading -------------------------------------------------------------------------------------------------

    def _read_behind(self) -> bool:
        """Read one page for the routes that are farthest behind. Whether there is more to read for any."""
        at = self.agenda.position
        behind = [one for one in self._routes.values() if one.cursor < at and one.has_room(2)]
        if not behind:
            return False
        cursor = min(one.cursor for one in behind)
        routes = [one for one in behind if one.cursor == cursor]
        records = self._log.read(cursor, min(PAGE_RECORDS, at - cursor), PAGE_BYTES)
        self._take_in(cursor, records, routes, fold=False)
        return True

    def _take_in(self, after: int, records: Sequence[bytes], routes: Sequence[_Route], *, fold: bool) -> None:
        """Have these routes deliver what is in a page, and the agenda take in what it holds."""
        for route in routes:
            route.reading = True
        stored = (decode_record(record, checked=True) for record in records)
        for _, append in groupby(stored, lambda event: event.command_id):
            self._take_in_append(append, fold=fold)
        for route in routes:
            route.reading = False
            route.cursor = max(route.cursor, after + len(records))
            if route.again_to:
                self._release(route)

    def _take_in_append(self, append: Iterable[StoredEvent], *, fold: bool) -> None:
        inputs: list[Delivery] = []
        sends: list[Delivery] = []
        hops = 0
        for event in append:
            if event.stream == COURIER:
                continue
            self.has_moved = True
            step = step_in(event)
            hops = step.hops if step is not None else event.headers.get(HEADER_HOPS, hops)
            if event.name in self._reactions.names:
                again = event.position <= self._activated_at
                for command in self._reactions.inputs(self._partition, event, again, None, hops):
                    self._add_input(inputs, command, command.stream.type, event.position)
            if step is None:
                continue
            if fold:
                self.agenda.fold(step)
                if self._calls and step.is_process:
                    self._take_in_call(step)
            if step.accepted is not None:
                self._verify(step)
            if not step.is_process:
                for sent in step.sends if step.sends and not self._is_endless(step, "what it sends") else ():
                    command = send_command(step, sent)
                    self._add_input(inputs, command, SENDS_OF_AGGREGATES, event.position)
                continue
            if step.resume:
                command = resume_input(step)
                self._add_input(inputs, command, step.stream.type, event.position)
            if fold and self._caught_up:
                sends += [self._send(step.stream, one.number, step.version, step) for one in step.sends]
        group = _Group(len(inputs), sends) if inputs and sends else None
        for one in inputs:
            one.group = group
            self._put(one)
        for one in () if group else sends:
            self._put(one)

    def _is_endless(self, step: StoredStep, what: str) -> bool:
        """Whether an ordinary aggregate goes on without end: nothing more of that is carried out."""
        if step.hops > HOPS_MAX:
            self._refused += 1
            message = "%s goes on without end: %s is not carried out after %d commands that followed from one another"
            logger.error(message, step.stream, what, HOPS_MAX)
        return step.hops > HOPS_MAX

    def _read_switches(self, effects: Iterable[str]) -> None:
        """Whether calls were switched since the places were stored: the agenda may be ahead of them."""
        steps = []
        numbers = range(self._partitions * SWITCHES_MAX)
        for stream in (StreamId(one, f"{SWITCHES}{number}") for one in effects for number in numbers):
            if self._partition_of(stream) == self._partition and (version := self._log.version(stream)):
                steps.append(self._step_at(stream, version))
        for step in sorted((one for one in steps if one is not None), key=lambda one: one.position):
            self._switch(step)

    def _switch(self, step: StoredStep) -> None:
        """Have the calls of a class made, or wait, if this record switches them and is new."""
        if step.switched is not None and step.position > self._places.switches_read:
            for names in (self._calls.off, self._places.off):
                (names.discard if step.switched else names.add)(step.stream.type)
            self.has_moved = True

    def _take_in_call(self, step: StoredStep) -> None:
        """What a record means for the calls of its instance."""
        self._switch(step)
        if step.attempt is not None:
            if step.attempt.by == self._own and self._caught_up:
                asked_at = step.attempt.asked_at
                for record in self._log.read_stream(step.stream, asked_at, asked_at):
                    attempt = call_attempt(step, decode_record(record, checked=True))
                    self._to_make.append(attempt._replace(alone=self._calls.is_alone(step.stream)))
        elif step.attempt_ended is not None:
            self._calls.ended(step.stream, step.attempt_ended, step.recorded_at_us)
        elif step.fired is not None:
            self._calls.ended(step.stream, None, step.recorded_at_us)

    def _add_input(self, inputs: list[Delivery], command: PackedCommand, name: str, position: int) -> None:
        """One more command that an event leads to, if it is read for its route, which has not passed it."""
        route = self._routes.get((name, self._partition_of(command.stream)))
        if route is None or not route.reading or position <= route.cursor:
            return
        delivery = Delivery(INPUT, command)
        self._count(delivery, route, position)
        inputs.append(delivery)

    def _count(self, delivery: Delivery, route: _Route, position: int) -> None:
        """This is on its way for a route, for the event at this position."""
        assert delivery.command is not None  # those with a route are made with it
        delivery.route, delivery.position = route, position
        route.unacked[position] = route.unacked.get(position, 0) + 1
        delivery.size_bytes = len(delivery.command.payload)
        route.size_bytes += delivery.size_bytes

    def _probe(self, route: _Route) -> None:
        """Have what was delivered last delivered again: it has to be a repeat."""
        for record in self._log.read(route.witness - 1, 1) if route.witness else ():
            event = decode_record(record, checked=True)
            step = step_in(event)
            commands: list[PackedCommand] = []
            if route.name == SENDS_OF_PROCESSES:
                commands = [] if step is None else [send_command(*found) for found in self._accepted_in(step)]
            elif route.name == SENDS_OF_AGGREGATES:
                commands = [] if step is None else [send_command(step, sent) for sent in step.sends]
            else:
                commands = self._reactions.inputs(self._partition, event, True, [route.name])
            there = [command for command in commands if self._partition_of(command.stream) == route.partition]
            for command in there:
                delivery = Delivery(PROBE, command)
                delivery.route, delivery.position, delivery.alone = route, route.witness, len(there) == 1
                self._put(delivery)
                if route.name == SENDS_OF_PROCESSES:
                    self._held.setdefault(route.partition, [])

    # --- what may be lost ----------------------------------------------------------------------------------------

    def _accepted_in(self, step: StoredStep) -> list[tuple[StoredStep, Sent]]:
        """The command, with the step that sent it, of which this step is the outcome that it took effect."""
        to, number = step.version - 1, step.accepted
        while to > 0 and number is not None:
            first = max(to - STEPS_PAGE + 1, 1)
            for record in reversed(self._log.read_stream(step.stream, first, to)):
                earlier = step_in(decode_record(record, checked=True))
                for sent in () if earlier is None else earlier.sends:
                    if sent.number == number:
                        return [(earlier, sent)] if earlier is not None else []
            to = first - 1
        if number is not None:
            logger.error("%s version %d is the outcome of number %d, which it has not sent", *step[:2], number)
        return []

    def _verify(self, step: StoredStep) -> None:
        """A command has taken effect, by an outcome that is stored here: the log of its target has to have it. One
        that this courier has a receipt of is there; others are sent again, under their ids."""
        assert step.accepted is not None  # it is the outcome of a send
        receipt, position = self._receipts.pop((step.stream, step.accepted), None), step.position
        if receipt is not None:
            _witnessed(self._sends[receipt[0]], position, receipt[1])
            return
        if not any(one.reading and position > one.cursor for one in self._sends):
            return
        for sender, sent in self._accepted_in(step):
            route = self._sends[self._partition_of(sent.stream)]
            if route.reading and position > route.cursor:
                delivery = Delivery(RESEND, send_command(sender, sent))
                delivery.source = sender.stream, sent.number, sender.version
                self._count(delivery, route, position)
                self._put(delivery)

    def _finish_probe(self, delivery: Delivery, outcome: Outcome) -> None:
        route = delivery.route
        assert route is not None  # those of this kind have one
        if isinstance(outcome, Receipt):
            lost = not outcome.repeated
        else:
            lost = delivery.alone and not isinstance(outcome, CommandIdReused)
        if lost:
            self._go_back(route)
        elif isinstance(outcome, Receipt) and route.witness:
            _witnessed(route, delivery.position, outcome.position)
        if route.name == SENDS_OF_PROCESSES and not lost:
            self._release(route)

    def _finish_resent(self, delivery: Delivery, outcome: Outcome) -> None:
        route = delivery.route
        assert route is not None  # those of this kind have one
        assert delivery.source is not None  # those of this kind have one
        stream, number, version = delivery.source
        if isinstance(outcome, Receipt):
            if outcome.event_count:
                _witnessed(route, delivery.position, outcome.position)
            self._arrived_again(delivery)
            return
        step = self._step_at(stream, version)
        sent = None if step is None else next((one for one in step.sends if one.number == number), None)
        if step is None or sent is None:
            self._arrived_again(delivery)
            return
        logger.warning("%s: %s to %s had taken effect, and is lost: %s", stream, sent.name, sent.stream, outcome)
        lost = Delivery(LOST, lost_input(step, sent, outcome))
        lost.route, lost.position, lost.size_bytes = route, delivery.position, delivery.size_bytes
        self._put(lost)

    def _arrived_again(self, delivery: Delivery) -> None:
        route = delivery.route
        assert route is not None  # those of this kind have one
        route.ack(delivery.position, delivery.size_bytes)
        self.has_moved = True
        self._release(route)

    def _release(self, route: _Route) -> None:
        """Send what was held for a partition, if that has all again that it had."""
        if route.place >= route.again_to:
            route.again_to = 0
            for one in self._held.pop(route.partition, ()):
                self._put(one)

    # --- queues ---------------------------------------------------------------------------------------------------

    def _put(self, delivery: Delivery) -> None:
        """Have it sent behind everything else that is for its target."""
        command = delivery.command
        if command is None:
            command = self._made(delivery)
            if command is None:
                return
        stream = command.stream
        if self._held and delivery.kind == SEND and (held := self._held.get(self._partition_of(stream))) is not None:
            delivery.command = delivery.step = None
            held.append(delivery)
            return
        queue = self._queues.get(stream)
        if queue is None:
            queue = self._queues[stream] = _TargetQueue(stream, self._partition_of(stream))
        delivery.queue, delivery.number = queue, next(self._numbers)
        if delivery.kind == SEND:
            if len(queue.waiting) >= KEPT_STEPS_MAX or self._kept_bytes >= KEPT_BYTES_MAX:
                delivery.command = delivery.step = None
            else:
                delivery.size_bytes = len(command.payload)
                self._kept_bytes += delivery.size_bytes
        queue.waiting.append(delivery)
        if not queue.listed and not queue.out:
            self._list(queue)

    def _list(self, queue: _TargetQueue) -> None:
        """A queue with nothing on its way: it is ready, or gone."""
        if not queue.waiting:
            del self._queues[queue.stream]
            return
        queue.listed = True
        self._ready[queue.partition].append(queue)

    def _take_from(self, queue: _TargetQueue, taken: list[Delivery]) -> None:
        queue.listed = False
        waiting = queue.waiting
        while waiting and queue.out < TARGET_OUT_MAX:
            delivery = waiting.popleft()
            if delivery.command is None and self._made(delivery) is None:
                continue
            queue.out += 1
            taken.append(delivery)
        if queue.why:
            self._troubled_out[queue.partition] += queue.out
        else:
            self._out[queue.partition] += queue.out
        if not queue.out:
            self._list(queue)

    def _pause(self, queue: _TargetQueue, now_us: int) -> None:
        """Send what has come back again, in order, before all that waits, but not at once."""
        queue.waiting.extendleft(sorted(queue.again, key=lambda one: -one.number))
        queue.again.clear()
        queue.why = queue.trouble
        queue.pause_us = min(max(2 * queue.pause_us, RETRY_FIRST_US), RETRY_MAX_US)
        queue.listed = True
        heapq.heappush(self._pausing, (now_us + queue.pause_us, next(self._numbers), queue))

    # --- sends and timers ----------------------------------------------------------------------------------------

    def _send(self, stream: StreamId, number: int, version: int, step: StoredStep | None) -> Delivery:
        delivery = Delivery(SEND)
        delivery.source, delivery.step = (stream, number, version), step
        return delivery

    def _put_send(self, stream: StreamId, number: int, version: int, step: StoredStep | None) -> None:
        self._put(self._send(stream, number, version, step))

    def _made(self, delivery: Delivery) -> PackedCommand | None:
        """The command of a send; None if it has an outcome by now."""
        if delivery.kind != SEND:
            return delivery.command
        assert delivery.source is not None  # those of this kind have one
        stream, number, version = delivery.source
        if not self.agenda.is_open(stream, number):
            return None
        step = delivery.step or self._step_at(stream, version)
        sent = next((one for one in step.sends if one.number == number), None) if step is not None else None
        if step is None or sent is None:
            logger.error("%s version %d has no send %d, which is open", stream, version, number)
            return None
        delivery.step = step
        delivery.command = send_command(step, sent)
        return delivery.command

    def _step_at(self, stream: StreamId, version: int) -> StoredStep | None:
        for record in self._log.read_stream(stream, version, version):
            return step_in(decode_record(record, checked=True))
        return None

    def _wake(self, now_us: int) -> None:
        """Have what is due woken."""
        if self._settling and not self._is_settled(now_us):
            return
        room = WOKEN_OUT_MAX - self._woken_out
        timers = self.agenda.timers
        if room <= 0 or (due_us := timers.next_due_us()) is None or due_us > now_us:
            return
        for timer in timers.due(now_us, room):
            if self._calls.knows(timer.stream.type, timer.name):
                self._calls.put(timer.stream, timer.name, timer)
            else:
                self._fire(timer)

    def _begin_calls(self, now_us: int) -> None:
        """Have the attempts begin for which there is room."""
        if self._calls.takes_again():
            self.agenda.timers.give_again()
        for timer in self._calls.take(now_us):
            if self._fire(timer):
                self._calls.began(timer.stream, timer.name)

    def _fire(self, timer: Timer) -> bool:
        """Have a timer fired that is due. Whether it is on its way."""
        timers = self.agenda.timers
        step = self._step_at(timer.stream, timer.version)
        if step is None:
            logger.error("%s version %d has no timer %s, which is armed", timer.stream, timer.version, timer.name)
            timers.end(timer.stream, timer.name, timer.version)
            return False
        hops = step.hops + 1 if timer.due_us - step.recorded_at_us < AT_ONCE_US else 0
        if hops and not step.is_process and self._is_endless(step, f"its timer {timer.name}"):
            timers.end(timer.stream, timer.name, timer.version)
            return False
        expected: int = ANY
        if not step.is_process:  # whose command does not know whether the timer is still armed
            expected = self._log.version(timer.stream)
            if self._log.head() > self.agenda.position:
                timers.give_back(timer)
                return False
        command = woken_input(
            timer.stream,
            timer.name,
            timer.version,
            timer.due_us,
            step.input_id,
            step.correlation_id,
            is_process=step.is_process,
            expected_version=expected,
            hops=hops,
            begun_by=self._own if self._calls.knows(timer.stream.type, timer.name) else b"",
        )
        delivery = Delivery(WOKEN, command)
        delivery.timer = timer
        self._woken_out += 1
        self._put(delivery)
        return True

    def _is_settled(self, now_us: int) -> bool:
        """Whether all that was on its way has arrived, or waits for what does not answer, or time is up."""
        self._settles_us = self._settles_us or now_us + SETTLE_US
        behind = any(one.cursor < self.agenda.position for one in self._routes.values())
        waits = self._held or any(not queue.why for queue in self._queues.values())
        self._settling = bool(behind or waits) and now_us < self._settles_us
        return not self._settling

    # --- outcomes ------------------------------------------------------------------------------------------------

    def _is_certain(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Whether this is what has become of it, and it is not to be sent again."""
        kind = delivery.kind
        if isinstance(outcome, Receipt):
            return True
        if isinstance(outcome, Unavailable | Overloaded | StoreError):
            return False
        if kind in (SEND, PROBE, BEGIN, RESEND):
            return True
        if delivery.route is not None and delivery.route.name == SENDS_OF_AGGREGATES:
            return True
        of_aggregate = delivery.command is not None and delivery.command.name == Woken.message_name
        if of_aggregate and isinstance(outcome, Conflict | Rejected | HandlerFailed):
            return True  # a failure is stored under the id of the timer, for good
        if isinstance(outcome, CommandIdReused):
            logger.warning("an input was delivered before, with other content: %s", outcome)
            return True
        if isinstance(outcome, Rejected):  # too much waits in that instance: what comes after does not wait for it
            self._arrived(delivery.group)
            delivery.group = None
        if isinstance(outcome, HandlerFailed) and delivery.command is not None:
            delivery.failures += 1
            if delivery.failures >= TRIES_OF_INPUT:
                delivery.command = parked_input(delivery.command, str(outcome))
        return False

    def _finish(self, delivery: Delivery, outcome: Outcome) -> None:
        kind = delivery.kind
        if kind == SEND:
            self._kept_bytes -= delivery.size_bytes
            self._finish_send(delivery, outcome)
            return
        route = delivery.route
        if kind == INPUT and route is not None:
            route.ack(delivery.position, delivery.size_bytes)
            self.has_moved = True
            if isinstance(outcome, Receipt):
                if outcome.event_count:
                    _witnessed(route, delivery.position, outcome.position)
            elif route.name == SENDS_OF_AGGREGATES:
                self._refused += 1
                logger.warning("what an aggregate has sent was refused: %s", outcome)
            self._arrived(delivery.group)
        elif kind == PROBE:
            self._finish_probe(delivery, outcome)
        elif kind == RESEND:
            self._finish_resent(delivery, outcome)
        elif kind == LOST:
            self._arrived_again(delivery)
        elif kind == WOKEN and delivery.timer is not None:
            self._woken_out -= 1
            timer = delivery.timer
            if not (isinstance(outcome, Receipt) and outcome.event_count) or outcome.repeated:
                self._calls.ended(timer.stream, None, 0)
            if isinstance(outcome, Conflict):  # the aggregate has other events since, which may have ended it
                self.agenda.timers.give_back(timer)
            else:
                self.agenda.timers.end(timer.stream, timer.name, timer.version)
                if not isinstance(outcome, Receipt):
                    self._refused += 1
                    logger.warning("the timer %s of %s is lost: %s", timer.name, timer.stream, outcome)
        elif kind == OUTCOME and delivery.source is not None:
            stream, number, _ = delivery.source
            self.agenda.close(stream, number)
            if not isinstance(outcome, Receipt) or not outcome.event_count:
                self._receipts.pop((stream, number), None)

    def _arrived(self, group: _Group | None) -> None:
        """One more of the inputs of an append has arrived."""
        if group is None:
            return
        group.inputs -= 1
        if not group.inputs:
            for one in group.sends:
                self._put(one)
            group.sends.clear()

    def _finish_send(self, delivery: Delivery, outcome: Outcome) -> None:
        """The target has answered: its outcome is an input of the instance."""
        assert delivery.source is not None  # those of this kind have one
        stream, number, version = delivery.source
        step = delivery.step or self._step_at(stream, version)
        if step is None or not self.agenda.is_open(stream, number):
            return
        sent = next(one for one in step.sends if one.number == number)
        if isinstance(outcome, Receipt):
            at = outcome.position if outcome.event_count else 0
            self._receipts[stream, number] = self._partition_of(sent.stream), at
        answer = Delivery(OUTCOME, outcome_input(step, sent, outcome))
        answer.source = delivery.source
        self._put(answer)

    def _go_back(self, route: _Route) -> None:
        """The partition of this route has lost what was delivered to it."""
        what = "%s: partition %d does not have what was delivered to it; all since position %d is delivered again"
        logger.warning(what, _SENDS.get(route.name, route.name), route.partition, route.since)
        route.unacked.clear()
        route.size_bytes = 0
        route.cursor, route.witness, route.witness_at = route.since, 0, 0
        if route.name == SENDS_OF_PROCESSES:
            route.again_to = self._known_head
            self._held.setdefault(route.partition, [])


_SENDS: Final = {SENDS_OF_AGGREGATES: "what aggregates send", SENDS_OF_PROCESSES: "what processes send"}


def _route(name: str, partition: int, since: int, place: Place) -> _Route:
    return _Route(name, partition, since, max(place.position, since), {}, place.witness, place.witness_at)


def _witnessed(route: _Route, position: int, at: int) -> None:
    """What belongs to this position is in the other log there."""
    if at > route.witness_at:
        route.witness, route.witness_at = position, at
