"""The catalogue: which class bears which stored name.

Used at step [3] of the write path to find what a command is for, and at [7] to make stored events into events again.

Rule kept here: a stored name means one class. Two classes with one name are a `DefinitionError` when the catalogue is
made, and a stored event that no class can read is `UnknownEvent`, never skipped, unless its name was retired.

It is made of plain dicts of classes, so that cloudpickle carries it to another process whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..domain.aggregate import Aggregate
from ..domain.declaration import nearest, where
from ..domain.fingerprint import fingerprint_of, state_fingerprint
from ..domain.messages import Command, Event, Payload, Query
from ..domain.projection import EventHandler, Projection
from ..domain.upcast import UPCASTS_MAX, Stored, may_become_others, upcasted
from ..errors import (
    DefinitionError,
    HandlerFailed,
    InvalidMessage,
    RayfoldError,
    UnknownEvent,
    UnknownName,
    failure_text,
)
from ..printable import shown
from ..stream import TYPE_NAME_PATTERN, is_reserved
from ..user_code import is_ctrl_c
from .codec import check_limits, decode_message, decode_payload, validated
from .saved_state import check_state_fields
from .shape import event_shape, pack_shape

if TYPE_CHECKING:
    from ..log.contract import StoredEvent

__all__ = ["Catalogue", "check_listed"]

Named = TypeVar("Named", bound=type)

UPCAST_DEPTH_MAX: Final = 16
"""Upcasts from name to name: far more than a history of splits has; it ends those that go in circles."""


class Catalogue:
    """The aggregates and projections of an application, by their stored names."""

    def __init__(
        self,
        aggregates: Sequence[type[Aggregate]] = (),
        projections: Sequence[type[Projection]] = (),
        *,
        events: Sequence[type[Event]] = (),
        retired: Collection[str] = (),
        processes: Sequence[type[Aggregate]] = (),
        since: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the classes in. Raises `DefinitionError` for two with one stored name, and for what is no such class.

        `events`: classes of events that the log holds and that none of the aggregates evolves. `retired`: stored names
        of events and aggregate types that were given up: their events are passed over. `processes`: the processes,
        which are aggregates too; `since`: from where on each takes part, by name (`processes/since.py`).
        """
        aggregates = tuple(check_listed("aggregates", aggregates))
        projections = tuple(check_listed("projections", projections))
        events = tuple(check_listed("events", events))
        processes = tuple(check_listed("processes", processes))
        self.aggregates: dict[str, type[Aggregate]] = {}
        self.projections: dict[str, type[Projection]] = {}
        self.events: dict[str, type[Event]] = {}
        self.processes: dict[str, Any] = {}
        """The processes, by the type of their streams. `Process` is of a room above this one."""
        self.has_outputs = False
        """Whether there is anything for a courier to carry out."""
        self.since = dict(since or {})
        """By the name of the process; see `processes/since.py`."""
        self.sinks: tuple[object, ...] = ()
        """The sinks of the application, which are of a room above this one (`sinks/sink.py`)."""
        self.retired = _checked_names(retired)
        self._extra = tuple(events)
        self._commands: dict[str, dict[str, type[Command]]] = {}
        self._queries: dict[str, dict[str, type[Query[Any]]]] = {}
        for process in processes:
            _check_process(process)
            self.processes[process.aggregate_type] = process
        for aggregate in (*aggregates, *processes):
            _check_class(aggregate, Aggregate, "aggregates")
            if aggregate.is_process and aggregate not in processes:
                raise DefinitionError("aggregates=", f"{aggregate.__name__} is a process", "list it in processes=")
            _add(self.aggregates, aggregate.aggregate_type, aggregate, "aggregate")
            self._commands[aggregate.aggregate_type] = {cls.message_name: cls for cls in aggregate.deciders}
            self._add_events(aggregate.evolvers)
            self._add_events(aggregate.reacts_to)
            self.has_outputs = self.has_outputs or aggregate.has_outputs or aggregate.is_process
            if aggregate.snapshot_every:
                check_state_fields(aggregate)
        for event in events:
            _check_class(event, Event, "events")
        self._add_events(events)
        for projection in projections:
            _check_class(projection, Projection, "projections")
            _add(self.projections, projection.projection_name, projection, "projection")
            self._queries[projection.projection_name] = {cls.message_name: cls for cls in projection.answers}
            self._add_events(projection.projectors)
        for projection in projections:
            self._check_bases(projection)
        for name in self.retired:
            if name in self.events or name in self.aggregates:
                raise DefinitionError(
                    "retired=", f"{name!r} is the stored name of a class here", "take one of them out"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also as an earlier release has pickled it: a deployed application is in Ray's directory, and goes on."""
        self.__dict__.update({"processes": {}, "since": {}, "has_outputs": False, "sinks": ()} | state)

    def _add_events(self, events: Iterable[type[Event]]) -> None:
        for event in events:
            _add(self.events, event.message_name, event, "event")

    def _check_bases(self, projection: type[Projection]) -> None:
        """Raises `DefinitionError` for a handler of a base of events, of which no derived event is known here."""
        evolved = {event for aggregate in self.aggregates.values() for event in aggregate.evolvers}
        for event, handler in projection.projectors.items():
            derived = [one.__name__ for one in event.__subclasses__() if self.events.get(one.message_name) is not one]
            known = any(one is not event and issubclass(one, event) for one in self.events.values())
            if derived and not known and event not in evolved and event not in self._extra:
                names = ", ".join(sorted(derived))
                what = f"it handles {event.__name__}, and no event that is derived from it is known here"
                remedy = f"list the aggregates that evolve {names}, or give events=[{names}]"
                raise DefinitionError(where(projection, handler.name), what, remedy)

    def narrowed(self, projection: type[Projection]) -> Catalogue:
        """The same application with this projection alone."""
        others = [aggregate for aggregate in self.aggregates.values() if not aggregate.is_process]
        processes = list(self.processes.values())
        options: dict[str, Any] = {"events": self._extra, "retired": self.retired, "since": self.since}
        return Catalogue(others, [projection], processes=processes, **options)

    def projectors(self, projection: type[Projection]) -> dict[type[Event], EventHandler]:
        """Each event that the projection handles, with its handler: its own, or that of the nearest base."""
        found = {event: nearest(event, projection.projectors) for event in self.events.values()}
        return {event: handler for event, handler in found.items() if handler is not None}

    def fingerprint(self, projection: type[Projection]) -> bytes:
        """16 bytes that change with the code of the projection, and with that of the events which it handles by a base
        of theirs, or which may be upcast to those that it handles."""
        own = state_fingerprint(projection)
        others = [
            event
            for name, event in sorted(self.events.items())
            if event not in projection.projectors
            and (may_become_others(event) or nearest(event, projection.projectors) is not None)
        ]
        if not others:
            return own
        text = [
            f"{one.message_name} {one.schema_version} {fingerprint_of(one, one.__module__).hex()}" for one in others
        ]
        return hashlib.blake2b("\n".join([own.hex(), *text]).encode(), digest_size=len(own)).digest()

    def shapes(self) -> dict[tuple[str, int], bytes]:
        """The shapes of the events, packed, by name and schema version: the argument of `Log.declare`."""
        return {
            (name, event.schema_version): pack_shape(event_shape(event))
            for name, event in self.events.items()
            if not is_reserved(name)
        }

    def aggregate(self, type_name: str) -> type[Aggregate]:
        """The aggregate class of this type name. Raises `UnknownName`."""
        return _find(self.aggregates, type_name, "aggregate")

    def command(self, aggregate: type[Aggregate], name: str) -> type[Command]:
        """The command of this name that the aggregate decides. Raises `UnknownName`."""
        known = self._commands.get(aggregate.aggregate_type, {})
        return known.get(name) or _find(known, name, f"command of {aggregate.aggregate_type}")

    def event(self, name: str) -> type[Event]:
        """The event class of this stored name. Raises `UnknownName`."""
        return _find(self.events, name, "event")

    def projection(self, name: str) -> type[Projection]:
        """The projection class of this name. Raises `UnknownName`."""
        return _find(self.projections, name, "projection")

    def query(self, projection: type[Projection], name: str) -> type[Query[Any]]:
        """The query of this name that the projection answers. Raises `UnknownName`."""
        known = self._queries.get(projection.projection_name, {})
        return known.get(name) or _find(known, name, f"query of {projection.projection_name}")

    def decode_event(self, stored: StoredEvent) -> Event:
        """`decode_events` of a stored event that is one event. Raises `UnknownEvent` too if it is several, or none."""
        events = self.decode_events(stored)
        if len(events) != 1:
            raise _unreadable(stored, f"it is upcast to {len(events)} events")
        return events[0]

    def decode_events(self, stored: StoredEvent) -> Sequence[Event]:
        """A stored event as events of the classes that bear their names now: one, unless it is older and was upcast to
        several or none; none for a retired name.

        Raises `UnknownEvent` for a name that no class bears, a version newer than the class, and fields that the
        class does not accept.
        """
        cls = self.events.get(stored.name)
        try:
            if cls is not None and stored.schema_version == cls.schema_version:
                return (decode_message(cls, stored.payload),)
            if stored.name in self.retired or is_reserved(stored.name):
                return ()
            if cls is None or not 1 <= stored.schema_version < cls.schema_version:
                raise _unreadable(stored, self._why_unknown(stored.name))
            return self._upcast(stored, stored.name, stored.schema_version, decode_payload(stored.payload, stored.name))
        except InvalidMessage as error:
            raise _unreadable(stored, str(error)) from error
        except HandlerFailed as error:
            raise _unreadable(stored, f"{error.handler} failed with {error.what}") from error
        except RayfoldError:
            raise
        except BaseException as error:  # a validator or an enum of the class is the user's code and may raise anything
            if is_ctrl_c(error):
                raise
            raise _unreadable(stored, f"the code of its class failed with {failure_text(error)}") from error

    def may_become(self, name: str) -> bool:
        """Whether old events of this name may be upcast to events of others."""
        cls = self.events.get(name)
        return cls is not None and may_become_others(cls)

    def _why_unknown(self, name: str) -> str:
        cls = self.events.get(name)
        if cls is not None:
            return f"{cls.__name__} is only at version {cls.schema_version}; deploy newer code"
        known = ", ".join(sorted(self.events)) or "none"
        return f"no registered class has that name; known: {known}"

    def _upcast(
        self, stored: StoredEvent, name: str, version: int, payload: Payload, depth: int = 0
    ) -> Sequence[Event]:
        """The events that an old payload is now, upcast as often as it takes."""
        if name in self.retired:
            return ()
        cls = self.events.get(name)
        if cls is None or not 1 <= version <= cls.schema_version:
            raise _unreadable(stored, f"it is upcast to {name!r} version {version}: {self._why_unknown(name)}")
        if depth > UPCAST_DEPTH_MAX:
            raise _unreadable(stored, f"its upcasts go in circles, by way of {name}")
        try:
            results = upcasted(cls, payload, version)
        except BaseException as error:  # an upcaster is the user's code and may raise anything
            if is_ctrl_c(error):
                raise
            raise _unreadable(stored, f"its upcaster failed with {failure_text(error)}") from error
        events: list[Event] = []
        for one in results:
            if isinstance(one, Stored):
                events += self._upcast(stored, one.name, one.schema_version, one.payload, depth + 1)
            else:
                check_limits(one, cls.message_name)
                events.append(validated(cls, one))
            if len(events) > UPCASTS_MAX:
                raise _unreadable(stored, f"it is upcast to over {UPCASTS_MAX:,} events")
        return events


def _unreadable(stored: StoredEvent, what: str) -> UnknownEvent:
    return UnknownEvent(stored.name, stored.schema_version, what, str(stored.stream), stored.version, stored.position)


def _checked_names(retired: Collection[str]) -> frozenset[str]:
    """Raises `DefinitionError` for what is not a list of stored names."""
    if not isinstance(retired, Iterable):
        raise DefinitionError("retired=", f"{shown(retired)} is not a list of stored names", 'give retired=["OldName"]')
    for name in [retired] if isinstance(retired, str) else retired:
        if isinstance(retired, str) or not isinstance(name, str) or not TYPE_NAME_PATTERN.fullmatch(name):
            raise DefinitionError(
                "retired=", f"{shown(name)} is not a list of stored names", 'give retired=["OldName"]'
            )
    return frozenset(retired)


def check_listed(argument: str, given: Iterable[Named]) -> Iterable[Named]:
    """What was given, if it is a list or the like. Raises `DefinitionError`."""
    if isinstance(given, str | type) or not isinstance(given, Iterable):
        text = given.__name__ if isinstance(given, type) else shown(given)
        raise DefinitionError(f"{argument}=", f"{text} is not a list of classes", f"give {argument}=[...]")
    return given


def _check_class(cls: object, kind: type, argument: str) -> None:
    if not isinstance(cls, type) or not issubclass(cls, kind) or cls is kind:
        text = cls.__name__ if isinstance(cls, type) else shown(cls)
        raise DefinitionError(
            f"{argument}=", f"{text} is not a subclass of {kind.__name__}", "list the classes themselves"
        )


def _check_process(cls: type[Aggregate]) -> None:
    _check_class(cls, Aggregate, "processes")
    if not cls.is_process:
        raise DefinitionError("processes=", f"{cls.__name__} is not a process", "list it in aggregates=")


def _add(known: dict[str, Named], name: str, cls: Named, kind: str) -> None:
    other = known.setdefault(name, cls)
    if other is not cls and (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__):
        where_it_is = f"{cls.__module__}.{cls.__qualname__}"  # a cell of a notebook was run again
        raise DefinitionError(
            where_it_is,
            f"the {kind} name {name!r} is already that of another {where_it_is}, which was defined before",
            "run the definitions of what names it again too",
        )
    if other is not cls:
        raise DefinitionError(
            f"{cls.__module__}.{cls.__qualname__}",
            f"the {kind} name {name!r} is already that of {other.__module__}.{other.__qualname__}",
            'give one of them another name="..."',
        )


def _find(known: dict[str, Named], name: str, kind: str) -> Named:
    found = known.get(name)
    if found is None:
        raise UnknownName(kind, name, [one for one in known if not is_reserved(one)])
    return found
