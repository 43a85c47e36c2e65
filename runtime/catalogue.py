"""The catalogue: which class bears which stored name.

Used at step [3] of the write path to find what a command is for, and at [7] to make stored events into events again.

Rule kept here: a stored name means one class. Two classes with one name are a `DefinitionError` when the catalogue is
made, and a stored event that no class can read is `UnknownEvent`, never skipped.

It is made of plain dicts of classes, so that cloudpickle carries it to another process whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .aggregate import Aggregate
from .codec import decode_message, decode_payload, validated
from .errors import DefinitionError, InvalidMessage, UnknownEvent, UnknownName
from .messages import Command, Event, Query
from .projection import Projection
from .saved_state import check_state_fields
from .upcast import upcasted

if TYPE_CHECKING:
    from .log.contract import StoredEvent

__all__ = ["Catalogue"]

Named = TypeVar("Named", bound=type)


class Catalogue:
    """The aggregates and projections of an application, by their stored names."""

    def __init__(
        self, aggregates: Sequence[type[Aggregate]] = (), projections: Sequence[type[Projection]] = ()
    ) -> None:
        """Take the classes in. Raises `DefinitionError` for two with one stored name, and for what is no such class."""
        self.aggregates: dict[str, type[Aggregate]] = {}
        self.projections: dict[str, type[Projection]] = {}
        self.events: dict[str, type[Event]] = {}
        self._commands: dict[str, dict[str, type[Command]]] = {}
        self._queries: dict[str, dict[str, type[Query[Any]]]] = {}
        for aggregate in aggregates:
            _check_class(aggregate, Aggregate, "aggregates")
            _add(self.aggregates, aggregate.aggregate_type, aggregate, "aggregate")
            self._commands[aggregate.aggregate_type] = {cls.message_name: cls for cls in aggregate.deciders}
            self._add_events(aggregate.evolvers)
            if aggregate.snapshot_every:
                check_state_fields(aggregate)
        for projection in projections:
            _check_class(projection, Projection, "projections")
            _add(self.projections, projection.projection_name, projection, "projection")
            self._queries[projection.projection_name] = {cls.message_name: cls for cls in projection.answers}
            self._add_events(projection.projectors)

    def _add_events(self, events: Iterable[type[Event]]) -> None:
        for event in events:
            _add(self.events, event.message_name, event, "event")

    def aggregate(self, type_name: str) -> type[Aggregate]:
        """The aggregate class of this type name. Raises `UnknownName`."""
        return _find(self.aggregates, type_name, "aggregate")

    def command(self, aggregate: type[Aggregate], name: str) -> type[Command]:
        """The command of this name that the aggregate decides. Raises `UnknownName`."""
        return _find(self._commands.get(aggregate.aggregate_type, {}), name, f"command of {aggregate.aggregate_type}")

    def event(self, name: str) -> type[Event]:
        """The event class of this stored name. Raises `UnknownName`."""
        return _find(self.events, name, "event")

    def projection(self, name: str) -> type[Projection]:
        """The projection class of this name. Raises `UnknownName`."""
        return _find(self.projections, name, "projection")

    def query(self, projection: type[Projection], name: str) -> type[Query[Any]]:
        """The query of this name that the projection answers. Raises `UnknownName`."""
        return _find(self._queries.get(projection.projection_name, {}), name, f"query of {projection.projection_name}")

    def decode_event(self, stored: StoredEvent) -> Event:
        """A stored event as an event of the class that bears its name now, upcast where it is older.

        Raises `UnknownEvent` for a name that no class bears, a version newer than the class, and fields that the
        class does not accept.
        """
        cls = self.events.get(stored.name)
        if cls is None:
            known = ", ".join(sorted(self.events)) or "none"
            raise _unreadable(stored, f"no registered class bears that name; known: {known}")
        try:
            if stored.schema_version == cls.schema_version:
                return decode_message(cls, stored.payload)
            if not 1 <= stored.schema_version < cls.schema_version:
                raise _unreadable(stored, f"{cls.__name__} is only at version {cls.schema_version}; deploy newer code")
            return _upcast(cls, stored)
        except InvalidMessage as error:
            raise _unreadable(stored, str(error)) from error


def _upcast(cls: type[Event], stored: StoredEvent) -> Event:
    payload = decode_payload(stored.payload, cls.message_name)
    try:
        payload = upcasted(cls, payload, stored.schema_version)
    except Exception as error:  # an upcaster is the user's code and may raise anything
        raise _unreadable(stored, f"its upcaster failed with {type(error).__name__}: {error}") from error
    return validated(cls, payload)


def _unreadable(stored: StoredEvent, what: str) -> UnknownEvent:
    return UnknownEvent(stored.name, stored.schema_version, what)


def _check_class(cls: object, kind: type, argument: str) -> None:
    if not isinstance(cls, type) or not issubclass(cls, kind) or cls is kind:
        told = cls.__name__ if isinstance(cls, type) else repr(cls)
        raise DefinitionError(f"{argument}=", f"{told} is no {kind.__name__} class", "list the classes themselves")


def _add(known: dict[str, Named], name: str, cls: Named, kind: str) -> None:
    other = known.setdefault(name, cls)
    if other is not cls:
        raise DefinitionError(
            f"{cls.__module__}.{cls.__qualname__}",
            f"the {kind} name {name!r} is already that of {other.__module__}.{other.__qualname__}",
            'give one of them another name="..."',
        )


def _find(known: dict[str, Named], name: str, kind: str) -> Named:
    found = known.get(name)
    if found is None:
        raise UnknownName(kind, name, list(known))
    return found
