"""CommandRouter: from a packed command to the actor that decides it, and back with the outcome.

Step [2] of the write path. Before it: the client packs ([1]). After it: the actor of the partition, or of the
aggregate itself ([3]).

One lane (`runtime/batcher.py`) leads to each partition, and one to each own actor that is known. A lane has two
batches in flight, so that the actor decides one while we make the next. When one is lost, gets no answer, or sends
commands elsewhere, the actor refuses the one behind it (`request_order.py`), we wait until nothing is in flight, and
send everything that was not answered again in order, with backoff and jitter, until its deadline. So the order of one
caller's commands to one aggregate is kept through losses and moves, and the same ids make sure that nothing takes
effect twice.

An aggregate with a long history is loaded aside by its partition (`runtime/write/loading.py`), which answers `Later`
meanwhile. Its commands are set aside here, in order, and sent again after a pause; those to other aggregates go on. So
are those to an aggregate whose own actor has to be found by its name, on a thread, since Ray may take long for it.

Rules kept here: every command has a deadline, after which its caller is told `Unavailable`; what waits is bounded;
retries are made here and nowhere else (Ray's own would run a command again without anybody knowing).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any, Final, NamedTuple

from ...runtime.batcher import Batcher, commands_worth
from ...runtime.encoding.envelope import PackedCommand, join
from ...runtime.encoding.outcome import Later, Outcome, Redirect, decode_answer
from ...runtime.errors import Fenced, Overloaded, Unavailable
from ...runtime.own_random import OWN
from ...runtime.printable import printable_log
from ...runtime.stream import OLD_PLACEMENT, StreamId, partition_of
from ..cluster.rpc import aside
from ..settings import Settings
from .transport import PartitionTransport

__all__ = ["IN_FLIGHT_MAX", "CommandRouter"]

log = printable_log(__name__)

IN_FLIGHT_MAX = 2
"""Batches on their way to one actor: one that it works on, and one that is made and carried meanwhile."""

_ROUTES_MAX: Final = 1024
"""Own actors remembered: some times as many as live at once. A forgotten one is asked for at its partition again."""

_FOUND_AT_ONCE: Final = 64
"""Own actors that are looked up before their commands go on: less than a tenth of a second."""

_ASIDE_BYTES_MAX: Final = 64 << 20
"""Of all commands that are set aside for that; their number is bounded by `Settings.in_flight_max`."""

_BACKOFF_FIRST_S: Final = 0.02
_BACKOFF_MAX_S: Final = 0.5
_SWEEP_S: Final = 0.05
"""How precise deadlines are."""

_PRECISE_S: Final = 1.0
"""A command with a shorter limit has a timer of its own, and is not told later than it said."""


def _backoff_s(failures: int) -> float:
    """How long to wait after so many failures in a row: doubling, with jitter, so that clients spread out."""
    if not failures:
        return 0.0
    return min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2.0 ** min(failures, 10)) * OWN.uniform(0.5, 1.0)


class _Pending:
    """A command on its way, until its future has an outcome."""

    __slots__ = ("blob", "command_id", "deadline_s", "future", "stream")

    def __init__(self, packed: PackedCommand, blob: bytes, future: asyncio.Future[Outcome], deadline_s: float) -> None:
        self.command_id, self.stream = packed[:2]
        self.blob, self.future, self.deadline_s = blob, future, deadline_s


class _Destination:
    """An actor that executes commands, the lane and the way to it, and the batches in flight."""

    def __init__(
        self,
        partition: int,
        name: str,
        way: Callable[[_Destination], PartitionTransport],
        lane: Callable[[_Destination], Batcher[_Pending]],
    ) -> None:
        self.partition = partition
        self.name = name
        """Of an own actor; empty for a partition."""
        self.flights: dict[int, _Flight] = {}
        """By attempt, in the order they left."""
        self.held: dict[int, list[_Pending]] = {}
        """What came back unanswered, by attempt. While there is any, nothing leaves: order would be lost."""
        self.moved: dict[StreamId, str] = {}
        """Where the actor says that some aggregates live now."""
        self.loading: dict[StreamId, float] = {}
        """Aggregates that it is loading aside, and after how long to ask again."""
        self.failures = 0
        """In a row; sets the backoff."""
        self.again: asyncio.TimerHandle | None = None
        """What will send on what is held, when it has waited for long enough."""
        self.cut_off = False
        """Of an own actor: it was not lost, but this program's connection to the cluster was."""
        self.way = way(self)
        self.lane = lane(self)


