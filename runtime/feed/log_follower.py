"""The follower: the logs of a store from given positions on, page by page, caught up and then live without a gap.
Beside the write path, for a reader in a process of its own: subscriptions and embedded read models. Before it: readers
of the logs, LMDB's or any other that keeps `Followed`. After it: `subscription.py`. Where only some streams are
followed, what the log has already is read by the stream index (`indexed_streams.py`); what comes later, from the log.

A log on another node is polled by asking that node (`actors/nodes/store.py`), which takes a millisecond and work at
both ends, so it is polled more rarely. One whose node is gone is passed over until it is back.

Rules kept here: in each partition every record is given once and in order; between two partitions there is no order. A
page is bounded in records and bytes. No transaction is open between two calls, least of all while waiting: a reader
that stays open pins pages, and the file grows. What cannot be read moves nothing: the next call tries it again, and
what is intact before it comes first.

How commits are detected: LMDB notifies no reader of a commit, so the heads are polled, one short transaction each (2.3
us a log). Right after a commit every millisecond, and the longer nothing comes the more rarely, down to every 20 ms
(`PollInterval`). With two logs on a busy machine of 2 cores, looking every 1 ms took 2.9 % of a core, every 5 ms 1.3 %,
every 20 ms 0.4 to 0.7 %: nearly all of it the wake-up. Commits 3 / 20 / 100 ms apart were detected after 1.4 / 2.6 / 10
ms at the median, which is the price of not looking more often.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from ..errors import Damaged, InvalidMessage, NotInHistory, StorageFailed, Unavailable
from ..log.format import record_position
from .indexed_streams import IndexedStreams

__all__ = [
    "PAGE_BYTES",
    "PAGE_RECORDS",
    "PAUSE_MAX_S",
    "PAUSE_MIN_S",
    "Followed",
    "LogFollower",
    "PollInterval",
    "any_away",
]

PAGE_RECORDS: Final = 512
"""Size of one page, unless the call asks for less: some 0.4 ms of one read transaction."""

PAGE_BYTES: Final = 1 << 20
"""Size of one page: what a follower holds in memory. One record may be as large alone, so that two at most make it
twice."""

PAUSE_MIN_S: Final = 0.001
"""Between two polls right after a commit: more often would cost over 3 % of a core."""

PAUSE_MAX_S: Final = 0.020
"""Between two looks when nothing has come for a while: 0.4 to 0.7 % of a core."""

AWAY_PAUSE_MIN_S: Final = 0.010
AWAY_PAUSE_MAX_S: Final = 0.100
"""The same for logs on other nodes: each look is a call, of 0.5 ms of CPU in all."""

_GROWTH: Final = 1.25
"""Growth of the pause with each poll that found nothing: from 1 to 20 ms in 14 polls, a tenth of a second."""


class Followed(Protocol):
    """As much of a log's `Reader` as following takes. Safe from any thread."""

    def head(self) -> int:
        """See `Reader`."""
        ...

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """See `Reader`."""
        ...

    def close(self) -> None:
        """See `Reader`."""
        ...


class PollInterval:
    """How long to wait before the next poll of the logs. `away`: whether any of them is on another node."""

    def __init__(self, *, away: bool = False) -> None:
        self._shortest_s, self._longest_s = (AWAY_PAUSE_MIN_S, AWAY_PAUSE_MAX_S) if away else (PAUSE_MIN_S, PAUSE_MAX_S)
        self._pause_s = self._shortest_s

    def news(self) -> None:
        """There was some: more may follow at once."""
        self._pause_s = self._shortest_s

    def next_pause_s(self) -> float:
        """The pause before the next look, in seconds. The one after it will be longer."""
        pause_s = self._pause_s
        self._pause_s = min(pause_s * _GROWTH, self._longest_s)
        return pause_s


def any_away(logs: Iterable[object]) -> bool:
    """Whether polling any of these logs is a call to another node."""
    return any(not getattr(log, "local", True) for log in logs)


