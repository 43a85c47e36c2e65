"""Which events a subscription is for: of which types, of which streams, and of which member of a group.

Beside the write path. Before it: `subscription.py` has read and checked a record. After it: the caller, if the event
matches.

Rules kept here: a name that no event can ever have is an error when the subscription is made, not a permanent silence;
what is filtered out by its type or stream is not decoded further, so that a subscription to one type neither pays for
the others nor fails on them. The members of a group are disjoint and together complete: each stream has exactly one
(`group_share.py`), or each key, by the same hash that gives a key its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias, TypeVar

from ..arguments import checked_callable, listed, several, unregistered
from ..domain.aggregate import Aggregate
from ..domain.messages import Event
from ..domain.projection import part_of
from ..domain.recorded import Recorded
from ..encoding.catalogue import Catalogue
from ..encoding.facts import shown_as_text
from ..errors import HandlerFailed, InvalidId, InvalidMessage, UnknownEvent, UnknownName
from ..log.contract import StoredEvent
from ..log.format import decode_record, stream_id
from ..printable import shown
from ..read.unreadable import Unreadable, UnreadableEvent, check_unreadable, unreadable_event
from ..stream import StreamId, is_reserved
from ..user_code import is_ctrl_c
from .group_share import GroupShare

__all__ = ["EventFilter", "Happened", "Key", "Streams", "Types", "happened_in"]

Happened: TypeAlias = tuple[Event, Recorded]
"""An event and its place."""

_KEY_CHARS_SHOWN: Final = 100
"""Of a key that cannot be."""

T = TypeVar("T")

Types: TypeAlias = type[Event] | str | Sequence[type[Event] | str]
Streams: TypeAlias = (
    type[Aggregate] | StreamId | str | Sequence[type[Aggregate] | StreamId | str] | Callable[[StreamId], bool]
)
Key: TypeAlias = Callable[[Event, Recorded], str]


class EventFilter:
    """Which events a subscription is for: of which types, of which streams, and of which member of a group."""

    def __init__(
        self,
        catalogue: Catalogue,
        types: Types | None = None,
        streams: Streams | None = None,
        member: int = 0,
        of: int = 1,
        key: Key | None = None,
        unreadable: Unreadable = "raise",
        call: str = "the subscription",
        partitions: int = 1,
    ) -> None:
        """`call`: what the caller has given these arguments to, for errors. `partitions`: those of the store, which the
        members of a group divide. Raises `UnknownName`, `InvalidId` or
        `InvalidMessage` for what no event could ever match."""
        self._catalogue, self._call = catalogue, call
        self._types = None if types is None else frozenset(_event_names(catalogue, types))
        self._kinds: frozenset[str] = frozenset()
        self._ids: frozenset[StreamId] = frozenset()
        self._matches: Callable[[StreamId], bool] | None = None
        self._any_stream = streams is None
        if callable(streams) and not isinstance(streams, type):
            self._matches = streams
        elif streams is not None:
            chosen = [streams] if isinstance(streams, type | str | StreamId) else _listed("streams", streams)
            self._kinds = frozenset(_aggregate_type(catalogue, one) for one in chosen if isinstance(one, type))
            self._ids = frozenset(_checked_stream(catalogue, one) for one in chosen if not isinstance(one, type))
        checked_callable("key", key)
        self._member, self._of, self._key = member, of, key
        self.share = GroupShare(member, of, "by stream" if key is None else "by key", partitions)
        """What of the store it is for."""
        self._shares = of > 1 and key is None
        self._unreadable = check_unreadable(unreadable)

    @property
    def only(self) -> type[Event] | None:
        """The class of all events that are chosen, where one type is."""
        return self._catalogue.events[min(self._types)] if self._types is not None and len(self._types) == 1 else None

    @property
    def named(self) -> frozenset[StreamId] | None:
        """The streams that are chosen, if all of them are named one by one: nothing else can match. Else None."""
        return None if self._any_stream or self._kinds or self._matches is not None else self._ids

    def events(self, stored: StoredEvent, recorded: Recorded) -> Sequence[Event]:
        """What is chosen of a stored event: one or none, or several if an upcast made several of it. Raises
        `UnknownEvent`, `HandlerFailed`. Nothing of Rayfold's own is chosen: its streams, and steps of processes."""
        if is_reserved(stored.stream.type) or is_reserved(stored.name):
            return ()
        if self._types is not None and stored.name not in self._types and not self._catalogue.may_become(stored.name):
            return ()
        if not self._any_stream and not self._of_a_chosen_stream(stored.stream, recorded):
            return ()
        if self._shares and not self.share.has(recorded.partition, stored.stream):
            return ()
        try:
            events = self._catalogue.decode_events(stored)
        except UnknownEvent as error:
            if self._unreadable == "raise":
                raise error.in_partition(recorded.partition) from None
            events = (unreadable_event(stored, error),)
        if len(events) == 1 and self._types is None and self._key is None:
            return events
        return [event for event in events if self._is_chosen(event, recorded)]

    def _is_chosen(self, event: Event, recorded: Recorded) -> bool:
        if isinstance(event, UnreadableEvent):  # by its key it may be any member's; each gets it
            return True
        if self._types is not None and event.message_name not in self._types:
            return False
        return self._of == 1 or self._key is None or self._member_of(event, recorded) == self._member

    def _of_a_chosen_stream(self, stream: StreamId, recorded: Recorded) -> bool:
        if self._matches is None:
            return stream.type in self._kinds or stream in self._ids
        try:
            return bool(self._matches(stream))
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            raise HandlerFailed.caused_by(f"streams= of {self._call}", _place_text(recorded), error) from error

    def _member_of(self, event: Event, recorded: Recorded) -> int:
        assert self._key is not None  # the caller has looked
        try:
            key = self._key(event, recorded)
            if not isinstance(key, str):
                raise TypeError(f"key= returned {shown_as_text(key)[:_KEY_CHARS_SHOWN]}, give text")
            return part_of(key, self._of)
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            raise HandlerFailed.caused_by(f"key= of {self._call}", _place_text(recorded), error) from error


