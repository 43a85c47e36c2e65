"""Events of a running system in bulk: those between two places, awaited on an event loop, and then an end.

Beside the read path; `runtime/feed/events.py` describes what is read. No actor is asked or slowed: the logs are read in
the caller's own process, pages in a thread; those on other nodes through the agents of these nodes.

Rule kept here: an event that was read is never lost to a cancellation: a page whose reader was cancelled is there for
the next one who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Generic, Self

from ...runtime.domain.recorded import Recorded
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.feed.events import BlockingEvents, EventOptions, EventRange, open_events
from ...runtime.feed.subscription import BATCH_MAX, OneOf, check_batch, close_forgotten
from ..nodes.store import AnyStore, open_patient_reader

__all__ = ["Events", "events_of_store"]


class Events(Generic[OneOf]):
    """`async for event, recorded in events:`, up to the end of the range.

    An async context manager; one that was read to its end, or to which there is no reference any more, is closed too.
    It only reads, and outlives the runtime. One task iterates; it may be cancelled (`asyncio.timeout`), and a second
    loop goes on where the first one has stopped, after an error too. Iterating raises `Damaged`, `UnknownEvent`,
    `HandlerFailed`, `Unavailable` or `StorageFailed` where an event cannot be read.

    Example:
        async for event, recorded in bank.events(types=[Deposited]):
            print(recorded.stream, event.amount)
    """

    def __init__(self, range: EventRange) -> None:
        self._range = range
        self._released = False
        self._filling: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[OneOf, Recorded]:
        """The next event and its place. Raises `Damaged`, `UnknownEvent`, `HandlerFailed`, `Unavailable` or
        `StorageFailed` where it cannot be had."""
        events = self._range
        if not events.buffered:
            await self._fill()
            if events.ended:
                raise StopAsyncIteration
        return events.take()  # type: ignore[return-value]  # the filter chose it

    async def batches(self, max_items: int = BATCH_MAX) -> AsyncIterator[list[tuple[OneOf, Recorded]]]:
        """Lists of 1 to `max_items` events, at most 512."""
        check_batch(max_items)
        while True:
            await self._fill()
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def blocking(self) -> BlockingEvents[OneOf]:
        """The same, for a thread without an event loop; this one is of no further use."""
        self._released = True
        return BlockingEvents(self._range)

    def __del__(self) -> None:
        if not self._released:
            close_forgotten(self._range)

    async def _fill(self) -> None:
        """Read a page in a thread, or wait for the one that is being read for a cancelled call."""
        if self._range.buffered and self._filling is None:
            return
        if self._filling is None:
            self._filling = asyncio.ensure_future(asyncio.to_thread(self._range.fill))
            self._filling.add_done_callback(_looked_at)
        filling = self._filling
        await asyncio.wait([filling])
        self._filling = None
        filling.result()


def _looked_at(filling: asyncio.Future[None]) -> None:
    """Its failure may not matter any more: the reading was given up meanwhile."""
    if not filling.cancelled():
        filling.exception()


def events_of_store(store: AnyStore, catalogue: Catalogue, wanted: EventOptions) -> Events[Any]:
    """See `Runtime.events`."""
    return Events(open_events(store, catalogue, wanted, partial(open_patient_reader, store)))
