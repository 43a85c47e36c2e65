"""Remote rebuild: a rebuild of a read model that the supervisor of a system on a cluster does, seen from a program.

Beside steps [7] and [8]; `rebuild.py` describes what a rebuild is. This has the same form: await it, watch it with
`async for`, or cancel it. A caller that only stops waiting does not end it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Final

from ...runtime.domain.projection import Projection
from ..projection.rebuild import RebuildProgress

__all__ = ["RemoteRebuild"]

_LOOK_S: Final = 0.2
"""How often progress is asked for."""

_LONG_S: Final = 24 * 3600.0


class RemoteRebuild:
    """A rebuild under way at the supervisor. Used on the program's event loop only."""

    def __init__(self, ask: Callable[..., Awaitable[Any]], projection: type[Projection], classes: bytes) -> None:
        """`ask`: has the supervisor do something; see `RemoteSystem.ask`."""
        self._ask = ask
        self._progress = RebuildProgress(0, 0, 0.0, None, False)
        self._begun = asyncio.ensure_future(ask("begin_rebuild", projection.projection_name, classes))
        self._task = asyncio.ensure_future(self._run())
        self._task.add_done_callback(_looked_at)

    def __await__(self) -> Generator[Any, None, RebuildProgress]:
        """Wait until the new build serves and the old one has ended. Raises what `Rebuild` does, and `CallerError` for
        an older version and while another change of the projection is under way."""
        return asyncio.shield(self._task).__await__()

    async def __aiter__(self) -> AsyncIterator[RebuildProgress]:
        """The progress, five times a second until the end. Raises nothing: await the rebuild for its outcome."""
        while not self._task.done():
            yield self.progress()
            await asyncio.wait({self._task}, timeout=_LOOK_S)
        yield self.progress()

    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self._task.done()

    def progress(self) -> RebuildProgress:
        """The progress at the last check."""
        return self._progress

    async def cancel(self) -> None:
        """End the rebuild and remove what it has made; what serves goes on. Without effect once it has taken over."""
        await self._ask("cancel_rebuild", await asyncio.shield(self._begun))
        await asyncio.wait({self._task})

    async def _run(self) -> RebuildProgress:
        number = await asyncio.shield(self._begun)
        ended = asyncio.ensure_future(self._ask("await_rebuild", number, timeout_s=_LONG_S))
        while not ended.done():
            self._progress = await self._ask("watch_rebuild", number)
            await asyncio.wait({ended}, timeout=_LOOK_S)
        self._progress = ended.result()
        return self._progress


def _looked_at(task: asyncio.Task[RebuildProgress]) -> None:
    """Without an `await` the supervisor's log has the result."""
    if not task.cancelled():
        task.exception()
