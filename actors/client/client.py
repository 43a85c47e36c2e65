"""Client: what a program holds to send commands and ask queries.

Step [1] of the write path. Before it: the caller's `execute`. After it: the router ([2]). And the entrance of the read
path: `ask` hands a query to the replicas of its projection ([8]).

Rule kept here: a caller's mistake is found here, before anything is sent: an unknown aggregate or command, an id that
cannot be one, a payload that is too large.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from ...runtime.arguments import (
    checked_class,
    checked_timeout,
    listed,
    several,
    unregistered,
    unregistered_message,
)
from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.messages import Command, Query
from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.encoding.codec import encode_checked
from ...runtime.encoding.envelope import Envelope, pack
from ...runtime.encoding.outcome import Outcome
from ...runtime.encoding.query_batch import PackedQuery
from ...runtime.errors import (
    HandlerFailed,
    InvalidMessage,
    NotYetVisible,
    Overloaded,
    RayfoldError,
    Unavailable,
)
from ...runtime.printable import shown
from ...runtime.read.positions import After, place_asked
from ...runtime.receipt import Receipt
from ...runtime.stream import OLD_PLACEMENT
from ..settings import Settings
from .command_router import CommandRouter
from .query_router import QueryRouter
from .replica_pool import Saw, all_of, resolved
from .sources import Page, outcomes_of

__all__ = ["Client", "Until"]

Answer = TypeVar("Answer")

_HOLES_MAX: Final = 1024
"""Refused commands that are kept in `execute_all` beyond those that are in flight."""

Until = type[Projection] | Iterable[type[Projection]]
"""The projections that `execute(..., until=)` waits for."""


class Client:
    """Commands and queries of one program. Used on one event loop only."""

    command_router_class: type[CommandRouter] = CommandRouter
    query_router_class: type[QueryRouter] = QueryRouter

    def __init__(
        self,
        catalogue: Catalogue,
        partitions: Sequence[Any],
        actor_named: Callable[[str], Any],
        settings: Settings,
        *,
        placement_rule: str = OLD_PLACEMENT,
        store_id: str = "",
        classes_of_others: bool = False,
    ) -> None:
        """`placement_rule`, `store_id`: the rule of the store (`stream.partition_of`) and its id. `classes_of_others`:
        the system was started by another program, whose classes have the same names as those used here, and are
        others."""
        self._catalogue = catalogue
        self._classes_of_others = classes_of_others
        self._settings = settings
        self._partitions = len(partitions)
        self._store_id = store_id
        self._router = self.command_router_class(partitions, actor_named, settings, placement_rule, store_id)
        self._serving: dict[str, QueryRouter] = {}
        """By the name of the projection."""
        self._detached: dict[str, QueryRouter] = {}
        """Those of a cluster that this program has lost, which serve again once they are named anew."""
        self._why_detached = ""
        self._why_projection: dict[str, str] = {}
        """By the name of one that was detached alone."""

    def serve(self, projection: type[Projection], parts: Sequence[Sequence[Any]]) -> None:
        """From now on queries to the projection of this name go to these actors: for each part its replicas. Queries
        on their way to others are answered by those, or sent again to these."""
        name = projection.projection_name
        self._why_projection.pop(name, None)
        serving = self._serving.get(name) or self._detached.pop(name, None)
        if serving is None:
            self._serving[name] = self.query_router_class(projection, parts, self._settings, self._store_id)
        else:
            self._serving[name] = serving
            serving.replace(projection, parts)

    def detach(self, why: str) -> None:
        """Nothing reaches any actor until `attach`: what is sent and asked is refused at once, and why. What is on its
        way is sent again then, or is `Unavailable` at its deadline."""
        self._why_detached = why
        self._why_projection.clear()
        self._detached.update(self._serving)
        self._serving.clear()
        self._router.detach(why)

    def detach_projection(self, name: str, why: str) -> None:
        """No query reaches this projection until `serve` names it anew: what is asked, or on its way, is `Unavailable`
        at once, and why."""
        serving = self._serving.pop(name, None) or self._detached.get(name)
        if serving is not None:
            self._detached[name], self._why_projection[name] = serving, why
            serving.give_up(why)

    def give_up(self, why: str) -> None:
        """What is on its way is `Unavailable` at once, and why."""
        self._router.give_up(why)
        for one in [*self._serving.values(), *self._detached.values()]:
            one.give_up(why)

    def attach(self, partitions: Sequence[Any]) -> None:
        """These are the partitions' actors, after `detach`; `serve` and `set_unavailable` set the rest."""
        for number, actor in enumerate(partitions):
            self._router.replace(number, actor)
        self._router.set_unavailable({})

    def replace_partition(self, partition: int, actor: Any) -> None:
        """Commands to this partition go to another actor from now on."""
        self._router.replace(partition, actor)

    def set_unavailable(self, unavailable: Mapping[int, str]) -> None:
        """Commands to these partitions are refused at once, and to no others: nothing reaches them, and why."""
        self._router.set_unavailable(unavailable)

    def send(self, envelope: Envelope, timeout_s: float | None = None) -> asyncio.Future[Outcome]:
        """Pack and send a command; the future gets its outcome as a value. Raises `CallerError`s and `Overloaded`."""
        self._check_known(envelope)
        packed, blob = pack(envelope)
        return self._router.submit(packed, blob, self.timeout_s(timeout_s))

    async def send_until(self, envelope: Envelope, until: Until, timeout_s: float | None) -> Outcome:
        """`send`, and then wait until the events are visible in every replica of these projections. What keeps them
        from that is a `NotYetVisible` with the receipt, as a value. Raises what `send` does."""
        if isinstance(until, type):
            named = [until]
        else:
            named = several("until", listed("until", until, "a Projection class", or_one=True))
        serving = [self._serving_of(projection) for projection in named]
        deadline_s = time.monotonic() + self.timeout_s(timeout_s)
        outcome = await self.send(envelope, timeout_s)
        if isinstance(outcome, Receipt):
            try:
                await all_of(_visible(one, outcome, deadline_s) for one in serving)
            except NotYetVisible as error:
                return error
        return outcome

    async def everywhere(self, projections: Sequence[type[Projection]], after: After, timeout_s: float | None) -> None:
        """Return once every replica of these projections, or of all, has come to `after`. Raises `NotYetVisible`,
        `Unavailable`, and what has stopped a projection."""
        if not projections and self._detached:
            raise Unavailable("the projections", self._why(next(iter(self._detached))))
        serving = [self._serving_of(projection) for projection in projections] or list(self._serving.values())
        deadline_s = time.monotonic() + self.timeout_s(timeout_s)
        positions = self._place(after)
        await all_of(one.everywhere(positions, deadline_s) for one in serving)

    def send_all(
        self, envelopes: Iterable[Envelope] | AsyncIterable[Envelope], in_flight: int, timeout_s: float | None
    ) -> AsyncIterator[Page[Envelope]]:
        """Send many, `in_flight` at a time; yields each with its outcome, in the order they came, as they are known.

        What was refused without being sent leaves a hole. Until the caller has its outcome, and can stop, nothing to
        that aggregate goes past it: its partition may be there again by now.
        """
        _check_in_flight(in_flight)
        listed("execute_all", envelopes, "an Envelope", (Envelope,))
        self.timeout_s(timeout_s)
        holes: dict[str, tuple[Outcome, int]] = {}
        """Address -> what was refused, and how many were sent before it."""
        sent = 0

        def send(envelope: Envelope, read: int) -> asyncio.Future[Outcome]:
            nonlocal sent
            number, sent = sent, sent + 1
            if holes and (hole := holes.get(_address(envelope))) is not None:
                if read <= hole[1]:  # it was asked for before the caller had the outcome
                    return resolved(hole[0])
                del holes[_address(envelope)]
            future = self._sent(envelope, timeout_s)
            if future.done() and isinstance(future.result(), Unavailable | Overloaded):
                if len(holes) > _HOLES_MAX:  # the caller has the outcomes before `read`
                    for address in [address for address, hole in holes.items() if hole[1] < read]:
                        del holes[address]
                holes[_address(envelope)] = future.result(), number
            return future

        return outcomes_of(envelopes, in_flight, lambda taken: [send(envelope, read) for read, envelope in taken])

    def ask(
        self,
        projection: type[Projection],
        query: Query[Any],
        after: After | None,
        timeout_s: float | None,
        saw: Saw | None = None,
    ) -> asyncio.Future[Any]:
        """Pack a query and ask the replicas; the future gets the answer, errors too as values; `saw` is called with the
        positions that it was read at. Raises `CallerError`s and `Overloaded`."""
        serving = self._serving_of(projection)
        packed = _packed(projection, query, serving)
        return serving.ask(query, packed, self._place(after), self.timeout_s(timeout_s), saw)

    def ask_all(
        self,
        projection: type[Projection],
        queries: Iterable[Query[Answer]],
        after: After | None,
        in_flight: int,
        timeout_s: float | None,
    ) -> AsyncIterator[Page[Query[Answer]]]:
        """Ask many, `in_flight` at a time; yields each with its answer, in the order they came, as they are known."""
        _check_in_flight(in_flight)
        listed("ask_all", queries, "a Query", (Query,))
        positions, limit_s = self._place(after), self.timeout_s(timeout_s)
        serving = self._serving_of(projection)

        def ask(query: Query[Answer]) -> asyncio.Future[Any]:
            try:
                return serving.ask(query, _packed(projection, query, serving), positions, limit_s)
            except RayfoldError as error:
                return resolved(error)
            except Exception as error:  # of code of the query's class
                return resolved(_code_failed(query, error))

        def ask_many(taken: Sequence[tuple[int, Query[Answer]]]) -> list[asyncio.Future[Any]]:
            with contextlib.suppress(Exception):  # of one of them: then each is asked, and answered, by itself
                packed = [_packed(projection, query, serving) for _, query in taken]
                if (asked := serving.ask_many(packed, positions, limit_s)) is not None:
                    return asked
            return [ask(query) for _, query in taken]

        return outcomes_of(queries, in_flight, ask_many)

    def partitions_reached(self) -> list[tuple[int, Any, str]]:
        """Each partition, its actor, and why nothing reaches it, if that is known."""
        return self._router.reached()

    def partition_reached(self, partition: int) -> tuple[Any, str]:
        """The actor of a partition, and why nothing reaches it, if that is known."""
        _, actor, why = self._router.reached()[partition]
        return actor, why

    def projections_reached(self) -> list[tuple[str, list[list[Any]], str]]:
        """Each projection, the actors of its parts, and why no query reaches them, if that is known."""
        serving = [(name, one.actors(), "") for name, one in self._serving.items()]
        return serving + [(name, [], self._why(name)) for name in self._detached]

    async def drain(self, timeout_s: float) -> None:
        """Take no more commands, wait for those on their way, and close the sockets to projectors."""
        await self._router.drain(timeout_s)
        for serving in (*self._serving.values(), *self._detached.values()):
            serving.close()

    def _sent(self, envelope: Envelope, timeout_s: float | None) -> asyncio.Future[Outcome]:
        """Like `send`, but the caller's mistakes are outcomes too, so that one does not end a long run."""
        try:
            return self.send(envelope, timeout_s)
        except RayfoldError as error:
            return resolved(error)
        except Exception as error:  # of code of the command's class: a serializer, a validator
            return resolved(_code_failed(envelope.command, error))

    def _serving_of(self, projection: type[Projection]) -> QueryRouter:
        serving = self._serving.get(getattr(projection, "projection_name", ""))
        if serving is None or not isinstance(projection, type):
            if isinstance(projection, type) and (name := getattr(projection, "projection_name", "")) in self._detached:
                raise Unavailable(name, f"it was not asked: {self._why(name)}")
            raise unregistered("projection", projection, {name: one.served for name, one in self._serving.items()})
        if projection is not serving.served and not self._may_stand_for(projection, serving.served):
            raise unregistered("projection", projection, {serving.name: serving.served})
        return serving

    def _may_stand_for(self, projection: type[Projection], served: type[Projection]) -> bool:
        """Whether a class is meant that serves under the name of another one: the program's own while a rebuild by
        another one has taken over, another version of it, or one of a program that has the system's classes beside its
        own. A class that only has the name is refused, as one of an aggregate is."""
        registered = self._catalogue.projections.get(served.projection_name)
        other_version = projection.projection_version != served.projection_version
        return projection is registered or other_version or self._classes_of_others

    def _why(self, detached: str) -> str:
        return self._why_projection.get(detached, self._why_detached)

    def _check_known(self, envelope: Envelope) -> None:
        if type(envelope) is not Envelope:
            _check_envelope(envelope)
        aggregate = envelope.aggregate
        known = self._catalogue.aggregates.get(getattr(aggregate, "aggregate_type", ""))
        if known is None or (known is not aggregate and not self._classes_of_others):
            raise unregistered("aggregate", aggregate, self._catalogue.aggregates)
        if type(envelope.command) not in aggregate.deciders:
            checked_class("aggregate", aggregate, Aggregate)
            kind = f"command of {aggregate.aggregate_type}"
            raise unregistered_message(kind, envelope.command, aggregate.deciders, Command)

    def _place(self, after: After | None) -> dict[int, int]:
        return place_asked(after, self._partitions, self._store_id)

    def timeout_s(self, timeout_s: float | None) -> float:
        """The call's timeout, or the runtime's. Raises `CallerError`."""
        return self._settings.timeout_s if timeout_s is None else checked_timeout(timeout_s)


