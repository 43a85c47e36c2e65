"""Operations: what a program does with a running system, the same whether it has started it or is connected to it.

The entrance of the write path ([1]) and of the read path ([8]). A `Runtime` (`api/runtime.py`) is a system that this
program starts and stops, on one machine or on a cluster; a `Connection` (`api/connection.py`) is to one that was
deployed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, NoReturn, Self, TypeVar, overload
from uuid import UUID

from ...runtime.arguments import checked_callable, checked_class, checked_timeout
from ...runtime.backup.anchor import Anchor, take_anchor
from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.messages import Command, Event, Query
from ...runtime.domain.projection import Projection
from ...runtime.domain.recorded import Recorded
from ...runtime.encoding.envelope import Envelope
from ...runtime.encoding.outcome import Outcome
from ...runtime.errors import CallerError, InvalidMessage, RayfoldError, Unavailable, UnknownName
from ...runtime.feed.event_filter import Key, Streams, Types
from ...runtime.feed.event_range import EventOptions
from ...runtime.feed.log_range import Bound
from ...runtime.feed.named_subscriptions import SubscriptionStatus, forget_subscription, subscriptions_of
from ...runtime.feed.subscription import Acknowledging, Chosen, From, SubscriptionOptions
from ...runtime.printable import shown
from ...runtime.processes.effects import Switch
from ...runtime.processes.step import SWITCHES, SWITCHES_MAX
from ...runtime.read.positions import After
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.read.unreadable import Unreadable
from ...runtime.receipt import Receipt
from ...runtime.sinks.kept_sinks import KeptSink, kept_sinks, skip_event, switch_sink
from ...runtime.store.memory_logs import no_directory
from ...runtime.store.report import Report
from ...runtime.store.store import Store
from ...runtime.stream import ANY
from ..client.client import Client, Until
from ..nodes.move_result import MoveResult
from ..nodes.store import AnyStore, ClusterStore
from ..observe.effect_calls import CallState, EffectCall, effect_calls
from ..observe.status import Status
from ..projection.rebuild import Rebuild
from ..system.health_check import HEALTH_TIMEOUT_S, Health, nothing_runs
from ..system.system import System
from .events import Events, events_of_store
from .replica import Replica
from .session import Session
from .subscriptions import Subscription, Subscriptions, locks_of
from .time_travel import TimeTravel

__all__ = ["Operations"]

A = TypeVar("A", bound=Aggregate)
P = TypeVar("P", bound=Projection)
Answer = TypeVar("Answer")
T = TypeVar("T")


GRACE_S: Final = 30.0
"""For actors to end by themselves: commands that are on their way are decided, and checkpoints are written."""

_INTERRUPTED_GRACE_S: Final = 1.5
"""... of a program that was interrupted: it should be gone within five seconds, with Ray. What was acknowledged is on
the disk. A checkpoint that was not written makes the next start read more of the log."""


_open_here: weakref.WeakSet[Operations] = weakref.WeakSet()
"""The runtimes and connections of this process."""


def _disown_in_child() -> None:
    """In a forked child: nothing that the parent has open works here. No thread of it, and so no event loop and no
    connection, exists in the child, and LMDB forbids what it has open. So raise an error instead of waiting without
    end."""
    for verbs in list(_open_here):
        if verbs._running is not None:
            verbs._running = None
            what = f"process {os.getpid()} was forked from process {os.getppid()}, which has this runtime open"
            remedy = 'connect to its system in the child, or start it with multiprocessing.get_context("spawn")'
            verbs._why_not_running = f"{what} and alone can use it; {remedy}"


os.register_at_fork(after_in_child=_disown_in_child)


def grace_of(kind: type[BaseException] | None) -> float:
    """How long actors may take to end, in seconds, in a block that is left because of an exception of this kind."""
    interrupted = kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit, asyncio.CancelledError))
    return _INTERRUPTED_GRACE_S if interrupted else GRACE_S


class Operations:
    """A running system, as a program uses it: what `Runtime` and `Connection` have in common. `async with` starts and
    stops it.

    Write it where a function takes either of the two and needs more than `Gateway` has. Every operation raises
    `CallerError` while the system is not started, and `Unavailable` where nothing answers in time.

    Example:
        async def balance_of(bank: Operations, account: str) -> int:
            return (await bank.state_at(Account, account)).balance
    """

    def __init__(self, why_not_running: str) -> None:
        self._why_not_running = why_not_running
        self._running: System | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """On which it was started."""
        self._thread_name = ""
        self._secret: tuple[object, bytes] = (None, b"")
        """The owner of the tokens, and the secret that they are signed with."""
        _open_here.add(self)
        self._subscriptions = Subscriptions()

    def __reduce__(self) -> NoReturn:
        """It belongs to this process. A fingerprint of a handler that reaches it counts it by its type."""
        raise TypeError(f"a {type(self).__name__} belongs to the process that started it and cannot be pickled")

    async def start(self) -> Self:
        """Return once commands and queries are answered."""
        running = self._made()
        try:
            await running.start()
        except BaseException as error:
            await asyncio.shield(running.stop(grace_of(type(error))))
            raise
        self._loop, self._thread_name = asyncio.get_running_loop(), threading.current_thread().name
        self._running = running
        return self

    async def stop(self) -> None:
        """Stop what `start` has started. Stopping twice is allowed."""
        await self._stop(GRACE_S)

    async def _stop(self, grace_s: float) -> None:
        if self._loop is not None and not self._loop.is_closed():  # else there is nowhere else to stop it
            self._check_loop()
        running, self._running = self._running, None
        if running is not None:
            self._subscriptions.close()
            await asyncio.shield(running.stop(grace_s))

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        await self._stop(grace_of(kind))

    def _made(self) -> System:
        """What `start` is to start. Raises `CallerError` if that is done already."""
        raise NotImplementedError

    async def execute(
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
        """Have the aggregate decide a command. Returns once its events are fsynced.

        Raises `Rejected`, `Conflict`, `HandlerFailed`, `InvalidMessage` and the other `CallerError`s: nothing was
        stored. Raises `Unavailable` after `timeout_s` (seconds): unknown whether it happened, and the same `command_id`
        may be sent again, for it takes effect at most once. until: wait too until every replica of these projections
        shows it; else `NotYetVisible`, which has the `receipt`: the command succeeded. decisive: a `Rejected` is stored
        under the `command_id` before it is raised, and every repeat of that id gets the same one, whatever has changed
        since. events: the receipt carries the events (`receipt.events`), which are read from the log for it; use it
        where what was decided is needed, such as the number of an invoice.
        """
        if not isinstance(events, bool):
            raise InvalidMessage("events", f"is {shown(events)}", "give True or False")
        envelope = Envelope(
            aggregate, id, command, command_id, expected_version, correlation_id, causation_id, decisive
        )
        client = self._client
        outcome = await (
            client.send(envelope, timeout_s) if until is None else client.send_until(envelope, until, timeout_s)
        )
        if isinstance(outcome, RayfoldError):
            raise outcome
        return outcome._replace(carried=tuple(await self.events_of(outcome))) if events else outcome

    async def events_of(self, receipt: Receipt) -> list[Event]:
        """The events of the command that got this receipt, in order, read from the log; none if it had no events. Also
        of a command that was sent again, and by another program.

        One that the classes of this program cannot read is an `UnreadableEvent`. Raises `InvalidMessage` for a receipt
        of another store, `Unavailable` while the node that has the log is gone, and `Damaged`.
        """
        return await self._past.events_of(receipt)

    def execute_all(
        self,
        envelopes: Iterable[Envelope] | AsyncIterable[Envelope],
        *,
        in_flight: int = 1024,
        timeout_s: float | None = None,
    ) -> AsyncIterator[tuple[Envelope, Outcome]]:
        """Execute many commands, `in_flight` at a time; yields each with its outcome, in the order they came, as soon
        as it is known, whatever the source does. The source may be asynchronous. Another one is iterated on a thread of
        its own, unless it is a list or the like, so it may be slow, wait, and call a `BlockingRuntime`. What it raises
        is raised when all outcomes before it have been returned.

        Outcomes are values: a `Receipt`, or the error that `execute` would have raised. The order of the commands to
        one aggregate is kept. This is the fast way: batches form by themselves.

        A command that could not be sent (`Unavailable` at once, as when its partition's node is gone, or `Overloaded`)
        takes those behind it to the same aggregate with it, until its outcome was returned: end `envelopes` there, send
        again what was `Unavailable` and go on, and the order is kept.
        """
        return _OneByOne(self._client.send_all(envelopes, in_flight, timeout_s))

    async def ask(
        self,
        projection: type[Projection],
        query: Query[Answer],
        *,
        after: After | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Ask a read model. With `after=receipt` (or several, positions, a session) the answer includes that.

        Raises `NotYetVisible` if no replica has come that far in time (the write stands), `Unavailable` if none
        answers, and `HandlerFailed` if a handler of the projection raised.
        """
        answer: Answer | RayfoldError = await self._client.ask(projection, query, after, timeout_s)
        if isinstance(answer, RayfoldError):
            raise answer
        return answer

    def ask_all(
        self,
        projection: type[Projection],
        queries: Iterable[Query[Answer]],
        *,
        after: After | None = None,
        in_flight: int = 4096,
        timeout_s: float | None = None,
    ) -> AsyncIterator[tuple[Query[Answer], Answer | RayfoldError]]:
        """Ask many queries, `in_flight` at a time; yields each with its answer, in the order they came.

        Answers are values: what `ask` would have returned, or the error that it would have raised.
        """
        return _OneByOne(self._client.ask_all(projection, queries, after, in_flight, timeout_s))

    async def caught_up(self, *projections: type[Projection], timeout_s: float | None = None) -> None:
        """Return once everything committed up to now is visible in every replica of these projections, or of all.

        Raises `NotYetVisible` at the deadline, and at once what has stopped a projection, as `ask` would raise it.
        """
        client = self._client
        limit_s, began_s = client.timeout_s(timeout_s), time.monotonic()
        try:
            heads = await asyncio.wait_for(self.heads(), limit_s)
        except TimeoutError as error:
            if isinstance(error, RayfoldError):
                raise
            raise Unavailable(
                "the partitions", f"they did not report the ends of their logs within {limit_s:g} s"
            ) from None
        left_s = began_s + limit_s - time.monotonic()
        await client.everywhere(projections, heads, max(left_s, 0.001))

    def session(self, token: str | None = None) -> Session:
        """Read your own writes, and never read backwards: see `Session`. With the `token` of another session, of this
        store, what that one has written and seen is seen too. Raises `InvalidMessage` for a token that is not."""
        return Session(self, token)

    async def replica(self, projection: type[P]) -> Replica[P]:
        """A read model of your own in this process, asked without Ray; see `docs/consistency.md`.

        Returns once it has read the logs up to now. Yours to close: it only reads, and outlives `stop`. Raises
        `CallerError` for a projection with parts or with a store other than memory, what stops the projection, and
        `StoreError`.
        """
        checked_class("replica", projection, Projection)
        return await asyncio.to_thread(Replica, self._store, projection, self._here.catalogue)

    async def scale(self, projection: type[Projection], *, replicas: int) -> None:
        """Have this many replicas of a projection (of each of its parts). Returns once the new ones serve, which is
        when they have caught up, or once those that are too many have ended; queries are answered meanwhile.

        Raises `InvalidMessage` for a number that cannot be, `CallerError` while another change of it is under way.
        """
        await self._here.scale(checked_class("scale", projection, Projection), replicas)

    def rebuild(self, projection: type[Projection]) -> Rebuild:
        """Build a read model anew from the log, beside the one that serves and goes on serving until the new one has
        caught up and takes over. For a class of a higher version, or the same one.

        What comes back can be awaited, asked for its progress, and cancelled. Raises `CallerError` for an older
        version, and while another change of the projection is under way.
        """
        return self._here.rebuild(checked_class("rebuild", projection, Projection))

    async def rebuild_stream(self, projection: type[Projection], aggregate: type[Aggregate], id: str) -> None:
        """Have a read model forget what one aggregate has contributed to it, and apply the events of that aggregate
        again. Needs a `@forget` method; raises `DefinitionError` if there is none."""
        checked_class("rebuild_stream", projection, Projection)
        await self._here.rebuild_stream(projection, checked_class("rebuild_stream", aggregate, Aggregate), id)

    async def retry_quarantined(self, projection: type[Projection]) -> tuple[Quarantined, ...]:
        """Apply the events again that are in quarantine because a handler failed on them. Returns those that failed
        again, which stay there; `status` lists them too."""
        return await self._here.retry_quarantined(checked_class("retry_quarantined", projection, Projection))

    async def heads(self) -> dict[int, int]:
        """Partition -> position of its last committed event: pass it as `after=` to see everything up to now."""
        return await self._here.heads()

    async def status(self) -> Status:
        """What runs where, whether it answers, and how far it is behind: processes, epochs, positions, lag.

        What does not answer within five seconds is shown with `alive=False` and an unknown lag, never with a lag of 0.
        """
        return await self._here.status()

    async def effects(self, *, state: CallState | None = None) -> list[EffectCall]:
        """The calls to the outside that wait for people, with the reason: those whose end is `unknown`, or all. Of each
        partition that answers the first 200; `status` counts them.

        `Settle`, `Retry` and `Skip` are commands to them. Raises `InvalidMessage` for a state that there is not.
        """
        if state not in (None, "unknown", "parked"):
            raise InvalidMessage("effects", f"state={shown(state)} is none", 'give "unknown", "parked" or None')
        return [one for one in effect_calls(await self.status()) if state in (None, one.state)]

    async def switch_effects(self, effects: type[Aggregate], on: bool, *, by: str, reason: str) -> None:
        """Have the calls of this `Effects` class be made, or wait, in all partitions, from now on and after restarts.
        Attempts that have begun go on. A restored store begins with all switched off. Stored with the name and the
        reason. Raises what `execute` does; it may be done again.
        """
        checked_class("switch_effects", effects, Aggregate)
        left = set(await self.heads())
        for number in range(len(left) * SWITCHES_MAX):
            switch = Switch(on=on, by=by, reason=reason)
            left.discard((await self.execute(effects, f"{SWITCHES}{number}", switch)).partition)
            if not left:
                return
        raise Unavailable("effects", f"partitions {sorted(left)} have no instance that switches their calls")

    async def health(self, timeout_s: float = HEALTH_TIMEOUT_S) -> Health:
        """What serves this program now, what does not, and why: for the `/healthz` of a web service. Every partition
        and every projection is asked, at once; takes some milliseconds, and `timeout_s` at most. Raises nothing but
        `CallerError`, for a `timeout_s` that is not a positive number."""
        timeout_s = checked_timeout(timeout_s)
        if (running := self._running) is None:
            return nothing_runs(self._why_not_running)
        self._check_loop()
        return await running.health(timeout_s)

    async def history(
        self,
        aggregate: type[Aggregate],
        id: str,
        *,
        from_version: int = 1,
        to_version: int | None = None,
        unreadable: Unreadable = "yield",
    ) -> list[tuple[Event, Recorded]]:
        """The events of an aggregate, in order, each with its place; both versions are included, and the last one is
        the default end. Read from the log; no actor is started or slowed.

        An event that the classes of this program cannot read, because it is of a newer release, is an `UnreadableEvent`
        at its place, with the stored fields; with `unreadable="raise"` it is an `UnknownEvent` with its place.

        Raises `NotInHistory` for an aggregate without events and for versions beyond its last (only the one after it
        is an empty list), `InvalidMessage` for over 100,000 events at once, `UnknownEvent`, `Damaged`.
        """
        return await self._past.history(aggregate, id, from_version, to_version, unreadable)

    async def state_at(
        self, aggregate: type[A], id: str, *, version: int | None = None, at: datetime | None = None
    ) -> A:
        """An aggregate as it was after `version`, or at a time (aware), or as it is. A copy, to be read.

        The state at a time is the one after the last event that was recorded at or before it, by the writer's clock;
        if that clock went back, the later event decides. Raises `NotInHistory`, `InvalidMessage`, `UnknownEvent`,
        `Damaged`, and `HandlerFailed` if an `@evolve` raises.
        """
        return await self._past.state_at(aggregate, id, version, at)

    async def as_of(
        self,
        projection: type[Projection],
        place: Receipt | datetime | Mapping[int, int],
        query: Query[Answer],
        *,
        timeout_s: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Answer:
        """Ask a projection as of a place in the past, whether this runtime runs that projection or not.

        place: partition -> position (a partition that is not named has contributed nothing yet); or an aware time, up
        to which each partition's events count; or a receipt, which is its own position and, in other partitions, the
        time at which it was recorded. The log is folded into a throw-away model in a Ray task, one for each part that
        has to be asked. progress: called with events done and events in all.

        Raises `NotInHistory` for a position that a log lacks, `Unavailable` after `timeout_s` (default 600), and what
        `ask` raises.
        """
        checked_class("as_of", projection, Projection)
        checked_callable("progress", progress)
        return await self._past.as_of(projection, place, query, timeout_s, progress)

    async def anchor(self) -> Anchor:
        """What each log ends with now: head and link, to be signed and kept elsewhere (docs/anchors.md). Only reads.

        Raises `Unavailable` for a partition whose home is gone, `Damaged`, `StorageFailed`.
        """
        return await asyncio.to_thread(take_anchor, self._here.store)

    async def verify(self) -> Report:
        """Check every byte of the logs: structure, checksums, hash chains, indexes; as `rayfold verify` does. Of a
        system on several nodes each node checks its own. Raises `Unavailable` for a partition whose home is gone."""
        return await self._here.verify()

    async def move(self, partition: int, node: str) -> MoveResult:
        """Have a partition of a system on several nodes at home on this node (a name or an id); commands wait for some
        tenths of a second, once most of its log is copied.

        Raises `UnknownName`, `CallerError` for a node that is down or drained and for a system on one machine,
        `Unavailable` if a node is lost on the way: then the partition is at its old home or at its new one.
        """
        return await self._here.move(partition, node)

    async def rebalance(self) -> list[MoveResult]:
        """Move as few partitions as it takes for every node that is up to have equally many, give or take one."""
        return await self._here.rebalance()

    async def drain(self, node: str, *, drained: bool = True) -> list[MoveResult]:
        """Have a node be home to nothing, so that it may leave; with `drained=False` it may be used again, which the
        next `rebalance` does. Raises what `move` does, and `CallerError` for the last node that may be used."""
        return await self._here.drain(node, drained)

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
    ) -> Subscription[Chosen]: ...
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
    ) -> Subscription[Event]: ...
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
    ) -> Subscription[Event]:
        """The events from a place on, and then each as it comes: `async for event, recorded in bank.subscribe():`.

        from_: "beginning", "end", positions by partition, or a receipt (and what came with or before it in time is left
        out). types: event classes or names. streams: an aggregate class, a list of classes, `StreamId`s and texts like
        "Account/alice", or a function of a `StreamId`. name: where it was acknowledged is kept under this name, and the
        next one of this name goes on there; `from_` counts for the first only. member, of: this one of so many shares
        the work by stream, or by what `key` makes of event and place. acknowledge: "on next", an event is when the next
        is asked for, and after a crash those of the last 0.1 s come again; or "by hand", with `acknowledge()`.
        unreadable: what becomes of an event that the classes of this program cannot read, because it is of a newer
        release: "raise" an `UnknownEvent` with its place, after everything before it and each time the same
        subscription is asked, so that nothing is acknowledged unread; or "yield" an `UnreadableEvent` in its place.

        Raises `UnknownName`, `InvalidId`, `InvalidMessage`, `NotInHistory`, `SubscriptionInUse`, `Unavailable`,
        `StoreError`.
        """
        wanted = SubscriptionOptions(name, from_, types, streams, member, of, key, acknowledge, unreadable)
        running = self._active  # nothing of it needs the event loop: a blocking caller's thread may have one of its own
        return self._subscriptions.subscribe(running.store, running.catalogue, wanted, running)

    async def subscriptions(self) -> list[SubscriptionStatus]:
        """The subscriptions of a name that this store has: how far each is, and who has it open.

        Raises `Unavailable` for a partition that does not answer, `Damaged`.
        """
        store, calls = self._store, self._here.partition_calls
        with contextlib.closing(calls):
            return await asyncio.to_thread(subscriptions_of, calls, locks_of(store), store.partitions)

    async def forget_subscription(self, name: str) -> bool:
        """Forget how far a subscription is: the next one of its name is a new one. False if there is none.

        Raises `SubscriptionInUse` while it is open, `InvalidId`, `Unavailable`: then forget it again.
        """
        store, calls = self._store, self._here.partition_calls
        with contextlib.closing(calls):
            return await asyncio.to_thread(forget_subscription, calls, locks_of(store), name, store.partitions)

    async def sinks(self) -> list[KeptSink]:
        """The sinks that this store knows: whether each is switched on, and how far it is. Why one does not publish is
        in `status().sinks`. Raises `Unavailable` for a partition that does not answer."""
        store, calls = self._store, self._here.partition_calls
        with contextlib.closing(calls):
            return await asyncio.to_thread(kept_sinks, calls, store.partitions)

    async def switch_sink(self, name: str, on: bool, *, by: str, reason: str) -> None:
        """Have a sink publish, or not, from now on and after restarts; within two seconds. A restored store begins with
        all switched off. Stored with the name and the reason. Raises `UnknownName` for one that has never begun,
        `InvalidMessage`, `Unavailable`."""
        store, calls = self._store, self._here.partition_calls
        with contextlib.closing(calls):
            await asyncio.to_thread(switch_sink, calls, store.partitions, name, on, by, reason)

    async def skip_event(self, sink: str, event: str, *, by: str, reason: str) -> None:
        """Have a sink leave out an event that its target never takes, so that the ones behind it are published; within
        two seconds, permanently. Stored with the name and the reason. `event`: its id, as `status().sinks` has it in
        `unconfirmed`; no other event can be left out.

        Raises `UnknownName` for a sink that this system has not, `InvalidMessage`, `Unavailable`.

        Example:
            await bank.skip_event("mails", "Account/alice:7", by="ada", reason="the address is gone")
        """
        running = {one.name: one for one in (await self.status()).sinks}
        if sink not in running:
            raise UnknownName("sink", sink, list(running))
        store, calls, tried = self._store, self._here.partition_calls, running[sink].unconfirmed
        with contextlib.closing(calls):
            await asyncio.to_thread(skip_event, calls, store.partitions, sink, tried, event, by, reason)

    @overload
    def events(
        self,
        *,
        types: type[Chosen] | Sequence[type[Chosen]],
        streams: Streams | None = ...,
        since: Bound | None = ...,
        until: Bound | None = ...,
        unreadable: Literal["raise"] | None = ...,
    ) -> Events[Chosen]: ...
    @overload
    def events(
        self,
        *,
        types: Types | None = ...,
        streams: Streams | None = ...,
        since: Bound | None = ...,
        until: Bound | None = ...,
        unreadable: Unreadable | None = ...,
    ) -> Events[Event]: ...
    def events(
        self,
        *,
        types: Types | None = None,
        streams: Streams | None = None,
        since: Bound | None = None,
        until: Bound | None = None,
        unreadable: Unreadable | None = None,
    ) -> Events[Event]:
        """The stored events in bulk, up to now: `async for event, recorded in bank.events():`, which ends.

        One partition after the other, each in the order of its positions, from `since` (left out) to `until`
        (included): positions by partition, an aware time, or a receipt, as for `as_of`. The default is from the
        beginning to what was committed at the call. types, streams: as for `subscribe`; streams that are named one by
        one are found by the index, without reading the whole log. unreadable: "yield" an `UnreadableEvent` for an event
        that the classes of this program cannot read, or "raise" an `UnknownEvent` with its place; the default is
        "raise" with `types=`, else "yield". A page is in memory, whatever the size of the log. `positions` of what
        comes back is where it is, as the `since=` of a later call.

        Raises `UnknownName`, `InvalidId`, `InvalidMessage`, `NotInHistory`, `Unavailable`, `StoreError`.
        """
        wanted = EventOptions(types, streams, since, until, unreadable)
        running = self._active  # as for `subscribe`
        return events_of_store(running.store, running.catalogue, wanted)

    @property
    def store(self) -> Store:
        """The store of the system. Raises `CallerError` where it is spread over nodes, since no process has all of it,
        and where it is in memory."""
        if isinstance(store := self._store, Store):
            return store
        if isinstance(store, ClusterStore):
            raise CallerError(f"the store {store.name} is spread over {len(store.map.names)} nodes; status() shows how")
        raise no_directory()

    @property
    def _store(self) -> AnyStore:
        return self._active.store

    @property
    def _past(self) -> TimeTravel:
        return TimeTravel(self._store, self._here.catalogue)

    def _token_secret(self) -> bytes:
        """What session tokens are signed with: that of the first log. Raises `Unavailable` if its home is gone."""
        if self._secret[0] is not self._active:
            with contextlib.closing(self._store.open_reader(0)) as reader:
                self._secret = self._active, reader.secret()
        return self._secret[1]

    @property
    def _client(self) -> Client:
        return self._here.client

    @property
    def _here(self) -> System:
        """The running system, for what is done on its event loop."""
        self._check_loop()
        return self._active

    def _check_loop(self) -> None:
        """Raises `CallerError` on another event loop than the one this was started on. Without one it passes: Python
        itself raises the error then."""
        loop = asyncio._get_running_loop()
        if loop is self._loop or loop is None or self._running is None:
            return
        ended = ", which is closed" if self._loop is None or self._loop.is_closed() else ""
        here = threading.current_thread().name
        raise CallerError(
            f"this runtime was started on another event loop, in thread {self._thread_name!r}{ended}, and is used on "
            f"that one alone; nothing was sent from thread {here!r}. Use a BlockingRuntime, which any thread may call, "
            "or asyncio.run_coroutine_threadsafe(..., loop)"
        )

    @property
    def _active(self) -> System:
        if self._running is None:
            raise CallerError(self._why_not_running)
        return self._running


class _OneByOne(AsyncIterator[T]):
    """What is in the pages, one after the other; a blocking caller takes the pages themselves."""

    def __init__(self, pages: AsyncIterator[list[T]]) -> None:
        self.pages = pages
        self._items = _items_of(pages)

    def __aiter__(self) -> AsyncIterator[T]:
        return self._items

    async def __anext__(self) -> T:
        return await anext(self._items)

    async def aclose(self) -> None:
        """As that of a generator."""
        await self._items.aclose()


async def _items_of(pages: AsyncIterator[list[T]]) -> AsyncGenerator[T]:
    try:
        async for page in pages:
            for one in page:
                yield one
    finally:
        with contextlib.suppress(RuntimeError):  # it is being closed already
            await pages.aclose()  # type: ignore[attr-defined]
