"""Events in bulk: those of a store between two places, for a program that reads them once and comes to an end.

Beside the write path. Before it: `log_range.py` reads the logs. After it: the caller's own code; asynchronously through
`actors/api/events.py`, or in a plain process through `BlockingEvents` here, without Ray and without a runtime.

Rules kept here: events come in the order of (partition, position), each once. What cannot be read or decoded is an
error at its place, after everything before it, each time it is come to. One page is in memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, Self, overload

from ..domain.aggregate import Aggregate
from ..domain.messages import Event
from ..domain.projection import Projection
from ..domain.recorded import Recorded
from ..encoding.catalogue import Catalogue
from ..errors import RayfoldError
from ..log.contract import Reader
from ..log.format import record_position
from ..read.unreadable import Unreadable
from ..store.readable_store import ReadableStore
from ..store.store import open_store
from .event_filter import EventFilter, Happened, Streams, Types, happened_in
from .log_range import Bound, LogRange, open_range
from .subscription import BATCH_MAX, check_batch, close_forgotten

if TYPE_CHECKING:
    from .subscription import Chosen, OneOf
else:
    from typing import TypeVar

    OneOf = TypeVar("OneOf", bound=Event, covariant=True)
    Chosen = TypeVar("Chosen", bound=Event)

__all__ = ["BlockingEvents", "EventRange", "EventOptions", "open_events", "read_events"]


class EventOptions(NamedTuple):
    """What a caller asks of a bulk read; see `Runtime.events`."""

    types: Types | None = None
    streams: Streams | None = None
    since: Bound | None = None
    until: Bound | None = None
    unreadable: Unreadable | None = None


class EventRange:
    """The events of a range without its waiting: pages are read, and events taken from them.

    `fill` may run in another thread than the rest, one call at a time.
    """

    def __init__(self, logs: LogRange, chosen: EventFilter) -> None:
        self.logs = logs
        self._chosen = chosen
        self._buffer: deque[Happened] = deque()
        """At most a page."""
        self._last: Recorded | None = None
        """The place of the event that was taken last, while there are others in the buffer."""
        self._before: dict[int, int] = {}
        """Where the logs were when the page in the buffer was read."""
        self._failure: RayfoldError | None = None
        """What ended the last page, raised when its events are used up."""
        self.ended = False

    @property
    def buffered(self) -> int:
        """Events that `take` has at once."""
        return len(self._buffer)

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position up to which everything was taken or filtered out. A copy."""
        if not self._buffer:
            return self.logs.positions
        if self._last is None:
            return dict(self._before)
        # Of one record there may be several events: it is passed with the last of them.
        more = self._buffer[0][1][2:4] == self._last[2:4]
        return self._before | {self._last.partition: self._last.position - more}

    def fill(self) -> None:
        """Read pages until the buffer has something, or the range has ended. Raises what stands at the beginning of the
        next page: `Damaged`, `UnknownEvent`, `HandlerFailed`; or `Unavailable`, `StorageFailed`. The next call comes to
        it again."""
        if self._buffer:
            return
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        while not self._buffer and not self.ended:
            before = self.logs.positions
            page = self.logs.read()
            if page is None:
                self.ended = True
                self.logs.close()
                return
            self._before, self._last = before, None
            chosen, failure = self._choose(*page)
            self._buffer.extend(chosen)
            if failure is not None and not chosen:
                raise failure
            self._failure = failure

    def take(self) -> Happened:
        """The next event of the buffer, which has one."""
        happened = self._buffer.popleft()
        self._last = happened[1]
        return happened

    def take_all(self, max_items: int) -> list[Happened]:
        """At most so many of the buffer."""
        return [self.take() for _ in range(min(max_items, len(self._buffer)))]

    @property
    def closed(self) -> bool:
        """Whether it has ended, or was closed."""
        return self.logs.closed

    def close(self) -> None:
        """Release everything. Closing twice is allowed."""
        self.logs.close()

    def _choose(self, partition: int, records: Sequence[bytes]) -> tuple[list[Happened], RayfoldError | None]:
        """The chosen ones of these records. The first that cannot be used ends it, and will be read again."""
        chosen: list[Happened] = []
        for record in records:
            try:
                chosen += happened_in(record, self._chosen, partition)
            except RayfoldError as error:
                self.logs.go_back(partition, record_position(record) - 1)
                return chosen, error
        return chosen, None


