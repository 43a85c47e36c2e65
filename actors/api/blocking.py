"""BlockingRuntime: the same runtime for scripts and notebooks, without `await`; and the same for a connection.

It runs a `Runtime` on an event loop of its own, in a thread; every call waits there for its result. Ctrl-C while
waiting is an ordinary `KeyboardInterrupt`, and leaving the `with` stops everything.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, Self, TypeVar, overload
from uuid import UUID

from ...runtime.arguments import checked_timeout
from ...runtime.backup.anchor import Anchor
from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.messages import Command, Event, Query
from ...runtime.domain.projection import Projection
from ...runtime.domain.recorded import Recorded
from ...runtime.encoding.envelope import Envelope
from ...runtime.encoding.outcome import Outcome
from ...runtime.errors import CallerError, RayfoldError, Unavailable
from ...runtime.feed.event_filter import Key, Streams, Types
from ...runtime.feed.subscription import Acknowledging, BlockingSubscription, Chosen, From, SubscriptionOptions
from ...runtime.read.positions import After
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.read.unreadable import Unreadable
from ...runtime.receipt import Receipt
from ...runtime.store.report import Report
from ...runtime.store.store import Store
from ...runtime.stream import ANY
from ..client.client import Until
from ..cluster.local import LocalCluster
from ..control.move_result import Moved
from ..nodes.store import AnyStore
from ..observe.status import Status
from ..packaging.application import Application
from ..projection.rebuild import Rebuild, RebuildProgress
from ..settings import Settings
from ..system.health_check import HEALTH_TIMEOUT_S, Health, nothing_runs
from ..system.remote_rebuild import RemoteRebuild
from .operations import GRACE_S, Operations, grace_of
from .replica import Replica
from .runtime import Runtime
from .session import BlockingSession

__all__ = ["BlockingRebuild", "BlockingRuntime", "BlockingOperations"]

A = TypeVar("A", bound=Aggregate)
P = TypeVar("P", bound=Projection)
Answer = TypeVar("Answer")
T = TypeVar("T")

_LOOK_S: Final = 1.0
"""How often a call that waits looks whether the event loop is still there."""

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

    def __init__(self, rebuild: Rebuild | RemoteRebuild, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
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
        """How far it has come, as last looked at."""
        return self._rebuild.progress()

    def cancel(self) -> None:
        """End the rebuild and remove what it has made; see `Rebuild.cancel`."""
        self._wait(self._rebuild.cancel())


class BlockingOperations:
    """What `Operations` is, without `await`: what `BlockingRuntime` and `BlockingConnection` have in common. Safe from
    several threads.

    Example:
        def balance_of(bank: BlockingOperations, account: str) -> int:
            return bank.state_at(Account, account).balance
    """

    def __init__(self, runtime: Operations) -> None:
        self._runtime = runtime
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        """Of the event loop."""
        self._thread: threading.Thread | None = None
        self._changing = threading.Lock()
        """Held while something is handed to the event loop, and while that is taken away."""

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
        """Start, and tell when that has come to its end, also when it was interrupted: all of it is undone then."""
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
        decisive: bool = False,
        until: Until | None = None,
        events: bool = False,
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
                decisive=decisive,
                until=until,
                events=events,
                timeout_s=timeout_s,
            )
        )

    def events_of(self, receipt: Receipt) -> list[Event]:
        """The events of the command that got this receipt; see `Runtime.events_of`."""
        return self._wait(self._runtime.events_of(receipt))

    def execute_all(
        self, envelopes: Iterable[Envelope], *, in_flight: int = 1024, timeout_s: float | None = None
    ) -> Iterator[tuple[Envelope, Outcome]]:
        """Execute many commands, `in_flight` at a time; see `Runtime.execute_all`."""
        yield from self._pages(lambda: self._runtime._client.send_all(envelopes, in_flight, timeout_s))

    def ask(
        self,
        projection: type[Projection],
        query: Query[Answer],
        *,
        after: After | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Ask a read model; see `Runtime.ask`."""
        return self._wait(self._runtime.ask(projection, query, after=after, timeout_s=timeout_s))

    def ask_all(
        self,
        projection: type[Projection],
        queries: Iterable[Query[Answer]],
        *,
        after: After | None = None,
        in_flight: int = 4096,
        timeout_s: float | None = None,
    ) -> Iterator[tuple[Query[Answer], Answer | RayfoldError]]:
        """Ask many queries, `in_flight` at a time; see `Runtime.ask_all`."""
        yield from self._pages(lambda: self._runtime._client.ask_all(projection, queries, after, in_flight, timeout_s))

    def caught_up(self, *projections: type[Projection], timeout_s: float | None = None) -> None:
        """Return once everything committed up to now is visible everywhere; see `Runtime.caught_up`."""
        self._wait(self._runtime.caught_up(*projections, timeout_s=timeout_s))

    def session(self, token: str | None = None) -> BlockingSession:
        """Read your own writes, and never read backwards; see `Session`."""
        return BlockingSession(self._runtime.session(token), self._wait)

    def replica(self, projection: type[P]) -> Replica[P]:
        """A read model of your own in this process; see `Runtime.replica`. Use it in a `with`."""
        return self._wait(self._runtime.replica(projection))

    def scale(self, projection: type[Projection], *, replicas: int) -> None:
        """Have this many replicas of a projection; see `Runtime.scale`."""
        self._wait(self._runtime.scale(projection, replicas=replicas))

    def rebuild(self, projection: type[Projection]) -> BlockingRebuild:
        """Build a read model anew beside the one that serves; see `Runtime.rebuild`. `wait()` for its end."""

        async def begun() -> BlockingRebuild:
            return BlockingRebuild(self._runtime.rebuild(projection), self._wait)

        return self._wait(begun())

    def rebuild_stream(self, projection: type[Projection], aggregate: type[Aggregate], id: str) -> None:
        """Rebuild what one aggregate has contributed; see `Runtime.rebuild_stream`."""
        self._wait(self._runtime.rebuild_stream(projection, aggregate, id))

    def retry_quarantined(self, projection: type[Projection]) -> tuple[Quarantined, ...]:
        """Apply the events in quarantine again; see `Runtime.retry_quarantined`."""
        return self._wait(self._runtime.retry_quarantined(projection))

    def heads(self) -> dict[int, int]:
        """Partition -> position of its last committed event."""
        return self._wait(self._runtime.heads())

    def status(self) -> Status:
        """What runs where, whether it answers, and how far it is behind; see `Runtime.status`."""
        return self._wait(self._runtime.status())

    def health(self, timeout_s: float = HEALTH_TIMEOUT_S) -> Health:
        """What serves this program now, what does not, and why; see `Runtime.health`."""
        timeout_s = checked_timeout(timeout_s)
        if self._loop is None or os.getpid() != self._process:
            return nothing_runs(self._runtime._told_not_running)
        return self._wait(self._runtime.health(timeout_s))

    def history(
        self,
        aggregate: type[Aggregate],
        id: str,
        *,
        from_version: int = 1,
        to_version: int | None = None,
        unreadable: Unreadable = "yield",
    ) -> list[tuple[Event, Recorded]]:
        """The events of an aggregate; see `Runtime.history`."""
        asked = self._runtime.history(
            aggregate, id, from_version=from_version, to_version=to_version, unreadable=unreadable
        )
        return self._wait(asked)

    def state_at(self, aggregate: type[A], id: str, *, version: int | None = None, at: datetime | None = None) -> A:
        """An aggregate as it was; see `Runtime.state_at`."""
        return self._wait(self._runtime.state_at(aggregate, id, version=version, at=at))

    def as_of(
        self,
        projection: type[Projection],
        place: Receipt | datetime | Mapping[int, int],
        query: Query[Answer],
        *,
        timeout_s: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Answer:
        """Ask a projection as of a place in the past; see `Runtime.as_of`. `progress` is called on another thread."""
        return self._wait(self._runtime.as_of(projection, place, query, timeout_s=timeout_s, progress=progress))

    def anchor(self) -> Anchor:
        """What each log ends with now; see `Runtime.anchor`."""
        return self._wait(self._runtime.anchor())

    def verify(self) -> Report:
        """Check every byte of the logs; see `Runtime.verify`."""
        return self._wait(self._runtime.verify())

    def move(self, partition: int, node: str) -> Moved:
        """Have a partition at home on another node; see `Runtime.move`."""
        return self._wait(self._runtime.move(partition, node))

    def rebalance(self) -> list[Moved]:
        """Spread the partitions evenly over the nodes; see `Runtime.rebalance`."""
        return self._wait(self._runtime.rebalance())

    def drain(self, node: str, *, drained: bool = True) -> list[Moved]:
        """Have a node be home to nothing; see `Runtime.drain`."""
        return self._wait(self._runtime.drain(node, drained=drained))

    @overload
    def subscribe(
        self,
        name: str | None = ...,
        *,
        from_: From = ...,
        types: type[Chosen] | Sequence[type[Chosen]],
        streams: Streams | None = ...,
        member: int = ...,
        of: int = ...,
        key: Key | None = ...,
        acknowledge: Acknowledging = ...,
        unreadable: Literal["raise"] = ...,
    ) -> BlockingSubscription[Chosen]: ...
    @overload
    def subscribe(
        self,
        name: str | None = ...,
        *,
        from_: From = ...,
        types: Types | None = ...,
        streams: Streams | None = ...,
        member: int = ...,
        of: int = ...,
        key: Key | None = ...,
        acknowledge: Acknowledging = ...,
        unreadable: Unreadable = ...,
    ) -> BlockingSubscription[Event]: ...
    def subscribe(
        self,
        name: str | None = None,
        *,
        from_: From = "beginning",
        types: Types | None = None,
        streams: Streams | None = None,
        member: int = 0,
        of: int = 1,
        key: Key | None = None,
        acknowledge: Acknowledging = "on next",
        unreadable: Unreadable = "raise",
    ) -> BlockingSubscription[Event]:
        """The events from a place on, as a plain iterator that waits for the next one; see `Runtime.subscribe`."""
        wanted = SubscriptionOptions(name, from_, types, streams, member, of, key, acknowledge, unreadable)
        return self._runtime._subscriptions.subscribe_blocking(self._runtime._store, wanted)

    @property
    def store(self) -> Store:
        """The store this runtime holds."""
        return self._runtime.store

    @property
    def spread_store(self) -> AnyStore:
        """The store, wherever it is: for those who only read it, such as backups."""
        return self._runtime._store

    def _pages(self, begun: Callable[[], AsyncIterator[list[T]]]) -> Iterator[T]:
        """What is known by now, as often as there is something; the source is not waited for."""

        async def begin() -> AsyncIterator[list[T]]:
            return begun()

        pages: Any = self._wait(begin())
        try:
            while page := self._wait(_next_of(pages)):
                yield from page
        finally:
            if self._loop is not None:
                with contextlib.suppress(RuntimeError):  # an interrupt came in the middle
                    self._wait(pages.aclose())

    def _wait(self, doing: Coroutine[Any, Any, T]) -> T:
        if self._loop is not None and os.getpid() != self._process:
            doing.close()
            raise CallerError(self._runtime._told_not_running)
        with self._changing:
            loop, thread = self._loop, self._thread
            future = None if loop is None else asyncio.run_coroutine_threadsafe(doing, loop)
        if future is None or thread is None:
            doing.close()
            raise CallerError("this runtime is not running; use `with`, or start() it")
        try:
            while thread.is_alive():
                try:
                    return future.result(_LOOK_S)
                except TimeoutError:
                    if future.done():  # it is what the call itself has raised
                        return future.result()
        except concurrent.futures.CancelledError:
            pass
        except KeyboardInterrupt:
            future.cancel()
            raise
        raise Unavailable("this runtime", "it was stopped while the call waited")


def _end(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what other threads still wait for, which they are told of, and stop the loop when that has ended."""
    waiting = asyncio.all_tasks(loop)
    for task in waiting:
        task.cancel()
    asyncio.gather(*waiting, return_exceptions=True).add_done_callback(lambda _: loop.stop())
    loop.call_later(_UNDO_TIMEOUT_S, loop.stop)


class BlockingRuntime(BlockingOperations):
    """`Runtime` without `await`, with the same arguments. Safe from several threads.

    In a notebook: `bank = BlockingRuntime(...).start()`, and `bank.stop()` at the end. Raises what `Runtime`
    raises.

    Example:
        with BlockingRuntime("bank-data", aggregates=[Account], projections=[Balances]) as bank:
            receipt = bank.execute(Account, "alice", Deposit(amount=100))
            print(bank.ask(Balances, BalanceOf(account="alice"), after=receipt))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        application: Application | None = None,
        *,
        aggregates: Sequence[type[Aggregate]] = (),
        projections: Sequence[type[Projection]] = (),
        partitions: int | None = None,
        replicas: int | Mapping[type[Projection], int] = 1,
        own_actors_max: int | None = None,
        timeout_s: float | None = None,
        settings: Settings | None = None,
        num_cpus: int | None = None,
        cluster: LocalCluster | str | None = None,
        events: Sequence[type[Event]] = (),
        retired: Sequence[str] = (),
    ) -> None:
        runtime = Runtime(
            path,
            application,
            aggregates=aggregates,
            projections=projections,
            partitions=partitions,
            replicas=replicas,
            own_actors_max=own_actors_max,
            timeout_s=timeout_s,
            settings=settings,
            num_cpus=num_cpus,
            cluster=cluster,
            events=events,
            retired=retired,
        )
        super().__init__(runtime)


async def _next_of(pages: AsyncIterator[list[T]]) -> list[T]:
    return await anext(pages, [])
