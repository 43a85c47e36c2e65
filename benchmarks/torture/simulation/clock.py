"""Clock: an event loop whose time is a number. Nothing waits: when there is nothing to do, time jumps.

After the idea of FoundationDB's simulation (Zhou et al., "FoundationDB: A Distributed Unbundled Transactional Key Value
Store", 2021): one thread, one source of time, so that a seed determines a whole run.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, Final, TypeVar

__all__ = ["SimulatedLoop", "simulate"]

Result = TypeVar("Result")

LIMIT_S: Final = 3600.0
"""Of simulated time. A story lasts seconds; what goes on for an hour does not end."""


class _NoFiles(selectors.BaseSelector):
    """A selector with nothing to watch. A call to wait advances the time."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait by advancing the time. Raises `RuntimeError` where a real loop would wait without end."""
        if timeout is None:
            raise RuntimeError("every task waits for another: the simulation has come to a standstill")
        self.now_s += max(timeout, 0.0)
        if self.now_s > LIMIT_S:
            raise RuntimeError(f"the simulation goes on after {LIMIT_S:,.0f} simulated seconds")
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """The loop's own pipe, which is never written to: everything happens on one thread."""
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """See `register`."""
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Nothing is watched."""
        return {}


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop in simulated time."""

    def __init__(self) -> None:
        self._clock = _NoFiles()
        super().__init__(self._clock)

    def time(self) -> float:
        """Simulated seconds since the beginning."""
        return self._clock.now_s

    def _write_to_self(self) -> None:
        """No other thread has to wake this one."""


def simulate(story: Coroutine[Any, Any, Result], loop_class: type[SimulatedLoop] = SimulatedLoop) -> Result:
    """Run a coroutine to its end in simulated time. Raises what any callback has raised meanwhile."""
    loop, raised = loop_class(), list[BaseException]()

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        raised.append(context.get("exception") or RuntimeError(context["message"]))

    loop.set_exception_handler(note)
    try:
        asyncio.set_event_loop(loop)
        result = loop.run_until_complete(story)
        if raised:
            raise raised[0]
        return result
    finally:
        leftover = asyncio.all_tasks(loop)
        for task in leftover:
            task.cancel()
        if leftover:
            loop.run_until_complete(asyncio.gather(*leftover, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
