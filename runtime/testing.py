"""Specifications: given / when / then for aggregates and projections, without Ray, disk or runtime.

    given(Account, Opened(owner="Ada")).when(Deposit(amount=5)).then(Deposited(amount=5)).then_state(balance=5)
    given(Balances, on("alice", Deposited(amount=5))).ask(BalanceOf(account="alice")).answers(5)
    given(Fulfilment).when(Placed(total=5)).then(Send(Till, "main", Charge(amount=5))).later(minutes=15).then(Undo())

Rule kept here: a specification sees what production would. Every message and every state goes through the codec and
must come back equal, `@decide` and `@answer` are caught if they change the state, and the creation rule holds.

Each failure is an `AssertionError` that shows what was expected, what came, and the difference, so it reads well in
pytest and in anything else.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Generic, NamedTuple, NoReturn, Self, TypeVar, overload

import msgpack

from .arguments import unregistered_message
from .checks.standing import unlike_its_fold, wrong_state
from .domain.aggregate import Aggregate, Decision, Output, Woken, outcome_of
from .domain.declaration import nearest
from .domain.messages import Command, Event, Message, Query
from .domain.outputs import Send
from .domain.projection import Projection
from .domain.read_store import InMemory
from .domain.recorded import Recorded
from .domain.state import Stateful, check_declared
from .domain.upcast import Stored
from .effects.call_attempt import CallAttempt
from .effects.results import Declined, Done, NotDone, Result, Unknown, packed_result
from .encoding.catalogue import Catalogue
from .encoding.codec import decode_message, decode_payload, encode_checked
from .encoding.envelope import Envelope, PackedCommand, pack
from .encoding.facts import as_answered
from .encoding.forms import PACKER_BYTES, stored_form
from .encoding.outputs import step_id
from .encoding.saved_state import check_annotations, checked_state, decode_state, encode_state
from .errors import DefinitionError, HandlerFailed, InvalidMessage, RayfoldError, Rejected, UnknownEvent
from .log.contract import StoredEvent
from .log.format import decode_record, stream_id
from .log.memory import MemoryLog
from .printable import shown
from .processes.delivery import Reactions, called_input, outcome_input, resume_input, woken_input
from .processes.effects import Effects
from .processes.inputs import Input, Retry
from .processes.instance import Instance
from .processes.kinds import RESUME_INPUT
from .processes.process import Process
from .processes.step import OUTPUTS_MAX, UNROUTED, concerns, yielded_by
from .processes.stored_step import Sent, StoredStep, call_attempt, step_in
from .read.stores.memory import MemoryStore
from .receipt import Receipt
from .stream import StreamId
from .user_code import is_ctrl_c
from .write.purity import changed, witness_of
from .write.write_loop import WriteLoop

__all__ = [
    "AggregateCase",
    "Answered",
    "EffectsCase",
    "Outcome",
    "Placed",
    "ProcessCase",
    "ProjectionCase",
    "given",
    "on",
]

A = TypeVar("A", bound=Aggregate)
P = TypeVar("P", bound=Projection)
Pr = TypeVar("Pr", bound=Process)
In = TypeVar("In", bound=Instance)
Ef = TypeVar("Ef", bound=Effects)
Answer = TypeVar("Answer")
MessageType = TypeVar("MessageType", bound=Message)

EXAMPLE_ID: Final = "example"
"""The id of an aggregate without another one."""

EXAMPLE_TYPE = "Example"
"""The aggregate type of an event that is placed by its id alone."""

SNAPSHOTS_MAX: Final = 100
"""Versions at which `after_crash` takes a snapshot, the latest ones: each is as many events as follow it."""

FIRST_RECORDED_AT_US = 1_704_067_200_000_000
"""2024-01-01 00:00 UTC: given events are a second apart from here, so a specification gives the same every day."""


class Placed(NamedTuple):
    """An event and the stream that it is in."""

    stream: str | StreamId
    event: Event | Stored


def on(stream: str | StreamId, event: Event | Stored, *, aggregate: type[Aggregate] | None = None) -> Placed:
    """For a projection's history: `event` is in this stream, or in the stream of this aggregate id.

    Args:
        stream: The stream, or an aggregate id.
        event: What happened there.
        aggregate: The class whose stream it is, where a handler reads `recorded.aggregate_type`.

    Example:
        given(Balances, on("alice", Deposited(amount=5)), on("bob", Deposited(amount=7)))
    """
    if aggregate is not None and isinstance(stream, str):
        stream = StreamId(aggregate.aggregate_type, stream)
    return _placed((stream, event))


@overload
def given(
    subject: type[P],
    /,
    *history: Event | Stored | tuple[str | StreamId, Event | Stored],
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
) -> ProjectionCase[P]: ...
@overload
def given(  # type: ignore[overload-overlap]  # a process is an aggregate, of which another kind of case is made
    subject: type[Pr],
    /,
    *history: Event | Stored | tuple[str | StreamId, Event | Stored] | Command,
    id: str | None = ...,
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
) -> ProcessCase[Pr]: ...
@overload
def given(  # type: ignore[overload-overlap]  # so are effects
    subject: type[Ef],
    /,
    *history: Event | tuple[str | StreamId, Event] | Result | Command,
    id: str | None = ...,
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
) -> EffectsCase[Ef]: ...
@overload
def given(
    subject: type[A],
    /,
    *history: Event | Stored,
    id: str = ...,
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
) -> AggregateCase[A]: ...
def given(
    subject: type[Any],
    /,
    *history: Any,
    id: str | None = None,
    events: Sequence[type[Event]] = (),
    retired: Sequence[str] = (),
) -> AggregateCase[Any] | ProcessCase[Any] | EffectsCase[Any] | ProjectionCase[Any]:
    """A specification that starts from these events: of one aggregate, of what a projection has seen so far, or of what
    one instance of a process has reacted to.

    The events of a projection are in one stream unless `on("alice", event)` or `("alice", event)` names another. Events
    that an earlier release has stored (`stored(...)`) are upcast; their names are looked up among the events that
    `subject` handles.

    Args:
        subject: The aggregate, process or projection class.
        history: What has happened.
        id: Of the aggregate, `"example"` without it; of a process that of the instance which the first event is for.
        events: Further event classes of the application.
        retired: Stored names of events that were given up, as in `Runtime`.

    Raises:
        AssertionError: From each check that fails, with what was expected, what came, and the difference.

    Example:
        given(Account, Deposited(amount=5)).when(Deposit(amount=3)).then(Deposited(amount=3)).then_state(balance=8)
        given(Balances, on("alice", Deposited(amount=5))).ask(BalanceOf(account="alice")).answers(5)
    """
    __tracebackhide__ = True
    known = _Known(events, retired)
    if not isinstance(subject, type):
        raise InvalidMessage("given", f"{shown(subject)} is not a class", "give an Aggregate or a Projection class")
    if issubclass(subject, Effects):
        return EffectsCase(subject, id, events, retired).given(*history)
    if issubclass(subject, Process):
        return ProcessCase(subject, id, events, retired).given(*history)
    if issubclass(subject, Aggregate):
        ident = stream_id(subject.aggregate_type, EXAMPLE_ID if id is None else id).id
        return AggregateCase(subject(ident, 0), known).given(*history)
    if issubclass(subject, Projection):
        return ProjectionCase(subject(), [], known).given(*history)
    raise TypeError(f"given() takes an Aggregate or a Projection class, not {subject.__name__}")


class _Known(NamedTuple):
    """What an application has beside the subject of a specification."""

    events: Sequence[type[Event]] = ()
    retired: Sequence[str] = ()


_NOTHING_ELSE: Final = _Known()


class AggregateCase(Generic[A]):
    """An aggregate with a history. Go on with `when`."""

    def __init__(self, aggregate: A, known: _Known = _NOTHING_ELSE, history: tuple[Event | Stored, ...] = ()) -> None:
        """Use `given` to make one."""
        self.aggregate = aggregate
        self._known = known
        self._history = history

    def given(self, *history: Event | Stored) -> AggregateCase[A]:
        """Let more events happen."""
        __tracebackhide__ = True
        self._take_in(self.aggregate, history)
        self._history += history
        _check_state_survives(self.aggregate)
        return self

    def when(self, command: Command) -> Outcome[A]:
        """Send a command. What its `@decide` raises, `Rejected` apart, comes out here."""
        __tracebackhide__ = True
        _check_command(self.aggregate, command)
        return self._decided(command)

    def woken(self, name: str) -> Outcome[A]:
        """The timer of this name is due: the `@woken` method decides."""
        __tracebackhide__ = True
        if name not in self.aggregate.wakers:
            known = ", ".join(map(repr, self.aggregate.wakers)) or "none"
            raise AssertionError(f"{type(self.aggregate).__name__} has no @woken({name!r}); its timers are {known}")
        return self._decided(Woken(name=name, due_us=FIRST_RECORDED_AT_US))

    def _decided(self, command: Command) -> Outcome[A]:
        __tracebackhide__ = True
        sent = _through_codec(command)
        before, witness = _state_of(self.aggregate), witness_of(vars(self.aggregate))
        decided = outcome_of(self.aggregate, sent)
        method = f"{type(self.aggregate).__name__}.{self.aggregate.deciders[type(sent)].name}"
        remedy = "only @evolve may; return an event instead"
        _check_unchanged(self.aggregate, before, method, remedy)
        if name := changed(vars(self.aggregate), witness):
            raise AssertionError(f"{method} changed {name} of the state; {remedy}")
        if isinstance(decided, Rejected):
            stream = StreamId(self.aggregate.aggregate_type, self.aggregate.id)
            refused = as_answered(decided, str(stream), command.message_name)
            return Outcome(self.aggregate, command, refused, self._known, self._history)
        yielded = decided.yielded if isinstance(decided, Decision) else decided
        seen = [_through_codec(one) if isinstance(one, Event) else one for one in yielded]
        return Outcome(self.aggregate, command, seen, self._known, self._history)

    def then_state(self, **expected: Any) -> AggregateCase[A]:
        """These fields (or `id` and `version`) now have these values; the others may have any."""
        __tracebackhide__ = True
        _check_fields(self.aggregate, expected, ("id", "version"))
        return self

    def then_holds(self, *invariants: Callable[[A], object]) -> AggregateCase[A]:
        """Each of these functions of the aggregate now returns something true, or None. What one raises comes out
        here."""
        __tracebackhide__ = True
        for invariant in invariants:
            if not holds(invariant, self.aggregate):
                raise AssertionError(f"{name_of(invariant)} does not hold\n  {self.aggregate!r}")
        return self

    def after_crash(self) -> AggregateCase[A]:
        """The state is dropped, as when a process ends, and folded again: from its events, and from a snapshot at each
        version, if the class takes any. It has to be the same each time. Goes on with the state that was folded."""
        __tracebackhide__ = True
        what = unlike_its_fold(self.aggregate, self._folded)
        if what:
            raise AssertionError(f"{self._who()} is another one after a crash\n  {what}")
        folded = self._folded()
        for version, restored in self._restored():
            if what := wrong_state(folded, restored, self._folded):
                taken = f"with a snapshot of version {version}"
                raise AssertionError(f"{self._who()} is another one after a crash, {taken}\n  {what}")
        self.aggregate = folded
        return self

    def _who(self) -> str:
        return f"{self.aggregate.aggregate_type}/{self.aggregate.id} at version {self.aggregate.version}"

    def _folded(self) -> A:
        __tracebackhide__ = True
        aggregate = type(self.aggregate)(self.aggregate.id, 0)
        self._take_in(aggregate, self._history)
        return aggregate

    def _restored(self) -> Iterator[tuple[int, A]]:
        """The aggregate from a snapshot of each version, and the events after it. A state that cannot be saved has
        none."""
        cls, aggregate = type(self.aggregate), type(self.aggregate)(self.aggregate.id, 0)
        first = len(self._history) - SNAPSHOTS_MAX
        for number, event in enumerate(self._history if cls.snapshot_every else (), 1):
            self._take_in(aggregate, [event])
            if number < first:
                continue
            try:
                saved = checked_state(aggregate)
            except InvalidMessage:
                continue
            restored = decode_state(cls, saved, aggregate.id, number)
            self._take_in(restored, self._history[number:])
            yield number, restored

    def _take_in(self, aggregate: A, history: Iterable[Event | Stored]) -> None:
        __tracebackhide__ = True
        for event in history:
            before = aggregate.version
            for one in _events_of(event, self._known, [type(aggregate)], []):
                _evolve(aggregate, one)
                aggregate.version = before
            aggregate.version = before + 1


class Outcome(Generic[A]):
    """What became of a command. Each check gives the case back, with the events taken in, for a further `when`."""

    def __init__(
        self,
        aggregate: A,
        command: Command,
        decided: Sequence[Event | Output] | Rejected,
        known: _Known = _NOTHING_ELSE,
        history: tuple[Event | Stored, ...] = (),
    ) -> None:
        """Use `AggregateCase.when` to make one."""
        self.aggregate, self.command = aggregate, command
        self.decided: list[Any] | Rejected = decided if isinstance(decided, Rejected) else [*decided]
        """Events and outputs, in order."""
        self._known, self._history = known, history

    def then(self, *expected: Event | Output | Rejected) -> AggregateCase[A]:
        """Exactly these events and outputs resulted, in this order; or exactly this refusal."""
        __tracebackhide__ = True
        if len(expected) == 1 and isinstance(refusal := expected[0], Rejected):
            return self.rejected(refusal.reason, **refusal.facts)
        if isinstance(self.decided, Rejected) or self.decided != list(expected):
            self._fail(_lines(expected) or ["no event"])
        return self._adopted()

    def then_nothing(self) -> AggregateCase[A]:
        """It was accepted, without events."""
        __tracebackhide__ = True
        return self.then()

    def rejected(self, reason: str, /, **facts: Any) -> AggregateCase[A]:
        """It was rejected for this reason; the facts that are named here have these values."""
        __tracebackhide__ = True
        expected = Rejected(reason, **facts)
        if not isinstance(self.decided, Rejected):
            self._fail([_rejection(expected)])
        known = {name: value for name, value in self.decided.facts.items() if name in facts}
        if self.decided.reason != reason or known != facts:
            self._fail([_rejection(expected)])
        return AggregateCase(self.aggregate, self._known, self._history)

    def then_state(self, **expected: Any) -> AggregateCase[A]:
        """It was accepted, and these fields now have these values."""
        __tracebackhide__ = True
        if isinstance(self.decided, Rejected):
            self._fail(["events that lead to " + ", ".join(f"{name}={value!r}" for name, value in expected.items())])
        return self._adopted().then_state(**expected)

    def _adopted(self) -> AggregateCase[A]:
        __tracebackhide__ = True
        assert not isinstance(self.decided, Rejected)
        events = [one for one in self.decided if isinstance(one, Event)]
        return AggregateCase(self.aggregate, self._known, self._history).given(*events)

    def _fail(self, expected: list[str]) -> NoReturn:
        __tracebackhide__ = True
        got = [_rejection(self.decided)] if isinstance(self.decided, Rejected) else _lines(self.decided) or ["no event"]
        who = f"{self.aggregate.aggregate_type}/{self.aggregate.id}"
        raise AssertionError(f"{who}, when {_shown(self.command)}\n{_difference(expected, got)}")


class ProjectionCase(Generic[P]):
    """A projection that has seen a history. Go on with `ask`.

    Its store is the one that it declares, a temporary one, with a transaction for each event and each query. A
    projection of several parts is here one part that has all events.
    """

    def __init__(self, projection: P, versions: list[StreamId], known: _Known = _NOTHING_ELSE) -> None:
        """Use `given` to make one."""
        self.projection = projection
        self._known = known
        self._seen = versions  # the stream of each event so far
        self._store = projection.read_store.make()
        self._store.open(projection, None)

    def given(self, *history: Event | Stored | tuple[str | StreamId, Event | Stored]) -> ProjectionCase[P]:
        """Let more events be seen. Those that nothing projects are passed over, as the runtime does."""
        __tracebackhide__ = True
        for item in history:
            stream, event = ("example", item) if isinstance(item, Event | Stored) else _placed(item)
            self._project(stream if isinstance(stream, StreamId) else stream_id(EXAMPLE_TYPE, stream), event)
        _check_state_survives(self.projection)
        return self

    def ask(self, query: Query[Answer]) -> Answered[P, Answer]:
        """Ask a query. What its `@answer` raises comes out here."""
        __tracebackhide__ = True
        answer = self.projection.answers.get(type(query))
        name = type(self.projection).__name__
        if answer is None:
            known = ", ".join(cls.__name__ for cls in self.projection.answers) or "none"
            raise AssertionError(f"{name} has no @answer for {type(query).__name__}; it answers {known}")
        before, asked = _state_of(self.projection), _through_codec(query)
        if isinstance(self._store, MemoryStore):
            got = answer(self.projection, asked)
        else:
            self._store.begin(reading=True)
            try:
                got = answer(self.projection, asked)
            finally:
                self._store.roll_back()
        _check_unchanged(self.projection, before, f"{name}.{answer.__name__}", "only @project may")
        merge = self.projection.answer_routes[type(query)].merge
        return Answered(self, query, got if merge is None else merge([got]))

    def then_state(self, **expected: Any) -> ProjectionCase[P]:
        """These fields now have these values; the others may have any."""
        __tracebackhide__ = True
        _check_fields(self.projection, expected)
        return self

    def _project(self, stream: StreamId, event: Event | Stored) -> None:
        self._seen.append(stream)
        for one in _events_of(event, self._known, [], [type(self.projection)]):
            self._project_one(stream, one)

    def _project_one(self, stream: StreamId, event: Event) -> None:
        handler = nearest(type(event), self.projection.projectors)
        seen = _through_codec(event)
        if handler is None:
            return
        given = () if isinstance(self.projection.read_store, InMemory) else frozenset(self.projection.__dict__)
        self._store.begin()
        try:
            if handler.takes_recorded:
                handler.function(self.projection, seen, self._recorded(stream))
            else:
                handler.function(self.projection, seen)
            check_declared(self.projection, given)
            self._store.commit(b"")
        except BaseException:
            self._store.roll_back()
            raise

    def _recorded(self, stream: StreamId) -> Recorded:
        position = len(self._seen)
        return Recorded(
            stream=stream,
            version=self._seen.count(stream),
            partition=0,
            position=position,
            recorded_at_us=FIRST_RECORDED_AT_US + (position - 1) * 1_000_000,
            command_id=position.to_bytes(16, "big"),
            correlation_id=b"",
            causation_id=b"",
        )


class Answered(Generic[P, Answer]):
    """What a query was answered with."""

    def __init__(self, case: ProjectionCase[P], query: Query[Answer], answer: Answer) -> None:
        """Use `ProjectionCase.ask` to make one."""
        self.case, self.query, self.answer = case, query, answer

    def answers(self, expected: Answer) -> ProjectionCase[P]:
        """The answer equals this."""
        __tracebackhide__ = True
        if self.answer != expected:
            who = type(self.case.projection).__name__
            difference = _difference([_shown(expected)], [_shown(self.answer)])
            raise AssertionError(f"{who}, asked {_shown(self.query)}\n{difference}")
        return self.case


class ProcessCase(Generic[In]):
    """One instance of a process, over the real write loop and a log in memory, with a clock that `later` moves. What it
    sends goes nowhere: `when_accepted`, `when_refused` and `when_failed` give it the outcomes."""

    def __init__(
        self, process: type[In], id: str | None, events: Sequence[type[Event]] = (), retired: Sequence[str] = ()
    ) -> None:
        """Use `given` to make one."""
        self._class, self._id, self._last = process, id, "given"
        self._now_us = FIRST_RECORDED_AT_US
        self._catalogue = Catalogue(processes=[process], events=events, retired=retired)
        self._reactions = Reactions(self._catalogue)
        self._log = MemoryLog(lambda: self._now_us)
        self._loop = WriteLoop(0, self._log, self._catalogue)
        self._loop.activate()
        self._versions: dict[StreamId, int] = {}
        """Of the streams whose events were given."""
        self._open: dict[int, tuple[StoredStep, Sent]] = {}
        """What was sent and is not answered, by number."""
        self._timers: dict[str, tuple[int, StoredStep]] = {}
        """When they are due, and the step that armed them."""
        self._yielded: list[Any] = []
        self._sent: list[Sent] = []
        self._error: BaseException | None = None
        self._given: list[PackedCommand] = []
        """All inputs that were taken in."""
        self._sent_classes: dict[tuple[str, str], type[Command]] = {}
        """By the type of the target and the name of the command."""

    @property
    def process(self) -> In:
        """The instance, as its events have made it."""
        instance = self._loop.residents.load(self._stream)
        assert isinstance(instance, self._class)
        return instance

    def given(self, *history: Any) -> Self:
        """Let more happen, whatever it leads to."""
        __tracebackhide__ = True
        for one in history:
            self.when(one)
            self._check_goes_on()
        return self

    def when(self, happened: Event | tuple[str | StreamId, Event | Stored] | Command) -> Self:
        """An event happens, in the stream of the instance's id unless `on("alice", event)` names another; or an
        operator sends `Retry`, `Skip` or `End`."""
        __tracebackhide__ = True
        if isinstance(happened, Command):
            self._last = _shown(happened)
            self._run([pack(Envelope(self._class, self._stream.id, happened))[0]])
            return self
        stream, event = (None, happened) if isinstance(happened, Event) else _placed(happened)
        if not isinstance(event, Event):
            raise InvalidMessage("when", f"{shown(event)} is not an event", "give the event as it is now")
        self._last = _shown(event)
        self._run(self._inputs(stream, event))
        return self

    def when_accepted(self, command: type[Command]) -> Self:
        """The command of this class that was sent first, of those that are not answered, takes effect."""
        __tracebackhide__ = True
        step, sent = self._answered(command, "accepted")
        receipt = Receipt(sent.stream, 0, 1, 1, sent.send_id, False, "", 1, None)
        self._run([outcome_input(step, sent, receipt)])
        return self

    def when_refused(self, command: type[Command], reason: str, /, **facts: Any) -> Self:
        """The command of this class that was sent first, of those that are not answered, is refused."""
        __tracebackhide__ = True
        step, sent = self._answered(command, "refused")
        refused = as_answered(Rejected(reason, **facts), str(sent.stream), sent.name)
        self._run([outcome_input(step, sent, refused)])
        return self

    def when_failed(self, command: type[Command], what: str = "ValueError: example") -> Self:
        """The command of this class that was sent first, of those that are not answered, cannot be decided."""
        __tracebackhide__ = True
        step, sent = self._answered(command, "failed")
        self._run([outcome_input(step, sent, HandlerFailed(f"decide {sent.name}", str(sent.stream), what))])
        return self

    def later(self, **time: float) -> Self:
        """So much time passes, as in `timedelta(minutes=15)`: timers that are due by then are fired, in order."""
        __tracebackhide__ = True
        end_us = self._now_us + dt.timedelta(**time) // dt.timedelta(microseconds=1)
        self._last = "later(" + ", ".join(f"{unit}={amount!r}" for unit, amount in time.items()) + ")"
        self._forget_step()
        self._fire_until(end_us)
        return self

    def _fire_until(self, end_us: int) -> None:
        __tracebackhide__ = True
        for _ in range(FIRED_MAX):
            due = sorted((due_us, name) for name, (due_us, _) in self._timers.items() if due_us <= end_us)
            if not due:
                break
            due_us, name = due[0]
            step = self._timers.pop(name)[1]
            self._now_us = max(self._now_us, due_us)
            woken = woken_input(
                step.stream, name, step.version, due_us, step.input_id, step.correlation_id, is_process=True
            )
            self._run([woken], forget=False)
        self._now_us = end_us

    def then(self, *expected: Event | Output) -> Self:
        """Exactly these events and outputs were yielded, in this order."""
        __tracebackhide__ = True
        self._check_goes_on()
        if self._yielded != list(expected):
            self._fail(_lines(expected) or ["nothing"], _lines(self._yielded) or ["nothing"])
        return self

    def then_nothing(self) -> Self:
        """Nothing was yielded."""
        __tracebackhide__ = True
        return self.then()

    def then_sent(self, *expected: Send) -> Self:
        """Exactly these commands were sent, in this order: those that were yielded, and those that take something
        back."""
        __tracebackhide__ = True
        self._check_goes_on()
        wanted = [_sent_line(StreamId(one.aggregate.aggregate_type, one.id), *_packed(one.command)) for one in expected]
        got = [_sent_line(sent.stream, sent.name, sent.payload) for sent in self._sent]
        if wanted != got:
            self._fail(wanted or ["nothing"], got or ["nothing"])
        return self

    def then_parked(self, because: str) -> Self:
        """The instance is parked, for a reason that has this text in it."""
        __tracebackhide__ = True
        parked = self.process.progress.parked
        if not parked or because not in parked:
            self._fail([f"parked: ... {because} ..."], [f"parked: {parked}" if parked else "not parked"])
        return self

    def then_ended(self, reason: str) -> Self:
        """The instance has ended, for this reason."""
        __tracebackhide__ = True
        ended = self.process.progress.ended
        if ended != reason:
            self._fail([f"Ended({reason!r})"], ["it goes on" if ended is None else f"Ended({ended!r})"])
        return self

    def then_state(self, **expected: Any) -> Self:
        """These fields (or `id` and `version`) now have these values; the others may have any."""
        __tracebackhide__ = True
        _check_fields(self.process, expected, ("id", "version"))
        return self

    def then_holds(self, *invariants: Callable[[In], object]) -> Self:
        """Each of these functions of the instance now returns something true, or None."""
        __tracebackhide__ = True
        for invariant in invariants:
            if not holds(invariant, self.process):
                raise AssertionError(f"{name_of(invariant)} does not hold\n  {self.process!r}")
        return self

    def then_goes_on(self) -> Self:
        """The instance is not parked."""
        __tracebackhide__ = True
        self._check_goes_on()
        return self

    def after_crash(self) -> Self:
        """The state is dropped, as when a process ends, and folded again from its stream: it has to be the same."""
        __tracebackhide__ = True
        resident = self._loop.residents.check_out(self._stream)
        self._loop.residents.put_back(resident, self._stream)

        def folded() -> Aggregate:
            self._loop.residents.distrust(self._stream)
            return self._loop.residents.load(self._stream)

        if resident.version and (what := unlike_its_fold(resident, folded)):
            raise AssertionError(f"{self._stream} is another one after a crash\n  {what}")
        self._loop = WriteLoop(0, self._log, self._catalogue)
        self._loop.activate()
        return self

    @property
    def commands_sent(self) -> list[tuple[type[Command], bool]]:
        """The classes of what was sent and is not answered, the first one first, and whether it takes something back.
        For `explore`."""
        sent = [self._sent_classes[one.stream.type, one.name] for _, (_, one) in sorted(self._open.items())]
        waiting = [one for _, one in sorted(self.process.progress.sends.items()) if not one.done]
        return [(command, one.undoes >= 0) for command, one in zip(sent, waiting, strict=True)]

    @property
    def error(self) -> BaseException | None:
        """What the method of the last step has raised. For `explore`."""
        return self._error

    def give_again(self, pick: int) -> None:
        """One of the inputs comes again, as after a crash of its courier. For `explore`."""
        if self._given:
            self._loop.execute([self._given[pick % len(self._given)]])

    @property
    def _stream(self) -> StreamId:
        return StreamId(self._class.aggregate_type, EXAMPLE_ID if self._id is None else self._id)

    def _inputs(self, stream: str | StreamId | None, event: Event) -> list[PackedCommand]:
        __tracebackhide__ = True
        payload, _ = encode_checked(event, _not_equal)
        place = StreamId(EXAMPLE_TYPE, self._stream.id)
        if stream is not None:
            place = stream if isinstance(stream, StreamId) else stream_id(EXAMPLE_TYPE, stream)
        version = self._versions[place] = self._versions.get(place, 0) + 1
        name, schema = event.message_name, event.schema_version
        command_id = step_id(str(place), version)
        position = sum(self._versions.values())
        stored = StoredEvent(position, place, version, name, schema, payload, self._now_us, command_id, b"", b"")
        if name not in self._reactions.names:
            verb = "effect" if self._class.is_effects else "react"
            raise AssertionError(f"no @{verb} of {self._class.__name__} takes {_shown(event)}")
        inputs = self._reactions.inputs(0, stored, again=False)
        for one in inputs:
            if self._id is None:
                self._id = one.stream.id
            if one.stream.id not in (self._id, UNROUTED):
                text = f"{_shown(event)} is for the instance {one.stream.id!r}, and this is {self._id!r}"
                raise AssertionError(text)
        return inputs

    def _answered(self, command: type[Command], how: str) -> tuple[StoredStep, Sent]:
        __tracebackhide__ = True
        self._last = f"{command.__name__} is {how}"
        for number, (step, sent) in sorted(self._open.items()):
            if sent.name == command.message_name:
                del self._open[number]
                return step, sent
        sent_now = ", ".join(sent.name for _, sent in self._open.values()) or "none"
        raise AssertionError(f"{command.__name__} was not sent, or is answered already; not answered: {sent_now}")

    def _run(self, inputs: Sequence[PackedCommand], *, forget: bool = True) -> None:
        __tracebackhide__ = True
        if forget:
            self._forget_step()
        waiting = [*inputs]
        while waiting:
            packed = waiting.pop(0)
            self._learn_yielded(packed)
            batch = self._loop.execute([packed])
            if isinstance(batch.outcomes[0], RayfoldError):
                raise batch.outcomes[0]
            if batch.records:
                self._given.append(packed)
            for record in batch.records:
                step = step_in(decode_record(record))
                if step is not None:
                    waiting += self._carried_out(step)

    def _learn_yielded(self, packed: PackedCommand) -> None:
        """What the method for this input yields, on the state that it is to see."""
        process = self.process
        self._error = None
        progress = process.progress
        if packed.name == Input.message_name:
            one = decode_message(Input, packed.payload)
            kind, head, payload = one.kind, msgpack.unpackb(one.head), one.payload
            if kind != RESUME_INPUT and (progress.parked or not concerns(process, kind, head, one.again)):
                return
        else:
            kind, head, payload = RESUME_INPUT, [], b""
        if kind == RESUME_INPUT:
            if not progress.waiting or packed.name not in (Input.message_name, Retry.message_name):
                return
            kind, _, head, payload = msgpack.unpackb(progress.waiting[0])
            if not concerns(process, kind, head, again=False):
                return
        before = witness_of(vars(process))
        try:
            yielded = [*islice(yielded_by(process, kind, head, payload), OUTPUTS_MAX + 1)]
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            self._error = error
            return
        self._yielded += [_through_codec(item) if isinstance(item, Event) else item for item in yielded]
        for item in yielded:
            if isinstance(item, Send):
                for command in (item.command, *([] if item.undo is None else [item.undo])):
                    self._sent_classes[item.aggregate.aggregate_type, command.message_name] = type(command)
        if name := changed(vars(process), before):
            raise AssertionError(f"a method of {self._class.__name__} changed {name} of the state; only @evolve may")

    def _carried_out(self, step: StoredStep) -> list[PackedCommand]:
        for sent in step.sends:
            self._open[sent.number] = step, sent
            self._sent.append(sent)
        for armed in step.timers:
            self._timers[armed.name] = armed.due_us, step
        for name in step.forgotten:
            self._timers.pop(name, None)
        return [resume_input(step)] if step.resume else []

    def _forget_step(self) -> None:
        self._yielded, self._sent, self._error = [], [], None

    def _check_goes_on(self) -> None:
        __tracebackhide__ = True
        parked = self.process.progress.parked
        if parked:
            raise AssertionError(f"{self._stream} is parked, when {self._last}\n  {parked}") from self._error

    def _fail(self, expected: list[str], got: list[str]) -> NoReturn:
        raise AssertionError(f"{self._stream}, when {self._last}\n{_difference(expected, got)}")


class EffectsCase(ProcessCase[Ef]):
    """One instance of `Effects`, over the real write loop, with a clock that `later` moves. Nothing is called: what an
    attempt comes to is given with `when_done` and the others. An attempt that has no end by its timeout is unknown.

    Example:
        case = given(Charging).when(ChargeRequested(card="ada", amount=5)).then_called("charge")
        case.when_done(Send(Purchase, "1", Confirm(charge="17"))).then_sent(Send(Purchase, "1", Confirm(charge="17")))
    """

    def __init__(
        self, effects: type[Ef], id: str | None, events: Sequence[type[Event]] = (), retired: Sequence[str] = ()
    ) -> None:
        """Use `given` to make one."""
        super().__init__(effects, id, events, retired)
        self._attempt: CallAttempt | None = None
        """The attempt that has begun and is not over."""
        self._called: list[str] = []
        """The functions whose attempts have begun in the last step."""

    def when(self, happened: Event | tuple[str | StreamId, Event | Stored] | Command | Result) -> Self:
        """An event asks for a call, an attempt comes to a result, or an operator sends `Retry`, `Skip` or `Settle`."""
        __tracebackhide__ = True
        if isinstance(happened, Done | Declined | NotDone | Unknown | Send):
            return self._when_result(happened)
        super().when(happened)
        self._fire_until(self._now_us)
        return self

    def when_done(self, *sends: Send, note: str = "") -> Self:
        """The attempt that has begun is `Done`."""
        __tracebackhide__ = True
        return self._when_result(Done(*sends, note=note))

    def when_declined(self, reason: str, *sends: Send) -> Self:
        """The attempt that has begun is `Declined`."""
        __tracebackhide__ = True
        return self._when_result(Declined(reason, *sends))

    def when_not_done(self, reason: str = "example") -> Self:
        """The attempt that has begun is `NotDone`."""
        __tracebackhide__ = True
        return self._when_result(NotDone(reason))

    def when_unknown(self, reason: str = "example") -> Self:
        """The attempt that has begun is `Unknown`, as when its function raises."""
        __tracebackhide__ = True
        return self._when_result(Unknown(reason))

    def then_called(self, *functions: str) -> Self:
        """Attempts of exactly these functions have begun, in this order."""
        __tracebackhide__ = True
        if self._called != list(functions):
            parked = self.process.progress.parked
            nothing = f"nothing is called, it is parked: {parked}" if parked else "nothing is called"
            self._fail([*functions] or ["nothing is called"], self._called or [nothing])
        return self

    def then_not_called(self) -> Self:
        """No attempt has begun."""
        __tracebackhide__ = True
        return self.then_called()

    def then_over(self) -> Self:
        """No call is open: none was asked for, or each is over and what its result sends has its outcome."""
        __tracebackhide__ = True
        calling = self.process.calling
        if calling is not None:
            self._fail(["no call is open"], [f"{calling.method} is {calling.state}"])
        return self

    def when_accepted(self, command: type[Command]) -> Self:
        """See `ProcessCase`."""
        __tracebackhide__ = True
        super().when_accepted(command)
        self._fire_until(self._now_us)
        return self

    def _when_result(self, result: Result) -> Self:
        __tracebackhide__ = True
        attempt, self._attempt = self._attempt, None
        self._last = f"the attempt is {_shown(result)}"
        if attempt is None:
            raise AssertionError(f"{self._stream}: no attempt has begun that is not over")
        self._run([called_input(attempt, packed_result(result), at_once=False)])
        self._fire_until(self._now_us)
        return self

    def _learn_yielded(self, packed: PackedCommand) -> None:
        """Nothing is called."""

    def _carried_out(self, step: StoredStep) -> list[PackedCommand]:
        if step.attempt is not None:
            asked_at = step.attempt.asked_at
            [record] = self._log.read_stream(step.stream, asked_at, asked_at)
            self._attempt = call_attempt(step, decode_record(record))
            self._called.append(step.attempt.method)
        return super()._carried_out(step)

    def _forget_step(self) -> None:
        super()._forget_step()
        self._called = []


FIRED_MAX: Final = 10_000
"""Timers that one `later` fires: it ends one that is armed again and again for a time that has passed."""


def _packed(command: Command) -> tuple[str, bytes]:
    return command.message_name, encode_checked(command, _not_equal)[0]


def _sent_line(stream: StreamId, name: str, payload: bytes) -> str:
    fields = ", ".join(f"{field}={value!r}" for field, value in sorted(decode_payload(payload, name).items()))
    return f"{name}({fields}) to {stream}"


def holds(invariant: Callable[[A], object], aggregate: A) -> bool:
    """Whether this function of the aggregate returns something true, or None. Raises what it raises."""
    found = invariant(aggregate)
    return found is None or bool(found)


def name_of(invariant: Callable[..., object]) -> str:
    """What an invariant is called in messages."""
    return str(getattr(invariant, "__name__", type(invariant).__name__))


def _check_command(aggregate: Aggregate, command: object) -> None:
    if not isinstance(command, Command):
        kind = f"command of {aggregate.aggregate_type}"
        raise unregistered_message(kind, command, aggregate.deciders, Command)


def _placed(item: object) -> Placed:
    if isinstance(item, tuple) and len(item) == 2:
        stream, event = item
        if isinstance(stream, str | StreamId) and isinstance(event, Event | Stored):
            return Placed(stream, event)
    raise InvalidMessage("given", f"{shown(item)} is not an event", "give events, or ('alice', event)")


def _events_of(
    event: Event | Stored,
    known: _Known,
    aggregates: Sequence[type[Aggregate]],
    projections: Sequence[type[Projection]],
) -> Sequence[Event]:
    """The event itself, or what a stored one is now. Raises `UnknownEvent` as a reader of the log would."""
    __tracebackhide__ = True
    if not isinstance(event, Stored):
        return (event,)
    named = [event.cls] if event.cls is not None and issubclass(event.cls, Event) else []
    catalogue = Catalogue(aggregates, projections, events=[*named, *known.events], retired=known.retired)
    data: bytes = msgpack.Packer(default=stored_form, buf_size=PACKER_BYTES).pack(event.payload)
    place = StreamId(EXAMPLE_TYPE, "example")
    try:
        return catalogue.decode_events(
            StoredEvent(1, place, 1, event.name, event.schema_version, data, FIRST_RECORDED_AT_US, b"", b"", b"")
        )
    except UnknownEvent as error:
        error.add_note("given(..., events=[...], retired=[...]) names what else the application has")
        raise


def _evolve(aggregate: Aggregate, event: Event) -> None:
    __tracebackhide__ = True
    evolver = nearest(type(event), aggregate.evolvers)
    if evolver is None:
        raise AssertionError(f"no @evolve of {type(aggregate).__name__} takes {_shown(event)}")
    evolver(aggregate, _through_codec(event))
    check_declared(aggregate)
    aggregate.version += 1


def _through_codec(message: MessageType) -> MessageType:
    """The message as the other side of the wire, or a later reader of the log, will see it."""
    __tracebackhide__ = True
    packed, _ = encode_checked(message, _not_equal)
    return decode_message(type(message), packed)


def _not_equal(error: InvalidMessage) -> AssertionError:
    return AssertionError(f"{error.message} does not come back equal from the codec\n{error.what}\n{error.remedy}")


def _state_of(instance: Stateful) -> object:
    """Something to compare states by: their bytes, or for a state that has none a deep copy."""
    try:
        return encode_state(instance)
    except (DefinitionError, InvalidMessage):
        return copy.deepcopy(_fields(instance))


def _fields(instance: Stateful) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in instance.state_fields}


def _check_unchanged(instance: Stateful, before: object, method: str, remedy: str) -> None:
    __tracebackhide__ = True
    if _state_of(instance) == before:
        return
    old = _fields(decode_state(type(instance), before)) if isinstance(before, bytes) else before
    assert isinstance(old, dict)
    new = _fields(instance)
    changed = [name for name in new if new[name] != old[name]] or list(new)
    difference = _difference(
        [f"{name}={old[name]!r}" for name in changed], [f"{name}={new[name]!r}" for name in changed]
    )
    raise AssertionError(f"{method} changed the state; {remedy}\n{difference}")


def _check_state_survives(instance: Stateful) -> None:
    """A snapshot of the state would restore it."""
    __tracebackhide__ = True
    try:
        check_annotations(instance)
    except DefinitionError:  # the annotations rule snapshots out; the runtime reports that where they are declared
        return
    try:
        restored = decode_state(type(instance), encode_state(instance))
    except InvalidMessage:  # there is no snapshot of such a state: the runtime reports that where one is declared
        return
    for name, value in _fields(instance).items():
        back = getattr(restored, name)
        if back != value:
            difference = _difference([f"{name}={value!r}"], [f"{name}={back!r}"])
            who = f"{type(instance).__name__}.{name}"
            raise AssertionError(f"{who} does not come back equal from a snapshot\n{difference}")


def _check_fields(instance: Stateful, expected: dict[str, Any], also: Sequence[str] = ()) -> None:
    __tracebackhide__ = True
    for name in expected:
        if name not in instance.state_fields and name not in also:
            known = ", ".join(instance.state_fields) or "none"
            raise AssertionError(f"{type(instance).__name__} has no field {name!r}; its fields are {known}")
    got = {name: getattr(instance, name) for name in expected}
    if got != expected:
        wanted = [f"{name}={value!r}" for name, value in expected.items()]
        difference = _difference(wanted, [f"{name}={value!r}" for name, value in got.items()])
        raise AssertionError(f"the state of {type(instance).__name__}\n{difference}")


def _lines(messages: Iterable[object]) -> list[str]:
    return [_shown(message) for message in messages]


_VALUE_CHARS_MAX: Final = 1_000_000
"""Of one value in a failure: what differs may be far behind its beginning."""


def _rejection(rejected: Rejected) -> str:
    facts = "".join(f", {name}={value!r}" for name, value in rejected.facts.items())
    return f"Rejected({rejected.reason!r}{facts})"


def _shown(value: object) -> str:
    if isinstance(value, Output):
        held = [getattr(value, one.name) for one in dataclasses.fields(value)]  # type: ignore[arg-type]  # all are
        kept = [name_of(one) if isinstance(one, type) else _shown(one) for one in held if one is not None]
        return f"{type(value).__name__}({', '.join(kept)})"
    if isinstance(value, Message):
        fields = ", ".join(f"{name}={getattr(value, name)!r}" for name in type(value).model_fields)
        return f"{type(value).__name__}({fields})"
    return shown(value, _VALUE_CHARS_MAX)


def _difference(expected: list[str], got: list[str]) -> str:
    """Both sides in full, then line by line what differs, with the places marked."""
    marked = [line.rstrip("\n") for line in difflib.ndiff(expected, got)]
    return "\n".join(
        [
            "  expected:",
            *(f"    {line}" for line in expected),
            "  got:",
            *(f"    {line}" for line in got),
            "  difference (- expected, + got):",
            *(f"    {line}" for line in marked),
        ]
    )
