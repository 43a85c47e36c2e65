"""LogRange: the records of the logs of a store between two places, page by page, and then an end.

Beside the write path, for a reader in a process of its own. Before it: readers of the logs. After it: `events.py`, and
the export of stored fields. Where only some streams are read, the stream index finds them (`indexed_streams.py`).

Rules kept here: the logs are read one after the other, each from its first position in the range to its last, so the
order is that of (partition, position). A page is bounded in records and bytes, and no transaction is open between two
calls. What cannot be read moves nothing: what is intact before it comes first, and the next call tries it again. A log
that cannot be reached is an error: an end that came early would be taken for the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from datetime import datetime
from typing import Final, TypeAlias

from ..errors import CallerError, Damaged, InvalidMessage
from ..log.contract import Reader
from ..log.format import record_position
from ..printable import shown
from ..read.positions import check_store
from ..read.time_travel import checked_place, microseconds, place_at, place_of
from ..receipt import Receipt
from ..store.readable_store import ReadableStore
from ..stream import StreamId
from .indexed_streams import IndexedStreams, by_index
from .log_follower import PAGE_BYTES, PAGE_RECORDS

__all__ = ["Bound", "LogRange", "open_range", "read_on"]

Bound: TypeAlias = Mapping[int, int] | Receipt | datetime
"""An end of a range: positions by partition, the place of a command's events, or an aware time."""

Place: TypeAlias = dict[int, int]

_ARGUMENTS: Final = "positions by partition, a receipt, or an aware datetime"


class LogRange:
    """Reads each log from its position in `since` to that in `until`. One thread at a time; `close` may be called from
    any."""

    def __init__(
        self,
        logs: Mapping[int, Reader],
        place: Callable[[], tuple[Place, Place]],
        index: Callable[[Place, Place], dict[int, IndexedStreams]] = lambda since, until: {},
    ) -> None:
        """`logs`: partition -> its reader, which belongs to the range now. `place`: gives `since` and `until`, and is
        asked when the first page is read, for it may have to search. `index`: what reads some of the logs by the stream
        index."""
        self._logs = dict(logs)
        self._place, self._index = place, index
        self._indexed: dict[int, IndexedStreams] = {}
        self._since: Place = {}
        self._until: Place = {}
        self._positions: Place = {}
        self._found = False
        self._closed = False

    @property
    def since(self) -> Place:
        """Partition -> the position after which it begins. A copy."""
        self._find()
        return dict(self._since)

    @property
    def until(self) -> Place:
        """Partition -> the last position that belongs to it. A copy."""
        self._find()
        return dict(self._until)

    @property
    def positions(self) -> Place:
        """Partition -> position up to which everything was read, or passed over. A copy."""
        self._find()
        return dict(self._positions)

    @property
    def total(self) -> int:
        """Positions in the range."""
        self._find()
        return sum(self._until[partition] - since for partition, since in self._since.items())

    @property
    def done(self) -> int:
        """Positions that were read, or passed over."""
        return sum(self._positions[partition] - since for partition, since in self._since.items())

    @property
    def closed(self) -> bool:
        """Whether it was closed: nothing can be read any more."""
        return self._closed

    def read(self, limit: int = PAGE_RECORDS, bytes_max: int = PAGE_BYTES) -> tuple[int, list[bytes]] | None:
        """A partition and its next records, at least one; None at the end of the range.

        At most `limit` records, and no further one once `bytes_max` is reached. Raises `Damaged`, `Unavailable`,
        `StorageFailed`, and `CallerError` once it was closed.
        """
        self._find()
        for partition, end in self._until.items():
            while self._positions[partition] < end:
                if self._closed:
                    raise read_on()
                after = self._positions[partition]
                records, reached = self._records(partition, after, min(limit, end - after), bytes_max)
                assert after < reached <= end, "a range ends"
                self._positions[partition] = reached
                if records:
                    return partition, records
        return None

    def go_back(self, partition: int, position: int) -> None:
        """Have the record after `position` read again: what came from it could not be used."""
        self._positions[partition] = min(self._positions[partition], position)

    def close(self) -> None:
        """Release the readers. Closing twice is allowed."""
        self._closed = True
        for log in self._logs.values():
            log.close()

    def _find(self) -> None:
        if not self._found:
            if self._closed:
                raise read_on()
            self._since, self._until = self._place()
            self._positions = dict(self._since)
            self._indexed = self._index(self._since, self._until)
            self._found = True

    def _records(self, partition: int, after: int, limit: int, bytes_max: int) -> tuple[list[bytes], int]:
        log, indexed = self._logs[partition], self._indexed.get(partition)
        try:
            if indexed is not None and after < indexed.up_to:
                try:
                    return indexed.read(after, limit, bytes_max)
                except Damaged:  # of a record or of the index: the log has the place, and all that is before it
                    del self._indexed[partition]
            records = log.read(after, limit, bytes_max)
        except Damaged:
            if limit == 1:
                raise
            records = log.read(after, 1)
        if not records or record_position(records[0]) != after + 1:
            raise Damaged(f"partition {partition}, event {after + 1}", "it is missing")
        return records, after + len(records)