class BlockingEvents(Generic[OneOf]):
    """`for event, recorded in events:`, up to the end of the range. What `Events` is, without `await`.

    A context manager; one that was read to its end, or to which there is no reference any more, is closed too. A second
    loop over it goes on where the first one has stopped, after an error too. Iterating raises `Damaged`,
    `UnknownEvent`, `HandlerFailed`, `Unavailable` or `StorageFailed` where an event cannot be read.

    Example:
        with bank.events(types=[Deposited]) as deposits:
            print(sum(event.amount for event, recorded in deposits))
    """

    def __init__(self, range: EventRange) -> None:
        self._range = range

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[OneOf, Recorded]:
        """The next event and its place. Raises `Damaged`, `UnknownEvent`, `HandlerFailed`, `Unavailable` or
        `StorageFailed` where it cannot be had."""
        events = self._range
        if not events.buffered:
            events.fill()
            if events.ended:
                raise StopIteration
        return events.take()  # type: ignore[return-value]  # the filter chose it

    def batches(self, max_items: int = BATCH_MAX) -> Iterator[list[tuple[OneOf, Recorded]]]:
        """Lists of 1 to `max_items` events, at most 512."""
        check_batch(max_items)
        while True:
            self._range.fill()
            if self._range.ended:
                return
            yield self._range.take_all(max_items)  # type: ignore[misc]  # the filter chose them

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position up to which everything was yielded or filtered out: `since=` of a read that goes on
        from here."""
        return self._range.positions

    def close(self) -> None:
        """Release everything. Closing twice is allowed."""
        self._range.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        close_forgotten(self._range)


def open_events(
    store: ReadableStore,
    catalogue: Catalogue,
    wanted: EventOptions,
    open_reader: Callable[[int], Reader] | None = None,
) -> EventRange:
    """Open the logs and find the end. Raises the errors of `Runtime.events`."""
    unreadable = wanted.unreadable or ("yield" if wanted.types is None else "raise")
    chosen = EventFilter(catalogue, wanted.types, wanted.streams, unreadable=unreadable)
    return EventRange(open_range(store, wanted.since, wanted.until, chosen.named, open_reader), chosen)


@overload
def read_events(
    path: str | os.PathLike[str],
    *,
    aggregates: Sequence[type[Aggregate]],
    projections: Sequence[type[Projection]] = ...,
    types: type[Chosen] | Sequence[type[Chosen]],
    streams: Streams | None = ...,
    since: Bound | None = ...,
    until: Bound | None = ...,
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
    unreadable: Literal["raise"] | None = ...,
) -> BlockingEvents[Chosen]: ...
@overload
def read_events(
    path: str | os.PathLike[str],
    *,
    aggregates: Sequence[type[Aggregate]],
    projections: Sequence[type[Projection]] = ...,
    types: Types | None = ...,
    streams: Streams | None = ...,
    since: Bound | None = ...,
    until: Bound | None = ...,
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
    unreadable: Unreadable | None = ...,
) -> BlockingEvents[Event]: ...
def read_events(
    path: str | os.PathLike[str],
    *,
    aggregates: Sequence[type[Aggregate]],
    projections: Sequence[type[Projection]] = (),
    types: Types | None = None,
    streams: Streams | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    events: Sequence[type[Event]] = (),
    retired: Sequence[str] = (),
    unreadable: Unreadable | None = None,
) -> BlockingEvents[Event]:
    """The events of a store on this machine, in bulk and to an end, from a process of its own: no runtime and no Ray.

    The writer may be running or not. `aggregates`, `projections` and `events` are the classes that know the events,
    `retired` the names of events to pass over; the rest is as for `Runtime.events`. Raises `StoreMissing`,
    `StoreMismatch` and what `Runtime.events` raises.

    Example:
        for event, recorded in read_events("bank-data", aggregates=[Account], types=[Deposited]):
            print(recorded.stream, event.amount)
    """
    catalogue = Catalogue(aggregates, projections, events=events, retired=retired)
    return BlockingEvents(
        open_events(open_store(path), catalogue, EventOptions(types, streams, since, until, unreadable))
    )