def happened_in(
    record: bytes, position: int, chosen: EventFilter, partition: int, replayed: bool = False
) -> list[Happened]:
    """What is chosen of the event in a record. Raises `Damaged`, `UnknownEvent`, `HandlerFailed`."""
    stored = decode_record(record, f"event {position} of partition {partition}")
    recorded = Recorded(
        stored.stream,
        stored.version,
        partition,
        position,
        stored.recorded_at_us,
        stored.command_id,
        stored.correlation_id,
        stored.causation_id,
        replayed,
    )
    return [(event, recorded) for event in chosen.events(stored, recorded)]


def _event_names(catalogue: Catalogue, types: Types) -> Iterator[str]:
    for one in [types] if isinstance(types, type | str) else _listed("types", types):
        if isinstance(one, type):  # the class, and those that are derived from it
            names = [name for name, cls in catalogue.events.items() if issubclass(cls, one)]
            names = names if issubclass(one, Event) else []
        elif isinstance(one, str):
            names = [one] if one in catalogue.events else []
        else:
            raise InvalidMessage(
                "types", f"{shown(one)} is not a type of event", "give event classes, or names of events"
            )
        if not names:
            raise (
                unregistered("event", one, catalogue.events)
                if isinstance(one, type)
                else UnknownName("event", one, list(catalogue.events))
            )
        yield from names


def _listed(argument: str, given: Iterable[T]) -> list[T]:
    """Raises `InvalidMessage` for what is not a list, and for an empty one: no event would ever match it."""
    one = "an event class or a name" if argument == "types" else "a class or a stream"
    found = several(argument, listed(argument, given, one, (Event,), or_one=True))
    if not found:
        raise InvalidMessage(argument, "is empty, so that no event would ever match", "leave it out for all events")
    return found


def _aggregate_type(catalogue: Catalogue, aggregate: type[Aggregate]) -> str:
    name = getattr(aggregate, "aggregate_type", "")
    if catalogue.aggregates.get(name) is not aggregate:
        raise unregistered("aggregate", aggregate, catalogue.aggregates)
    return name


def _checked_stream(catalogue: Catalogue, stream: StreamId | str) -> StreamId:
    if isinstance(stream, StreamId):
        kind, ident = stream
    elif isinstance(stream, str) and "/" in stream:
        kind, _, ident = stream.partition("/")
    else:
        raise InvalidId(
            "stream", shown_as_text(stream), "is none; give an aggregate class, a StreamId, or text like Account/alice"
        )
    catalogue.aggregate(kind)
    return stream_id(kind, ident)


def _place_text(recorded: Recorded) -> str:
    return f"event {recorded.position} of partition {recorded.partition} ({recorded.stream} {recorded.version})"
