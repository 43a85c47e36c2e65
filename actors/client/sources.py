"""Sources: where the commands of `execute_all` and the queries of `ask_all` come from, and their outcomes as pages.

Steps [1] and [8]. A slow source does not slow the loop: a list is read where it is; any other iterable is iterated on a
thread of its own, so that it may be slow, wait for something, or call the runtime itself; an asynchronous one is
awaited beside the outcomes. Outcomes are returned as they become known, in the order of the source, whatever the source
does meanwhile.

Rules kept here: no more is taken from a source than there is room in flight; a source that raises ends the run when
everything before it has been returned; the thread ends with the run, and never keeps a program from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from itertools import islice, repeat
from typing import Any, Final, Generic, TypeVar

from ...runtime.user_code import is_ctrl_c

__all__ = ["Page", "outcomes_of"]

Item = TypeVar("Item")

Page = list[tuple[Item, Any]]
"""Items with their outcomes, in the order of the source."""

_PAGE_MAX: Final = 512
"""Outcomes in a page: what a reader on another thread is handed at a time."""

_BURST_S: Final = 0.001
"""How long a thread may fill the room before it is looked what it has."""


async def outcomes_of(
    items: Iterable[Item] | AsyncIterable[Item],
    in_flight: int,
    send: Callable[[Sequence[tuple[int, Item]]], Sequence[asyncio.Future[Any]]],
) -> AsyncIterator[Page[Item]]:
    """Send all items, `in_flight` at a time, and yield their outcomes. The futures are not cancelled with the reader:
    what is on its way stays on its way.

    `send` gets some items, each after how many outcomes had been read when it was asked for (what the source could
    know), and gives a future for each.
    """
    source: _Source[Item] = _source_of(items, in_flight)
    window: deque[tuple[Item, asyncio.Future[Any]]] = deque()
    try:
        while True:
            if page := _known(window):
                yield page
                source.read += len(page)
            source.allow(in_flight - len(window))
            if taken := source.take():
                window.extend((item, future) for (_, item), future in zip(taken, send(taken), strict=True))
            source.allow(in_flight - len(window))
            if window and window[0][1].done():
                continue
            waits: list[asyncio.Future[Any]] = [window[0][1]] if window else []
            if not source.ended:
                waits.append(source.arrived)
            if not waits:
                break
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        source.close()
    if source.failure is not None:
        raise source.failure


def _known(window: deque[tuple[Item, asyncio.Future[Any]]]) -> Page[Item]:
    """What is known at the head of the window, taken out of it."""
    page: Page[Item] = []
    while window and len(page) < _PAGE_MAX and window[0][1].done():
        item, future = window.popleft()
        page.append((item, future.result()))
    return page


class _Source(Generic[Item]):
    """Items as they come, up to as many as are allowed. Used on the event loop only."""

    def __init__(self) -> None:
        self.ended = False
        """All items have been taken."""
        self.read = 0
        """Outcomes that have been read."""
        self.failure: Exception | None = None
        """What the source raised."""
        self.arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when there is something to take, or the end has come."""

    def allow(self, room: int) -> None:
        """So many more may be fetched, in all, before the next call of this."""
        raise NotImplementedError

    def take(self) -> list[tuple[int, Item]]:
        """What has come since the last call, each with what `read` was when it was asked for."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing more is fetched."""


class _Listed(_Source[Item]):
    """What is in memory already."""

    def __init__(self, items: Iterable[Item], room: int) -> None:
        super().__init__()
        self._items, self._room = iter(items), room
        self.arrived.set_result(None)

    def allow(self, room: int) -> None:
        """See `_Source`."""
        self._room = room

    def take(self) -> list[tuple[int, Item]]:
        """See `_Source`."""
        taken: list[Item] = []
        try:
            taken.extend(islice(self._items, self._room))
        except BaseException as error:  # it was changed meanwhile, or its class has an iteration of its own
            if is_ctrl_c(error):
                raise
            self.failure = _as_exception(error)
        self.ended = len(taken) < self._room
        self._room = 0
        if not self.ended:
            self.arrived = asyncio.get_running_loop().create_future()  # until there is room, nothing is waited for
        return list(zip(repeat(self.read), taken, strict=False))