async def _visible(serving: QueryRouter, receipt: Receipt, deadline_s: float) -> None:
    """Raises `NotYetVisible` with the receipt, whatever the reason."""
    partition, position = receipt.partition, receipt.position
    try:
        await serving.everywhere({partition: position}, deadline_s)
    except RayfoldError as error:
        why = str(error) if isinstance(error, NotYetVisible) else f"{serving.name} cannot show them: {error}"
        late = NotYetVisible(serving.name, partition, position, serving.reached(partition), why)
        late.receipt = receipt
        raise late from error


def _packed(projection: type[Projection], query: Query[Any], serving: QueryRouter) -> PackedQuery:
    """The query as it travels. Raises `InvalidMessage`, or `UnknownName` if the projection does not answer it."""
    if type(query) not in projection.answers:
        if type(query) in serving.served.answers:  # it is the projection that is another class
            raise unregistered("projection", projection, {serving.name: serving.served})
        raise unregistered_message(f"query of {projection.projection_name}", query, projection.answers, Query)
    return PackedQuery(query.message_name, encode_checked(query)[0])


def _code_failed(message: object, error: Exception) -> HandlerFailed:
    """One message's failure, where a raised one would end a long run."""
    return HandlerFailed.caused_by(f"the code of {type(message).__name__}", "a message", error)


def _check_envelope(envelope: object) -> None:
    if not isinstance(envelope, Envelope):
        what = f"a {type(envelope).__name__} is not an Envelope"
        raise InvalidMessage("execute_all", what, "give an Envelope(aggregate, id, command) for each command")


def _check_in_flight(in_flight: object) -> None:
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or not 1 <= in_flight <= sys.maxsize:
        raise InvalidMessage("in_flight", f"is {shown(in_flight)}", "give a number from 1")


def _address(envelope: Envelope) -> str:
    """Which aggregate it is for; of whatever the caller has put there."""
    id = getattr(envelope, "id", "")
    return f"{_name(getattr(envelope, 'aggregate', None))}/{id if isinstance(id, str) else type(id).__name__}"


def _name(cls: object) -> str:
    return getattr(cls, "__name__", str(cls))
