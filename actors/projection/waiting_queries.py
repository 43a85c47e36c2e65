"""WaitingQueries: the queries that are parked in a projector until it has come to the positions that they need.

Step [8]. Around it: `QueryServer` (`query_server.py`), which parks them, and answers those that are woken. A query that
is parked is an entry in three tables, and costs neither a thread nor a call: by partition and position, where the batch
that brings that position finds it; by deadline; and by the connection that it came on.

No socket, no thread, no clock: each event carries the time at which it happened.

Rules kept here: what is parked is bounded in number and in bytes, in all and for each connection; an entry leaves all
tables at once, so nothing of an answered query is kept until its deadline; each entry leaves once.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Final, Generic, TypeVar

from ...runtime.errors import Overloaded

__all__ = ["WAITING_BYTES_MAX", "WAITING_MAX", "WAITING_OF_ONE_MAX", "WaitingQueries", "WaitingQuery"]

WAITING_MAX: Final = 131_072
"""Queries that wait in one projector: four clients with all that each may have in flight; some 100 MB."""

WAITING_OF_ONE_MAX: Final = 65_536
"""... and of one connection, so that no client takes the room of all."""

WAITING_BYTES_MAX: Final = 128 * 1024 * 1024
"""The size of what waits, with `_ENTRY_BYTES` for each entry. One query may have 1 MiB."""

_ENTRY_BYTES: Final = 512
"""What an entry takes besides its name, its payload and its positions."""

_POSITION_BYTES: Final = 100
"""What each of its positions takes: two numbers, and their place in a dict."""

_STEP_S: Final = 0.05
"""How precise deadlines are: one entry of the table for all of a step. A client keeps its deadlines itself."""

NONE: Final = -1
"""No partition."""

Item = TypeVar("Item", bound=Hashable)


class WaitingQuery:
    """One query, from the moment in which it is parked until it leaves."""

    __slots__ = ("after", "call", "connection", "deadline_s", "index", "name", "parked_s", "partition", "payload")

    def __init__(
        self, connection: Hashable, call: int, index: int, query: tuple[str, bytes], after: Mapping[int, int]
    ) -> None:
        self.connection, self.call, self.index = connection, call, index
        self.name, self.payload = query
        self.after = after
        self.deadline_s = self.parked_s = 0.0
        self.partition = NONE
        """The one of `after` that it is waiting for now."""

    @property
    def size_bytes(self) -> int:
        """What it counts for while it is parked."""
        name_bytes = len(self.name) if self.name.isascii() else 4 * len(self.name)
        return _ENTRY_BYTES + name_bytes + len(self.payload) + _POSITION_BYTES * len(self.after)


class _Table(Generic[Item]):
    """Items by a number, of which those with the smallest are taken first."""

    def __init__(self) -> None:
        self._items: dict[int, dict[Item, None]] = {}
        self._heap: list[int] = []
        """The numbers, and some that have no items any more."""

    def add(self, number: int, item: Item) -> None:
        there = self._items.get(number)
        if there is None:
            self._items[number] = {item: None}
            heapq.heappush(self._heap, number)
        else:
            there[item] = None

    def remove(self, number: int, item: Item) -> None:
        there = self._items[number]
        del there[item]
        if not there:
            del self._items[number]
            if len(self._heap) > 2 * len(self._items) + 64:  # else it grew with every number ever asked for
                self._heap = sorted(self._items)

    def first(self) -> int | None:
        """The smallest number that has items."""
        heap = self._heap
        while heap and heap[0] not in self._items:
            heapq.heappop(heap)
        return heap[0] if heap else None

    def at(self, number: int) -> list[Item]:
        """The items of this number."""
        return list(self._items.get(number, ()))

    def beyond(self, number: int) -> list[Item]:
        """The items of all numbers over this one."""
        return [item for one, items in self._items.items() if one > number for item in items]

    def __bool__(self) -> bool:
        return bool(self._items)


class WaitingQueries:
    """All that wait in one projector. `positions` are those of its read model, and only grow."""

    def __init__(self) -> None:
        self._by_position: dict[int, _Table[WaitingQuery]] = {}
        """By partition: each entry under the position of the one that it is waiting for now."""
        self._by_deadline = _Table[WaitingQuery]()
        self._by_connection: dict[Hashable, dict[WaitingQuery, None]] = {}
        self._parked: OrderedDict[WaitingQuery, None] = OrderedDict()
        """All, the one that has waited longest first. In a plain dict, finding the first passes over each that was
        taken out before it."""
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, entry: WaitingQuery, left_s: float, positions: Mapping[int, int], now_s: float) -> bool:
        """Keep it until it is woken or `left_s` are over. False, and nothing is kept, if it can be answered now.
        Raises `Overloaded`."""
        if (partition := _missing(entry, positions)) is None:
            return False
        of_one = self._by_connection.get(entry.connection, ())
        for count, count_max, what in (
            (len(self._parked), WAITING_MAX, "waiting queries"),
            (len(of_one), WAITING_OF_ONE_MAX, "waiting queries of one client"),
            (self._size_bytes + entry.size_bytes - 1, WAITING_BYTES_MAX, "bytes of waiting queries"),
        ):
            if count >= count_max:
                raise Overloaded("a projector", count_max, what)
        entry.parked_s, entry.deadline_s = now_s, now_s + left_s
        step = _step(entry.deadline_s)  # before the first table has it: an entry is in all of them or in none
        self._parked[entry] = None
        self._by_connection.setdefault(entry.connection, {})[entry] = None
        self._by_deadline.add(step, entry)
        self._size_bytes += entry.size_bytes
        self._await(entry, partition)
        return True

    def wake(self, positions: Mapping[int, int]) -> list[WaitingQuery]:
        """Those that can be answered now, in the order of the positions they have waited for. They have left."""
        woken: list[WaitingQuery] = []
        for partition, table in list(self._by_position.items()):
            reached = positions.get(partition, 0)
            while (position := table.first()) is not None and position <= reached:
                for entry in table.at(position):
                    self._await_no_more(entry)
                    missing = _missing(entry, positions)
                    if missing is None:
                        self._leave(entry)
                        woken.append(entry)
                    else:
                        self._await(entry, missing)
        return woken

    def expire(self, now_s: float) -> list[WaitingQuery]:
        """Those whose deadline has passed. They have left."""
        expired: list[WaitingQuery] = []
        while (step := self._by_deadline.first()) is not None and step * _STEP_S <= now_s:
            for entry in self._by_deadline.at(step):
                self._leave(entry)
                expired.append(entry)
        return expired

    def drop(self, connection: Hashable) -> None:
        """Forget all that came on this connection."""
        for entry in list(self._by_connection.get(connection, ())):
            self._leave(entry)

    def take_all(self) -> list[WaitingQuery]:
        """All of them: nothing will be taken in any more. They have left."""
        parked = list(self._parked)
        for entry in parked:
            self._leave(entry)
        return parked

    def take_beyond(self, ends: Mapping[int, int], read_s: float) -> list[WaitingQuery]:
        """Those that wait for more than these logs had at `read_s`. They have left. What was parked later stays: it may
        wait for what was committed since."""
        found: list[WaitingQuery] = []
        for partition, end in ends.items():
            if (table := self._by_position.get(partition)) is not None:
                found += [entry for entry in table.beyond(end) if entry.parked_s < read_s]
        for entry in found:
            self._leave(entry)
        return found

    def wanted(self) -> dict[int, int]:
        """By partition: the first position that any of them waits for."""
        firsts = {partition: table.first() for partition, table in self._by_position.items()}
        return {partition: first for partition, first in firsts.items() if first is not None}

    def connections(self) -> list[Hashable]:
        """Those on which something that waits has come."""
        return list(self._by_connection)

    def next_deadline_s(self) -> float | None:
        """When `expire` is to be called next."""
        step = self._by_deadline.first()
        return None if step is None else step * _STEP_S

    def oldest_s(self) -> float | None:
        """Since when the one that has waited longest is parked."""
        return next((entry.parked_s for entry in self._parked), None)

    def _await(self, entry: WaitingQuery, partition: int) -> None:
        entry.partition = partition
        table = self._by_position.get(partition)
        if table is None:
            table = self._by_position[partition] = _Table()
        table.add(entry.after[partition], entry)

    def _await_no_more(self, entry: WaitingQuery) -> None:
        if (partition := entry.partition) in self._by_position:
            table = self._by_position[partition]
            table.remove(entry.after[partition], entry)
            if not table:
                del self._by_position[partition]
        entry.partition = NONE

    def _leave(self, entry: WaitingQuery) -> None:
        del self._parked[entry]
        self._size_bytes -= entry.size_bytes
        self._by_deadline.remove(_step(entry.deadline_s), entry)
        self._await_no_more(entry)
        of_one = self._by_connection[entry.connection]
        del of_one[entry]
        if not of_one:
            del self._by_connection[entry.connection]


def _missing(entry: WaitingQuery, positions: Mapping[int, int]) -> int | None:
    """The first partition of which it needs more."""
    for partition, position in entry.after.items():
        if positions.get(partition, 0) < position:
            return partition
    return None


def _step(deadline_s: float) -> int:
    return math.ceil(deadline_s / _STEP_S)
