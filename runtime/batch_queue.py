"""BatchQueue: while a batch is in flight, what arrives waits and leaves as the next batch.

The one piece on all three paths that cross Ray: commands to a partition ([2]), events to a projector ([6]), queries to
a projector ([8]). Ray moves some thousand calls a second where the log takes over 100,000 events, so nothing crosses
one by one when there is more to send; and a lone item never waits for company.

With two in flight, one end works on a batch while the other makes the next. That takes two of about the same size: if
everything left at once, and all of it came back at once, each end would wait for the other. And it takes batches that
are worth it, since each has a cost of its own, such as an fsync (docs/decisions/0013-batches-in-halves.md).

Rules kept here: order is kept; what waits is bounded in items and bytes (`Overloaded` beyond that, at once); a batch
is bounded too, since Ray sends arguments inline only up to about 100 KB and is 3-4 times slower above.

It sends nothing: it returns what may leave, and its owner reports what has come back. No clock, no lock, no thread, no
event loop. The router has one for each actor (`actors/client/routing.py`); a `Batcher` (`batcher.py`) is one for
several threads.

The same idea is known as group commit (databases) and as Nagle's algorithm (TCP), here without the delay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from .errors import Overloaded

__all__ = [
    "BATCH_BYTES_MAX",
    "BATCH_BY_RAY_S",
    "BATCH_BY_SOCKET_S",
    "BATCH_ITEMS_MAX",
    "WAITING_BYTES_MAX",
    "WAITING_ITEMS_MAX",
    "WORTH_ITEMS",
    "BatchQueue",
    "commands_worth",
]

BATCH_ITEMS_MAX: Final = 512
"""Beyond some hundred commands the cost of an fsync per command no longer shows; and the smaller a batch, the sooner
the other end has something to do while this end makes the next."""

BATCH_BYTES_MAX: Final = 96 * 1024
"""Ray carries arguments inline up to 100 KiB; one larger item travels alone, through the object store."""

WORTH_ITEMS: Final = 24
"""Fewer are not worth a batch of their own while another is in flight: they wait for its return, and for company."""

BATCH_BY_SOCKET_S: Final = 0.0001
BATCH_BY_RAY_S: Final = 0.0004
"""What a batch of commands costs besides its commit: the transfer, waking up the receiver, what is done once for it."""

_COMMAND_S: Final = 0.00001
"""What a client takes to send a command and to return its outcome."""

WAITING_ITEMS_MAX: Final = 32 * 1024
"""About a second of work for one partition: what waits longer had better be refused."""

WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bounds memory when the items are large: 64 items of 1 MiB."""

Item = TypeVar("Item")


def commands_worth(batch_cost_s: float) -> int:
    """How many commands are worth a batch of their own, where a batch costs that much however few it has.

    Commands that are divided between two batches take one such cost more; what is saved is that the client's time for
    them is no longer waited for. So both halves together have to take the client longer than that.
    """
    return min(BATCH_ITEMS_MAX, max(1, round(batch_cost_s / _COMMAND_S / 2)))


