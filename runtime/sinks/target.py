"""Target: where a sink publishes to. `Webhook` and `Nats` are two; a program may have its own.

Beside the read path. Before it: `publisher.py`. After it: another system.

Rule kept here: what returns is confirmed by the other side, and whatever is raised is not: it is sent again, under the
same id, after a pause.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from .cloud_event import CloudEvent

__all__ = ["NotConfirmed", "Publish", "Target"]

Publish: TypeAlias = Callable[[CloudEvent], Awaitable[None]]
"""Publishes one event; returns once the other side has confirmed that it has it."""


class NotConfirmed(Exception):  # noqa: N818 - it may have arrived all the same
    """The other side has not confirmed an event: it is sent again.

    Example:
        if answer.status_code == 429:
            raise NotConfirmed("it is asked too often", again_s=60)
    """

    def __init__(self, what: str, again_s: float | None = None) -> None:
        """`again_s`: the pause that the other side has asked for, in seconds; None: as the sink has it."""
        super().__init__(what, again_s)
        self.what, self.again_s = what, again_s

    def __str__(self) -> str:
        return self.what


class Target(Protocol):
    """Where a sink publishes to. It is sent to the process of the sinks, so it has to be possible to pickle it; what it
    opens is opened there.

    Example:
        class Printed:
            @contextlib.asynccontextmanager
            async def opened(self) -> AsyncIterator[Publish]:
                yield print_event
    """

    def opened(self) -> AbstractAsyncContextManager[Publish]:
        """Connect. What comes of it may be called for several streams at the same time, and for each stream in
        order."""
        ...
