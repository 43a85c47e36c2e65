"""Specifications: given / when / then for aggregates and projections, without Ray, disk or runtime.

    given(Account, Opened(owner="Ada")).when(Deposit(amount=5)).then(Deposited(amount=5)).then_state(balance=5)
    given(Balances, on("alice", Deposited(amount=5))).ask(BalanceOf(account="alice")).answers(5)

Rule kept here: a specification sees what production would. Every message and every state goes through the codec and
must come back equal, `@decide` and `@answer` are caught if they change the state, and the creation rule holds.

Each failure is an `AssertionError` that shows what was expected, what came, and the difference, so it reads well in
pytest and in anything else.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, NamedTuple, NoReturn, TypeVar, overload

import msgpack

from .arguments import unregistered_message
from .checks.standing import unlike_its_fold, wrong_state
from .domain.aggregate import Aggregate, outcome_of
from .domain.declaration import nearest
from .domain.messages import Command, Event, Message, Query
from .domain.projection import Projection
from .domain.recorded import Recorded
from .domain.state import Stateful
from .domain.upcast import Stored
from .encoding.catalogue import Catalogue
from .encoding.codec import decode_message, encode_checked
from .encoding.facts import as_told
from .encoding.forms import PACKER_BYTES, stored_form
from .encoding.saved_state import check_annotations, checked_state, decode_state, encode_state
from .errors import DefinitionError, InvalidMessage, Rejected, UnknownEvent
from .log.contract import StoredEvent
from .log.format import stream_id
from .printable import shown
from .read.stores.memory import MemoryStore
from .stream import StreamId
from .write.purity import changed, witness_of

__all__ = ["AggregateCase", "Answered", "Outcome", "Placed", "ProjectionCase", "given", "on"]

A = TypeVar("A", bound=Aggregate)
P = TypeVar("P", bound=Projection)
Answer = TypeVar("Answer")
MessageType = TypeVar("MessageType", bound=Message)

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
    subject: type[A],
    /,
    *history: Event | Stored,
    id: str = ...,
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
) -> AggregateCase[A]: ...
@overload
def given(
    subject: type[P],
    /,
    *history: Event | Stored | tuple[str | StreamId, Event | Stored],
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
) -> ProjectionCase[P]: ...
def given(
    subject: type[Any],
    /,
    *history: Any,
    id: str = "example",
    events: Sequence[type[Event]] = (),
    retired: Sequence[str] = (),
) -> AggregateCase[Any] | ProjectionCase[Any]:
    """A specification that starts from these events: of one aggregate, or of what a projection has seen so far.

    The events of a projection are in one stream unless `on("alice", event)` or `("alice", event)` names another. Events
    that an earlier release has stored (`stored(...)`) are upcast; their names are looked up among the events that
    `subject` handles.

    Args:
        subject: The aggregate or projection class.
        history: What has happened.
        id: Of the aggregate.
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
    if issubclass(subject, Aggregate):
        return AggregateCase(subject(stream_id(subject.aggregate_type, id).id, 0), known).given(*history)
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
            refused = as_told(decided, str(stream), command.message_name)
            return Outcome(self.aggregate, command, refused, self._known, self._history)
        events = [_through_codec(event) for event in decided]
        return Outcome(self.aggregate, command, events, self._known, self._history)

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
        decided: list[Event] | Rejected,
        known: _Known = _NOTHING_ELSE,
        history: tuple[Event | Stored, ...] = (),
    ) -> None:
        """Use `AggregateCase.when` to make one."""
        self.aggregate, self.command, self.decided = aggregate, command, decided
        self._known, self._history = known, history

    def then(self, *expected: Event) -> AggregateCase[A]:
        """Exactly these events resulted, in this order."""
        __tracebackhide__ = True
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
        return AggregateCase(self.aggregate, self._known, self._history).given(*self.decided)

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
        self._store.begin()
        try:
            if handler.takes_recorded:
                handler.function(self.projection, seen, self._recorded(stream))
            else:
                handler.function(self.projection, seen)
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


def _lines(messages: Iterable[Message]) -> list[str]:
    return [_shown(message) for message in messages]


_VALUE_CHARS_MAX: Final = 1_000_000
"""Of one value in a failure: what differs may be far behind its beginning."""


def _rejection(rejected: Rejected) -> str:
    facts = "".join(f", {name}={value!r}" for name, value in rejected.facts.items())
    return f"Rejected({rejected.reason!r}{facts})"


def _shown(value: object) -> str:
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
