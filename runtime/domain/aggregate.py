"""Aggregates: the consistency boundary, as a plain class that decides and evolves.

Step [4] of the write path. Before it: the partition has found the aggregate and its history. After it: the log.

Rules kept here: `@decide` looks and never changes anything; `@evolve` changes and never refuses; both are pure Python,
without input or output, clock or randomness. The same class runs in an actor of its own or in its partition's.

After Chassaing's Decider (decide, evolve, initial state) in the shape of a Python class.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar, overload

from ..errors import DefinitionError, HandlerFailed, Rejected, UnknownName
from ..printable import shown
from ..stream import RESERVED_PREFIX
from .declaration import (
    Handler,
    arguments_of_union,
    being_unpickled,
    checked_name,
    described,
    handlers_of,
    mark,
    methods_of,
    nearest,
    where,
)
from .messages import Command, Event
from .state import Stateful, collect_state

__all__ = [
    "EVENTS_PER_COMMAND_MAX",
    "Aggregate",
    "Decider",
    "Decision",
    "Output",
    "OwnActor",
    "Shared",
    "Waker",
    "Woken",
    "check_evolved",
    "decide",
    "evolved_by_base",
    "evolved_events",
    "events_of",
    "evolve",
    "outcome_of",
    "when",
    "woken",
]

EVENTS_PER_COMMAND_MAX = 10_000
"""The events of one command are one transaction and are held in memory; this also ends an endless generator."""

SNAPSHOT_EVERY_DEFAULT = 1_000
"""Events between two snapshots: a load then folds at most that many, some milliseconds of work."""

FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class OwnActor:
    """The placement of an aggregate in a Ray actor of its own: its own process, resources and crash domain.

    For few, heavy or risky aggregates: each takes 45 MiB. Raises `DefinitionError` for amounts below 0.

    Example:
        class Forecast(Aggregate, placement=OwnActor(num_gpus=1)):
            ...
    """

    num_cpus: float = 0
    """CPUs that Ray sets aside for the actor; 0 sets none aside and does not limit what it uses."""
    num_gpus: float = 0
    """GPUs that Ray gives the actor."""

    def __post_init__(self) -> None:
        """Refuse amounts that Ray would refuse later. Raises `DefinitionError`."""
        amounts: dict[str, object] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        for name, amount in amounts.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < math.inf:
                raise DefinitionError("OwnActor", f"{name}={shown(amount)} is not an amount", "use a number from 0")


@dataclass(frozen=True, slots=True)
class Shared:
    """The placement of an aggregate inside the Ray actor of its partition, with thousands of others. For many light
    ones.

    Example:
        class Parcel(Aggregate, placement=Shared()):
            ...
    """


class Output:
    """What is carried out after the events are stored: the base of those in `outputs.py`."""

    __slots__ = ()

    of_aggregates: ClassVar[bool] = True
    """Whether an ordinary aggregate may return it."""


class Decision(list[Event]):
    """The events of a decision that has outputs as well."""

    def __init__(self, yielded: list[Event | Output]) -> None:
        super().__init__(one for one in yielded if not isinstance(one, Output))
        self.yielded = yielded
        """Events and outputs, in the order of the handler."""

    @property
    def outputs(self) -> list[Output]:
        """Its outputs, in order."""
        return [one for one in self.yielded if isinstance(one, Output)]


class Decider(NamedTuple):
    """One `@decide` method."""

    name: str
    function: Callable[[Any, Any], Any]
    creates: bool
    """True when its command may run on an aggregate that does not exist yet (see `creation_restricted`)."""
    events: tuple[type[Event], ...]
    """What it may return, by its annotation."""


class Waker(NamedTuple):
    """One `@woken` method."""

    name: str
    function: Callable[..., Any]
    takes_due: bool
    """Whether it takes the time that the timer was armed for."""


class Woken(Command):
    """A timer of an ordinary aggregate is due. Rayfold sends it; no program does."""

    name: str
    due_us: int
    """The time that it was armed for, in microseconds since 1970."""


Woken.message_name = f"{RESERVED_PREFIX}Woken"


class Aggregate(Stateful):
    """The base of your aggregates: its annotated attributes are the state.

    All of the class line is optional. `name`: the type, stored with every event, so it never changes; without it
    the name of the class. `placement`: `OwnActor()` (the default) or `Shared()`. `snapshot_every`: events between
    two snapshots, 1,000 by default. `state_version`: raise it when the state is computed differently and the code
    does not show it. Raises `DefinitionError` while the class is defined.

    Attributes:
        id: Of this aggregate, the part after the type.
        version: How many events it has; 0 before the first.

    Example:
        class Account(Aggregate, name="Account", placement=Shared()):
            balance: int = 0

            @decide
            def deposit(self, command: Deposit) -> Deposited:
                return Deposited(amount=command.amount)

            @evolve
            def deposited(self, event: Deposited) -> None:
                self.balance += event.amount
    """

    aggregate_type: ClassVar[str] = "Aggregate"
    placement: ClassVar[OwnActor | Shared] = OwnActor()
    snapshot_every: ClassVar[int] = SNAPSHOT_EVERY_DEFAULT
    """Events between two snapshots of one aggregate; 0 means none."""
    state_version: ClassVar[int] = 1
    """Raise it when what `@evolve` methods do changes in a way that the fingerprint cannot see: a name that is put
    together at run time and looked up in a module, data that is read from elsewhere. Then older snapshots are passed
    over. All other changes of code and constants are seen by themselves."""
    deciders: ClassVar[dict[type[Command], Decider]] = {}
    evolvers: ClassVar[dict[type[Event], Callable[[Any, Any], None]]] = {}
    wakers: ClassVar[dict[str, Waker]] = {}
    """By the name of the timer."""
    has_outputs: ClassVar[bool] = False
    """Whether a method may return outputs, by its annotation."""
    is_process: ClassVar[bool] = False
    """True for a `Process`, whose inputs are events, timers and outcomes (`processes/process.py`)."""
    reacts_to: ClassVar[tuple[type[Event], ...]] = ()
    """The events of others that a process reacts to."""
    creation_restricted: ClassVar[bool] = False
    """True when some `@decide(creates=True)` exists: then only those run on an aggregate that does not exist yet."""
    _handlers: ClassVar[tuple[Handler, ...]] = ()
    _own_attributes: ClassVar[frozenset[str]] = frozenset({"id", "version"})

    id: str
    """The id of this aggregate within its type."""
    version: int
    """How many events it has had; 0 means that it does not exist yet."""

    def __init__(self, id: str = "", version: int = 0) -> None:
        """Start from the declared defaults. The runtime does this, and a test may."""
        super().__init__()
        self.id = id
        self.version = version

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        placement: OwnActor | Shared | None = None,
        snapshot_every: int | None = None,
        state_version: int | None = None,
    ) -> None:
        """Find and check the fields and handlers. Raises `DefinitionError`."""
        super().__init_subclass__()
        if being_unpickled():
            return
        collect_state(cls, RESERVED)
        cls.aggregate_type = checked_name(cls, name)
        _set_options(cls, placement, snapshot_every, state_version)
        cls.evolvers = {handler.message: handler.function for handler in handlers_of(cls, "evolve", Event)}
        deciding = list(handlers_of(cls, "decide", Command))
        for handler in deciding:
            cls.evolvers |= evolved_by_base(cls, where(cls, handler.name), handler.returns)
        cls.deciders = {handler.message: _decider(cls, handler) for handler in deciding}
        cls.wakers = _wakers(cls)
        if cls.wakers and not cls.is_process:
            cls.deciders[Woken] = Decider("woken", _wake, False, ())
        cls.has_outputs = bool(cls.wakers) or any(_names(handler.returns, Output) for handler in deciding)
        cls.creation_restricted = any(decider.creates for decider in cls.deciders.values())

    def __repr__(self) -> str:
        """The stream, its version and the state, for messages and debuggers."""
        fields = "".join(f", {name}={getattr(self, name)!r}" for name in self.state_fields)
        return f"{type(self).__name__}(id={self.id!r}, version={self.version}{fields})"


RESERVED = frozenset({"id", "version", "aggregate_type", "placement", "snapshot_every", "deciders", "evolvers"}) | {
    "has_outputs",
    "is_process",
    "reacts_to",
    "wakers",
    "state_version",
    "state_fields",
    "creation_restricted",
}


@overload
def decide(function: FunctionType, /) -> FunctionType: ...
@overload
def decide(*, creates: bool = False) -> Callable[[FunctionType], FunctionType]: ...
def decide(function: Any = None, /, *, creates: bool = False) -> Any:
    """Mark a method that decides a command: it returns events, nothing, or `Rejected`, and changes nothing.

    Its command is the annotation of its parameter, its events those of its return annotation. With `creates=True` the
    command may create an aggregate; once one method has it, all others are rejected on an id without events. Raises
    `DefinitionError` for annotations that are missing or contradict others.

    Example:
        @decide(creates=True)
        def open(self, command: Open) -> Opened | Rejected:
            return Rejected("already_open") if self.version else Opened(owner=command.owner)
    """
    if function is None:
        return lambda later: mark(later, "decide", creates=creates)
    return mark(function, "decide", creates=creates)


@overload
def evolve(function: FunctionType, /) -> FunctionType: ...
@overload
def evolve() -> Callable[[FunctionType], FunctionType]: ...
def evolve(function: Any = None, /) -> Any:
    """Mark a method that changes the state by an event. It never refuses: the event has happened.

    A method for a base class of events is for each event class derived from it that a `@decide` names in its return
    annotation and no other `@evolve` is nearer to. Raises `DefinitionError` for annotations that do not fit.

    Example:
        @evolve
        def deposited(self, event: Deposited) -> None:
            self.balance += event.amount
    """
    return mark(function, "evolve") if function is not None else lambda marked: mark(marked, "evolve")


def woken(name: str, /) -> Callable[[FunctionType], FunctionType]:
    """Mark a method that is called when the timer of this name is due, which a `Wake` has armed.

    It returns what a `@decide` method may, or a `@react` method of a process. It may take the time that the timer was
    armed for, as a `datetime`. Raises `DefinitionError` for annotations that do not fit.

    Example:
        @woken("unpaid")
        def unpaid(self) -> Expired | None:
            return None if self.paid else Expired()
    """
    if not isinstance(name, str) or not name:
        raise DefinitionError("@woken", "it names no timer", 'write @woken("name"), with the name of a Wake')
    return lambda function: mark(function, "woken", route=name)


def _wakers(cls: type[Aggregate]) -> dict[str, Waker]:
    found: dict[str, Waker] = {}
    for method in methods_of(cls, "woken"):
        here, name = where(cls, method.name), method.mark.route
        if method.parameters not in ((), (datetime,)):
            what = "a @woken method takes self, or self and a datetime"
            raise DefinitionError(here, f"{what}, this one takes other parameters", "take them away")
        if name in found:
            what = f"the timer {name!r} is already handled by {found[name].name}"
            raise DefinitionError(here, what, "keep one of the two methods")
        cls.evolvers |= evolved_by_base(cls, here, method.returns)
        evolved_events(cls, here, method.returns)
        found[name] = Waker(method.name, method.function, bool(method.parameters))
    return found


def _wake(aggregate: Aggregate, command: Woken) -> Any:
    """What the method of a timer decides. Nothing for a timer whose method was taken out of the class."""
    waker = aggregate.wakers.get(command.name)
    if waker is None:
        return None
    return waker.function(aggregate, *([when(command.due_us)] if waker.takes_due else []))


def when(at_us: int) -> datetime:
    """A time in microseconds since 1970, in UTC."""
    return _EPOCH + timedelta(microseconds=at_us)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def outcome_of(aggregate: Aggregate, command: Command) -> list[Event] | Rejected:
    """What the aggregate decides about the command: its events, perhaps none, or why not. Nothing is changed.

    Raises `UnknownName` for a command it has no `@decide` for, `HandlerFailed` for a return value that is not an
    outcome, and whatever else the method raises.
    """
    decider = aggregate.deciders.get(type(command))
    if decider is None:
        known = [message.message_name for message in aggregate.deciders]
        raise UnknownName(f"command of {aggregate.aggregate_type}", command.message_name, known)
    if aggregate.version == 0 and aggregate.creation_restricted and not decider.creates:
        return Rejected("does_not_exist")
    try:
        return events_of(decider.function(aggregate, command), aggregate, decider.name)
    except Rejected as rejected:
        return rejected


def events_of(outcome: object, aggregate: Aggregate, handler: str = "decide") -> list[Event] | Rejected:
    """What a `@decide` method returned, as a list of events or a `Rejected`.

    A generator runs here, and `Rejected` in place of any event refuses the whole command. Raises `HandlerFailed` for
    anything that is not an event, for an event that the aggregate has no `@evolve` for, and for over 10,000 events.
    """
    if type(outcome) in aggregate.evolvers:  # nearly always, and it is complete
        return [outcome]  # type: ignore[list-item]  # evolvers are of event classes
    if outcome is None:
        return []
    if isinstance(outcome, Rejected):
        return outcome
    if isinstance(outcome, Event):
        check_evolved(outcome, aggregate, handler)
        return [outcome]
    if isinstance(outcome, str | bytes | dict) or not isinstance(outcome, Iterable):
        _fail(aggregate, handler, f"it returned {_shown(outcome)}; return events, None or Rejected")
    events: list[Event] = []
    yielded: list[Event | Output] = []
    """Filled from the first output on."""
    try:
        for event in outcome:
            if isinstance(event, Rejected):
                return event
            if isinstance(event, Output):
                yielded = yielded or [*events]
                yielded.append(event)
            else:
                check_evolved(event, aggregate, handler)
                events.append(event)
                if yielded:
                    yielded.append(event)
            if len(events) > EVENTS_PER_COMMAND_MAX or len(yielded) > EVENTS_PER_COMMAND_MAX:
                _fail(aggregate, handler, f"it returned over {EVENTS_PER_COMMAND_MAX:,} events; split the command")
    except Rejected as rejected:
        return rejected
    if yielded:
        return _with_outputs(yielded, events, aggregate, handler)
    return events


def _with_outputs(
    yielded: list[Event | Output], events: list[Event], aggregate: Aggregate, handler: str
) -> list[Event]:
    """The decision of an ordinary aggregate that has outputs: they are stored with its last event."""
    if not events:
        _fail(aggregate, handler, "it returned outputs without an event; return the event that they follow from")
    if not aggregate.has_outputs:
        _fail(aggregate, handler, "it returned outputs that no return annotation names; write Iterator[... | Send]")
    for one in yielded:
        if isinstance(one, Output) and not one.of_aggregates:
            what = f"it returned {type(one).__name__}, which only a Process may"
            _fail(aggregate, handler, f"{what}; an aggregate has Send, Wake and Forget")
        name = getattr(one, "name", None)
        if isinstance(one, Output) and name is not None and name not in aggregate.wakers:
            _fail(aggregate, handler, f"it returned {one!r}, and no @woken method has that name; add one")
    return Decision(yielded)


def check_evolved(event: object, aggregate: Aggregate, handler: str) -> None:
    """Raises `HandlerFailed` for what is not an event that the aggregate evolves."""
    if type(event) in aggregate.evolvers:
        return
    if isinstance(event, Event):
        if nearest(type(event), aggregate.evolvers) is not None:
            what = f"it returned {type(event).__name__}, which no return annotation of a @decide names"
            _fail(aggregate, handler, f"{what}; name it there, so that it can be read again")
        name, mine = type(event).__name__, type(aggregate).__name__
        if any(getattr(cls, "message_name", "") == event.message_name for cls in aggregate.evolvers):
            what = f"it returned {name}, and {mine} takes another class of that name"
            _fail(aggregate, handler, f"{what}; run the definition of {mine} again too")
        what = f"it returned {name}, which no @evolve of {mine} takes"
        _fail(aggregate, handler, f"{what}; add one")
    _fail(aggregate, handler, f"it returned {_shown(event)} among its events; return events, None or Rejected")


def _fail(aggregate: Aggregate, handler: str, what: str) -> NoReturn:
    raise HandlerFailed(
        f"{type(aggregate).__name__}.{handler}", f"{aggregate.aggregate_type}/{aggregate.id}", what
    ) from None


def _shown(value: object) -> str:
    if value is None:
        return "None"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _set_options(cls: type[Aggregate], placement: object, snapshot_every: object, state_version: object) -> None:
    if placement is not None:
        if not isinstance(placement, OwnActor | Shared):
            text = f"{placement.__name__}" if isinstance(placement, type) else repr(placement)
            raise DefinitionError(where(cls), f"placement={text} is not a placement", "give Shared() or OwnActor(...)")
        cls.placement = placement
    if snapshot_every is not None:
        if isinstance(snapshot_every, bool) or not isinstance(snapshot_every, int) or snapshot_every < 0:
            raise DefinitionError(
                where(cls),
                f"snapshot_every={shown(snapshot_every)} is not a number of events",
                "use 0 for none, or more",
            )
        cls.snapshot_every = snapshot_every
    if state_version is not None:
        if isinstance(state_version, bool) or not isinstance(state_version, int) or state_version < 1:
            raise DefinitionError(where(cls), f"state_version={shown(state_version)} is not a version", "count from 1")
        cls.state_version = state_version


_EVENT_SEQUENCES = (list, tuple, Iterable, Iterator, typing.get_origin(typing.Sequence[int]))
_GENERATOR = typing.get_origin(typing.Generator[int, None, None])


def evolved_by_base(cls: type[Aggregate], here: str, returns: Any) -> dict[type[Event], Callable[[Any, Any], None]]:
    """The events in a return annotation that only an `@evolve` of a base of theirs takes."""
    found: dict[type[Event], Callable[[Any, Any], None]] = {}
    for event in events_in(here, returns):
        evolver = nearest(event, cls.evolvers)
        if event not in cls.evolvers and evolver is not None:
            found[event] = evolver
    return found


def _decider(cls: type[Aggregate], handler: Handler) -> Decider:
    here = where(cls, handler.name)
    events = evolved_events(cls, here, handler.returns)
    return Decider(handler.name, handler.function, handler.mark.creates, events)


def evolved_events(cls: type[Aggregate], here: str, returns: Any) -> tuple[type[Event], ...]:
    """The event classes in a return annotation. Raises `DefinitionError` for one that the class does not evolve."""
    events = tuple(dict.fromkeys(events_in(here, returns)))
    for event in events:
        if event not in cls.evolvers:
            raise DefinitionError(
                here,
                f"it returns {event.__name__}, which no @evolve takes",
                f"add an @evolve method for {event.__name__}",
            )
    return events


def may_be_refused(returns: Any) -> bool:
    """Whether a return annotation names `Rejected`."""
    return _names(returns, Rejected)


def _names(annotation: Any, kind: type) -> bool:
    return any(
        (inspect.isclass(part) and issubclass(part, kind)) or any(_names(one, kind) for one in typing.get_args(part))
        for part in arguments_of_union(annotation)
    )


def events_in(here: str, annotation: Any) -> Iterator[type[Event]]:
    """The event classes that a return annotation names. Raises `DefinitionError` for what is not an outcome."""
    for part in arguments_of_union(annotation):
        origin, arguments = typing.get_origin(part), typing.get_args(part)
        if part in (None, type(None), typing.Never, NoReturn):
            continue
        if origin in _EVENT_SEQUENCES:
            for argument in arguments:
                if argument not in (Ellipsis, ()):
                    yield from events_in(here, argument)
        elif origin is _GENERATOR:
            yield from events_in(here, arguments[0])
        elif part is Event:
            raise DefinitionError(here, "it returns Event itself", "name the event classes it may return")
        elif inspect.isclass(part) and issubclass(part, Event):
            yield part
        elif not (inspect.isclass(part) and issubclass(part, Rejected | Output)):
            raise DefinitionError(
                here,
                f"it returns {described(part)}, which is not an event",
                "return events, a list or iterator of events, None or Rejected",
            )
