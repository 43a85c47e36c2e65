"""Places: up to where the events of one log were delivered, to which process, in which partition.

Beside step [5]. The courier (`courier.py`) has them stored in its log, in a stream of Rayfold's own, every few seconds;
so they move, are backed up and restored with what they are about. A place is behind everything that is certain, and
never ahead of it: what lies between a place and the end is delivered again, and is a repeat.

A place is about another log as well, that of the partition to which was delivered. After a restore that one may be
older than the place knows. So each place has a *witness*: the event whose input came last in the other log. It is
delivered again at each start; if it is not a repeat there, the place counts for nothing, and everything since the
process was added is delivered again. What processes have sent has places too: up to where the log of the target is
known to have each command of which an outcome that it took effect is stored here.

Rule kept here: since when a process takes part is the first thing that is stored of it, and never changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from ..errors import Damaged
from ..log.contract import NewEvent, Reader, StoredEvent
from ..log.format import decode_record
from ..stream import RESERVED_PREFIX, StreamId

__all__ = ["COURIER", "SENDS_OF_AGGREGATES", "SENDS_OF_PROCESSES", "Place", "Places", "stored_places"]

COURIER: Final = StreamId(f"{RESERVED_PREFIX}Courier", "all")
"""The stream, in each log, of the places of its courier."""

PLACE: Final = f"{RESERVED_PREFIX}Place"

SENDS_OF_AGGREGATES: Final = ""
"""In place of a process type: what ordinary aggregates have sent."""

SENDS_OF_PROCESSES: Final = f"{RESERVED_PREFIX}Sends"
"""In place of a process type: what processes have sent. The place is one of stored outcomes, and so is its witness."""


@dataclass(slots=True)
class Place:
    """Up to where events were delivered to one process in one partition."""

    position: int
    witness: int = 0
    """The position of the event whose input came last in the log of that partition; 0: none has."""
    witness_at: int = 0
    """Where that input is in that log; 0 where it is not known."""


@dataclass(slots=True)
class Places:
    """All of one courier."""

    since: dict[str, int] = field(default_factory=dict)
    """Process type -> the position behind which it takes part."""
    to: dict[str, dict[int, Place]] = field(default_factory=dict)
    """Process type -> partition -> its place."""
    off: set[str] = field(default_factory=set)
    """`Effects` that are switched off in this partition."""
    switches_read: int = 0
    """Up to here what switches them was taken in."""
    store_id: str = ""
    """The store that they are of; empty in those of an earlier release. After a restore it is that of another one."""

    def event(self) -> NewEvent:
        """The event that stores them."""
        to = {
            name: {partition: [one.position, one.witness, one.witness_at] for partition, one in places.items()}
            for name, places in self.to.items()
        }
        return NewEvent(
            PLACE,
            1,
            msgpack.packb(
                {
                    "since": self.since,
                    "to": to,
                    "off": sorted(self.off),
                    "switches_read": self.switches_read,
                    "store": self.store_id,
                }
            ),
        )

    def taken_over(self, store_id: str, head: int) -> bool:
        """Have them be those of this store, whose log ends here. Whether they were another's: then nothing that they
        know calls the outside until it is switched on."""
        if self.store_id == store_id:
            return False
        if self.store_id:
            self.off |= set(self.since)
            self.switches_read = head
        self.store_id = store_id
        return True

    @classmethod
    def stored(cls, event: StoredEvent) -> Places:
        """Those that an event stores. Raises `Damaged`."""
        try:
            kept: dict[str, Any] = msgpack.unpackb(event.payload, strict_map_key=False)
            to = {
                name: {int(partition): Place(*map(int, one[:3])) for partition, one in places.items()}
                for name, places in kept["to"].items()
            }
            since = {name: int(position) for name, position in kept["since"].items()}
            off, read = set(kept.get("off", ())), int(kept.get("switches_read", 0))
            return cls(since, to, off, read, str(kept.get("store", "")))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Damaged(f"event {event.position}", f"it holds no places of a courier: {error}") from error


def stored_places(log: Reader) -> Places:
    """Those that a log has stored last; none in one that had no courier. Raises `Damaged`."""
    version = log.version(COURIER)
    for record in log.read_stream(COURIER, version, version) if version else ():
        return Places.stored(decode_record(record))
    return Places()
