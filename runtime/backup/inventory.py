"""Inventory: what a backup holds: the segments of each partition, of which store, and how to know that they are right.

One JSON file, written after what it lists: a file that it does not list is not part of the backup, so that one which
was interrupted is sound as far as it goes, and taking it again goes on from there. The first of all is written before
any segment: segments without an inventory are those of a backup that has lost it.

Rules kept here: an inventory comes from a place that others may write to. Each of its facts is checked, and no name of
a file is taken from it: a segment is called after what it holds.

Layout of a backup::

    backup.json                                       the inventory
    partition-00000/segment-000000000001-000000025000   events 1 to 25,000, and the digests of their commands
    partition-00000/segment-000000025001-…
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgpack

from ..durable_files import checksum_of
from ..errors import Damaged, StoreMismatch
from ..log.format import FORMAT_VERSION, READABLE_FORMATS, RECORD_BYTES_MAX, chain_of
from ..log.segment import LogSegment
from ..store.store import PARTITIONS_MAX
from ..stream import OLD_PLACEMENT, is_placement
from .target import Target

__all__ = [
    "INVENTORY",
    "Inventory",
    "Segment",
    "pack_segment",
    "partition_folder",
    "read_inventory",
    "read_segment",
    "segment_name",
    "write_inventory",
]

INVENTORY: Final = "backup.json"
BACKUP_FORMAT: Final = 1
"""The format of the inventory and the segments. The events in them have the format of the log."""

INVENTORY_BYTES_MAX: Final = 256 << 20
"""Some 280 bytes a segment: a million of them, 8 TiB of events."""

POSITION_MAX: Final = (1 << 63) - 1

SEGMENT_BYTES_MAX: Final = 1 << 30
"""One has 8 MiB and one command at most, which has less than 256 MiB."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One file with whole commands of one partition."""

    name: str
    first: int
    """The position of its first event."""
    last: int
    size_bytes: int
    sha256: str
    """The digest of the file, in hexadecimal."""
    chain: str
    """The hash chain of the log after its last event: a later backup must follow from it."""


@dataclass(slots=True)
class Inventory:
    """All of a backup."""

    store_id: str
    partitions: int
    taken_at: str
    """When it was last added to, in UTC."""
    placement: str = OLD_PLACEMENT
    """The rule by which streams find their partitions: that of the store, and of each that is restored from here."""
    segments: dict[int, list[Segment]] = field(default_factory=dict)
    """By partition, in order and adjoining."""
    subscriptions: dict[int, dict[str, bytes]] = field(default_factory=dict)
    """By partition, what subscriptions of a name keep there; none refers to an event that is not in the segments."""
    stored: bytes | None = None
    """The content of the file that this was read from, or last written to; None if there was none."""

    @property
    def unfinished(self) -> bool:
        """Whether its very first run was cut short before it had anything."""
        return not self.taken_at and not any(self.segments.values())

    def head(self, partition: int) -> int:
        """The position up to which a partition is in the backup."""
        segments = self.segments.get(partition)
        return segments[-1].last if segments else 0

    @property
    def heads(self) -> dict[int, int]:
        """The same for all partitions."""
        return {partition: self.head(partition) for partition in range(self.partitions)}


def partition_folder(partition: int) -> str:
    """Where the segments of a partition are."""
    return f"partition-{partition:05d}"


def segment_name(partition: int, first: int, last: int) -> str:
    """What the file of a segment is called."""
    return f"{partition_folder(partition)}/segment-{first:012d}-{last:012d}"


def pack_segment(partition: int, log_segment: LogSegment) -> tuple[Segment, bytes]:
    """A segment of a log as a file, and its line in the inventory."""
    shapes = [[name, version, shape] for (name, version), shape in log_segment.shapes.items()]
    content: bytes = msgpack.packb([log_segment.records, log_segment.digests, shapes, log_segment.secret])
    name = segment_name(partition, log_segment.first, log_segment.last)
    digest = hashlib.sha256(content).hexdigest()
    chain = chain_of(log_segment.records[-1]).hex()
    return Segment(name, log_segment.first, log_segment.last, len(content), digest, chain), content


def read_segment(segment: Segment, target: Target) -> LogSegment:
    """The segment of a log in a file. Raises `Damaged` if it is gone or not what was written, `StorageFailed`."""
    where, content = f"{target.address}/{segment.name}", target.read(segment.name, segment.size_bytes)
    if content is None:
        raise Damaged(where, "it is missing")
    if len(content) != segment.size_bytes or hashlib.sha256(content).hexdigest() != segment.sha256:
        raise Damaged(where, f"its {len(content):,} bytes are not those that were written")
    try:
        records, digests, *rest = msgpack.unpackb(content, max_bin_len=RECORD_BYTES_MAX, max_map_len=0, max_ext_len=0)
        shapes, secret = rest or ([], b"")  # a backup of a log of format 1 or 2 has none
        log_segment = LogSegment(records, digests, {(name, version): shape for name, version, shape in shapes}, secret)
        if (log_segment.first, log_segment.last) != (segment.first, segment.last):
            raise ValueError("it holds other events than it is listed with")
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise Damaged(where, f"it is not a segment: {error or type(error).__name__}") from error
    return log_segment