def open_range(
    store: ReadableStore,
    since: Bound | None,
    until: Bound | None,
    streams: Iterable[StreamId] | None,
    open_reader: Callable[[int], Reader] | None = None,
) -> LogRange:
    """A range of the logs of a store, of which all that was committed by now is the end, unless `until` is another.

    `streams`: if only the records of these are wanted; those of others may come as well. `open_reader`: how a log is
    opened that is read for long; as the store opens it unless this is given. Raises `InvalidMessage`, `NotInHistory`,
    `Unavailable`, `StoreError`.
    """
    _check(since, "since", store.store_id)
    _check(until, "until", store.store_id)
    if isinstance(since, datetime) and isinstance(until, datetime) and until < since:
        what = f"{until.isoformat()} is before since={since.isoformat()}"
        raise InvalidMessage("until", what, "until= is the later one")
    with ExitStack() as on_failure:
        heads, logs = Place(), dict[int, Reader]()
        for partition in range(store.partitions):
            with closing(store.open_reader(partition)) as reader:
                heads[partition] = reader.head()
            logs[partition] = (open_reader or store.open_reader)(partition)
            on_failure.callback(logs[partition].close)
        for argument, bound in (("since", since), ("until", until)):
            if bound is not None and not isinstance(bound, datetime):
                positions = {bound.partition: bound.position} if isinstance(bound, Receipt) else bound
                checked_place(logs, positions, argument)
        on_failure.pop_all()

    def place() -> tuple[Place, Place]:
        begin = dict.fromkeys(logs, 0) if since is None else _positions(logs, since)
        end = heads if until is None else _positions(logs, until)
        end = {partition: min(end[partition], head) for partition, head in heads.items()}
        return {partition: min(begin[partition], end[partition]) for partition in logs}, end

    chosen = None if streams is None else [*streams]
    return LogRange(logs, place, lambda begin, end: by_index(store, logs, chosen, begin, end))


def read_on() -> CallerError:
    """The error for a read that goes on after it was closed."""
    return CallerError("this read of events was closed; begin another one, from its positions (since=) if it goes on")


def _check(bound: Bound | None, argument: str, store_id: str) -> None:
    if isinstance(bound, datetime):
        microseconds(bound, argument)
    elif isinstance(bound, Receipt):
        check_store(argument, bound, store_id)
    elif bound is not None and not isinstance(bound, Mapping):
        raise InvalidMessage(argument, f"is {shown(bound)}", f"give {_ARGUMENTS}")


def _positions(logs: Mapping[int, Reader], bound: Bound) -> Place:
    if isinstance(bound, datetime):
        return place_at(logs, microseconds(bound))
    if isinstance(bound, Receipt):
        return place_of(logs, bound.partition, bound.position)
    return checked_place(logs, bound)