class BatchQueue(Generic[Item]):
    """What waits, and which of it may leave as a batch now.

    Where `put` and the others return True, the caller starts sending, at once or in a moment: it takes batches with
    `next_batch` until that returns none. Meanwhile no other call returns True, or order would be lost. Each batch that
    has come back, one way or the other, is reported once: `batch_done`.

    With `in_flight_max` over 1, further batches leave beside one in flight if each has `pipelined_items_min` items, or
    is full; what waits is divided evenly among those that may leave.
    """

    def __init__(
        self,
        name: str,
        *,
        in_flight_max: int = 1,
        pipelined_items_min: int = WORTH_ITEMS,
        batch_items_max: int = BATCH_ITEMS_MAX,
        batch_bytes_max: int = BATCH_BYTES_MAX,
        waiting_items_max: int = WAITING_ITEMS_MAX,
        waiting_bytes_max: int = WAITING_BYTES_MAX,
    ) -> None:
        self.name = name
        self.pipelined_items_min = pipelined_items_min
        """At least 1. May be changed at any time, as it becomes known what a batch costs."""
        self._in_flight_max = in_flight_max
        self._batch_items_max = batch_items_max
        self._batch_bytes_max = batch_bytes_max
        self._waiting_items_max = waiting_items_max
        self._waiting_bytes_max = waiting_bytes_max
        self._waiting: deque[tuple[Item, int]] = deque()
        self._waiting_bytes = 0
        self._in_flight = 0
        self._starting = False
        """One caller sends, or will in a moment: a second one need not, and must not, or order would be lost."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: Item, size_bytes: int, *, again: bool = False) -> bool:
        """Have `item` leave with the next batch. Raises `Overloaded`, and keeps nothing, when too much is waiting.

        `again`: the item was taken before, by this queue or another. It is never refused, because "it was not sent"
        would be untrue; its sender holds it in memory already, and bounds how many there are."""
        waiting, waiting_bytes = self._waiting, self._waiting_bytes + size_bytes
        if len(waiting) >= self._waiting_items_max and not again:
            raise Overloaded(self.name, self._waiting_items_max, "items")
        if waiting_bytes > self._waiting_bytes_max and waiting and not again:
            raise Overloaded(self.name, self._waiting_bytes_max, "bytes")
        waiting.append((item, size_bytes))
        self._waiting_bytes = waiting_bytes
        return not self._starting and self._in_flight < self._in_flight_max and self._starts()

    def put_all(self, items: Sequence[tuple[Item, int]]) -> bool:
        """Have all of these leave, with their sizes, as `put` does each; all of them are refused, or none."""
        size_bytes = sum([size for _, size in items])
        if len(self._waiting) + len(items) > self._waiting_items_max:
            raise Overloaded(self.name, self._waiting_items_max, "items")
        if self._waiting_bytes + size_bytes > self._waiting_bytes_max:
            raise Overloaded(self.name, self._waiting_bytes_max, "bytes")
        self._waiting.extend(items)
        self._waiting_bytes += size_bytes
        return not self._starting and self._starts()

    def batch_done(self) -> bool:
        """A batch in flight has come back, or could not be sent."""
        self._in_flight -= 1
        return not self._starting and self._starts()

    def restart(self, items: Sequence[tuple[Item, int]]) -> bool:
        """Begin anew with nothing in flight, and with `items` (and their sizes) before all that waits."""
        self._waiting.extendleft(reversed(items))
        self._waiting_bytes += sum(size for _, size in items)
        self._in_flight = 0
        return not self._starting and self._starts()

    def take_waiting(self, wanted: Callable[[Item], bool]) -> list[tuple[Item, int]]:
        """Take out the waiting items that are `wanted`, in order, with their sizes."""
        taken = [entry for entry in self._waiting if wanted(entry[0])]
        if taken:
            self._waiting = deque(entry for entry in self._waiting if not wanted(entry[0]))
            self._waiting_bytes -= sum(size for _, size in taken)
        return taken

    def next_batch(self) -> list[Item]:
        """The next batch that leaves, or nothing: then the next call that returns True starts the sending again."""
        leaving = self._leaving()
        batch = self._batch(leaving) if leaving else []
        self._starting = bool(batch)
        if batch:
            self._in_flight += 1
        return batch

    def give_up(self) -> None:
        """Sending has failed: the batch that was taken last is gone, and the queue is ready for more."""
        self._in_flight -= 1
        self._starting = False

    def _starts(self) -> bool:
        self._starting = self._leaving() > 0
        return self._starting

    def _leaving(self) -> int:
        """How many batches may leave now: any at all if none is in flight; beside others, what is worth it."""
        room = self._in_flight_max - self._in_flight
        if room <= 0 or not self._waiting:
            return 0
        worth = max(len(self._waiting) // self.pipelined_items_min, self._waiting_bytes // self._batch_bytes_max)
        return min(room, worth if self._in_flight else max(1, worth))

    def _batch(self, leaving: int) -> list[Item]:
        """The first of so many batches."""
        batch: list[Item] = []
        size_bytes = 0
        items_max = min(self._batch_items_max, -(-len(self._waiting) // leaving))
        while self._waiting and len(batch) < items_max:
            item, item_bytes = self._waiting[0]
            if batch and size_bytes + item_bytes > self._batch_bytes_max:
                break
            self._waiting.popleft()
            batch.append(item)
            size_bytes += item_bytes
        self._waiting_bytes -= size_bytes
        return batch