class LogFollower:
    """Reads the logs in turn. One thread at a time reads; `close` may be called from any."""

    def __init__(
        self,
        logs: Mapping[int, Followed],
        after: Mapping[int, int] | None = None,
        indexed: Mapping[int, IndexedStreams] | None = None,
    ) -> None:
        """`logs`: partition -> its reader, which belongs to the follower now. `after`: partition -> the position after
        which to begin; 0, the beginning, for those that it does not name. `indexed`: partition -> the streams that are
        followed in it, if these are few: then nothing but their records is read up to where their index reaches.

        Raises `InvalidMessage` for what is not a position, `NotInHistory` for one that a log lacks; the readers are
        closed then.
        """
        self._logs = dict(logs)
        self._indexed = dict(indexed or {})
        self._next = 0
        self._closed = threading.Event()
        self.away = any_away(self._logs.values())
        """Whether a poll of the logs takes calls to other nodes, and not microseconds."""
        self.pace = PollInterval(away=self.away)
        try:
            self._positions = _checked(self._logs, after or {})
        except BaseException:
            self.close()
            raise

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position of the last record that was read. A copy."""
        return dict(self._positions)

    @property
    def closed(self) -> bool:
        """Whether it was closed: `wait` returns at once then, and nothing can be read."""
        return self._closed.is_set()

    def heads(self) -> dict[int, int]:
        """Partition -> position of the last record that there is."""
        return {partition: log.head() for partition, log in self._logs.items()}

    def has_new_records(self) -> bool:
        """Whether there is anything to read. Costs 2.3 us a log. Raises `Damaged`, `StorageFailed`."""
        return any(self._head(partition) > self._positions[partition] for partition in self._logs)

    def _head(self, partition: int) -> int:
        """0 for a log whose node is gone: it has no new records."""
        try:
            return self._logs[partition].head()
        except Unavailable:
            return 0

    def read(self, limit: int = PAGE_RECORDS, bytes_max: int = PAGE_BYTES) -> list[tuple[int, list[bytes]]]:
        """The next records: (partition, its records in order) for each log that has some; empty if none has. The
        positions are then up to date with them, and with what the index passes over.

        At most `limit` records in all, and no further one once `bytes_max` is reached. The log that comes first is
        another one each time, so that a busy one keeps no other waiting. Raises `Damaged` if the next record of a log
        is; the intact ones before it have been given by then, and the position stays before it.
        """
        partitions = [*self._logs]
        start, self._next = self._next, (self._next + 1) % len(partitions)
        page: list[tuple[int, list[bytes]]] = []
        reached: dict[int, int] = {}
        for partition in partitions[start:] + partitions[:start]:
            if limit < 1 or bytes_max < 1:
                break
            records, reached[partition] = self._records(partition, limit, bytes_max)
            if records:
                page.append((partition, records))
                limit -= len(records)
                bytes_max -= sum(map(len, records))
        self._positions.update(reached)
        return page

    def go_back(self, partition: int, position: int) -> None:
        """Have the record after `position` read again: what came from it could not be used."""
        self._positions[partition] = min(self._positions[partition], position)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until there is something to read: True. False when the time is over, or at `close`.

        For a thread; on an event loop check `has_new_records` and sleep for `pace.next_pause_s()`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._closed.is_set():
            try:
                found = self.has_new_records()
            except StorageFailed:
                if self._closed.is_set():  # while it was looking
                    break
                raise
            if found:
                self.pace.news()
                return True
            pause_s = self.pace.next_pause_s()
            if deadline is not None:
                pause_s = min(pause_s, deadline - time.monotonic())
                if pause_s <= 0:
                    return False
            self._closed.wait(pause_s)
        return False

    def close(self) -> None:
        """Release the readers. Closing twice is allowed."""
        self._closed.set()
        for log in self._logs.values():
            log.close()

    def _records(self, partition: int, limit: int, bytes_max: int) -> tuple[list[bytes], int]:
        """The next records of a log, and the position up to which they are all that is followed."""
        log, after = self._logs[partition], self._positions[partition]
        try:
            if (found := self._by_index(partition, after, limit, bytes_max)) is not None:
                return found
            records = log.read(after, limit, bytes_max)
        except Unavailable:
            return [], after
        except Damaged:
            if limit == 1:
                raise
            records = log.read(after, 1)
        assert not records or record_position(records[0]) == after + 1, "records follow the last one that was read"
        return records, after + len(records)

    def _by_index(self, partition: int, after: int, limit: int, bytes_max: int) -> tuple[list[bytes], int] | None:
        """None where the log itself is to be read: behind what was indexed, and where the index is damaged."""
        indexed = self._indexed.get(partition)
        if indexed is None or after >= indexed.up_to:
            return None
        try:
            return indexed.read(after, limit, bytes_max)
        except Damaged:  # of a record or of the index: the log has the place, and all that is before it
            del self._indexed[partition]
            return None


def _checked(logs: Mapping[int, Followed], after: Mapping[int, int]) -> dict[int, int]:
    positions = dict.fromkeys(logs, 0)
    for partition, position in after.items():
        if partition not in logs or isinstance(position, bool) or not isinstance(position, int) or position < 0:
            what = f"{partition!r}: {position!r} is not a position in this store"
            raise InvalidMessage("positions", what, f"its partitions are 0 to {len(logs) - 1}")
        if position > (head := logs[partition].head()):
            raise NotInHistory(f"partition {partition}", f"position {position}", head)
        positions[partition] = position
    return positions