class _Flight(NamedTuple):
    """One batch on its way."""

    batch: list[_Pending]
    timer: asyncio.TimerHandle


class CommandRouter:
    """Sends commands and resolves their futures. Lives on one event loop."""

    def __init__(
        self,
        partitions: Sequence[Any],
        actor_named: Callable[[str], Any],
        settings: Settings,
        placement: str = OLD_PLACEMENT,
        store_id: str = "",
    ) -> None:
        """`placement`: the rule by which the store places streams in partitions (`stream.partition_of`).

        `store_id`: its id, for the receipts."""
        self._placement, self._store_id = placement, store_id
        self._loop = asyncio.get_running_loop()
        self._actor_named = actor_named
        self._settings = settings
        self._client = os.urandom(16)
        self._attempts = 0
        self._partitions = [self._destination_of(actor, number, "") for number, actor in enumerate(partitions)]
        self._routes: dict[StreamId, _Destination] = {}
        """Aggregates that are known to live in an own actor, or did when last heard of."""
        self._lost: OrderedDict[str, None] = OrderedDict()
        """Own actors that we gave up. A partition that has not heard of it yet still sends us there."""
        self._aside: dict[StreamId, list[_Pending]] = {}
        """What waits for an aggregate that is being loaded, or whose own actor is being looked up, in order."""
        self._aside_bytes = 0
        self._sought: dict[StreamId, tuple[int, str]] = {}
        """Aggregates whose own actor is to be found: their partition, and its name."""
        self._looking: asyncio.Task[None] | None = None
        self._detached = 0
        """How often; what was found before counts no more."""
        self._pending: set[_Pending] = set()
        self._unavailable: dict[int, str] = {}
        """Partition -> why nothing reaches it: what is sent to it is refused at once, so that it takes no place from
        commands to others."""
        self._sweeping = False
        self._closed = False

    def replace(self, partition: int, actor: Any) -> None:
        """The partition is this actor from now on. What is on its way to the other one is sent again if it fails."""
        destination = self._partitions[partition]
        before, destination.way = destination.way, self._way(destination, actor, by_road=True)
        before.retire()
        destination.failures = 0
        if destination.again is not None:  # it was the other one that had to be waited for
            destination.again.cancel()
            destination.again = self._loop.call_later(0, self._send_again, destination)

    def detach(self, why: str) -> None:
        """Nothing reaches any actor until `replace` has named that of each partition anew, and `tell_unavailable` says
        that it may be used: what is submitted is refused at once with this reason. What is on its way is sent again
        then, or is `Unavailable` at its deadline."""
        self._unavailable = dict.fromkeys(range(len(self._partitions)), why)
        self._detached += 1
        routes = list(self._routes.values())
        for route in routes:
            route.cut_off = True
        for destination in [*self._partitions, *routes]:
            destination.way.close()
            for attempt in list(destination.flights):
                self._came_back(destination, attempt, None)
        for stream, route in list(self._routes.items()):
            if not route.held and not len(route.lane):
                del self._routes[stream]

    def tell_unavailable(self, unavailable: Mapping[int, str]) -> None:
        """These partitions, and no others, cannot be reached now: why."""
        self._unavailable = dict(unavailable)

    def reached(self) -> list[tuple[int, Any, str]]:
        """Each partition, its actor, and why nothing reaches it, if that is known."""
        return [(one.partition, one.way.actor, self._unavailable.get(one.partition, "")) for one in self._partitions]

    def submit(self, packed: PackedCommand, blob: bytes, timeout_s: float) -> asyncio.Future[Outcome]:
        """Send a command; the future gets its outcome, errors too as values. Raises `Overloaded` at once."""
        if len(self._pending) >= self._settings.in_flight_max:
            raise Overloaded("the client", self._settings.in_flight_max, "commands in flight")
        if self._closed:
            raise Unavailable(str(packed.stream), "the runtime is stopped")
        if self._unavailable and (why := self._why_not(packed.stream)):
            raise Unavailable(str(packed.stream), f"it was not sent: {why}")
        future: asyncio.Future[Outcome] = self._loop.create_future()
        pending = _Pending(packed, blob, future, self._loop.time() + timeout_s)
        if packed.stream in self._aside:
            self._put_aside(pending)
        else:
            self._destination(packed.stream).lane.put(pending, len(blob))
        self._pending.add(pending)
        if timeout_s < _PRECISE_S:
            self._loop.call_later(timeout_s, self._expire, pending)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)
        return future

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing is in flight any more, at most `timeout_s`; what is left is `Unavailable` then. If that is
        interrupted, nothing is sent any more all the same: Ray is about to go."""
        waiting = [pending.future for pending in self._pending if not pending.future.done()]
        try:
            if waiting:
                await asyncio.wait(waiting, timeout=timeout_s)
        finally:
            self._closed = True
            if self._looking is not None:
                self._looking.cancel()
            what = "the runtime was stopped before it was answered"
            for pending in list(self._pending):
                self._resolve(pending, Unavailable(str(pending.stream), what))
            for destination in self._partitions:
                destination.way.close()

    def _destination(self, stream: StreamId) -> _Destination:
        return self._routes.get(stream) or self._partitions[self._partition_of(stream)]

    def _partition_of(self, stream: StreamId) -> int:
        return partition_of(stream, len(self._partitions), self._placement)

    def _destination_of(self, actor: Any, partition: int, name: str) -> _Destination:
        """Only partitions have roads: an own actor waits for its partition, through Ray, anyway."""
        by_road = not name
        return _Destination(partition, name, lambda one: self._way(one, actor, by_road=by_road), self._lane)

    def _way(self, destination: _Destination, actor: Any, *, by_road: bool) -> PartitionTransport:
        by_road = by_road and self._settings.local_sockets
        return PartitionTransport(actor, self._client, partial(self._came_back, destination), by_road=by_road)

    def _why_not(self, stream: StreamId) -> str:
        """Why nothing reaches the partition of a stream; empty if something does, as far as is known."""
        partition = self._partition_of(stream)
        why = self._unavailable.get(partition)
        return f"partition {partition}: {why}" if why else ""

    def _lane(self, destination: _Destination) -> Batcher[_Pending]:
        name = f"the queue to {destination.name or f'partition {destination.partition}'}"
        return Batcher(name, partial(self._send, destination), defer=self._loop.call_soon, in_flight_max=IN_FLIGHT_MAX)

    def _send(self, destination: _Destination, batch: list[_Pending]) -> None:
        """Start one attempt. What has been given up since is left out."""
        if destination.held:
            self._hold(destination, batch)
            return
        batch = [pending for pending in batch if not pending.future.done()]
        if not batch or self._closed:
            destination.lane.batch_done()
            return
        self._attempts += 1
        attempt = self._attempts
        predecessor = next(reversed(destination.flights), 0)
        timer = self._loop.call_later(self._patience_s(destination, batch), self._came_back, destination, attempt, None)
        destination.flights[attempt] = _Flight(batch, timer)
        destination.way.execute(attempt, predecessor, join(pending.blob for pending in batch))

    def _patience_s(self, destination: _Destination, batch: Sequence[_Pending]) -> float:
        """How long an attempt may take. A partition has many aggregates, which a lost request must not hold up. An own
        actor has one, and one that decides for long is waited for: that its process has ended, Ray tells by itself."""
        attempt_s = self._settings.attempt_timeout_s
        if not destination.name:
            return attempt_s
        return max(attempt_s, max(pending.deadline_s for pending in batch) - self._loop.time())

    def _came_back(self, destination: _Destination, attempt: int, answer: bytes | None) -> None:
        """An attempt has been answered, or (without an answer) has failed or taken too long."""
        flight = destination.flights.pop(attempt, None)
        if flight is None:  # it was given up: its commands are on their way again
            return
        flight.timer.cancel()
        if not answer:
            destination.failures = destination.failures + 1 if answer is None else 0
        unanswered = flight.batch
        if answer:
            try:
                unanswered = self._resolve_all(destination, flight.batch, answer)
            except Exception:  # it is no answer of ours: as if it were lost, and the lane goes on
                log.exception("%s gave an answer that cannot be read", destination.lane.name)
                destination.failures += 1
                unanswered = [pending for pending in flight.batch if not pending.future.done()]
        if unanswered:
            destination.held[attempt] = unanswered
        if not destination.held:
            destination.lane.batch_done()
        elif not destination.flights:
            destination.again = self._loop.call_later(_backoff_s(destination.failures), self._send_again, destination)

    def _resolve_all(self, destination: _Destination, batch: Sequence[_Pending], blob: bytes) -> list[_Pending]:
        """Tell the callers. Returns the commands that must be sent again, here or elsewhere. A batch that is fenced off
        is one failure, however many commands it has: during a move that is for a tenth of a second."""
        unanswered: list[_Pending] = []
        fenced = False
        answers, batch_cost_s = decode_answer(blob, batch, self._store_id)
        destination.lane.pipelined_items_min = commands_worth(batch_cost_s)
        for pending, answered in zip(batch, answers, strict=True):  # both are ours
            if isinstance(answered, Redirect):
                unanswered.append(pending)
                destination.moved[pending.stream] = answered.actor
            elif isinstance(answered, Later):
                unanswered.append(pending)
                destination.loading[pending.stream] = answered.pause_s
            elif isinstance(answered, Fenced):
                unanswered.append(pending)
                fenced = True
            else:
                self._resolve(pending, answered)
        destination.failures = destination.failures + 1 if fenced else 0
        return unanswered

    def _hold(self, destination: _Destination, batch: list[_Pending]) -> None:
        """A batch that was about to leave while the lane is being emptied."""
        self._attempts += 1
        destination.held[self._attempts] = batch

    def _send_again(self, destination: _Destination) -> None:
        """Nothing is in flight, and some commands were not answered: send them on in the order in which they came,
        before everything that waits, to where their aggregates live now."""
        destination.again = None
        if self._closed:
            return
        again = [pending for _, batch in sorted(destination.held.items()) for pending in batch]
        destination.held.clear()
        moved = {stream: actor for stream, actor in destination.moved.items() if actor}
        destination.moved.clear()
        if destination.name:
            self._take_back(destination, again)
            return
        loading, destination.loading = destination.loading, {}
        for stream, pause_s in loading.items():
            self._loop.call_later(pause_s * OWN.uniform(0.5, 1.0), self._bring_back, stream)
        if loading or moved:
            again = self._set_aside(destination, {*loading, *moved}, again)
        if moved:
            self._look_up(destination.partition, moved)
        elsewhere = [pending for pending in again if pending.stream in self._routes]
        waiting = destination.lane.take_waiting(lambda pending: pending.stream in self._routes)
        for pending in [*elsewhere, *(pending for pending, _ in waiting)]:
            self._put(pending)
        here = [(pending, len(pending.blob)) for pending in again if pending.stream not in self._routes]
        destination.lane.restart(here)

    def _set_aside(
        self, destination: _Destination, streams: Set[StreamId], again: Sequence[_Pending]
    ) -> list[_Pending]:
        """Set aside what is for these aggregates, until it is brought back. Returns the others of `again`."""
        for stream in streams:
            self._aside.setdefault(stream, [])
        waiting = destination.lane.take_waiting(lambda pending: pending.stream in streams)
        for pending in [*again, *(pending for pending, _ in waiting)]:
            if pending.stream in streams:
                self._put_aside(pending, again=True)
        return [pending for pending in again if pending.stream not in streams]

    def _put_aside(self, pending: _Pending, *, again: bool = False) -> None:
        """`again`: it was sent before, so it is not refused."""
        if self._aside_bytes + len(pending.blob) > _ASIDE_BYTES_MAX and self._aside_bytes and not again:
            raise Overloaded("what waits for aggregates that are being loaded", _ASIDE_BYTES_MAX, "bytes")
        self._aside[pending.stream].append(pending)
        self._aside_bytes += len(pending.blob)

    def _bring_back(self, stream: StreamId) -> None:
        """The aggregate may be loaded by now, or found: send on what waits for it, in order."""
        waiting = self._aside.pop(stream, [])
        self._aside_bytes -= sum(len(pending.blob) for pending in waiting)
        for pending in waiting:
            self._put(pending)

    def _look_up(self, partition: int, moved: Mapping[StreamId, str]) -> None:
        """Find own actors by their names, on a thread: Ray takes a millisecond for each, and a minute while the head is
        away. What is for their aggregates waits aside, in order, and everything else goes on."""
        for stream, actor in moved.items():
            self._sought[stream] = partition, actor
        if self._looking is None or self._looking.done():
            self._looking = self._loop.create_task(self._find())

    async def _find(self) -> None:
        """Until nothing is sought any more."""
        while self._sought and not self._closed:
            sought = {stream: self._sought.pop(stream) for stream in list(self._sought)[:_FOUND_AT_ONCE]}
            names = [actor for _, actor in sought.values() if actor not in self._lost]
            detached, found = self._detached, dict[str, Any]()
            with contextlib.suppress(Exception):  # Ray does not answer
                found = await aside(partial(_handles, self._actor_named, names), self._settings.timeout_s)
            for stream, (partition, actor) in sought.items():
                if stream in self._sought:  # it has moved again meanwhile
                    continue
                if detached == self._detached:
                    self._open_route(stream, actor, partition, found.get(actor))
                self._bring_back(stream)

    def _open_route(self, stream: StreamId, actor: str, partition: int, handle: Any) -> None:
        if handle is None:  # it has ended since, or is as good as that; its partition finds out from us
            self._tell_lost(partition, stream, actor)
            return
        if len(self._routes) >= _ROUTES_MAX:  # one in use stays; there are at most as many as commands in flight
            for known, route in list(self._routes.items()):
                if not route.flights and not route.held and not len(route.lane):
                    del self._routes[known]
                if len(self._routes) < _ROUTES_MAX:
                    break
        self._routes[stream] = self._destination_of(handle, partition, actor)

    def _take_back(self, destination: _Destination, again: Sequence[_Pending]) -> None:
        """An own actor does not answer: its partition takes the aggregate back, and everything goes there."""
        stream = next((stream for stream, route in self._routes.items() if route is destination), None)
        if stream is not None:
            del self._routes[stream]
            if not destination.cut_off:
                self._tell_lost(destination.partition, stream, destination.name, died=destination.way.died)
                self._lost[destination.name] = None
            if len(self._lost) > _ROUTES_MAX:
                self._lost.popitem(last=False)
        waiting = destination.lane.take_waiting(lambda _: True)
        for pending in [*again, *(pending for pending, _ in waiting)]:
            self._put(pending)

    def _tell_lost(self, partition: int, stream: StreamId, actor: str, *, died: bool = False) -> None:
        with contextlib.suppress(Exception):  # the partition has ended, or Ray has: it will not know the actor either
            self._partitions[partition].way.actor.lost.remote(stream, actor, died)

    def _put(self, pending: _Pending) -> None:
        if pending.future.done() or pending.deadline_s <= self._loop.time():  # its caller is told with the next sweep
            return
        self._destination(pending.stream).lane.put(pending, len(pending.blob), again=True)

    def _resolve(self, pending: _Pending, outcome: Outcome) -> None:
        self._pending.discard(pending)
        if not pending.future.done():
            pending.future.set_result(outcome)

    def _expire(self, pending: _Pending) -> None:
        """Its deadline has passed."""
        what = "no answer in time; whether it happened is unknown, the same command id may be sent again"
        why = self._why_not(pending.stream)
        self._resolve(pending, Unavailable(str(pending.stream), f"{what}; {why}" if why else what))

    def _sweep(self) -> None:
        """Tell those whose deadline has passed, and drop those whose caller has gone."""
        now = self._loop.time()
        for pending in [p for p in self._pending if p.deadline_s <= now or p.future.done()]:
            self._expire(pending)
        self._sweeping = bool(self._pending)
        if self._sweeping:
            self._loop.call_later(_SWEEP_S, self._sweep)


def _handles(actor_named: Callable[[str], Any], names: Sequence[str]) -> dict[str, Any]:
    """The actors of these names that there are."""
    found: dict[str, Any] = {}
    for name in names:
        with contextlib.suppress(Exception):  # it has ended, or the head is away
            found[name] = actor_named(name)
    return found
