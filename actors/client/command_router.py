"""CommandRouter: from a packed command to the actor that decides it, and back with the outcome.

Step [2] of the write path. Before it: the client packs ([1]). After it: the actor of the partition, or of the
aggregate itself ([3]).

Where each command goes, when, what is sent again and what its caller gets is decided by `Routing` (`routing.py`). Here
its instructions are carried out, on one event loop: batches are handed to a `PartitionTransport`, timers run, futures
are resolved, and own actors are looked up by their names on a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ...runtime.encoding.envelope import PackedCommand
from ...runtime.encoding.outcome import Outcome
from ...runtime.own_random import OWN
from ...runtime.printable import printable_log
from ...runtime.stream import OLD_PLACEMENT
from ..cluster.rpc import in_thread
from ..settings import Settings
from .routing import Execute, FindActors, ReportLost, ReportUnreadable, Resolve, Routing, Schedule
from .transport import PartitionTransport

__all__ = ["CommandRouter"]

log = printable_log(__name__)


class CommandRouter:
    """Sends commands and resolves their futures. Used on one event loop only."""

    routing_class: type[Routing] = Routing
    transport_class: type[PartitionTransport] = PartitionTransport

    def __init__(
        self,
        partitions: Sequence[Any],
        actor_named: Callable[[str], Any],
        settings: Settings,
        placement_rule: str = OLD_PLACEMENT,
        store_id: str = "",
    ) -> None:
        """`placement_rule`: the rule by which the store places streams in partitions (`stream.partition_of`).

        `store_id`: its id, for the receipts."""
        self._loop = asyncio.get_running_loop()
        self._actor_named = actor_named
        self._settings = settings
        self._client = os.urandom(16)
        self._store_id = store_id
        self._limits: dict[int, asyncio.TimerHandle] = {}
        """By attempt: what ends it if no answer comes."""
        self._looking: asyncio.Task[None] | None = None
        self._routing = self.routing_class(
            [self._partition_transport(actor) for actor in partitions],
            in_flight_max=settings.in_flight_max,
            attempt_timeout_s=settings.attempt_timeout_s,
            uniform=OWN.uniform,
            placement_rule=placement_rule,
            store_id=store_id,
        )

    def replace(self, partition: int, actor: Any) -> None:
        """The partition is this actor from now on. What is on its way to the other one is sent again if it fails."""
        before: PartitionTransport = self._routing.partitions[partition].transport
        self._routing.replaced(self._loop.time(), partition, self._partition_transport(actor))
        before.retire()
        self._carry_out()

    def detach(self, why: str) -> None:
        """The connection to all actors is lost. Until `replace` has given each partition an actor, and
        `set_unavailable` allows its use, what is submitted is refused at once with this reason. What is on its way is
        sent again then, or is `Unavailable` at its deadline."""
        for destination in [*self._routing.partitions, *self._routing.routes.values()]:
            destination.transport.close()
        for limit in self._limits.values():
            limit.cancel()
        self._limits.clear()
        self._routing.detached(self._loop.time(), why)
        self._carry_out()

    def give_up(self, why: str) -> None:
        """What has no outcome yet is `Unavailable`, for this reason."""
        self._routing.give_up(why)
        self._carry_out()

    def set_unavailable(self, unavailable: Mapping[int, str]) -> None:
        """These partitions, and no others, cannot be reached now: why."""
        self._routing.unavailable = dict(unavailable)

    def reached(self) -> list[tuple[int, Any, str]]:
        """Each partition, its actor, and why nothing reaches it, if that is known."""
        why = self._routing.unavailable
        return [(one.partition, one.transport.actor, why.get(one.partition, "")) for one in self._routing.partitions]

    def submit(self, packed: PackedCommand, blob: bytes, timeout_s: float) -> asyncio.Future[Outcome]:
        """Send a command; the future gets its outcome, errors too as values. Raises `Overloaded` at once, and
        `Unavailable` if nothing reaches its partition."""
        loop, routing = self._loop, self._routing
        future: asyncio.Future[Outcome] = loop.create_future()
        routing.submit(loop.time(), packed, blob, future, timeout_s)
        if routing.instructions:
            self._carry_out()
        return future

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing is in flight any more, at most `timeout_s`; what is left is `Unavailable` then. If that is
        interrupted, nothing is sent any more all the same: Ray is about to go."""
        waiting: list[Any] = [pending.caller for pending in self._routing.pending if not pending.caller.done()]
        try:
            if waiting:
                await asyncio.wait(waiting, timeout=timeout_s)
        finally:
            self._routing.close()
            self._carry_out()
            if self._looking is not None:
                self._looking.cancel()
            for destination in self._routing.partitions:
                destination.transport.close()

    def _partition_transport(self, actor: Any) -> PartitionTransport:
        by_socket = self._settings.local_sockets
        return self.transport_class(actor, self._client, self._came_back, by_socket=by_socket, store_id=self._store_id)

    def _own_actor_transport(self, actor: Any) -> PartitionTransport:
        """Only partitions have sockets: an own actor waits for its partition, through Ray, anyway."""
        return self.transport_class(actor, self._client, self._came_back, by_socket=False)

    def _carry_out(self) -> None:
        """Carry out all pending instructions of the routing. None causes an event at once: every result comes later."""
        instructions, self._routing.instructions = self._routing.instructions, []
        for instruction in instructions:
            if isinstance(instruction, Resolve):
                for pending, outcome in instruction.outcomes:
                    if not pending.caller.done():
                        pending.caller.set_result(outcome)
            elif isinstance(instruction, Execute):
                destination, attempt, predecessor, blob, timeout_s = instruction
                self._limits[attempt] = self._loop.call_later(timeout_s, self._came_back, attempt, None)
                destination.transport.execute(attempt, predecessor, blob)
            elif isinstance(instruction, Schedule):
                if instruction.delay_s:
                    self._loop.call_later(instruction.delay_s, self._happens, instruction.event)
                else:
                    self._loop.call_soon(self._happens, instruction.event)
            else:
                self._look_up_or_report(instruction)

    def _look_up_or_report(self, instruction: FindActors | ReportLost | ReportUnreadable) -> None:
        if isinstance(instruction, FindActors):
            self._looking = self._loop.create_task(self._find(instruction.names))
        elif isinstance(instruction, ReportLost):
            died = instruction.transport is not None and instruction.transport.died
            with contextlib.suppress(Exception):  # the partition has ended, or Ray has: it will not know the actor
                instruction.partition.transport.actor.lost.remote(instruction.stream, instruction.name, died)
        else:
            log.error("%s gave an answer that cannot be read", instruction.name, exc_info=instruction.error)

    def _happens(self, event: Callable[[float], None]) -> None:
        event(self._loop.time())
        self._carry_out()

    def _came_back(self, attempt: int, answer: bytes | None) -> None:
        """An attempt has been answered, or (without an answer) has failed or taken too long."""
        limit = self._limits.pop(attempt, None)
        if limit is not None:
            limit.cancel()
        self._routing.answered(self._loop.time(), attempt, answer)
        self._carry_out()

    async def _find(self, names: Sequence[str]) -> None:
        """Find own actors, on a thread: what is not found by then has ended, or is as good as that."""
        found = dict[str, Any]()
        with contextlib.suppress(Exception):  # Ray does not answer
            found = await in_thread(partial(_handles, self._actor_named, names), self._settings.timeout_s)
        transports = {name: self._own_actor_transport(actor) for name, actor in found.items()}
        self._routing.found(self._loop.time(), transports)
        self._carry_out()


def _handles(actor_named: Callable[[str], Any], names: Sequence[str]) -> dict[str, Any]:
    """The actors of these names that there are."""
    found: dict[str, Any] = {}
    for name in names:
        with contextlib.suppress(Exception):  # it has ended, or the head is away
            found[name] = actor_named(name)
    return found
