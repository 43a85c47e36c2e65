"""RelayedStore: a store on several nodes, as a program without Ray reads it: through a node agent of its machine.

Beside all steps. For histories, subscriptions and embedded replicas. Questions to logs wait on threads of the program,
and some are asked on its event loop; so they have a connection of their own, on an event loop and a thread of its own,
from the first question on. The node agent passes them on to the home of the partition.

Rule kept here: each question has a limit, after which it is `Unavailable`, by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, TypeVarTuple, cast

from ...runtime.errors import RayfoldError, StorageFailed, Unavailable
from ...runtime.log.reader import LmdbReader
from ..client.relay_connection import ActorUnavailableError, RelayConnection
from ..cluster.retry import Attempts, Patience
from ..cluster.rpc import one_line
from ..nodes.store import ClusterReader, ClusterStore, PartitionLocator

__all__ = ["RelayedReads", "RelayedStore"]

_READ_TIMEOUT_S: Final = 15.0
"""Timeout of one answer: the node agent waits for 10 s for that of another node, and names it."""

_RETRY_S: Final = 0.1

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class RelayedReads:
    """Questions to logs, from any thread. Ended by `close`."""

    def __init__(self, name: str, connect: Callable[[], Coroutine[Any, Any, RelayConnection]]) -> None:
        """`name`: of the system. `connect`: connects to a node agent, on the event loop that awaits it."""
        self._name, self._connect = name, connect
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        """The event loop and its thread; None until the first question."""
        self._connecting: asyncio.Task[RelayConnection] | None = None
        self._closed = False

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the node agent answers. Raises its error, and `Unavailable` if it does not answer."""
        return self.ask_actor("", method, arguments, _READ_TIMEOUT_S)

    def ask_actor(self, target: str, method: str, arguments: Sequence[Any], timeout_s: float) -> Any:
        """What an actor of the system answers, by its name, or the node agent itself. Raises what `ask` does."""
        with self._starting:  # so that `close` comes before it, or ends it
            loop = self._started()
            asking = self._asked(target, method, timeout_s, tuple(arguments))
            asked = asyncio.run_coroutine_threadsafe(asking, loop)
        try:
            return asked.result(2 * timeout_s)
        except RayfoldError:
            raise
        except Exception as error:
            what = f"it cannot be asked through this machine: {one_line(error) or 'no answer in time'}"
            raise Unavailable(self._name, what) from error
        finally:
            asked.cancel()

    def close(self) -> None:
        """End the connection; questions that wait are `Unavailable`. Closing twice is allowed."""
        with self._starting:
            self._closed, loop, thread = True, self._loop, self._thread
            self._loop = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _started(self) -> asyncio.AbstractEventLoop:
        """REQUIRES: `_starting` is held."""
        if self._closed:
            raise Unavailable(self._name, "the connection was closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name="rayfold reads", daemon=True)
            self._thread.start()
        return self._loop

    async def _asked(self, target: str, method: str, timeout_s: float, arguments: tuple[Any, ...]) -> Any:
        connection = await self._connected()
        try:
            return await asyncio.wrap_future(connection.call(target, method, timeout_s, arguments))
        except ActorUnavailableError:  # that process has ended; what is asked here may be asked again
            connection = await self._connected()
            return await asyncio.wrap_future(connection.call(target, method, timeout_s, arguments))

    async def _connected(self) -> RelayConnection:
        """The connection, one for all questions, made anew once it is lost."""
        connecting = self._connecting
        if connecting is not None and connecting.done() and (connecting.exception() or connecting.result().lost):
            connecting = None
        if connecting is None:
            connecting = self._connecting = asyncio.ensure_future(self._connect())
        return await asyncio.shield(connecting)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        waiting = asyncio.all_tasks(loop)
        for task in waiting:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
    finally:
        with contextlib.suppress(RuntimeError):
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@dataclass(frozen=True, slots=True)
class RelayedStore(ClusterStore):
    """The store of a connection. It belongs to that, and is read while that is open."""

    reads: RelayedReads = field(compare=False, repr=False)

    def open_reader(self, partition: int, *, patience_s: float = 0.0) -> ClusterReader:
        """See `ClusterStore`."""
        return _RelayedReader(self, self.reads, partition, patience_s)


class _RelayedReader(ClusterReader):
    """A reader of one partition's log, wherever it is at home. Safe from any thread."""

    def __init__(self, store: RelayedStore, reads: RelayedReads, partition: int, patience_s: float) -> None:
        super().__init__(store, PartitionLocator.of(store), partition, patience_s)
        self._reads = reads

    @property
    def local(self) -> bool:
        """See `ClusterReader`: each question is a call."""
        return False

    def _read(self, what: Callable[[LmdbReader, *Arguments], T], *arguments: *Arguments) -> T:
        attempts = Attempts(Patience(self._patience_s, pause_s=_RETRY_S, never=()))
        while True:
            if self._closed:
                raise StorageFailed(str(self._store.path), f"{self.name} was closed")
            try:
                return cast(T, self._reads.ask("read", self._partition, what.__name__, list(arguments)))
            except Unavailable as error:
                self._wait(attempts, error)
