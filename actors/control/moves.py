"""Moving: a partition goes from one node to another while commands arrive, and partitions are spread evenly.

Beside step [3], on the event loop of the supervising process. The steps, and what an end of everything in between
leaves:

1. the agent of the new home copies the log, and copies what came meanwhile, until little is missing. Left: a copy,
   which the next move goes on with
2. an actor for the partition starts there, loads the application's code, and gets what the present one has in memory.
   Left: an actor without a log, which is ended
3. the present actor *seals* the log: commands wait from here on. Left: a sealed log at its home; the seal is broken,
   and the partition goes on where it was
4. the agent of the new home copies the rest, and what subscriptions keep there, compares the ends, and takes over the
   epoch of the seal. Left: as after 3
5. the present actor makes the seal final, in one transaction of the log: this is the step that counts. Left: the
   partition is at home on the new node, whose copy is complete; the old home reports that, as soon as it is asked
6. the old home writes that into its map, the new home is given the map, its actor opens the log under the next epoch,
   and commands go there. Left: an old log, which is sealed
7. every node is given the map. The new home states what its log holds, and on that statement the old log is removed

A move that was interrupted by the end of the whole system is called off or completed when a supervisor starts
(`settle`), and one that was interrupted by the loss of a node when the node is back (`set_right`). Old logs and copies
are removed whenever their home states that it has what they hold (`tidy`), and never for another reason:
`runtime/store/home_statement.py` has the proof that such a statement is enough.

Rules kept here: before step 5 the old home alone can be opened, after it the new home alone. Whether the seal is broken
or made final, if both are tried, is decided by the log (`runtime/log/sealing.py`); whatever is unknown here is asked
there. A move that has not come to an open log at its new home does not report success.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from ...runtime.errors import CallerError, InvalidMessage, RayfoldError, Sealed, Unavailable, UnknownName
from ...runtime.log.sealing import Seal
from ...runtime.printable import printable_log
from ...runtime.store.home_statement import CopyFacts, HomeStatement
from ...runtime.store.partition_map import PartitionMap, moves_to_balance
from ..cluster.names import node_agent_name
from ..cluster.rpc import call, one_line
from ..nodes.move_result import MoveResult
from .partitions import PartitionInstance
from .system_state import SystemState

__all__ = ["PartitionMoves"]

log = printable_log(__name__)

_NEARLY: Final = 2_000
"""Events that may be missing when the log is sealed: copied in some 20 ms."""

_ROUNDS_MAX: Final = 50
"""How often what came meanwhile is copied. A log that grows faster than it is copied is sealed all the same."""

_STALLED_MAX: Final = 5
"""Pieces that added nothing, one of which may be a copy of another history that was begun again."""

_PULL_TIMEOUT_S: Final = 300.0
"""For one piece of a log: 32 MB."""

_SEAL_TIMEOUT_S: Final = 15.0
"""For the batch that is under way, and the seal."""


class PartitionMoves:
    """Moves of one system. Its supervision has them one at a time."""

    def __init__(self, system: SystemState) -> None:
        self._system = system

    async def move(self, partition: int, node: str) -> MoveResult:
        """Have a partition at home on this node (a name or an id). Where it is already, nothing happens.

        Raises `UnknownName`, `CallerError` for a node that is down or about to leave, `Unavailable` if either node is
        lost on the way: then the partition is where it was, or, if that was too late, at its new home.
        """
        system = self._system
        store_map = system.shares.map
        if not 0 <= partition < len(store_map.owners):
            raise UnknownName("partition", str(partition), [str(number) for number in range(len(store_map.owners))])
        to = node_called(store_map, node)
        async with system.changing:
            return await self._move(partition, to)

    async def rebalance(self) -> list[MoveResult]:
        """Move as few partitions as it takes for every node that is up, and not to be drained, to have as many."""
        async with self._system.changing:
            return await self._balance()

    async def drain(self, node: str, *, drained: bool = True) -> list[MoveResult]:
        """Have a node be home to nothing, so that it may leave; or, with `drained=False`, be used again."""
        system = self._system
        node_id = node_called(system.shares.map, node)
        async with system.changing:
            present = system.shares.map
            after = present.drained | {node_id} if drained else present.drained - {node_id}
            if not (set(present.names) & system.shares.up) - after:
                raise CallerError(
                    f"{present.name_of(node_id)} is the last node that may be used; add another one first"
                )
            await system.shares.publish(present.with_drained(after))
            moved = await self._balance() if drained else []
        await system.leave_drained()
        return moved

    async def settle(self) -> None:
        """After an end of everything: break the seals of moves that did not come to step 5."""
        for partition, seated in self._system.partitions.seated.items():
            if seated.node_id in self._system.shares.up:
                with contextlib.suppress(Exception):  # `set_right` does it once it can be done
                    await self._unseal_if_sealed(partition, seated)

    async def tidy(self) -> None:
        """Remove the old logs and copies of which the homes state that they hold all that is in them."""
        for node_id in sorted(self._system.shares.up):
            with contextlib.suppress(RayfoldError):
                for copy in await self._system.shares.call(node_id, lambda agent: agent.leftovers):
                    await self._discard(node_id, copy)

    async def _discard(self, node_id: str, copy: CopyFacts) -> None:
        """Have a node remove a copy, if its partition's home states enough."""
        shares, home = self._system.shares, self._system.shares.map.owners[copy.partition]
        what = f"{copy.name} on {shares.map.name_of(node_id)}"
        try:
            statement = await self._home_statement(copy.partition, home, copy.head)
            kept = await shares.call(node_id, lambda agent: agent.discard, copy.name, statement)
        except RayfoldError as error:
            kept = f"{shares.map.name_of(home)} did not confirm: {error}"
        if kept:
            log.warning("%s is kept: %s", what, kept)
        else:
            log.info("%s was removed: partition %d goes on at %s", what, copy.partition, shares.map.name_of(home))

    async def _home_statement(self, partition: int, home: str, *positions: int) -> HomeStatement:
        asked: Sequence[int] = positions
        return await self._system.shares.call(home, lambda agent: agent.home_statement, partition, asked)

    async def set_right(self, partition: int) -> None:
        """After the loss of a node in the middle of a move: have the partition go on where it is at home. The caller
        makes sure that it is not moved meanwhile.

        Raises what keeps it from that; then it can be done again.
        """
        system, shares = self._system, self._system.shares
        seated, home = system.partitions.seated[partition], shares.map.owners[partition]
        if home not in shares.up:
            return
        if seated.node_id != home:  # it was handed over, and a node was lost before that was known here
            log.warning("partition %d has moved to %s, and goes on there", partition, shares.map.name_of(home))
            await system.partitions.replace(partition, home)
            system.projections.use_partitions(system.partitions.handles())
            system.publish()
        elif await _has_let_go(seated):
            log.warning("undoing interrupted move of partition %d", partition)
            await self._unseal_if_sealed(partition, seated)

    async def _balance(self) -> list[MoveResult]:
        system = self._system
        present = system.shares.map
        usable = sorted(system.shares.up - present.drained - system.shares.troubles.keys(), key=present.name_of)
        moved = []
        for move in moves_to_balance(present, usable):
            if present.owners[move.partition] in system.shares.up:  # one whose home is gone cannot leave it
                moved.append(await self._move(move.partition, move.to))
        return moved

    async def _move(self, partition: int, to: str) -> MoveResult:
        system, began_s = self._system, time.monotonic()
        store_map = system.shares.map
        source = store_map.owners[partition]
        if source == to:
            return MoveResult(partition, store_map.name_of(source), store_map.name_of(to), 0, 0.0, 0.0)
        self._check_usable(partition, source, to)
        await self._tidy_partition(partition, to)
        await self._copy(partition, source, to)
        present, following = system.partitions.seated[partition], system.partitions.start(partition, to)
        try:
            await system.partitions.prepare(partition, following)
            await system.partitions.report_residents(partition, following)
            sealing_s = time.monotonic()
            sealed = await self._seal(partition, present, to)
            try:
                moved = await self._hand_over(partition, present, source, to, sealed)
            except BaseException:
                await asyncio.shield(self._call_off(partition, present, to, sealed.epoch))
                raise
        except BaseException:
            system.partitions.kill(following.actor)
            raise
        await system.shares.learn(moved, [to])
        system.partitions.seated[partition] = following
        system.projections.use_partitions(system.partitions.handles())
        await system.open_partition(partition)
        system.publish()
        waited_ms = (time.monotonic() - sealing_s) * 1000
        await self._retire(present)
        await self._confirm(partition, to, sealed)
        await self._tidy_partition(partition, source)
        log.info("partition %d has moved from %s to %s", partition, moved.name_of(source), moved.name_of(to))
        seconds = time.monotonic() - began_s
        return MoveResult(partition, moved.name_of(source), moved.name_of(to), sealed.head, seconds, waited_ms)

    def _check_usable(self, partition: int, source: str, to: str) -> None:
        shares = self._system.shares
        for node_id in (source, to):
            name = shares.map.name_of(node_id)
            if node_id not in shares.up:
                raise CallerError(f"partition {partition} cannot move to or from {name}: that node is down")
            if node_id in shares.troubles:
                raise CallerError(f"partition {partition} cannot move to or from {name}: {shares.troubles[node_id]}")
        if to in shares.map.drained:
            raise CallerError(f"{shares.map.name_of(to)} is drained and takes no partitions")

    async def _copy(self, partition: int, source: str, to: str) -> None:
        """Until hardly anything is missing."""
        for _ in range(_ROUNDS_MAX):
            reached = await self._copy_up_to(partition, source, to, await self._head(partition, source))
            if await self._head(partition, source) - reached <= _NEARLY:
                return

    async def _head(self, partition: int, source: str) -> int:
        nothing: Sequence[Any] = ()
        return cast(int, await self._system.shares.call(source, lambda agent: agent.read, partition, "head", nothing))

    async def _rows(self, partition: int, source: str) -> Mapping[str, bytes]:
        """What subscriptions keep in the sealed log. A node agent of an earlier release knows of none."""
        nothing: Sequence[Any] = ()
        rows = "subscription_rows"
        try:
            found = await self._system.shares.call(source, lambda agent: agent.read, partition, rows, nothing)
        except InvalidMessage:
            return {}
        return cast(Mapping[str, bytes], found)

    async def _copy_up_to(self, partition: int, source: str, to: str, head: int) -> int:
        """Piece by piece. Where the copy ends then. Raises `Unavailable` if it gets no longer."""
        reached, stalled = 0, 0
        while stalled < _STALLED_MAX:
            before, reached = reached, await self._pull(partition, source, to, head)
            if reached >= head:
                return reached
            stalled += reached <= before
        raise Unavailable(f"partition {partition}", f"its copy stays at position {reached:,} of {head:,}")

    async def _pull(self, partition: int, source: str, to: str, up_to: int) -> int:
        shares, name = self._system.shares, node_agent_name(self._system.plan.name, source)
        return await shares.call(to, lambda agent: agent.pull, partition, name, up_to, timeout_s=_PULL_TIMEOUT_S)

    async def _seal(self, partition: int, present: PartitionInstance, successor: str) -> Seal:
        """Raises `Unavailable`; then it may be sealed or not."""
        try:
            return await call(present.actor.seal, successor, timeout_s=_SEAL_TIMEOUT_S)
        except Exception as error:
            await asyncio.shield(self._let_go_on(partition, present, successor))
            if isinstance(error, RayfoldError):
                raise
            raise Unavailable(f"partition {partition}", f"it did not release its log: {one_line(error)}") from error

    async def _hand_over(
        self, partition: int, present: PartitionInstance, source: str, to: str, sealed: Seal
    ) -> PartitionMap:
        """Steps 4 and 5. Returns the map in which the partition is at home there. Raises if it is not, or if that is
        not known."""
        shares = self._system.shares
        await self._copy_up_to(partition, source, to, sealed.head)
        if rows := await self._rows(partition, source):
            await shares.call(to, lambda agent: agent.keep_rows, partition, rows)
        await shares.call(to, lambda agent: agent.finish, partition, sealed)
        version = shares.map.version + 1
        try:
            done = await call(present.actor.hand_over, to, sealed.epoch, version, timeout_s=_SEAL_TIMEOUT_S)
        except Exception as error:  # it may have been done, or not: only the old home's log shows it
            written = await shares.call(source, lambda agent: agent.place, shares.map)
            if written.owners[partition] != to:
                raise Unavailable(f"partition {partition}", f"it was not handed over: {one_line(error)}") from error
            return written
        moved = shares.map.with_home(partition, to, since=done.since, epoch=done.epoch)
        with contextlib.suppress(RayfoldError):  # its log has it: it writes it down when it is given the next map
            await shares.call(source, lambda agent: agent.place, moved)
        return moved

    async def _confirm(self, partition: int, to: str, sealed: Seal) -> None:
        """Raises `Unavailable` unless the new home states that it has opened the log, with all that was in it."""
        name, trouble = self._system.shares.map.name_of(to), self._system.trouble_of(partition)
        try:
            statement = await self._home_statement(partition, to, sealed.head)
        except RayfoldError as error:
            raise Unavailable(f"partition {partition}", _not_confirmed(name, trouble or error)) from error
        opened = not statement.write_ownership.successor and statement.write_ownership.epoch > sealed.epoch
        if not opened or statement.chains.get(sealed.head) != sealed.chain:
            what = (
                trouble or f"its log there has epoch {statement.write_ownership.epoch} and ends at {statement.head:,}"
            )
            raise Unavailable(f"partition {partition}", _not_confirmed(name, what))

    async def _call_off(self, partition: int, present: PartitionInstance, successor: str, epoch: int) -> None:
        """Break the seal of a move that did not come about, unless it did."""
        try:
            await self._unseal(partition, present, successor, epoch)
        except Exception as error:  # `set_right` does it once it can be done
            log.warning("partition %d: %s", partition, one_line(error))

    async def _let_go_on(self, partition: int, present: PartitionInstance, successor: str) -> None:
        """After a seal of which it is not known whether it was made."""
        try:
            await self._unseal_if_sealed(partition, present, successor)
        except Exception as error:  # `set_right` does it once it can be done
            log.warning("partition %d: %s", partition, one_line(error))

    async def _unseal_if_sealed(self, partition: int, seated: PartitionInstance, successor: str = "") -> None:
        """The partition goes on where it was, unless it has moved. `successor`: not if it is sealed for another one."""
        write_ownership = (await self._home_statement(partition, seated.node_id)).write_ownership
        if not successor or write_ownership.successor in (
            "",
            successor,
        ):  # one that released a log and could not seal it has to open it, too
            await self._unseal(partition, seated, write_ownership.successor, write_ownership.epoch)

    async def _unseal(self, partition: int, seated: PartitionInstance, successor: str, epoch: int) -> None:
        """Raises `Sealed` if it has moved; then the map of its old home is known."""
        shares = self._system.shares
        try:
            await call(seated.actor.unseal, successor, epoch, timeout_s=_SEAL_TIMEOUT_S)
        except Sealed:
            await shares.learn(await shares.call(seated.node_id, lambda agent: agent.place, shares.map), [])
            raise

    async def _retire(self, present: PartitionInstance) -> None:
        """Step 7, but for the old log."""
        with contextlib.suppress(Exception):
            await call(present.actor.close)
        self._system.partitions.kill(present.actor)
        await self._system.shares.publish(self._system.shares.map)

    async def _tidy_partition(self, partition: int, node_id: str) -> None:
        """Have a node remove what it has of a partition that it is not home to, as far as its home states enough."""
        shares = self._system.shares
        with contextlib.suppress(RayfoldError):
            for copy in await shares.call(node_id, lambda agent: agent.leftovers):
                if copy.partition == partition:
                    await self._discard(node_id, copy)


def _not_confirmed(node: str, why: object) -> str:
    return (
        f"it has moved to {node}, but cannot be opened there: {why}; the old log is kept, and the partition resumes"
        " once it can"
    )


async def _has_let_go(seated: PartitionInstance) -> bool:
    """Whether a partition's actor reports that it has handed its log over."""
    try:
        await call(seated.actor.head)
    except Sealed:
        return True
    except Exception:  # it is being started, or is away: not known
        return False
    return False


def node_called(store_map: PartitionMap, node: str) -> str:
    """The id of the node of this name or id. Raises `UnknownName`, and `CallerError` for a name that two nodes have."""
    if node in store_map.names:
        return node
    found = [node_id for node_id, name in store_map.names.items() if name == node]
    if len(found) > 1:
        raise CallerError(f"several nodes are called {node!r}; give the id of one: {', '.join(found)}")
    if not found:
        raise UnknownName("node", node, list(store_map.names.values()))
    return found[0]
