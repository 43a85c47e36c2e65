"""Time travel: what one aggregate's history is, what its state was, and which place a moment was.

Beside the read path: it reads the log and nothing else, in the calling process, and starts and blocks no actor. Before
it: `actors/api/time_travel.py`, or the command line, which both open the readers.

Rules kept here: a version or position that the log lacks is an error (`NotInHistory`), never a shorter answer; order
follows from versions and positions, and the clock is only asked where a person names a time.

What a time means: the state *at* a time is the one after the last event, by version, that was recorded at or before it,
and everything before that event belongs to it, whatever its own time. So when the clock of the writer went back by an
hour, an event from before that carries a later time than the one after it, and the two are not torn apart: asking for a
time in that hour gives the later of the two states. That is searched from the end of the history backwards, because
times that may go back cannot be searched by halves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Final, TypeVar, cast

from ..domain.aggregate import Aggregate
from ..domain.messages import Event
from ..domain.recorded import Recorded
from ..encoding.catalogue import Catalogue
from ..errors import InvalidMessage, NotInHistory, UnknownEvent
from ..log.contract import Reader, StoredEvent, WriteLog
from ..log.format import decode_record
from ..printable import shown
from ..stream import StreamId
from ..write.residents import Residents
from .read_model import ReadModel
from .unreadable import Unreadable, check_unreadable, unreadable_event

__all__ = [
    "HISTORY_BYTES_MAX",
    "HISTORY_MAX",
    "checked_place",
    "events_of_command",
    "fold_up_to",
    "history",
    "microseconds",
    "place_at",
    "place_of",
    "recorded_in",
    "state_at",
    "stored_history",
    "version_at",
]

HISTORY_MAX: Final = 100_000
"""Events of one answer of `history`, which is a list: about 100 MB as objects. More are asked for range by range."""

HISTORY_BYTES_MAX: Final = 128 << 20
"""... and of their payloads as they are stored: objects take several times as much."""

_FEW: Final = 4
"""Events that are read first of one command: most have no more."""

_PAGE: Final = 512
"""Records read at a time: bounds memory, and how long one read transaction lasts (about a millisecond)."""

_PAGE_BYTES: Final = 1 << 20
"""... and no further one after so many bytes: an event may have 1 MiB."""

_STEP: Final = 20_000
"""Events between two signs of life of a long fold: about a tenth of a second."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

A = TypeVar("A", bound=Aggregate)


def history(
    catalogue: Catalogue,
    reader: Reader,
    partition: int,
    stream: StreamId,
    from_version: int = 1,
    to_version: int | None = None,
    *,
    unreadable: Unreadable = "raise",
) -> list[tuple[Event, Recorded]]:
    """The events of a stream, both ends included, as events of the classes that bear their names now.

    One that they cannot read is an `UnknownEvent`, or with `unreadable="yield"` an `UnreadableEvent` at its place.

    `from_version` may be the one after the last, which gives an empty list: what a caller asks who has seen all so far.
    Raises `NotInHistory` for a stream without events and for versions beyond its last, `UnknownEvent`, `Damaged`, and
    `InvalidMessage` for a range that is none, or has over `HISTORY_MAX` events or `HISTORY_BYTES_MAX` bytes of them.
    """
    unreadable = check_unreadable(unreadable)
    first, last = _checked_range(reader, stream, from_version, to_version)
    if last - first + 1 > HISTORY_MAX:
        what = f"versions {first:,} to {last:,} of {stream} are over {HISTORY_MAX:,} events"
        raise InvalidMessage("history", what, "ask for one range after the other with from_version and to_version")
    found: list[tuple[Event, Recorded]] = []
    size_bytes = 0
    for stored in _stored(reader, stream, first, last):
        size_bytes += len(stored.payload)
        if size_bytes > HISTORY_BYTES_MAX:
            what = f"versions {first:,} to {last:,} of {stream} have over {HISTORY_BYTES_MAX:,} bytes"
            raise InvalidMessage("history", what, "ask for one range after the other with from_version and to_version")
        recorded = recorded_in(partition, stored)
        try:
            found += [(event, recorded) for event in catalogue.decode_events(stored)]
        except UnknownEvent as error:
            if unreadable == "raise":
                raise error.in_partition(partition) from None
            found.append((unreadable_event(stored, error), recorded))
    return found


