"""The blocking API: what `Runtime`, `Session` and the other asynchronous classes are, without `await`.

Beside step [1]. Written by `tools/generate_blocking.py` (`make blocking`) from `operations.py`, `session.py` and
`runtime.py`: edit those. `portal.py` has what waits. Ctrl-C while a call waits is an ordinary `KeyboardInterrupt`, and
leaving the `with` stops everything.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar, overload
from uuid import UUID

from ...runtime.arguments import read_here
from ...runtime.backup.anchor import Anchor
from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.messages import Command, Event, Query
from ...runtime.domain.projection import Projection
from ...runtime.domain.recorded import Recorded
from ...runtime.encoding.envelope import Envelope
from ...runtime.encoding.outcome import Outcome
from ...runtime.errors import RayfoldError
from ...runtime.feed.event_filter import Key, Streams, Types
from ...runtime.feed.events import BlockingEvents
from ...runtime.feed.log_range import Bound
from ...runtime.feed.named_subscriptions import SubscriptionStatus
from ...runtime.feed.subscription import Acknowledging, BlockingSubscription, Chosen, From
from ...runtime.processes.since import Since
from ...runtime.read.positions import After
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.read.unreadable import Unreadable
from ...runtime.receipt import Receipt
from ...runtime.sinks.kept_sinks import KeptSink
from ...runtime.sinks.sink import Sink
from ...runtime.store.report import Report
from ...runtime.store.store import Store
from ...runtime.stream import ANY
from ..client.client import Until
from ..cluster.local import LocalCluster
from ..nodes.move_result import MoveResult
from ..observe.effect_calls import CallState, EffectCall
from ..observe.status import Status
from ..packaging.application import Application, EffectClasses, Processes
from ..settings import Settings
from .portal import BlockingRebuild, Portal, SessionPortal
from .replica import Replica
from .runtime import Runtime

__all__ = ["BlockingOperations", "BlockingRebuild", "BlockingRuntime", "BlockingSession"]

A = TypeVar("A", bound=Aggregate)
P = TypeVar("P", bound=Projection)
Answer = TypeVar("Answer")


class BlockingOperations(Portal):
    """What `Operations` is, without `await`: what `BlockingRuntime` and `BlockingConnection` have in common. Safe from
    several threads.

    Example:
        def balance_of(bank: BlockingOperations, account: str) -> int:
            return bank.state_at(Account, account).balance
    """

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
        """Have the aggregate decide a command. See `Operations.execute`."""
        until = read_here(until)
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
        """The events of the command that got this receipt, in order, read from the log; none if it had no events.
        See `Operations.events_of`."""
        return self._wait(self._runtime.events_of(receipt))

    def execute_all(
        self,
        envelopes: Iterable[Envelope] | AsyncIterable[Envelope],
        *,
        in_flight: int = 1024,
        timeout_s: float | None = None,
    ) -> Iterator[tuple[Envelope, Outcome]]:
        """Execute many commands, `in_flight` at a time; yields each with its outcome, in the order they came, as
        soon as it is known, whatever the source does. See `Operations.execute_all`."""
        yield from self._pages(lambda: self._runtime.execute_all(envelopes, in_flight=in_flight, timeout_s=timeout_s))

    def ask(
        self,
        projection: type[Projection],
        query: Query[Answer],
        *,
        after: After | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Ask a read model. See `Operations.ask`."""
        after = read_here(after)
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
        """Ask many queries, `in_flight` at a time; yields each with its answer, in the order they came. See
        `Operations.ask_all`."""
        after = read_here(after)
        yield from self._pages(
            lambda: self._runtime.ask_all(projection, queries, after=after, in_flight=in_flight, timeout_s=timeout_s)
        )

    def caught_up(self, *projections: type[Projection], timeout_s: float | None = None) -> None:
        """Return once everything committed up to now is visible in every replica of these projections, or of all.
        See `Operations.caught_up`."""
        return self._wait(self._runtime.caught_up(*projections, timeout_s=timeout_s))

    def session(self, token: str | None = None) -> BlockingSession:
        """Read your own writes, and never read backwards: see `Session`. See `Operations.session`."""
        return BlockingSession(self._runtime.session(token), self._wait)

    def replica(self, projection: type[P]) -> Replica[P]:
        """A read model of your own in this process, asked without Ray; see `docs/consistency.md`. See
        `Operations.replica`."""
        return self._wait(self._runtime.replica(projection))

    def scale(self, projection: type[Projection], *, replicas: int) -> None:
        """Have this many replicas of a projection (of each of its parts). See `Operations.scale`."""
        return self._wait(self._runtime.scale(projection, replicas=replicas))

    def rebuild(self, projection: type[Projection]) -> BlockingRebuild:
        """Build a read model anew from the log, beside the one that serves and goes on serving until the new one
        has caught up and takes over. See `Operations.rebuild`."""
        return BlockingRebuild(self._here(lambda: self._runtime.rebuild(projection)), self._wait)

    def rebuild_stream(self, projection: type[Projection], aggregate: type[Aggregate], id: str) -> None:
        """Have a read model forget what one aggregate has contributed to it, and apply the events of that aggregate
        again. See `Operations.rebuild_stream`."""
        return self._wait(self._runtime.rebuild_stream(projection, aggregate, id))

    def retry_quarantined(self, projection: type[Projection]) -> tuple[Quarantined, ...]:
        """Apply the events again that are in quarantine because a handler failed on them. See
        `Operations.retry_quarantined`."""
        return self._wait(self._runtime.retry_quarantined(projection))

    def heads(self) -> dict[int, int]:
        """Partition -> position of its last committed event: pass it as `after=` to see everything up to now. See
        `Operations.heads`."""
        return self._wait(self._runtime.heads())

    def status(self) -> Status:
        """What runs where, whether it answers, and how far it is behind: processes, epochs, positions, lag. See
        `Operations.status`."""
        return self._wait(self._runtime.status())

    def effects(self, *, state: CallState | None = None) -> list[EffectCall]:
        """The calls to the outside that wait for people, with the reason: those whose end is `unknown`, or all. See
        `Operations.effects`."""
        return self._wait(self._runtime.effects(state=state))

    def switch_effects(self, effects: type[Aggregate], on: bool, *, by: str, reason: str) -> None:
        """Have the calls of this `Effects` class be made, or wait, in all partitions, from now on and after
        restarts. See `Operations.switch_effects`."""
        return self._wait(self._runtime.switch_effects(effects, on, by=by, reason=reason))

    def history(
        self,
        aggregate: type[Aggregate],
        id: str,
        *,
        from_version: int = 1,
        to_version: int | None = None,
        unreadable: Unreadable = "yield",
    ) -> list[tuple[Event, Recorded]]:
        """The events of an aggregate, in order, each with its place; both versions are included, and the last one
        is the default end. See `Operations.history`."""
        return self._wait(
            self._runtime.history(
                aggregate, id, from_version=from_version, to_version=to_version, unreadable=unreadable
            )
        )

    def state_at(self, aggregate: type[A], id: str, *, version: int | None = None, at: datetime | None = None) -> A:
        """An aggregate as it was after `version`, or at a time (aware), or as it is. See `Operations.state_at`."""
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
        """Ask a projection as of a place in the past, whether this runtime runs that projection or not. See
        `Operations.as_of`."""
        return self._wait(self._runtime.as_of(projection, place, query, timeout_s=timeout_s, progress=progress))

    def anchor(self) -> Anchor:
        """What each log ends with now: head and link, to be signed and kept elsewhere (docs/anchors.md). See
        `Operations.anchor`."""
        return self._wait(self._runtime.anchor())

    def verify(self) -> Report:
        """Check every byte of the logs: structure, checksums, hash chains, indexes; as `rayfold verify` does. See
        `Operations.verify`."""
        return self._wait(self._runtime.verify())

    def move(self, partition: int, node: str) -> MoveResult:
        """Have a partition of a system on several nodes at home on this node (a name or an id); commands wait for
        some tenths of a second, once most of its log is copied. See `Operations.move`."""
        return self._wait(self._runtime.move(partition, node))

    def rebalance(self) -> list[MoveResult]:
        """Move as few partitions as it takes for every node that is up to have equally many, give or take one. See
        `Operations.rebalance`."""
        return self._wait(self._runtime.rebalance())

    def drain(self, node: str, *, drained: bool = True) -> list[MoveResult]:
        """Have a node be home to nothing, so that it may leave; with `drained=False` it may be used again, which
        the next `rebalance` does. See `Operations.drain`."""
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
        """The events from a place on, and then each as it comes: `for event, recorded in bank.subscribe():`. See
        `Operations.subscribe`."""
        return self._runtime._subscriptions.blocking(
            self._runtime.subscribe(
                name,
                from_=from_,
                types=types,
                streams=streams,
                member=member,
                of=of,
                key=key,
                acknowledge=acknowledge,
                unreadable=unreadable,
            )
        )

    def subscriptions(self) -> list[SubscriptionStatus]:
        """The subscriptions of a name that this store has: how far each is, and who has it open. See
        `Operations.subscriptions`."""
        return self._wait(self._runtime.subscriptions())

    def forget_subscription(self, name: str) -> bool:
        """Forget how far a subscription is: the next one of its name is a new one. See
        `Operations.forget_subscription`."""
        return self._wait(self._runtime.forget_subscription(name))

    def sinks(self) -> list[KeptSink]:
        """The sinks that this store knows: whether each is switched on, and how far it is. See `Operations.sinks`."""
        return self._wait(self._runtime.sinks())

    def switch_sink(self, name: str, on: bool, *, by: str, reason: str) -> None:
        """Have a sink publish, or not, from now on and after restarts; within two seconds. See
        `Operations.switch_sink`."""
        return self._wait(self._runtime.switch_sink(name, on, by=by, reason=reason))

    def skip_event(self, sink: str, event: str, *, by: str, reason: str) -> None:
        """Have a sink leave out an event that its target never takes, so that the ones behind it are published;
        within two seconds, permanently. See `Operations.skip_event`."""
        return self._wait(self._runtime.skip_event(sink, event, by=by, reason=reason))

    @overload
    def events(
        self,
        *,
        types: type[Chosen] | Sequence[type[Chosen]],
        streams: Streams | None = ...,
        since: Bound | None = ...,
        until: Bound | None = ...,
        unreadable: Literal["raise"] | None = ...,
    ) -> BlockingEvents[Chosen]: ...

    @overload
    def events(
        self,
        *,
        types: Types | None = ...,
        streams: Streams | None = ...,
        since: Bound | None = ...,
        until: Bound | None = ...,
        unreadable: Unreadable | None = ...,
    ) -> BlockingEvents[Event]: ...

    def events(
        self,
        *,
        types: Types | None = None,
        streams: Streams | None = None,
        since: Bound | None = None,
        until: Bound | None = None,
        unreadable: Unreadable | None = None,
    ) -> BlockingEvents[Event]:
        """The stored events in bulk, up to now: `for event, recorded in bank.events():`, which ends. See
        `Operations.events`."""
        return self._runtime.events(
            types=types, streams=streams, since=since, until=until, unreadable=unreadable
        ).blocking()

    @property
    def store(self) -> Store:
        """The store of the system. See `Operations.store`."""
        return self._runtime.store


