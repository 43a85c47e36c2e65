"""PageReader: reads the pages of a feed in a thread, for callers on an event loop who may be cancelled.

Beside the read path, between a `Subscription` or `Events` and what reads the logs.

Rule kept here: an event that was read is never lost to a cancellation: a page whose reader was cancelled is there for
the next one who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["PageReader"]


class PageReader:
    """One page at a time. Used on one event loop only."""

    def __init__(self, fill: Callable[[], None]) -> None:
        """`fill`: reads a page into the buffer; is called in a thread."""
        self._fill = fill
        self._filling: asyncio.Future[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether a page is being read, or was for a cancelled call."""
        return self._filling is not None

    async def fill(self) -> None:
        """Read a page, or wait for the one that is being read for a cancelled call. Raises what `fill` does."""
        if self._filling is None:
            self._filling = asyncio.ensure_future(asyncio.to_thread(self._fill))
            self._filling.add_done_callback(_looked_at)
        filling = self._filling
        await asyncio.wait([filling])
        self._filling = None
        filling.result()


def _looked_at(filling: asyncio.Future[None]) -> None:
    """Its failure may not matter any more: the reading was given up meanwhile."""
    if not filling.cancelled():
        filling.exception()
