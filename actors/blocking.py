"""BlockingRuntime: the same runtime for scripts and notebooks, without `await`.

It runs a `Runtime` on an event loop of its own, in a thread; every call waits there for its result. Ctrl-C while
waiting is an ordinary `KeyboardInterrupt`, and leaving the `with` stops everything.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Final, Self, TypeVar
from uuid import UUID

from ..runtime.aggregate import Aggregate
from ..runtime.envelope import Envelope
from ..runtime.errors import CallerError, RayfoldError
from ..runtime.log.store import Store
from ..runtime.messages import Command, Query
from ..runtime.outcome import Outcome
from ..runtime.projection import Projection
from ..runtime.receipt import Receipt
from ..runtime.stream import ANY
from .status import Status
from .system import Runtime

__all__ = ["BlockingRuntime"]

Answer = TypeVar("Answer")
T = TypeVar("T")

_PAGE: Final = 256
"""Outcomes or answers handed over from the loop's thread at a time: one for each would cost more than they do."""


class BlockingRuntime:
    """`with BlockingRuntime("bank-data", aggregates=[...], projections=[...]) as bank:`; arguments as for `Runtime`.

    In a notebook: `bank = BlockingRuntime(...).start()`, and `bank.stop()` at the end. Safe from several threads.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runtime = Runtime(*arguments, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Start everything; see `Runtime.start`."""
        if self._loop is not None:
            raise CallerError("this runtime is started already")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rayfold", daemon=True)
        self._thread.start()
        try:
            self._wait(self._runtime.start())
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop everything; see `Runtime.stop`."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        try:
            self._wait(self._runtime.stop())
        finally:
            self._loop = self._thread = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def execute(
        self,
        aggregate: type[Aggregate],
        id: str,
        command: Command,
        *,
        command_id: UUID | None = None,
        expected_version: int = ANY,
        correlation_id: UUID | None = None,
        causation_id: UUID | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Have the aggregate decide a command; see `Runtime.execute`."""
        return self._wait(
            self._runtime.execute(
                aggregate,
                id,
                command,
                command_id=command_id,
                expected_version=expected_version,
                correlation_id=correlation_id,
                causation_id=causation_id,
                timeout_s=timeout_s,
            )
        )

    def execute_all(
        self, envelopes: Iterable[Envelope], *, in_flight: int = 1024, timeout_s: float | None = None
    ) -> Iterator[tuple[Envelope, Outcome]]:
        """Execute many commands, `in_flight` at a time; see `Runtime.execute_all`."""
        outcomes = self._runtime.execute_all(envelopes, in_flight=in_flight, timeout_s=timeout_s)
        while page := self._wait(_next_page(outcomes)):
            yield from page

    def ask(
        self,
        projection: type[Projection],
        query: Query[Answer],
        *,
        after: Receipt | Mapping[int, int] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Ask a read model; see `Runtime.ask`."""
        return self._wait(self._runtime.ask(projection, query, after=after, timeout_s=timeout_s))

    def ask_all(
        self,
        projection: type[Projection],
        queries: Iterable[Query[Answer]],
        *,
        after: Receipt | Mapping[int, int] | None = None,
        in_flight: int = 4096,
        timeout_s: float | None = None,
    ) -> Iterator[tuple[Query[Answer], Answer | RayfoldError]]:
        """Ask many queries, `in_flight` at a time; see `Runtime.ask_all`."""
        answers = self._runtime.ask_all(projection, queries, after=after, in_flight=in_flight, timeout_s=timeout_s)
        while page := self._wait(_next_page(answers)):
            yield from page

    def heads(self) -> dict[int, int]:
        """Partition -> position of its last committed event."""
        return self._wait(self._runtime.heads())

    def status(self) -> Status:
        """What runs where: processes, epochs, positions."""
        return self._wait(self._runtime.status())

    @property
    def store(self) -> Store:
        """The store this runtime holds."""
        return self._runtime.store

    def _wait(self, doing: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            doing.close()
            raise CallerError("this runtime is not running; use `with`, or start() it")
        future = asyncio.run_coroutine_threadsafe(doing, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise


async def _next_page(items: AsyncIterator[T]) -> list[T]:
    page: list[T] = []
    async for item in items:
        page.append(item)
        if len(page) == _PAGE:
            break
    return page