def stored_history(
    reader: Reader, stream: StreamId, from_version: int = 1, to_version: int | None = None
) -> Iterator[StoredEvent]:
    """The same as it is stored, page by page, for a reader without the classes. Raises as `history` does."""
    first, last = _checked_range(reader, stream, from_version, to_version)
    return _stored(reader, stream, first, last)


def events_of_command(
    catalogue: Catalogue, reader: Reader, stream: StreamId, version: int, command_id: bytes
) -> list[Event]:
    """The events of one command, in order, of which the last has this version of the stream; none if it left none. One
    that the classes cannot read is an `UnreadableEvent`. Raises `Damaged`, `NotInHistory` for a version that the stream
    lacks."""
    if not version:
        return []
    last, found, step = _checked_version(reader, stream, version), list[StoredEvent](), _FEW
    while last:
        first = max(last - step + 1, 1)
        page = list(_stored(reader, stream, first, last))
        mine = list(takewhile(lambda stored: stored.command_id == command_id, reversed(page)))
        found += mine
        if len(mine) < len(page):
            break
        last, step = first - 1, _PAGE
    events: list[Event] = []
    for stored in reversed(found):
        try:
            events += catalogue.decode_events(stored)
        except UnknownEvent as error:
            events.append(unreadable_event(stored, error))
    return events


def state_at(
    catalogue: Catalogue, reader: Reader, cls: type[A], stream: StreamId, version: int | None, at: datetime | None
) -> A:
    """The aggregate as it was after `version`, or at a time, or (with neither) as it is. The instance is the caller's.

    It is folded from the latest snapshot at or before that version, if there is one. Raises `NotInHistory`,
    `InvalidMessage`, `UnknownEvent`, `Damaged`, `HandlerFailed`.
    """
    if version is not None and at is not None:
        raise InvalidMessage("state_at", "both a version and a time were given", "give one of them")
    if at is not None:
        reached = version_at(reader, stream, microseconds(at))
        if not reached:
            raise NotInHistory(str(stream), f"event at or before {at.isoformat()}", reader.version(stream))
    else:
        reached = _checked_version(reader, stream, version)
    # Loading only reads, which every reader can.
    return cast(A, Residents(catalogue, cast(WriteLog, reader)).load(stream, reached))


def version_at(reader: Reader, stream: StreamId, at_us: int) -> int:
    """The version after the last event of the stream that was recorded at or before that moment; 0 if none was."""
    last = reader.version(stream)
    while last:
        first = max(last - _PAGE + 1, 1)
        found, version = 0, first
        while version <= last and (page := reader.read_stream(stream, version, last, bytes_max=_PAGE_BYTES)):
            for record in page:
                found = version if decode_record(record).recorded_at_us <= at_us else found
                version += 1
        if found:
            return found
        last = first - 1
    return 0


def place_at(readers: Mapping[int, Reader], at_us: int) -> dict[int, int]:
    """Partition -> the position of its last event that was recorded at or before that moment; 0 if none was.

    A place that no reader need ever have seen: partitions have clocks, and no order between them.
    """
    return {partition: _position_at(reader, at_us) for partition, reader in readers.items()}


def place_of(readers: Mapping[int, Reader], partition: int, position: int) -> dict[int, int]:
    """The place of one event: that position of its partition and, of the others, what was recorded by then, by their
    writers' clocks. Raises `NotInHistory`, `InvalidMessage`."""
    checked_place(readers, {partition: position})
    [record] = readers[partition].read(position - 1, 1) if position else [b""]
    place = place_at(readers, decode_record(record, checked=True).recorded_at_us if record else 0)
    return place | {partition: position}


