"""NodeShare: what happens to a node's part of a store: created, given a map, copied to, cleaned up.

Beside the write path, in the node's agent (`actors/nodes/agent.py`). Decisions only: files and LMDB are behind
`ShareDisk` (`store/node_store.py` has the real one; the simulation of the control plane has one that refuses writes and
is cut off anywhere).

Rules kept here:
- a map is merged, never exchanged, and a log that was handed over (`sealing.py`) counts for more than any map
- a copy becomes the log of a partition only with the epoch that the map names: it was completed for just that move
- whatever stands in the way of a copy is renamed, not removed; a copy is removed on evidence only (`home_statement.py`)
- the map is written last: what is cut short before is done again, and changes nothing the second time
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from ..errors import Damaged, Sealed, StoreError, StoreMismatch, StoreMissing
from ..log.sealing import Seal, Sealable, WriteOwnership, continue_epochs
from ..log.segment import LogSegment
from ..printable import printable_log
from ..stream import OLD_PLACEMENT
from .home_statement import (
    ARRIVING,
    REMOVING,
    CopyFacts,
    HomeStatement,
    copy_name,
    partition_in,
    retired_name,
    why_kept,
)
from .partition_map import PartitionMap, merged
from .store import Store
from .store_lock import exists

__all__ = ["Copy", "NodeShare", "Share", "ShareDisk", "ShareFacts", "check_epoch", "check_home"]

log = printable_log(__name__)

PULLED_MAX: Final = 4
"""Segments of one call of `pull`, of 8 MB each: a second or two, so that nothing else waits for long."""


class Share(NamedTuple):
    """What a node has of a store."""

    store: Store
    """Its directory, with what is at home elsewhere as `away`."""
    map: PartitionMap | None
    """None while the store is being created, and for a whole store that is not spread yet."""

    @property
    def whole(self) -> bool:
        """Whether the logs of all partitions are here, as in a store of one machine."""
        return all(exists(self.store.partition_path(number) / "data.mdb") for number in range(self.store.partitions))


class ShareFacts(NamedTuple):
    """What a node has of a store."""

    store_id: str
    """Empty if it has nothing."""
    partitions: int
    map: PartitionMap | None
    """As it is here, with what the logs here have decided since it was written."""
    whole: bool
    """The logs of all partitions are here."""
    used: bool
    """There is no map, and some log here has been written to, or was taken over at least once."""
    placement: str = OLD_PLACEMENT
    """The rule by which its streams find their partitions."""


class Copy(Sealable, Protocol):
    """A copy of a log that is being written."""

    def add(self, segment: LogSegment) -> None:
        """Add a segment to its end, durably. Raises `Damaged`, and adds nothing, unless it follows."""
        ...

    def put_rows(self, rows: Mapping[str, bytes]) -> None:
        """Have exactly these rows of subscriptions, durably."""
        ...


class ShareDisk(Protocol):
    """The folder of a share. Each method is done whole or not at all, durably; all raise `StorageFailed`."""

    @property
    def path(self) -> Path:
        """What errors call it."""
        ...

    def open_share(self) -> Share | None:
        """What is here by manifest and map."""
        ...

    def proposal(self) -> PartitionMap | None:
        """The first map of the store that is being created, if one was proposed here."""
        ...

    def write_proposal(self, store_map: PartitionMap) -> None:
        """Keep that."""
        ...

    def make(self, store_map: PartitionMap) -> None:
        """Make manifest and empty logs; those of an interrupted creation that were never used are made again."""
        ...

    def write_map(self, store_map: PartitionMap) -> None:
        """Keep this map."""
        ...

    def names(self) -> list[str]:
        """The folders of all copies of logs."""
        ...

    def look(self, name: str) -> CopyFacts | None:
        """What is stored in a copy; None for a folder without a log."""
        ...

    def chain_at(self, name: str, position: int) -> bytes:
        """The chain link of the event at a position of a copy."""
        ...

    def writing(self, name: str, *, create: bool) -> AbstractContextManager[Copy]:
        """A copy, opened to be written. Raises `StoreMissing` if it is not here and `create` is not set."""
        ...

    def rename(self, name: str, to: str) -> None:
        """Rename the folder of a copy."""
        ...

    def remove(self, name: str) -> None:
        """Remove the folder of a copy. Need not be whole: whatever is left has the same name."""
        ...


def check_home(store_map: PartitionMap, partition: int, node_id: str) -> None:
    """Before a log is opened on a node. Raises `Sealed` for a partition that is at home on another one."""
    if (home := store_map.owners[partition]) != node_id:
        raise Sealed(f"partition {partition}", f"node {store_map.name_of(home)}")


def check_epoch(store_map: PartitionMap, partition: int, epoch: int, path: str) -> None:
    """Before a log is taken over at its home. Raises `StoreMismatch` for one that is older than the one that came to
    this node: an old copy in its place."""
    if epoch < (came_with := store_map.epochs[partition]):
        what = f"the log of partition {partition} has epoch {epoch}: it is older than the one that came here"
        remedy = f"that one had epoch {came_with}; look for it beside this one, or on the node that it came from"
        raise StoreMismatch(path, what, remedy)


class NodeShare:
    """The share of one node. Not for several threads at once."""

    def __init__(self, disk: ShareDisk, node_id: str) -> None:
        self._disk = disk
        self._node_id = node_id

    # --- the store and its map -----------------------------------------------------------------------------------

    def facts(self) -> ShareFacts:
        """What is here. Raises what `ShareDisk.open_share` does."""
        share = self._disk.open_share()
        if share is None:
            return ShareFacts("", 0, None, False, False)
        store = share.store
        if share.map is not None:
            store_map = self.with_hand_overs(share.map)
            return ShareFacts(store.store_id, store.partitions, store_map, False, False, store.placement)
        logs = [one for one in self.copies() if one.name == copy_name(one.partition)]
        used = any(one.head or one.write_ownership.epoch for one in logs)
        whole = len(logs) == store.partitions
        return ShareFacts(store.store_id, store.partitions, None, whole, used, store.placement)

    def propose(self, store_map: PartitionMap) -> PartitionMap:
        """A store has to be created, and this node decides which: the one that was proposed first. Returns its first
        map. Raises `StoreMismatch`, `StorageFailed`."""
        self._check_no_map()
        if (earlier := self._disk.proposal()) is not None:
            return earlier
        self._disk.write_proposal(store_map)
        return store_map

    def create(self, store_map: PartitionMap) -> None:
        """Make the share of a store that is being created: all but the map. What an interrupted creation has left is
        made again, unless it was used.

        Raises `StoreMismatch`, `StoreInUse`, `StorageFailed`.
        """
        self._check_no_map()
        self._disk.make(store_map)

    def _check_no_map(self) -> None:
        present = self._disk.open_share()
        if present is not None and present.map is not None:
            what = f"there is a share of store {present.store.store_id} already"
            raise StoreMismatch(str(self._disk.path), what, "choose another name for the new store")

    def place(self, known: PartitionMap) -> PartitionMap:
        """Keep this map, together with what is known here already. A copy that was completed for a partition that is at
        home here from now on becomes its log. A node that is home to nothing and has no share yet is given one.

        Returns the map as it is here now. Raises `StoreMissing` where a share with logs should be and is not,
        `StoreMismatch` for that of another store.
        """
        present = self._disk.open_share()
        if present is not None and present.store.store_id != known.store_id:
            self._replace_unused(present, known)
        elif present is None:
            if at_home := known.at_home_on(self._node_id):
                what = f"the share of node {known.name_of(self._node_id)} is gone, with partitions {at_home}"
                raise StoreMissing(str(self._disk.path), f"{what}; bring it back, or restore the store from a backup")
            self._disk.make(known)
        elif present.map is not None:
            known = merged([present.map, known])
        known = self.with_hand_overs(known)
        if present is None or known != present.map:
            for partition in known.at_home_on(self._node_id):
                self._settle(partition, known.epochs[partition])
            self._disk.write_map(known)
        return known

    def with_hand_overs(self, known: PartitionMap) -> PartitionMap:
        """A map, with what the logs here have decided and it does not know yet."""
        for partition in known.at_home_on(self._node_id):
            present = self._look(copy_name(partition))
            if present is not None and present.write_ownership.since > known.since[partition]:
                write_ownership = present.write_ownership
                known = known.with_home(
                    partition, write_ownership.successor, since=write_ownership.since, epoch=write_ownership.epoch
                )
        return known

    def _replace_unused(self, present: Share, known: PartitionMap) -> None:
        """What another creation, which did not come to its end, has left here is made again; what was used never is."""
        if present.map is not None or known.at_home_on(self._node_id):
            what = f"it is of store {present.store.store_id}, and the other nodes have store {known.store_id}"
            raise StoreMismatch(str(self._disk.path), what, "move it out of the data folder, or use another name")
        self._disk.make(known)

    def _settle(self, partition: int, epoch: int) -> None:
        """Have the log of a partition that is at home here in its place, if it is here. Where it is not, opening it
        raises the error: nothing is made in its place."""
        name = copy_name(partition)
        present = self._look(name)
        if not epoch or (present is not None and present.write_ownership.epoch >= epoch):
            return
        copies = [one for one in self.copies(partition) if one.write_ownership == WriteOwnership(epoch)]
        if not copies:
            return
        if present is not None:
            self._retire(present)
        self._disk.rename(copies[0].name, name)

    # --- copies --------------------------------------------------------------------------------------------------

    def copies(self, partition: int | None = None) -> list[CopyFacts]:
        """The copies of logs here, of one partition or of all: logs, and what moves have left."""
        names = [name for name in self._disk.names() if partition in (None, partition_in(name))]
        return [found for name in names if (found := self._look(name)) is not None]

    def leftovers(self) -> list[CopyFacts]:
        """The copies of logs here that are not the log of a partition that is at home here."""
        share = self._require_share()
        for name in self._decided():
            self._disk.remove(name)
        return [one for one in self.copies() if not self._is_log(share, one)]

    def home_statement(self, partition: int, positions: Sequence[int] = ()) -> HomeStatement:
        """This node's statement about a partition that is at home here. Raises `StoreMismatch` if it is not, or if its
        log is not here."""
        share = self._require_share()
        name = copy_name(partition)
        present = self._look(name)
        if share.map is None or partition in share.store.away:
            raise StoreMismatch(str(self._disk.path), f"partition {partition} is not at home here", "ask its home")
        if present is None or present.write_ownership.epoch < share.map.epochs[partition]:
            what = f"the log of partition {partition}, which is at home here, is not"
            raise StoreMismatch(str(self._disk.path), what, "look for it under another name, or restore a backup")
        chains = {at: self._disk.chain_at(name, at) for at in set(positions) if at <= present.head}
        since = share.map.since[partition]
        return HomeStatement(partition, self._node_id, since, present.write_ownership, present.head, chains)

    def discard(self, name: str, home: HomeStatement) -> str:
        """Remove a copy on the statement of the partition's home. Returns why it is kept, if it is."""
        share, copy = self._require_share(), self._look(name)
        if copy is None:
            return ""
        if self._is_log(share, copy):
            return "it is the log of a partition that is at home here"
        if why := why_kept(copy, home):
            return why
        removing = copy_name(copy.partition, REMOVING)
        if removing in self._decided():
            self._disk.remove(removing)
        self._disk.rename(name, removing)  # first, so that half a log is never taken for one
        self._disk.remove(removing)
        return ""

    def pull(self, partition: int, up_to: int, fetch: Callable[[int, int], LogSegment | None]) -> int:
        """Copy what `fetch` returns of a partition's log, up to a position or as much as is done at once. Returns how
        far the copy is now. A copy of another history is retired, and another one begun.

        Raises `StoreMismatch` for a partition that is at home here, `Damaged`, and what `fetch` raises.
        """
        self._check_away(partition)
        name = copy_name(partition, ARRIVING)
        with self._disk.writing(name, create=True) as copy:
            reached, _ = copy.end()
            for _ in range(PULLED_MAX):
                segment = fetch(reached, up_to) if reached < up_to else None
                if segment is None:
                    return reached
                try:
                    copy.add(segment)
                except Damaged as error:
                    if reached == 0:
                        raise
                    trouble = error
                    break
                reached = segment.last
            else:
                return reached
        log.error("%s is kept, renamed, and another copy is made: %s", name, trouble)
        self._retire_named(name)
        return 0

    def keep_rows(self, partition: int, rows: Mapping[str, bytes]) -> None:
        """The copy keeps what subscriptions keep in the sealed original. Raises `StoreMismatch` for a partition that is
        at home here, `StoreMissing` if there is no copy."""
        self._check_away(partition)
        with self._disk.writing(copy_name(partition, ARRIVING), create=False) as copy:
            copy.put_rows(rows)

    def finish(self, partition: int, sealed: Seal) -> None:
        """The copy is to go on from this seal: it must have come to its end, and takes over its epoch.

        Raises `Damaged` for a copy that does not end like that; it is kept under another name, and the next move makes
        another one.
        """
        self._check_away(partition)
        name = copy_name(partition, ARRIVING)
        with self._disk.writing(name, create=sealed.head == 0) as copy:
            if (end := copy.end()) == (sealed.head, sealed.chain):
                continue_epochs(copy, sealed.epoch)
                return
        if end[0] >= sealed.head:
            self._retire_named(name)
        what = f"it ends at position {end[0]:,} and not as the original does, at {sealed.head:,}"
        raise Damaged(f"the copy of partition {partition}", what)

    # -------------------------------------------------------------------------------------------------------------

    def _decided(self) -> list[str]:
        """Copies of which it was decided before that they are removed."""
        return [name for name in self._disk.names() if name.endswith(REMOVING)]

    def _look(self, name: str) -> CopyFacts | None:
        try:
            return self._disk.look(name)
        except StoreError as error:
            log.error("%s cannot be read, and is kept: %s", name, error)
            return None

    def _retire_named(self, name: str) -> None:
        if (copy := self._look(name)) is not None:
            self._retire(copy)

    def _retire(self, copy: CopyFacts) -> None:
        """Give a copy a name under which it is in nothing's way."""
        self._disk.rename(copy.name, retired_name(copy, set(self._disk.names())))

    def _check_away(self, partition: int) -> None:
        share = self._require_share()
        if share.map is None or partition not in share.store.away:
            raise StoreMismatch(str(self._disk.path), f"partition {partition} is at home here already")

    def _is_log(self, share: Share, copy: CopyFacts) -> bool:
        return copy.name == copy_name(copy.partition) and copy.partition not in share.store.away

    def _require_share(self) -> Share:
        share = self._disk.open_share()
        if share is None:
            raise StoreMissing(str(self._disk.path), "there is no share here")
        return share
