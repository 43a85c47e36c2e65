"""Batcher: a batch queue for several threads, which sends what may leave.

Beside steps [6] and [8]: events and queries on their way to a projector.

`BatchQueue` (`batch_queue.py`) decides what leaves when; here are the lock around it and the calls. Idle cost: none,
there is no timer and no thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from .batch_queue import BATCH_BYTES_MAX, BATCH_ITEMS_MAX, WAITING_BYTES_MAX, WAITING_ITEMS_MAX, WORTH_ITEMS, BatchQueue

__all__ = ["Batcher"]

Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """A queue that sends what has gathered as one batch whenever there is room for one more in flight.

    `send(batch)` starts the transfer and returns at once; the receiver of the answer calls `batch_done()`, once. Both
    may happen on any thread, the second also before the first returns. A batch whose `send` raises is gone: the
    exception goes to the caller that caused the sending, and the batcher is ready for more. `defer(function)` postpones
    the start of a batch, so that what is put in the same moment leaves together: an event loop's `call_soon`.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[list[Item]], None],
        *,
        defer: Callable[[Callable[[], None]], object] | None = None,
        in_flight_max: int = 1,
        pipelined_items_min: int = WORTH_ITEMS,
        batch_items_max: int = BATCH_ITEMS_MAX,
        batch_bytes_max: int = BATCH_BYTES_MAX,
        waiting_items_max: int = WAITING_ITEMS_MAX,
        waiting_bytes_max: int = WAITING_BYTES_MAX,
    ) -> None:
        self._send = send
        self._defer = defer
        self._queue = BatchQueue[Item](
            name,
            in_flight_max=in_flight_max,
            pipelined_items_min=pipelined_items_min,
            batch_items_max=batch_items_max,
            batch_bytes_max=batch_bytes_max,
            waiting_items_max=waiting_items_max,
            waiting_bytes_max=waiting_bytes_max,
        )
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, item: Item, size_bytes: int, *, again: bool = False) -> None:
        """Send `item` with the next batch. Raises `Overloaded`, and keeps nothing, when too much is waiting, unless it
        is sent `again`: see `BatchQueue.put`."""
        with self._lock:
            starts = self._queue.put(item, size_bytes, again=again)
        if starts:
            self._start()

    def put_all(self, items: Sequence[tuple[Item, int]]) -> None:
        """Send all of these, with their sizes, as `put` does each; all of them are refused, or none."""
        with self._lock:
            starts = self._queue.put_all(items)
        if starts:
            self._start()

    def batch_done(self) -> None:
        """A batch in flight has come back, one way or the other: send what has gathered, if anything has."""
        with self._lock:
            starts = self._queue.batch_done()
        if starts:
            self._flush()

    def take_waiting(self, wanted: Callable[[Item], bool]) -> list[tuple[Item, int]]:
        """Take out the waiting items that are `wanted`, in order, with their sizes."""
        with self._lock:
            return self._queue.take_waiting(wanted)

    def _start(self) -> None:
        """Send batches, at once or through `defer`."""
        if self._defer is None:
            self._flush()
        else:
            self._defer(self._flush)

    def _flush(self) -> None:
        """Send batches while there is room in flight: in a loop, as a thousand that come back at once, each from
        within its own `send`, would be too deep a recursion."""
        while True:
            with self._lock:
                batch = self._queue.next_batch()
            if not batch:
                return
            try:
                self._send(batch)
            except BaseException:
                with self._lock:
                    self._queue.give_up()
                raise