class _Awaited(_Source[Item]):
    """An asynchronous source, awaited in a task of its own."""

    def __init__(self, items: AsyncIterable[Item], room: int) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._fetched: list[tuple[int, Item]] = []
        self._room = room
        self._allowed = asyncio.Event()
        self._allowed.set()
        self._over = self._closed = False
        self._pump = self._loop.create_task(self._run(items))

    async def _run(self, items: AsyncIterable[Item]) -> None:
        read = self.read
        try:
            async for item in items:
                self._fetched.append((read, item))
                self._room -= 1
                self._notify()
                if self._room <= 0:
                    self._allowed.clear()
                    await self._allowed.wait()
                read = self.read
        except BaseException as error:
            if self._closed or is_ctrl_c(error):
                raise
            self.failure = _as_exception(error)  # the source's own, a cancellation of what it waited for included
        finally:
            self._over = True
            self._notify()

    def _notify(self) -> None:
        if not self.arrived.done():
            self.arrived.set_result(None)

    def allow(self, room: int) -> None:
        """See `_Source`."""
        self._room = room - len(self._fetched)
        if self._room > 0:
            self._allowed.set()

    def take(self) -> list[tuple[int, Item]]:
        """See `_Source`."""
        taken, self._fetched = self._fetched, []
        self.ended = self._over
        self.arrived = self._loop.create_future()
        return taken

    def close(self) -> None:
        """See `_Source`."""
        self._closed = True
        self._pump.cancel()


class _Threaded(_Source[Item]):
    """Any other iterable, on a thread of its own. As two threads of Python take turns, and a turn costs more than ten
    items do, the thread goes on until the room is full and then notifies the loop; if that takes long, it notifies for
    each item."""

    def __init__(self, items: Iterable[Item], room: int) -> None:
        super().__init__()
        self._items = items
        self._loop = asyncio.get_running_loop()
        self._fetched: deque[tuple[int, Item]] = deque()
        self._taken = self._put = 0
        self._allowed = room
        """How many may have been put, in all."""
        self._changed = threading.Condition()
        """Held for a moment, while one waits for the other."""
        self._notified = self._over = self._closed = self._slow = False
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(_BURST_S, self._look)
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._run,), name="rayfold-source", daemon=True).start()

    def _run(self) -> None:
        failure: Exception | None = None
        put, read = self._fetched.append, self.read
        try:
            for item in self._items:
                put((read, item))
                self._put += 1
                if self._slow:
                    self._notify()
                if self._put >= self._allowed and not self._more():
                    break
                read = self.read
        except BaseException as error:
            failure = _as_exception(error)
        self.failure, self._over = failure, True
        self._notify()
        close = getattr(self._items, "close", None)
        with contextlib.suppress(Exception):  # of a generator; the run is over
            if close is not None and self._closed:
                close()

    def _more(self) -> bool:
        """Wait until the next item may be fetched. False if none will be."""
        self._notify()
        with self._changed:
            self._changed.wait_for(lambda: self._put < self._allowed or self._closed)
            return not self._closed

    def _notify(self) -> None:
        if not self._notified:
            self._notified = True
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._arrive)

    def _arrive(self) -> None:
        if not self.arrived.done():
            self.arrived.set_result(None)

    def _look(self) -> None:
        """The room is not full yet: take the present items, and be notified of each new one."""
        self._timer, self._slow = None, True
        if self._fetched or self._over:
            self._arrive()

    def allow(self, room: int) -> None:
        """See `_Source`."""
        if (allowed := self._taken + room) <= self._allowed:
            return
        with self._changed:
            self._allowed = allowed
            self._changed.notify()

    def take(self) -> list[tuple[int, Item]]:
        """See `_Source`."""
        self.arrived, self._notified = self._loop.create_future(), False
        over, fetched = self._over, self._fetched
        taken = [fetched.popleft() for _ in range(len(fetched))]
        self._taken += len(taken)
        self.ended = over
        if taken:
            self._slow = False
        if self._timer is None and not self._slow and not over:
            self._timer = self._loop.call_later(_BURST_S, self._look)
        return taken

    def close(self) -> None:
        """See `_Source`."""
        if self._timer is not None:
            self._timer.cancel()
        with self._changed:
            self._closed = True
            self._changed.notify()


def _as_exception(error: BaseException) -> Exception:
    """What a source raised, as what ends a run: a `CancelledError`, for example, would be taken for another's."""
    return error if isinstance(error, Exception) else RuntimeError(f"the source raised {error!r}")


def _source_of(items: Any, room: int) -> _Source[Any]:
    if isinstance(items, AsyncIterable):
        return _Awaited(items, room)
    if isinstance(items, list | tuple | deque | set | frozenset | dict):
        return _Listed(items, room)
    return _Threaded(items, room)