def fold_up_to(read_model: ReadModel, place: Mapping[int, int]) -> Iterator[int]:
    """Take in the events up to a place, and yield now and then how many they were since the last time."""
    for partition, position in place.items():
        reached = 0
        while reached < position and read_model.failed is None:
            before, reached = reached, min(reached + _STEP, position)
            read_model.catch_up(partition, reached)
            yield reached - before


def checked_place(readers: Mapping[int, Reader], place: Mapping[int, int], argument: str = "place") -> dict[int, int]:
    """The place with a position for every partition; 0, nothing of it, for those that it does not name.

    Raises `NotInHistory` for a position that a log lacks, `InvalidMessage` for what is not a position.
    """
    checked = dict.fromkeys(readers, 0)
    for partition, position in place.items():
        numbers = not isinstance(partition, bool) and isinstance(position, int) and not isinstance(position, bool)
        if partition not in readers or not numbers or position < 0:
            what = f"{shown(partition)}: {shown(position)} is not a position in this store"
            raise InvalidMessage(argument, what, f"its partitions are 0 to {len(readers) - 1}")
        if position > (head := readers[partition].head()):
            raise NotInHistory(f"partition {partition}", f"position {shown(position)}", head)
        checked[partition] = position
    return checked


def microseconds(at: datetime, argument: str = "at") -> int:
    """The moment as the log has it: microseconds since 1970 UTC. Raises `InvalidMessage` for one without a zone."""
    if not isinstance(at, datetime):
        raise InvalidMessage(argument, f"is {shown(at)}", "give an aware datetime")
    if at.tzinfo is None or at.utcoffset() is None:
        what = f"{at.isoformat()} has no time zone, so its moment is unknown"
        raise InvalidMessage(argument, what, "give an aware datetime, such as datetime(..., tzinfo=UTC)")
    return (at - _EPOCH) // timedelta(microseconds=1)


def _checked_range(reader: Reader, stream: StreamId, from_version: int, to_version: int | None) -> tuple[int, int]:
    head = reader.version(stream)
    first = _count_from_1("from_version", from_version)
    last = head if to_version is None else _count_from_1("to_version", to_version)
    if to_version is not None and last < first:
        raise InvalidMessage(
            "history", f"versions {shown(first)} to {shown(last)} are not a range", "to_version is included"
        )
    beyond = last if last > head else first
    if not head or beyond > head + (to_version is None):
        raise NotInHistory(str(stream), f"version {shown(beyond)}", head)
    return first, last


def _checked_version(reader: Reader, stream: StreamId, version: int | None) -> int:
    head = reader.version(stream)
    wanted = max(head, 1) if version is None else _count_from_1("version", version)
    if wanted > head:
        raise NotInHistory(str(stream), f"version {shown(wanted)}", head)
    return wanted


def _count_from_1(name: str, version: object) -> int:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InvalidMessage(name, f"is {shown(version)}", "versions are counted from 1")
    return version


def _stored(reader: Reader, stream: StreamId, first: int, last: int) -> Iterator[StoredEvent]:
    while first <= last and (page := reader.read_stream(stream, first, last, _PAGE, _PAGE_BYTES)):
        for record in page:
            yield decode_record(record)
            first += 1


def _position_at(reader: Reader, at_us: int) -> int:
    last = reader.head()
    while last:
        first = max(last - _PAGE + 1, 1)
        found, position = 0, first
        while position <= last and (page := reader.read(position - 1, last - position + 1, _PAGE_BYTES)):
            for record in page:
                found = position if decode_record(record, checked=True).recorded_at_us <= at_us else found
                position += 1
        if found:
            return found
        last = first - 1
    return 0


def recorded_in(partition: int, stored: StoredEvent) -> Recorded:
    """The place of a stored event of this partition."""
    return Recorded(
        stored.stream,
        stored.version,
        partition,
        stored.position,
        stored.recorded_at_us,
        stored.command_id,
        stored.correlation_id,
        stored.causation_id,
    )
