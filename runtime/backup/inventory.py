"""Inventory: what a backup holds: the segments of each partition, of which store, and how to know that they are right.

One JSON file, written after what it lists: a file that it does not list is not part of the backup, so that one which
was interrupted is sound as far as it goes, and taking it again goes on from there.

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

from ..errors import Damaged, StoreMismatch
from ..log.durable import checksum_of
from ..log.format import FORMAT_VERSION, READABLE_FORMATS, RECORD_BYTES_MAX, chain_of
from ..log.stretch import Stretch
from ..stream import OLD_PLACEMENT, is_placement
from .target import Target

__all__ = ["INVENTORY", "Inventory", "Segment", "pack_segment", "read_inventory", "unpack_segment", "write_inventory"]

INVENTORY: Final = "backup.json"
BACKUP_FORMAT: Final = 1
"""Of the inventory and the segments. The events in them have the format of the log."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One file with whole commands of one partition."""

    name: str
    first: int
    """The position of its first event."""
    last: int
    size_bytes: int
    sha256: str
    """Of the file, in hexadecimal."""
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

    def head(self, partition: int) -> int:
        """The position up to which a partition is in the backup."""
        segments = self.segments.get(partition)
        return segments[-1].last if segments else 0

    @property
    def heads(self) -> dict[int, int]:
        """The same for all partitions."""
        return {partition: self.head(partition) for partition in range(self.partitions)}


def pack_segment(partition: int, stretch: Stretch) -> tuple[Segment, bytes]:
    """A stretch as a file, and its line in the inventory."""
    shapes = [[name, version, shape] for (name, version), shape in stretch.shapes.items()]
    content: bytes = msgpack.packb([stretch.records, stretch.digests, shapes, stretch.secret])
    name = f"partition-{partition:05d}/segment-{stretch.first:012d}-{stretch.last:012d}"
    digest = hashlib.sha256(content).hexdigest()
    chain = chain_of(stretch.records[-1]).hex()
    return Segment(name, stretch.first, stretch.last, len(content), digest, chain), content


def unpack_segment(segment: Segment, content: bytes | None, address: str) -> Stretch:
    """The stretch in a file. Raises `Damaged` if it is gone or not what was written."""
    where = f"{address}/{segment.name}"
    if content is None:
        raise Damaged(where, "it is missing")
    if len(content) != segment.size_bytes or hashlib.sha256(content).hexdigest() != segment.sha256:
        raise Damaged(where, f"its {len(content):,} bytes are not those that were written")
    records, digests, *rest = msgpack.unpackb(content, max_bin_len=RECORD_BYTES_MAX, max_map_len=0, max_ext_len=0)
    shapes, secret = rest or ([], b"")  # a backup of a log of format 1 or 2 has none
    return Stretch(records, digests, {(name, version): shape for name, version, shape in shapes}, secret)


def read_inventory(target: Target) -> Inventory | None:
    """The inventory of a backup, or None if there is no backup yet. Raises `Damaged`, `StorageFailed`."""
    content = target.read(INVENTORY)
    if content is None:
        return None
    where = f"{target.address}/{INVENTORY}"
    try:
        facts = json.loads(content)
        checksum = facts.pop("checksum")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(where, "it is not what was written") from error
    if checksum != checksum_of(facts):
        raise Damaged(where, "its checksum is wrong")
    if facts["format"] != BACKUP_FORMAT or facts["log_format"] not in READABLE_FORMATS:
        what = f"it has format {facts['format']} with logs of format {facts['log_format']}"
        known = f"this version reads format {BACKUP_FORMAT} with logs of {', '.join(map(str, READABLE_FORMATS))}"
        raise StoreMismatch(where, what, known)
    segments = {int(number): [Segment(**one) for one in listed] for number, listed in facts["segments"].items()}
    placement = facts.get("placement", OLD_PLACEMENT)
    if not is_placement(placement):
        raise StoreMismatch(where, f"its streams are placed by {placement.partition(':')[0]}", "use a later version")
    return Inventory(facts["store_id"], facts["partitions"], facts["taken_at"], placement, segments)


def write_inventory(target: Target, inventory: Inventory) -> None:
    """Replace it: from now on this is what the backup holds."""
    facts: dict[str, Any] = {
        "format": BACKUP_FORMAT,
        "log_format": FORMAT_VERSION,
        "store_id": inventory.store_id,
        "partitions": inventory.partitions,
        "taken_at": inventory.taken_at,
        "placement": inventory.placement,
        "segments": {str(number): [asdict(one) for one in listed] for number, listed in inventory.segments.items()},
    }
    facts["checksum"] = checksum_of(facts)
    target.write(INVENTORY, (json.dumps(facts, indent=1) + "\n").encode())