def read_inventory(target: Target) -> Inventory | None:
    """The inventory of a backup, or None if there is no backup yet. Raises `Damaged`, `StoreMismatch`,
    `StorageFailed`."""
    content = target.read(INVENTORY, INVENTORY_BYTES_MAX)
    where = f"{target.address}/{INVENTORY}"
    if content is None:
        if left := [name for name in target.sizes() if name.startswith("partition-")]:
            what = f"it is gone, and {', '.join(sorted(left)[:3])} of a backup are there"
            raise StoreMismatch(where, what, "restore it from a copy, or choose another target")
        return None
    try:
        facts = json.loads(content)
        checksum = facts.pop("checksum")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(where, "it is not what was written") from error
    if checksum != checksum_of(facts):
        raise Damaged(where, "its checksum is wrong")
    if facts.get("format") != BACKUP_FORMAT or facts.get("log_format") not in READABLE_FORMATS:
        what = f"it has format {facts.get('format')} with logs of format {facts.get('log_format')}"
        known = f"this version reads format {BACKUP_FORMAT} with logs of {', '.join(map(str, READABLE_FORMATS))}"
        raise StoreMismatch(where, what, known)
    placement = str(facts.get("placement", OLD_PLACEMENT))
    if not is_placement(placement):
        raise StoreMismatch(where, f"its streams are placed by {placement.partition(':')[0]}", "use a later version")
    try:
        partitions = _number(facts["partitions"], 1, PARTITIONS_MAX)
        segments = {
            _number(int(number), 0, partitions - 1): _segments(int(number), listed)
            for number, listed in facts["segments"].items()
        }
        rows = {
            _number(int(number), 0, partitions - 1): {str(key): bytes.fromhex(row) for key, row in kept.items()}
            for number, kept in facts.get("subscriptions", {}).items()  # a backup of an earlier release has none
        }
        return Inventory(str(facts["store_id"]), partitions, str(facts["taken_at"]), placement, segments, rows, content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(where, f"it is not an inventory: {error}") from error


def _segments(partition: int, listed: list[dict[str, Any]]) -> list[Segment]:
    """Of one partition. Raises `ValueError`, `KeyError`, `TypeError` for what is none."""
    segments: list[Segment] = []
    for one in listed:
        first = _number(one["first"], 1, POSITION_MAX)
        last = _number(one["last"], first, POSITION_MAX)
        if first != (segments[-1].last + 1 if segments else 1):
            raise ValueError(f"the segments of partition {partition} do not adjoin at position {first}")
        if one["name"] != (name := segment_name(partition, first, last)):
            raise ValueError(f"{one['name']!r} is called so where {name!r} belongs")
        size_bytes = _number(one["size_bytes"], 1, SEGMENT_BYTES_MAX)
        segments.append(Segment(name, first, last, size_bytes, str(one["sha256"]), str(one["chain"])))
    return segments


def _number(value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{value!r} is not a number from {least:,} to {most:,}")
    return value


def write_inventory(target: Target, inventory: Inventory) -> None:
    """Replace it: from now on this is what the backup holds.

    Raises `StoreMismatch`, and replaces nothing, if it is not the one that was read or written last: another run has
    been here, and may have removed what this one lists.
    """
    if target.read(INVENTORY, INVENTORY_BYTES_MAX) != inventory.stored:
        what = "another backup was taken into it meanwhile, and what this one has added is not listed"
        remedy = "take one at a time; the next one goes on from what is listed"
        raise StoreMismatch(f"{target.address}/{INVENTORY}", what, remedy)
    facts: dict[str, Any] = {
        "format": BACKUP_FORMAT,
        "log_format": FORMAT_VERSION,
        "store_id": inventory.store_id,
        "partitions": inventory.partitions,
        "taken_at": inventory.taken_at,
        "placement": inventory.placement,
        "segments": {str(number): [asdict(one) for one in listed] for number, listed in inventory.segments.items()},
        "subscriptions": {
            str(number): {key: row.hex() for key, row in kept.items()}
            for number, kept in inventory.subscriptions.items()
        },
    }
    facts["checksum"] = checksum_of(facts)
    content = (json.dumps(facts, indent=1) + "\n").encode()
    target.write(INVENTORY, content)
    inventory.stored = content
