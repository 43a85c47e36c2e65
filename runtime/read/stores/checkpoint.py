"""A checkpoint: how far a read model has come in each partition, and what it keeps in quarantine.

Written at step [7] with the read model itself, in one transaction (`domain/read_store.py`); read when a read model is
opened.

Rule kept here: a checkpoint proves what it follows. It holds, for each partition, the link of the hash chain at its
position: a log that was replaced by another history, or cut back, does not carry that link, and the read model is
rebuilt instead of staying wrong.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgpack

from ...log.contract import Reader, StoredEvent
from ...log.format import chain_of

__all__ = ["ERROR_CHARS_MAX", "QUARANTINED_MAX", "Checkpoint", "Quarantined"]

QUARANTINED_MAX: Final = 100
"""Events in quarantine at once. More is not a poisoned event but a broken projection, and it stops."""

ERROR_CHARS_MAX: Final = 1_000
"""The length of the error text that is kept with a quarantined event."""


class Quarantined(NamedTuple):
    """An event that a projection could not take in and has set aside (`on_failure="quarantine"`).

    Example:
        for event in bank.retry_quarantined(Balances):
            print(event.stream, event.version, event.error)
    """

    partition: int
    position: int
    """In the partition's log: which event it is."""
    stream: str
    """`Account/alice`, for people."""
    version: int
    """In its stream."""
    event: str
    """The stored name of the event."""
    error: str
    """What the last try raised."""

    @classmethod
    def of(cls, partition: int, stored: StoredEvent, error: BaseException) -> Quarantined:
        """The entry for an event that failed with `error`, its text bounded."""
        text = str(error)[:ERROR_CHARS_MAX]
        return cls(partition, stored.position, str(stored.stream), stored.version, stored.name, text)


class Checkpoint(NamedTuple):
    """A place in the store, as a read model that is there knows it. All by partition."""

    positions: dict[int, int]
    """The positions of the last events taken in; 0 before the first."""
    chains: dict[int, bytes]
    """The link of the hash chain at that position; nothing at position 0."""
    recorded_at_us: dict[int, int]
    """When the event at that position was recorded, by its writer's clock; 0 before the first."""
    quarantined: tuple[Quarantined, ...] = ()
    """In the order in which they failed; at most `QUARANTINED_MAX`."""
    out_of_order: bool = False
    """Some event was taken in after later ones: out of quarantine, or with a stream that was rebuilt. A fold of the log
    need not make the same, so the two are not compared."""

    def packed(self) -> bytes:
        """As the bytes that a store keeps: a checksum and msgpack."""
        aside = [tuple(entry) for entry in self.quarantined]
        fields: list[object] = [self.positions, self.chains, self.recorded_at_us, aside]
        content: bytes = msgpack.packb([*fields, True] if self.out_of_order else fields)
        return zlib.crc32(content).to_bytes(4, "big") + content

    def objection(self, readers: Mapping[int, Reader], looked_at: Iterable[int]) -> str:
        """Why it may not be used with the present logs, of which those in `looked_at` are; nothing if it may."""
        if self.positions.keys() != readers.keys():
            return f"it follows {len(self.positions)} partitions, the store has {len(readers)}"
        for partition in looked_at:
            position = self.positions[partition]
            records = readers[partition].read(position - 1, 1) if position else []
            if position and (not records or chain_of(records[0]) != self.chains.get(partition)):
                return f"the log of partition {partition} is not the one that it followed up to {position}"
        return ""

    @classmethod
    def unpacked(cls, data: bytes) -> Checkpoint | None:
        """The checkpoint in these bytes; None when they are damaged or of another layout."""
        if len(data) < 5 or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "big"):
            return None
        try:
            positions, chains, recorded_at_us, quarantined, *rest = msgpack.unpackb(data[4:], strict_map_key=False)
            aside = tuple(Quarantined(*entry) for entry in quarantined)
            return cls(positions, chains, recorded_at_us, aside, rest == [True])
        except (ValueError, TypeError):
            return None
