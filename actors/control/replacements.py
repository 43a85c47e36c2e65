"""Replacements: which actors of a system on a cluster answer, which report a problem, and which are replaced.

Beside all steps, on the event loop of the supervising process. Ray starts again what was killed. Three cases are
left to this file:

- a process that is frozen is replaced
- an actor that Ray has forgotten is started anew: version 2.60 forgets the actors of a node when its directory ends
  between storing the node's death and storing its effect on the actors, as in 2 of 26 restarts of a head
- a move that was interrupted by the loss of a node is undone or completed

Rules kept here:
- while a node is down, nothing of it is replaced: its actors start again with the node
- while Ray is starting an actor, it is not replaced, however long that takes on a busy machine
- an actor that reports a problem, or that it is at work, is alive: the problem is published, the actor stays
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeVar

from ...runtime.errors import RayfoldError, Sealed, StoreError
from ...runtime.printable import printable_log
from ...runtime.store.partition_map import PartitionMap
from ..cluster.rpc import Method, one_line
from .heartbeats import Heartbeats
from .moves import PartitionMoves
from .system_state import SystemState

__all__ = ["Replacements"]

T = TypeVar("T")

log = printable_log(__name__)

_SINKS: Final = "the process of the sinks"


class Replacements:
    """Of one system."""

    def __init__(self, system: SystemState, moves: PartitionMoves) -> None:
        self.troubles: dict[int, RayfoldError] = {}
        """Partition -> why it answers but cannot open its log."""
        self._sealed: set[int] = set()
        """Partitions that take no commands because they are to go on elsewhere; during a move that is as it should
        be."""
        self._system = system
        self._moves = moves
        self._silent_s = system.plan.settings.silent_s
        self._heartbeats = Heartbeats(self._silent_s)
        self._openings = Heartbeats(self._silent_s)
        """Whether partitions have their logs open, and if not, why. One that opens its log for long is not silent."""

    def note(self, partition: int, trouble: RayfoldError | None) -> None:
        """A partition has reported a problem, or that it has none. Sealed is no trouble: it is to move."""
        if isinstance(trouble, Sealed):
            self._sealed.add(partition)
            trouble = None
        else:
            self._sealed.discard(partition)
        if trouble is None:
            self.troubles.pop(partition, None)
            return
        if str(self.troubles.get(partition)) != str(trouble):
            log.error("partition %d of %s: %s", partition, self._system.plan.name, trouble)
        self.troubles[partition] = trouble

    def send_heartbeats(self) -> None:
        """Send a heartbeat call to every actor whose node is up, without waiting for the answers."""
        system, shares = self._system, self._system.shares
        seated = {f"partition {number}": number for number in system.partitions.seated if system.is_up(number)}
        projectors = system.projections.projectors()
        sinks = {} if system.sinks is None else {_SINKS: system.sinks}
        self._heartbeats.keep({*seated, *shares.up, *(one.name for one in projectors), *sinks})
        self._openings.keep(set(seated))
        for who, number in seated.items():
            actor = system.partitions.seated[number].actor
            self._heartbeats.take(who, partial(_asked, actor.process_id))
            self._openings.take(who, partial(_asked, actor.head), partial(self._heard, number))
        for node_id in shares.up:
            self._heartbeats.take(
                node_id, partial(_asked, shares.agent(node_id).map), heard=partial(self._map_of, node_id)
            )
        for projector in projectors:
            self._heartbeats.take(projector.name, partial(_asked, projector.actor.process_id))
        for who, publishing in sinks.items():
            self._heartbeats.take(who, partial(_asked, publishing.process_id))

    def _heard(self, partition: int, trouble: RayfoldError | None) -> None:
        if trouble is None or isinstance(trouble, StoreError):
            self.note(partition, trouble)

    def _map_of(self, node_id: str, store_map: PartitionMap | None) -> None:
        """A node has another map than is known here: one of the two has missed something."""
        system, shares = self._system, self._system.shares
        if store_map is not None and store_map != shares.map and store_map.store_id == shares.map.store_id:
            system.alone(f"map of {node_id}", partial(shares.learn, store_map, [node_id]))

    async def put_right(self) -> None:
        """Replace what is silent, and put right what was lost in the middle of a move. May take long."""
        await self.replace_silent()
        await self.settle_moves()

    async def settle_moves(self) -> None:
        """Partitions that have released their logs without a move, and those whose actor is not at their home, are put
        right: a node was lost in the middle of a move, and is back."""
        system = self._system
        homes, seated = system.shares.map.owners, system.partitions.seated
        astray = self._sealed | {number for number, one in seated.items() if homes[number] != one.node_id}
        if not astray or system.changing.locked():
            return
        async with system.changing:
            for number in astray:
                self._sealed.discard(number)
                try:
                    await self._moves.set_right(number)
                except Exception as error:  # the next look may find more of it up
                    log.info("partition %d of %s: %s", number, system.plan.name, one_line(error))

    async def replace_silent(self) -> None:
        """What has not answered for long, although its node is up, is replaced."""
        system = self._system
        for who in self._heartbeats.starting():  # at each look, so that its silence counts from when it is up
            if await self._is_starting(who):
                self._heartbeats.excuse(who)
        silent = [
            who
            for who in self._heartbeats.silent()
            if not (await self._is_starting(who) and self._heartbeats.excuse(who))
        ]
        if not silent or system.changing.locked():
            return
        async with system.changing:
            for who in silent:
                self._heartbeats.forget(who)
                self._openings.forget(who)
                called = f"the node agent of {system.nodes[who].name}" if who in system.nodes else who
                log.error("%s, of %s, has not answered for %g s: replaced", called, system.plan.name, self._silent_s)
                with contextlib.suppress(RayfoldError):
                    await self._replace(who)

    async def _is_starting(self, who: str) -> bool:
        """Whether Ray reports that it is still starting it, or does not answer. Another one would have to start as
        well, and on a machine that is short of CPU it would be later."""
        actor = self._actor(who)
        try:
            return actor is not None and await asyncio.to_thread(self._system.cluster.is_starting, actor)
        except Exception as error:
            log.info("Ray's directory does not return the state of %s: %s", who, one_line(error))
            return True

    def _actor(self, who: str) -> Any:
        """Its actor; None if it is no more."""
        system = self._system
        if who in system.shares.up:
            return system.shares.agent(who)
        if who == _SINKS:
            return system.sinks
        if who.startswith("partition "):
            return system.partitions.seated[int(who.removeprefix("partition "))].actor
        return next((one.actor for one in system.projections.projectors() if one.name == who), None)

    async def _replace(self, who: str) -> None:
        system, shares = self._system, self._system.shares
        if who in shares.up:
            shares.replace(who)
            await shares.add(system.nodes[who])
        elif who.startswith("partition "):
            number = int(who.removeprefix("partition "))
            await system.partitions.replace(number, shares.map.owners[number])
            system.projections.use_partitions(system.partitions.handles())
        elif who == _SINKS:
            await system.replace_sinks()
        else:
            await system.projections.replace(who)


def _asked(method: Method[T]) -> Future[T]:
    return method.remote().future()
