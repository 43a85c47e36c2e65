"""Moving: a partition goes from one node to another while commands arrive, and partitions are spread evenly.

Beside step [3], on the event loop of whoever supervises. The steps, and what an end of everything in between leaves:

1. the keeper of the new home copies the log, and copies what came meanwhile, until little is missing. Left: a copy that
   nobody uses, which the next move goes on with
2. an actor for the partition starts there, loads the application's code, and is told what the present one has in
   memory. Left: an actor without a log, which is ended
3. the present actor *seals* the log: commands wait from here on. Left: a sealed log at its home; the seal is broken,
   and the partition goes on where it was
4. the keeper of the new home copies the rest, compares the ends, and takes over the count of epochs. Left: as after 3
5. the old home writes down the new map: this is the step that counts. Left: the partition is at home on the new node,
   whose copy is complete, and is opened there as soon as it has been given the map
6. the new home is given the map, its actor opens the log under the next epoch, and commands go there
7. everybody else is given the map; the old log is removed. Left: an old log, which is sealed, and removed later

What an end of everything has left is put right when a supervisor starts (`settle`), and what the loss of a node has
left when that is back (`set_right`).

Rules kept here: before step 5 the old home alone can be opened, after it the new home alone. Whether the seal is broken
or the map written down, if two should try both, is decided on the old home (`keeper.py`, `commit`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from ..runtime.errors import CallerError, RayfoldError, Sealed, Unavailable, UnknownName
from ..runtime.log.sealing import Seal
from ..runtime.log.store_map import StoreMap, moves_to_balance
from ..runtime.printable import printable_log
from ..runtime.wire import from_wire
from .calls import call, kill, one_line
from .moved import Moved
from .partition_actors import Seated
from .spread_store import keeper_name

if TYPE_CHECKING:
    from .supervision import Supervision

__all__ = ["Moving"]

log = printable_log(__name__)

_NEARLY: Final = 2_000
"""Events that may be missing when the log is sealed: copied in some 20 ms."""

_ROUNDS_MAX: Final = 50
"""Of copying what came meanwhile. A log that grows faster than it is copied is sealed all the same."""

_PULL_TIMEOUT_S: Final = 3600.0
"""For the first copy of a log."""

_SEAL_TIMEOUT_S: Final = 15.0
"""For the batch that is under way, and the seal."""


class Moving:
    """Moves of one system. Its supervision has them one at a time."""

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision

    async def move(self, partition: int, node: str) -> Moved:
        """Have a partition at home on this node (a name or an id). Where it is already, nothing happens.

        Raises `UnknownName`, `CallerError` for a node that is down or about to leave, `Unavailable` if either node is
        lost on the way: then the partition is where it was, or, if that was too late, where it was to be.
        """
        supervision = self._supervision
        store_map = supervision.shares.map
        if not 0 <= partition < len(store_map.homes):
            raise UnknownName("partition", str(partition), [str(number) for number in range(len(store_map.homes))])
        to = node_called(store_map, node)
        async with supervision.changing:
            return await self._move(partition, to)

    async def rebalance(self) -> list[Moved]:
        """Move as few partitions as it takes for every node that is up, and not to be drained, to have as many."""
        async with self._supervision.changing:
            return await self._balance()

    async def drain(self, node: str, *, drained: bool = True) -> list[Moved]:
        """Have a node be home to nothing, so that it may leave; or, with `drained=False`, be used again."""
        supervision = self._supervision
        node_id = node_called(supervision.shares.map, node)
        async with supervision.changing:
            present = supervision.shares.map
            after = present.drained | {node_id} if drained else present.drained - {node_id}
            if not (set(present.names) & supervision.shares.up) - after:
                raise CallerError(
                    f"{present.name_of(node_id)} is the last node that may be used; add another one first"
                )
            await supervision.shares.publish(present.with_drained(after))
            moved = await self._balance() if drained else []
        await supervision.leave_drained()
        return moved

    async def settle(self) -> None:
        """After an end of everything: break seals of moves that did not come to step 5, and remove what is left
        over."""
        shares = self._supervision.shares
        for partition, seated in self._supervision.partitions.seated.items():
            if seated.node_id in shares.up:
                with contextlib.suppress(Exception):
                    await self._unseal_if_sealed(partition, seated)
        for node_id in shares.up:
            with contextlib.suppress(RayfoldError):
                await shares.call(node_id, "tidy")

    async def set_right(self, partition: int) -> None:
        """After the loss of a node in the middle of a move: have the partition go on where it is at home. Whoever calls
        this sees to it that nobody moves it.

        Raises what keeps it from that; then it can be done again.
        """
        supervision, shares = self._supervision, self._supervision.shares
        seated, home = supervision.partitions.seated[partition], shares.map.homes[partition]
        if home not in shares.up:
            return
        if seated.node_id != home:  # the old home had written it down, and was lost before anybody heard of it
            log.warning("partition %d has moved to %s, and goes on there", partition, shares.map.name_of(home))
            await supervision.partitions.replace(partition, home)
            supervision.projections.use_partitions(supervision.partitions.handles())
            supervision.put_up()
        elif await _has_let_go(seated):
            log.warning("partition %d was to move, and goes on where it was", partition)
            try:
                await self._unseal(partition, seated)
            except Sealed:  # it was written down after all; its home tells
                await shares.add(supervision.nodes[home])
                raise

    async def _balance(self) -> list[Moved]:
        supervision = self._supervision
        present = supervision.shares.map
        usable = sorted(
            supervision.shares.up - present.drained - supervision.shares.troubles.keys(), key=present.name_of
        )
        moved = []
        for move in moves_to_balance(present, usable):
            if present.homes[move.partition] in supervision.shares.up:  # one whose home is gone cannot leave it
                moved.append(await self._move(move.partition, move.to))
        return moved

    async def _move(self, partition: int, to: str) -> Moved:
        supervision, began_s = self._supervision, time.monotonic()
        store_map = supervision.shares.map
        source = store_map.homes[partition]
        if source == to:
            return Moved(partition, store_map.name_of(source), store_map.name_of(to), 0, 0.0, 0.0)
        self._check_usable(partition, source, to)
        await self._copy(partition, source, to)
        present, following = supervision.partitions.seated[partition], supervision.partitions.start(partition, to)
        try:
            await supervision.partitions.prepare(partition, following)
            await supervision.partitions.tell_residents(partition, following)
            sealing_s = time.monotonic()
            sealed = await self._seal(partition, present, to)
            try:
                moved = await self._commit(partition, source, to, sealed)
            except BaseException:
                await asyncio.shield(self._unseal_if_sealed(partition, present))
                raise
        except BaseException:
            kill(following.actor)
            raise
        await supervision.shares.learn(moved, [to])
        supervision.partitions.seated[partition] = following
        supervision.projections.use_partitions(supervision.partitions.handles())
        await supervision.open_partition(partition)
        supervision.put_up()
        waited_ms = (time.monotonic() - sealing_s) * 1000
        await self._leave(partition, present, source)
        log.info("partition %d has moved from %s to %s", partition, moved.name_of(source), moved.name_of(to))
        seconds = time.monotonic() - began_s
        return Moved(partition, moved.name_of(source), moved.name_of(to), sealed.head, seconds, waited_ms)

    def _check_usable(self, partition: int, source: str, to: str) -> None:
        shares = self._supervision.shares
        for node_id in (source, to):
            name = shares.map.name_of(node_id)
            if node_id not in shares.up:
                raise CallerError(f"partition {partition} cannot move to or from {name}: that node is down")
            if node_id in shares.troubles:
                raise CallerError(f"partition {partition} cannot move to or from {name}: {shares.troubles[node_id]}")
        if to in shares.map.drained:
            raise CallerError(f"{shares.map.name_of(to)} is drained: it is to have no partition")

    async def _copy(self, partition: int, source: str, to: str) -> None:
        """Until hardly anything is missing."""
        shares = self._supervision.shares
        for _ in range(_ROUNDS_MAX):
            head = await shares.call(source, "read", partition, "head", ())
            reached = await self._pull(partition, source, to, head)
            if await shares.call(source, "read", partition, "head", ()) - reached <= _NEARLY:
                return

    async def _pull(self, partition: int, source: str, to: str, up_to: int) -> int:
        shares, name = self._supervision.shares, keeper_name(self._supervision.plan.name, source)
        reached: int = await shares.call(to, "pull", partition, name, up_to, timeout_s=_PULL_TIMEOUT_S)
        return reached

    async def _seal(self, partition: int, present: Seated, heir: str) -> Seal:
        """Raises `Unavailable`; then it may be sealed or not."""
        try:
            told, sealed = await call(present.actor.seal, heir, timeout_s=_SEAL_TIMEOUT_S)
        except Exception as error:
            await asyncio.shield(self._unseal_if_sealed(partition, present))
            raise Unavailable(f"partition {partition}", f"it did not let go of its log: {one_line(error)}") from error
        if told:
            raise from_wire(told)
        seal: Seal = sealed
        return seal

    async def _commit(self, partition: int, source: str, to: str, sealed: Seal) -> StoreMap:
        """Steps 4 and 5. Raises if it did not come about."""
        shares = self._supervision.shares
        await self._pull(partition, source, to, sealed.head)
        await shares.call(to, "finish", partition, sealed)
        wanted = shares.map.with_home(partition, to)
        try:
            await shares.call(source, "commit", partition, wanted, to, sealed.epoch)
        except Unavailable:  # it may have written it down, or not
            written = await shares.call(source, "map")
            if written is None or written.homes[partition] != to:
                raise
        return wanted

    async def _unseal_if_sealed(self, partition: int, seated: Seated) -> None:
        """The partition goes on where it was, unless it has moved."""
        if heir := await self._heir(partition):
            await self._unseal(partition, seated, heir)

    async def _unseal(self, partition: int, seated: Seated, heir: str | None = None) -> None:
        """Raises `Sealed` if it has moved."""
        heir = await self._heir(partition) if heir is None else heir
        told = await call(seated.actor.unseal, heir, timeout_s=_SEAL_TIMEOUT_S)
        if told:
            raise from_wire(told)

    async def _heir(self, partition: int) -> str:
        """For whom its log is sealed; empty if it is not."""
        reader = self._supervision.shares.store.open_reader(partition)
        try:
            return await asyncio.to_thread(reader.heir)
        finally:
            reader.close()

    async def _leave(self, partition: int, present: Seated, source: str) -> None:
        """Step 7. What cannot be done now is done by `settle`."""
        with contextlib.suppress(Exception):
            await call(present.actor.close)
        kill(present.actor)
        shares = self._supervision.shares
        await shares.publish(shares.map)
        with contextlib.suppress(RayfoldError):
            await shares.call(source, "remove", partition)


async def _has_let_go(seated: Seated) -> bool:
    """Whether a partition's actor says that it has handed its log over."""
    try:
        await call(seated.actor.head)
    except Exception as error:
        return isinstance(getattr(error, "cause", error), Sealed)
    return False


def node_called(store_map: StoreMap, node: str) -> str:
    """The id of the node of this name or id. Raises `UnknownName`, and `CallerError` for a name that two nodes have."""
    if node in store_map.names:
        return node
    found = [node_id for node_id, name in store_map.names.items() if name == node]
    if len(found) > 1:
        raise CallerError(f"several nodes are called {node!r}; say the id of one: {', '.join(found)}")
    if not found:
        raise UnknownName("node", node, list(store_map.names.values()))
    return found[0]
