"""Restoring a backup: a new store with the same events, whole or up to a position.

The restored store has an id of its own, which every partition's log carries: it cannot be taken for the original, its
partitions cannot be mixed with the original's, and the original's backup refuses to go on from it. `restored.json`
beside the manifest records its origin.

Rules kept here: every event is checked on its way, against the inventory, its checksum and the hash chain; the store is
made beside its place and moved there when it is whole, so that an interrupted restore leaves no store.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from ..durable_files import fsync_folder, write_durably
from ..errors import StorageFailed, StoreInUse, StoreMismatch, StoreMissing
from ..feed.group_coordinator import restored_rows, rows_up_to
from ..log.index_buffer import appends_in
from ..log.segment import LogSegment
from ..private import make_private_folder, open_private
from ..store.store import Store, create_or_open_store
from .inventory import Inventory, Segment, read_inventory, read_segment
from .target import Target, target_at

__all__ = ["Restored", "restore_store"]

ORIGIN: Final = "restored.json"
UNFINISHED: Final = ".restoring"
"""What the name of the folder ends with in which a store is made."""

_LOCK: Final = "restoring.lock"
"""In that folder, from the first moment on: flocked by the process that restores."""

_STORE: Final = "store"
"""... and the store itself, until it is whole."""

Advance = Callable[[int, int], None]


class Restored(NamedTuple):
    """The store that was made of a backup."""

    path: Path
    store_id: str
    """Its own."""
    restored_from: str
    """The id of the store that the backup was taken of."""
    heads: dict[int, int]
    """Partition -> position of its last event."""


def restore_store(
    target: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    positions: Mapping[int, int] | None = None,
    advance: Advance = lambda done, total: None,
) -> Restored:
    """Make a store in a directory that is missing or empty from the backup at a folder or an fsspec address.

    `positions` (partition -> position) restores those partitions only up to there, which must be the end of a command.
    Raises `StoreMissing` (no backup there), `StoreMismatch` (the directory is taken, or a position is not in the
    backup or lies within a command), `StoreInUse` (a backup is being taken there, or another restore is under way
    here), `Damaged` or `StorageFailed`; then there is no store.
    """
    place, folder = target_at(target), Path(path).absolute()
    with place.held(writing=False):
        inventory = read_inventory(place)
        if inventory is None or inventory.unfinished:
            raise StoreMissing(place.address, "there is no backup here")
        heads = _wanted(inventory, positions or {}, place)
        _check_free(folder)
        try:
            with _workplace(folder) as unfinished:
                store = create_or_open_store(unfinished, inventory.partitions, placement=inventory.placement)
                _fill(store, inventory, heads, place, advance)
                _write_origin(store, inventory, heads)
                if folder.exists():
                    folder.rmdir()
                unfinished.rename(folder)
                fsync_folder(folder.parent)
        except OSError as error:
            raise StorageFailed(str(folder), f"cannot make the store: {error.strerror or error}") from error
    return Restored(folder, store.store_id, inventory.store_id, heads)


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder beside the place of the store, in which it is made: `NAME.restoring/store`. What an interrupted restore
    has left there is removed: the lock beside it proves that it is a restore's, and that none is under way.

    Raises `StoreMismatch` for a folder of that name that is not a restore's, `StoreInUse`, `OSError`.
    """
    work = folder.with_name(folder.name + UNFINISHED)
    if work.is_symlink() or (work.exists() and not work.is_dir()):
        raise StoreMismatch(str(work), "it is where the store would be made, and no folder", "move it away")
    names = {one.name for one in work.iterdir()} if work.exists() else set()
    if not names <= {_LOCK, _STORE} or (names and _LOCK not in names):
        listed = ", ".join(sorted(names - {_LOCK})[:3])
        what = f"it is where the store would be made, and holds {listed}, which no restore has left"
        raise StoreMismatch(str(work), what, "move it away, or restore into a folder of another name")
    make_private_folder(work)
    lock = open_private(work / _LOCK, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreInUse(str(work), "another restore") from None
        if os.fstat(lock).st_nlink == 0:
            raise StoreInUse(str(work), "another restore, which has just ended")
        try:
            if (work / _STORE).exists():
                shutil.rmtree(work / _STORE)
            yield work / _STORE
        finally:
            shutil.rmtree(work / _STORE, ignore_errors=True)
            with suppress(OSError):
                (work / _LOCK).unlink()
                work.rmdir()
    finally:
        os.close(lock)


def _wanted(inventory: Inventory, positions: Mapping[int, int], place: Target) -> dict[int, int]:
    heads = inventory.heads
    for partition, position in positions.items():
        if partition not in heads:
            what = f"it has {inventory.partitions} partitions, and none with number {partition}"
            raise StoreMismatch(place.address, what)
        if not 0 <= position <= heads[partition]:
            what = f"it has the events up to {heads[partition]:,} of partition {partition}, not up to {position:,}"
            raise StoreMismatch(place.address, what)
    return heads | dict(positions)


def _check_free(folder: Path) -> None:
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise StorageFailed(str(folder), error.strerror or str(error)) from error
    if taken:
        raise StoreMismatch(str(folder), "there is something here already", "restore into an empty or a new directory")
    if folder.is_symlink() or os.path.ismount(folder):  # the store is moved there when it is whole
        remedy = "restore into a folder below it, or below what it leads to"
        raise StoreMismatch(str(folder), "it is a link, or where a disk is mounted, and cannot be replaced", remedy)


def _fill(store: Store, inventory: Inventory, heads: Mapping[int, int], place: Target, advance: Advance) -> None:
    done, total = 0, sum(heads.values())
    with store.hold("a restore"):
        for partition, up_to in heads.items():
            log = store.open_log(partition)
            try:
                for segment in inventory.segments.get(partition, ()):
                    if segment.first > up_to:
                        break
                    log_segment = _cut(read_segment(segment, place), up_to, partition, segment, place)
                    log.add_segment(log_segment)
                    done += len(log_segment.records)
                    advance(done, total)
                rows = rows_up_to(inventory.subscriptions.get(partition, {}), partition, heads)
                log.put_rows(rows | restored_rows(inventory.store_id))
            finally:
                log.close()


def _cut(log_segment: LogSegment, up_to: int, partition: int, segment: Segment, place: Target) -> LogSegment:
    """The segment up to a position, which has to be where a command ends."""
    if segment.last <= up_to:
        return log_segment
    for number, events in enumerate(appends_in(log_segment.records)):
        first, last = events[0].position, events[-1].position
        if last > up_to:
            if first <= up_to:
                what = f"position {up_to:,} of partition {partition} lies within a command, {first:,} to {last:,}"
                raise StoreMismatch(place.address, what, f"choose {first - 1:,} or {last:,}")
            return log_segment._replace(
                records=log_segment.records[: first - log_segment.first], digests=log_segment.digests[:number]
            )
    return log_segment


def _write_origin(store: Store, inventory: Inventory, heads: Mapping[int, int]) -> None:
    facts = {
        "restored_from": inventory.store_id,
        "taken_at": inventory.taken_at,
        "restored_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "heads": {str(partition): head for partition, head in heads.items()},
    }
    write_durably(store.path / ORIGIN, (json.dumps(facts, indent=2) + "\n").encode())
