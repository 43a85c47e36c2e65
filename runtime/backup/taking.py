"""Taking a backup: what a store has gained since the last one, read while the store is written to.

What is in it: every event and every command id of each partition, up to the moment at which the backup began, and how
far subscriptions of a name had acknowledged. Snapshots and read models are left out: they are made again from the
events.

Rules kept here: the store is only read, in short transactions; a backup goes on only from the same history (store id,
hash chain), so that a store which was restored or replaced never ends up in the backup of another; segments are written
before the inventory that lists them, and each run checks that the listed files exist.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ..errors import InvalidMessage, StoreMismatch
from ..log.contract import Reader
from ..log.format import chain_of
from ..log.segment import SEGMENT_BYTES, SEGMENT_EVENTS_MAX, SegmentReader
from ..printable import printable_log
from ..store.readable_store import ReadableStore
from ..store.store import open_store
from .inventory import Inventory, Segment, pack_segment, partition_folder, read_inventory, write_inventory
from .target import Target, target_at

__all__ = ["Backup", "backup_store"]

log = printable_log(__name__)

MERGED_BYTES_MAX: Final = SEGMENT_BYTES // 4
MERGED_EVENTS_MAX: Final = SEGMENT_EVENTS_MAX // 2
"""Size of the segments that are merged with what is new; larger ones stay as they are."""

LISTED_EVERY: Final = 16
"""Segments after which the inventory is written: about 128 MiB that an interrupted backup has to write again."""

Advance = Callable[[int, int], None]


class Backup(NamedTuple):
    """What taking a backup did."""

    store_id: str
    heads: dict[int, int]
    """Partition -> position up to which the backup goes now."""
    events: int
    """Added by this run."""
    size_bytes: int
    """Written by this run."""


def backup_store(
    source: str | os.PathLike[str] | ReadableStore,
    target: str | os.PathLike[str],
    *,
    advance: Advance = lambda done, total: None,
) -> Backup:
    """Back up a store to a folder or an fsspec address: the one in a directory, in use or not, or one that is spread
    over the nodes of a cluster.

    A target that holds a backup of this store already gets what is new. `advance(done, total)` is called with numbers
    of events. Raises `StoreMismatch` if the target holds another store or another history, has lost its inventory, or
    is in the folder of a store; `StoreInUse` while another one is taken into the same folder, `Damaged`,
    `StorageFailed`, and what opening and reading a store raises. Interrupted at any moment, the target holds a sound
    backup, if not all of the new one.
    """
    store, place = _whole(source), target_at(target)
    readers = {number: store.open_reader(number) for number in range(store.partitions)}
    try:
        with place.held(writing=True):
            return _take(store, readers, place, advance)
    finally:
        for reader in readers.values():
            reader.close()


def _take(store: ReadableStore, readers: Mapping[int, SegmentReader], place: Target, advance: Advance) -> Backup:
    subscriptions = {number: _rows(reader) for number, reader in readers.items()}  # first: none is beyond the heads
    heads = {number: reader.head() for number, reader in readers.items()}
    inventory = read_inventory(place)
    if inventory is None:
        inventory = Inventory(store.store_id, store.partitions, "", store.placement)
        write_inventory(place, inventory)
    for number, reader in readers.items():
        _check_same_history(store, inventory, number, reader, place)
    replaced = [one for number in readers for one in _without_missing(inventory, number, place)]
    total, done, size_bytes = sum(heads.values()) - sum(inventory.heads.values()), 0, 0
    for number, reader in readers.items():
        before = inventory.head(number)
        replaced += _taken_for_merging(inventory.segments.setdefault(number, []), heads[number])
        reached = inventory.head(number)
        while (log_segment := reader.segment(reached, heads[number])) is not None:
            segment, content = pack_segment(number, log_segment)
            place.write(segment.name, content)
            inventory.segments[number].append(segment)
            done += segment.last - max(before, reached)
            reached, size_bytes = segment.last, size_bytes + len(content)
            if len(inventory.segments[number]) % LISTED_EVERY == 0:
                write_inventory(place, inventory)
            advance(done, total)
    inventory.subscriptions = subscriptions
    inventory.taken_at = datetime.now(UTC).isoformat(timespec="seconds")
    write_inventory(place, inventory)
    listed = {one.name for segments in inventory.segments.values() for one in segments}
    for name in {one.name for one in replaced} - listed:  # the inventory that was just written lists them no more
        place.remove(name)
    return Backup(store.store_id, inventory.heads, done, size_bytes)


def _rows(reader: SegmentReader) -> dict[str, bytes]:
    """What subscriptions keep in a log. A node agent of an earlier release knows of none."""
    try:
        return reader.subscription_rows()
    except InvalidMessage:
        return {}


def _without_missing(inventory: Inventory, partition: int, place: Target) -> list[Segment]:
    """Take the segments off from the first one on that is not there as it was written, by its size: what they held is
    read from the log again. Returns them."""
    segments = inventory.segments.get(partition, [])
    present = place.sizes(partition_folder(partition)) if segments else {}
    for number, one in enumerate(segments):
        if present.get(one.name.rpartition("/")[2]) != one.size_bytes:
            log.warning("%s/%s is gone or of another size: it is taken from the log again", place.address, one.name)
            taken = segments[number:]
            del segments[number:]
            return taken
    return []


def _taken_for_merging(segments: list[Segment], head: int) -> list[Segment]:
    """Take the small segments off the end that the next one is to hold too, so that a backup every minute does not
    gather a file a minute: each is merged once as much is new as it holds, so that their number grows with the
    logarithm, and each event is written again as often. Read from the log again, which holds the same (the chain).

    All that is taken off fits into one segment: an inventory that is written on the way never has less than before.
    """
    taken: list[Segment] = []
    new, size_bytes = head - (segments[-1].last if segments else 0), 0
    while segments and new:
        last = segments[-1]
        events, size_bytes = last.last - last.first + 1, size_bytes + last.size_bytes
        if events > new or size_bytes > MERGED_BYTES_MAX or new + events > MERGED_EVENTS_MAX:
            break
        taken.append(segments.pop())
        new += events
    return taken


def _whole(source: str | os.PathLike[str] | ReadableStore) -> ReadableStore:
    """The store, which must not be one node's share of one. Raises what `open_store` does, and `StoreMismatch`."""
    if not isinstance(source, str | os.PathLike):
        return source
    store = open_store(source)
    if store.away:
        what = "this is one node's share of a store, and a backup needs all of it"
        raise StoreMismatch(str(store.path), what, "name the application instead of the directory, while it runs")
    return store


def _check_same_history(
    store: ReadableStore, inventory: Inventory, partition: int, reader: Reader, place: Target
) -> None:
    """The backup must be a beginning of what the store holds."""
    if inventory.store_id != store.store_id:
        what = f"it holds store {inventory.store_id}, and this is store {store.store_id}"
        raise StoreMismatch(place.address, what, "choose another target; a restored store is a store of its own")
    head = inventory.head(partition)
    if not head:
        return
    records = reader.read(head - 1, 1)
    if not records:
        what = f"it has {head:,} events of partition {partition}, and the store only {reader.head():,}"
        raise StoreMismatch(place.address, what, "the store has lost events: verify it, or restore this backup")
    if chain_of(records[0]).hex() != inventory.segments[partition][-1].chain:
        what = f"event {head:,} of partition {partition} follows from other events there than in the store"
        raise StoreMismatch(place.address, what, "choose another target, and verify the store")