class BlockingSession(SessionPortal):
    """A session of a `BlockingRuntime`; see `Session`.

    Example:
        with bank.session() as me:
            me.execute(Account, "alice", Deposit(amount=5))
            me.ask(Balances, BalanceOf(account="alice"))
    """

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position up to which everything is seen from now on. See `Session.positions`."""
        return self._session.positions

    def token(self) -> str:
        """The positions as text, safe in URLs and headers, for `Runtime.session` of any runtime on this store: hand
        it to an HTTP client, and the next request sees what this one did. See `Session.token`."""
        return self._session.token()

    def join(self, after: After) -> None:
        """From now on see this too: a receipt, several, positions, or another session. See `Session.join`."""
        after = read_here(after)
        return self._here(lambda: self._session.join(after))

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
        """`Runtime.execute`, which every later answer in this session includes. See `Session.execute`."""
        until = read_here(until)
        return self._wait(
            self._session.execute(
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

    def ask(self, projection: type[Projection], query: Query[Answer], *, timeout_s: float | None = None) -> Answer:
        """`Runtime.ask`, of a replica that has all that this session has written and seen. See `Session.ask`."""
        return self._wait(self._session.ask(projection, query, timeout_s=timeout_s))

    def ask_replica(self, replica: Replica[Any], query: Query[Answer], *, timeout_s: float | None = None) -> Answer:
        """`Replica.ask` of an embedded replica; if that has to wait, it does so in a thread. See
        `Session.ask_replica`."""
        return self._wait(self._session.ask_replica(replica, query, timeout_s=timeout_s))


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
        processes: Processes = (),
        since: Since | None = None,
        effects: EffectClasses = (),
        sinks: Sequence[Sink] = (),
        linger: bool | float = False,
    ) -> None:
        super().__init__(
            Runtime(
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
                processes=processes,
                since=since,
                effects=effects,
                sinks=sinks,
                linger=linger,
            )
        )
