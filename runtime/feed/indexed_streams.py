"""IndexedStreams: the records of some streams of one log in the order of their positions, found by the stream index.

Beside the write path. Before it: a reader of the log. After it: `log_follower.py` and `log_range.py`, which read all
records of a log where this is not used. What is read is proportional to the streams, not to the log: one stream of a
hundred events in a log of a million costs some milliseconds, where the log takes seconds.

Rules kept here: the records are those that a reader of the whole log would choose, in the same order. Memory is bounded
whatever the number and the size of the records: a page in all, divided among the streams. After an error nothing has
moved: the next call begins at the position that it is given.

When it is used (`by_index`): the end of a stream may be in the latest events of the log, which the index does not hold
yet, and which are then searched for it (up to 8,192 of them, 2 ms on the average). So each stream counts as a thousand
records of the log, and the index is used where that is less than reading the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from heapq import heapify, heappop, heapreplace
from typing import Final

from ..log.contract import Reader
from ..log.format import record_position
from ..store.readable_store import ReadableStore
from ..stream import StreamId, partition_of

__all__ = ["IndexedStreams", "by_index"]

STREAM_COSTS: Final = 1_000
"""Records of the log that can be read in the time in which one stream is found: 2 to 3 ms."""

RECORDS: Final = 4_096
BYTES: Final = 4 << 20
"""What is in memory of all streams together. Of a hundred streams each then has pages of 40 records."""

LAG: Final = 16_384
"""More records than the stream index ever lags behind (`index_buffer.py`), but for the largest batch."""

WHOLE_MAX: Final = 32
"""Streams that are read by the index up to the end. Of more of them the pages are so small that the latest events would
be searched again for each few records of a busy stream: those are read from the log."""


class IndexedStreams:
    """Reads these streams up to a position. One thread at a time."""

    def __init__(self, log: Reader, streams: Iterable[StreamId], up_to: int) -> None:
        self._log = log
        self._streams = sorted(streams)
        self.up_to = up_to
        """The last position that is read here."""
        self._share = max(RECORDS // max(len(self._streams), 1), 1)
        self._share_bytes = max(BYTES // max(len(self._streams), 1), 1)
        self._after: int | None = None
        """Where the cursors are; None if they are to be made anew."""
        self._cursors: list[tuple[int, int, _StreamReader]] = []
        """A heap of the position of the next record of each stream, the number of the stream, and its cursor."""

    def read(self, after: int, limit: int, bytes_max: int) -> tuple[list[bytes], int]:
        """The next records after a position, and the position up to which there is nothing else of these streams.

        At most `limit` records, and no further one once `bytes_max` is reached. Raises what the log raises.
        """
        if self._after != after:
            self._seek(after)
        self._after = None  # until this has succeeded
        records, size_bytes = list[bytes](), 0
        while self._cursors and len(records) < limit and size_bytes < bytes_max:
            _, number, cursor = self._cursors[0]
            records.append(cursor.take())
            size_bytes += len(records[-1])
            position = cursor.position()
            if position > self.up_to:
                heappop(self._cursors)
            else:
                heapreplace(self._cursors, (position, number, cursor))
        self._after = record_position(records[-1]) if self._cursors and records else self.up_to
        return records, self._after

    def _seek(self, after: int) -> None:
        self._cursors = []
        for number, stream in enumerate(self._streams):
            cursor = _StreamReader(self._log, stream, self._first_after(stream, after), self._share, self._share_bytes)
            position = cursor.position()
            if position <= self.up_to:
                self._cursors.append((position, number, cursor))
        heapify(self._cursors)

    def _first_after(self, stream: StreamId, after: int) -> int:
        """The first version of the stream whose event is after a position, searched by halves."""
        first, end = 1, self._log.version(stream) + 1 if after else 1
        while first < end:
            middle = (first + end) // 2
            [record] = self._log.read_stream(stream, middle, middle)
            if record_position(record) > after:
                end = middle
            else:
                first = middle + 1
        return first


class _StreamReader:
    """The next records of one stream."""

    __slots__ = ("_log", "_next", "_position", "_records", "_share", "_share_bytes", "_stream")

    def __init__(self, log: Reader, stream: StreamId, version: int, share: int, share_bytes: int) -> None:
        self._log, self._stream = log, stream
        self._next = version
        """The version after those in `_records`."""
        self._share, self._share_bytes = share, share_bytes
        self._records: deque[bytes] = deque()
        self._position = 0
        """Of the next record, if that is too large to be kept until its turn; else 0."""

    def position(self) -> int:
        """Position of the next record; greater than any other if there is none."""
        if self._position:
            return self._position
        if not self._records:
            page = self._log.read_stream(self._stream, self._next, None, self._share, self._share_bytes)
            if not page:
                return 1 << 63
            size_bytes, first = sum(map(len, page)), record_position(page[0])
            while page and size_bytes > 2 * self._share_bytes:  # the last one of a page may be of any size
                size_bytes -= len(page.pop())
            self._next += len(page)
            self._records.extend(page)
            if not page:
                self._position = first
                return first
        return record_position(self._records[0])

    def take(self) -> bytes:
        """The next record, which there is."""
        if self._position:
            [record] = self._log.read_stream(self._stream, self._next, self._next)
            self._position, self._next = 0, self._next + 1
            return record
        return self._records.popleft()


def by_index(
    store: ReadableStore,
    logs: Mapping[int, Reader],
    streams: Collection[StreamId] | None,
    after: Mapping[int, int],
    up_to: Mapping[int, int],
) -> dict[int, IndexedStreams]:
    """Partition -> what reads its share of these streams by the index, for each partition in which that is faster than
    reading its log. None of them if `streams` is None."""
    if streams is None:
        return {}
    shares: dict[int, list[StreamId]] = {partition: [] for partition in logs}
    for stream in streams:
        shares[partition_of(stream, store.partitions, store.placement)].append(stream)
    found = {}
    for partition, share in shares.items():
        end = up_to[partition] if len(share) <= WHOLE_MAX else up_to[partition] - LAG
        if len(share) * STREAM_COSTS < end - after[partition]:
            found[partition] = IndexedStreams(logs[partition], share, end)
    return found
