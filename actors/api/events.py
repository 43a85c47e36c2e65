"""Events of a running system in bulk: those between two places, awaited on an event loop, and then an end.

Beside the read path; `runtime/feed/events.py` describes what is read. No actor is asked or slowed: the logs are read in
the caller's own process, pages in a thread; those on other nodes through the agents of these nodes.

Rule kept here: an event that was read is never lost to a cancellation: a page whose reader was cancelled is there for
the next one who asks.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self

from ...runtime.arguments import checked_callable
from ...runtime.domain.recorded import Recorded
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import CallerError
from ...runtime.feed.event_range import EventOptions, EventRange, open_events
from ...runtime.feed.events import BlockingEvents
from ...runtime.feed.frames import Progress, to_arrow, to_pandas, to_parquet, to_polars
from ...runtime.feed.subscription import BATCH_MAX, OneOf, check_batch, close_forgotten
from ...runtime.tables.export_files import Exported
from ..nodes.store import AnyStore, open_patient_reader
from .page_reader import PageReader

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

__all__ = ["Events", "events_of_store"]


class Events(Generic[OneOf]):
    """`async for event, recorded in events:`, up to the end of the range.

    An async context manager; one that was read to its end, or to which there is no reference any more, is closed too.
    It only reads, and outlives the runtime. One task iterates; it may be cancelled (`asyncio.timeout`), and a second
    loop goes on where the first one has stopped, after an error too. Iterating raises `Damaged`, `UnknownEvent`,
    `HandlerFailed`, `Unavailable` or `StorageFailed` where an event cannot be read, and `CallerError` after `close`.

    Example:
        async for event, recorded in bank.events(types=[Deposited]):
            print(recorded.stream, event.amount)
    """

    def __init__(self, range: EventRange) -> None:
        self._range = range
        self._released = False
        self._pages = PageReader(range.fill)

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

    async def to_arrow(self) -> pyarrow.Table:
        """The rest as an Arrow table, in memory (docs/bulk-reads.md has its columns). Needs `rayfold[arrow]`.

        Raises `CallerError` without it, and what iterating raises.
        """
        return await asyncio.to_thread(to_arrow, self._range)

    async def to_pandas(self) -> pandas.DataFrame:
        """The rest as a pandas frame; integers are exact where some are missing too. Needs `rayfold[pandas]`. Raises
        what `to_arrow` raises."""
        return await asyncio.to_thread(to_pandas, self._range)

    async def to_polars(self) -> polars.DataFrame:
        """The rest as a Polars frame. Needs `rayfold[polars]`. Raises what `to_arrow` raises."""
        return await asyncio.to_thread(to_polars, self._range)

    async def to_parquet(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress | None = None
    ) -> Exported:
        """Write the rest into a Parquet file (`FILE.parquet`), lines of JSON (`FILE.jsonl`, which needs no extra), or a
        folder with one Parquet file for each type of event; some pages are in memory, whatever the size of the log.

        The files appear when they are whole, and not at all after an error or a cancellation. `progress` is called in a
        thread with positions done and in all. Needs `rayfold[arrow]`. Raises `CallerError` for a file that exists,
        unless `overwrite`, `StorageFailed`, and what iterating raises.
        """
        checked_callable("progress", progress)
        ended = threading.Event()

        def check() -> None:
            if ended.is_set():
                raise CallerError("the export was cancelled")

        writing = asyncio.ensure_future(asyncio.to_thread(to_parquet, self._range, path, overwrite, progress, check))
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            ended.set()
            await asyncio.wait([writing])
            if not writing.cancelled():
                writing.exception()
            raise

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
        if self._pages.begun or not self._range.buffered:
            await self._pages.fill()


def events_of_store(store: AnyStore, catalogue: Catalogue, wanted: EventOptions) -> Events[Any]:
    """See `Runtime.events`."""
    return Events(open_events(store, catalogue, wanted, partial(open_patient_reader, store)))
