"""Portal: how a thread without an event loop has things done on one.

Beside step [1]. A blocking runtime or connection has an event loop on a thread of its own; each call of another thread
is a task there, which that thread waits for. `blocking.py` has the calls.

Rules kept here: a call that waits when the loop ends gets an error; one from the loop's own thread, which would wait
for itself, is refused; Ctrl-C while a call waits is an ordinary `KeyboardInterrupt`, and ends that call.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final, NoReturn, Self, TypeVar

from ...runtime.arguments import checked_timeout
from ...runtime.errors import CallerError, Unavailable
from ..nodes.store import AnyStore
from ..projection.rebuild import Rebuild, RebuildProgress
from ..system.health_check import HEALTH_TIMEOUT_S, Health, nothing_runs
from .operations import GRACE_S, Operations, grace_of
from .session import Session

__all__ = ["BlockingRebuild", "Portal", "SessionPortal"]

T = TypeVar("T")

_LOOK_S: Final = 1.0
"""How often a waiting call checks that the event loop still runs."""

_RESULT: Final = concurrent.futures.Future.result.__code__

_UNDO_TIMEOUT_S: Final = 5.0
"""For a start that was interrupted to be undone."""


class BlockingRebuild:
    """A rebuild of a `BlockingRuntime`. Iterate over it for its progress; `wait()` for its end. Raises what `Rebuild`
    raises.

    Example:
        rebuild = bank.rebuild(BalancesV2)
        for progress in rebuild:
            print(progress.events, "of", progress.total)
        rebuild.wait()
    """

    def __init__(self, rebuild: Rebuild, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._rebuild = rebuild
        self._wait = wait

    def wait(self) -> RebuildProgress:
        """Wait until the new build serves; raises what has ended the rebuild. See `Rebuild`."""

        async def ended() -> RebuildProgress:
            return await self._rebuild

        progress: RebuildProgress = self._wait(ended())
        return progress

    def __iter__(self) -> Iterator[RebuildProgress]:
        """The progress, five times a second until the end."""
        watched = aiter(self._rebuild)

        async def next_one() -> RebuildProgress | None:
            return await anext(watched, None)

        while (progress := self._wait(next_one())) is not None:
            yield progress

    def progress(self) -> RebuildProgress:
        """The progress at the last check."""
        return self._rebuild.progress()

    def cancel(self) -> None:
        """End the rebuild and remove what it has made; see `Rebuild.cancel`."""
        self._wait(self._rebuild.cancel())


class _Caller:
    """What has things done on an event loop, and waits for them."""

    def _wait(self, doing: Coroutine[Any, Any, T]) -> T:
        raise NotImplementedError

    def _here(self, doing: Callable[[], T]) -> T:
        """Have it done on the event loop."""

        async def done() -> T:
            return doing()

        return self._wait(done())


class Portal(_Caller):
    """The way from any thread to a runtime, or a connection, and its event loop. Safe from several threads."""

    def __init__(self, runtime: Operations) -> None:
        self._runtime = runtime
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        """The id of the process that the event loop runs in."""
        self._thread: threading.Thread | None = None
        self._changing = threading.Lock()
        """Held while something is handed to the event loop, and while that is taken away."""

    def __reduce__(self) -> NoReturn:
        """It belongs to this process. A fingerprint of a handler that reaches it counts it by its type."""
        raise TypeError(f"a {type(self).__name__} belongs to the process that started it and cannot be pickled")

    def start(self) -> Self:
        """Start everything; see `Runtime.start`."""
        if self._loop is not None:
            raise CallerError("this runtime is started already")
        self._loop, self._process = asyncio.new_event_loop(), os.getpid()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rayfold", daemon=True)
        self._thread.start()
        undone = threading.Event()
        try:
            self._wait(self._started(undone))
        except BaseException:
            undone.wait(_UNDO_TIMEOUT_S)  # by the loop, which `stop` ends
            self.stop()
            raise
        return self

    async def _started(self, ended: threading.Event) -> None:
        """Start, and signal the end of that, also when it was interrupted: all of it is undone then."""
        try:
            await self._runtime.start()
        finally:
            ended.set()

    def stop(self) -> None:
        """Stop everything; see `Runtime.stop`."""
        self._stop(GRACE_S)

    def _stop(self, grace_s: float) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or os.getpid() != self._process:  # a forked child has no such thread
            return
        _check_thread(thread)
        try:
            self._wait(self._runtime._stop(grace_s))
        finally:
            with self._changing:
                mine, self._loop, self._thread = self._loop is loop, None, None
            if mine:  # else another thread stops it too
                loop.call_soon_threadsafe(_end, loop)
                thread.join()
                loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        self._stop(grace_of(kind))

    def health(self, timeout_s: float = HEALTH_TIMEOUT_S) -> Health:
        """What serves this program now, what does not, and why; see `Runtime.health`."""
        timeout_s = checked_timeout(timeout_s)
        if self._loop is None or os.getpid() != self._process:
            return nothing_runs(self._runtime._why_not_running)
        return self._wait(self._runtime.health(timeout_s))

    @property
    def any_store(self) -> AnyStore:
        """The store, wherever it is: for those who only read it, such as backups."""
        return self._runtime._store

    def _pages(self, begun: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        """What is known by now, as often as there is something; the source is not waited for."""
        pages: Any = getattr(self._here(begun), "pages")  # noqa: B009 - it is not part of what callers are promised
        try:
            while page := self._wait(_next_of(pages)):
                yield from page
        finally:
            loop = self._loop
            if loop is not None and threading.current_thread() is self._thread:  # it is collected as garbage there
                asyncio.run_coroutine_threadsafe(_closed(pages), loop)
            elif loop is not None:
                with contextlib.suppress(RuntimeError):  # an interrupt came in the middle
                    self._wait(pages.aclose())

    def _wait(self, doing: Coroutine[Any, Any, T]) -> T:
        if self._loop is not None and os.getpid() != self._process:
            doing.close()
            raise CallerError(self._runtime._why_not_running)
        if threading.current_thread() is self._thread:
            doing.close()
            _check_thread(self._thread)
        with self._changing:
            loop, thread = self._loop, self._thread
            future = None if loop is None else asyncio.run_coroutine_threadsafe(doing, loop)
        if future is None or thread is None:
            doing.close()
            raise CallerError("this runtime is not running; use `with`, or start() it")
        try:
            while thread.is_alive() and not future.done():
                try:
                    return future.result(_LOOK_S)
                except TimeoutError as error:
                    if not _is_of_waiting(error):  # of the call, or of a signal handler of the program
                        raise
            if future.done():  # also where the loop has ended since
                return future.result()
        except concurrent.futures.CancelledError:
            pass
        except BaseException:
            future.cancel()
            raise
        raise Unavailable("this runtime", "it was stopped while the call waited")


def _check_thread(thread: threading.Thread) -> None:
    """Raises `CallerError` on the event loop's own thread: a call would wait there for what cannot go on meanwhile."""
    if threading.current_thread() is thread:
        raise CallerError(
            "this runtime was called by code that it runs itself and waits for, such as a handler of a system in "
            "memory or a progress= function; nothing was sent. A handler decides from its own state; what follows "
            "from an event is done by a subscription, or by the caller"
        )


def _is_of_waiting(error: TimeoutError) -> bool:
    """Whether `Future.result` has raised it, because the time was over, and nothing that ran meanwhile."""
    inner = error.__traceback__ and error.__traceback__.tb_next
    return inner is not None and inner.tb_next is None and inner.tb_frame.f_code is _RESULT


def _end(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what other threads still wait for, which raises in them, and stop the loop when that has ended."""
    waiting = asyncio.all_tasks(loop)
    for task in waiting:
        task.cancel()
    asyncio.gather(*waiting, return_exceptions=True).add_done_callback(lambda _: loop.stop())
    loop.call_later(_UNDO_TIMEOUT_S, loop.stop)


class SessionPortal(_Caller):
    """The way from any thread to a session."""

    def __init__(self, session: Session, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._session = session
        self._done = wait

    def _wait(self, doing: Coroutine[Any, Any, T]) -> T:
        result: T = self._done(doing)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing is held, so nothing ends; the block shows what belongs together."""


async def _closed(pages: Any) -> None:
    await pages.aclose()


async def _next_of(pages: AsyncIterator[list[T]]) -> list[T]:
    return await anext(pages, [])
