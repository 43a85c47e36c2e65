"""EventRange: the events of a store between two places, page by page, without the waiting.

Beside the write path. Before it: `log_range.py` reads the logs. After it: `events.py`, which a program iterates over,
asynchronously `actors/api/events.py`, and `frames.py`.

Rules kept here: events come in the order of (partition, position), each once. What cannot be read or decoded is an
error at its place, after everything before it, each time it is come to. One page is in memory. What was closed gives
nothing more, also of that page: to read on is the caller's mistake.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..domain.messages import Event
from ..domain.recorded import Recorded
from ..encoding.catalogue import Catalogue
from ..errors import RayfoldError, StorageFailed
from ..log.contract import Reader
from ..log.format import record_position
from ..read.unreadable import Unreadable
from ..store.readable_store import ReadableStore
from ..tables.event_tables import ClassTable, MixedTable
from ..tables.export_files import Table, Tables
from .event_filter import EventFilter, Happened, Streams, Types, happened_in
from .log_range import Bound, LogRange, open_range, read_on

__all__ = ["EventOptions", "EventRange", "open_events"]


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

    def __init__(self, logs: LogRange, chosen: EventFilter, tables: Tables) -> None:
        self.logs = logs
        self.tables = tables
        """The tables that they are rows of."""
        self._chosen = chosen
        self._buffer: deque[Happened] = deque()
        """At most a page."""
        self._last: Recorded | None = None
        """The place of the event that was taken last, while there are others in the buffer."""
        self._before: dict[int, int] = {}
        """Where the logs were when the page in the buffer was read."""
        self._failure: RayfoldError | None = None
        """What ended the last page, raised when its events are used up."""
        self._filling = False
        """Whether a page is being read, of which nothing is in the buffer yet."""
        self._closed = False
        """Whether it was closed, and not only read to its end."""
        self.ended = False

    @property
    def buffered(self) -> int:
        """Events that `take` has at once."""
        return 0 if self._closed else len(self._buffer)

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position up to which everything was taken or filtered out. A copy."""
        if not self._buffer and not self._filling:
            return self.logs.positions
        if self._last is None:
            return dict(self._before)
        # Of one record there may be several events: it is passed with the last of them.
        more = self._buffer[0][1][2:4] == self._last[2:4]
        return self._before | {self._last.partition: self._last.position - more}

    def fill(self) -> None:
        """Read pages until the buffer has something, or the range has ended. Raises what stands at the beginning of the
        next page: `Damaged`, `UnknownEvent`, `HandlerFailed`; or `Unavailable`, `StorageFailed`. The next call comes to
        it again. `CallerError` once it was closed."""
        self.check_open()
        if self._buffer:
            return
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        try:
            while not self._buffer and not self.ended:
                self._fill()
        except StorageFailed:
            self.check_open()  # closed meanwhile
            raise
        finally:
            self._filling = False

    def _fill(self) -> None:
        """One page."""
        self._before, self._last, self._filling = self.logs.positions, None, True
        page = self.logs.read()
        if page is None:
            self.ended = True
            self.logs.close()
            return
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
        self._closed = True
        self.logs.close()

    def check_open(self) -> None:
        """Raises `CallerError` once it was closed."""
        if self._closed:
            raise read_on()

    def _choose(self, partition: int, records: Sequence[bytes]) -> tuple[list[Happened], RayfoldError | None]:
        """The chosen ones of these records. The first that cannot be used ends it, and will be read again."""
        chosen: list[Happened] = []
        for record in records:
            position = record_position(record)
            try:
                chosen += happened_in(record, position, self._chosen, partition)
            except RayfoldError as error:
                self.logs.go_back(partition, position - 1)
                return chosen, error
        return chosen, None


def open_events(
    store: ReadableStore,
    catalogue: Catalogue,
    wanted: EventOptions,
    open_reader: Callable[[int], Reader] | None = None,
    call: str = "events()",
) -> EventRange:
    """Open the logs and find the end. `call`: that of the user, for errors. Raises the errors of `Runtime.events`."""
    unreadable = wanted.unreadable or ("yield" if wanted.types is None else "raise")
    chosen = EventFilter(catalogue, wanted.types, wanted.streams, unreadable=unreadable, call=call)
    logs = open_range(store, wanted.since, wanted.until, chosen.named, open_reader)
    return EventRange(logs, chosen, _tables(catalogue, chosen.only))


def _tables(catalogue: Catalogue, only: type[Event] | None) -> Tables:
    """`only`: the class of all events, where one was chosen."""

    def of(name: str) -> Table:
        cls = catalogue.events.get(name)
        return MixedTable() if cls is None else ClassTable(cls)

    return Tables(lambda: MixedTable() if only is None else ClassTable(only), of)
