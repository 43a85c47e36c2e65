"""The walk through a log: every record, in order, past all actors. What each check of a log begins with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rayfold.runtime.log.contract import Reader, StoredEvent
from rayfold.runtime.log.format import decode_record, record_position

PAGE_EVENTS: Final = 4_096
"""Read at a time: about 1 MiB."""


def records_of(reader: Reader, after: int = 0) -> Iterator[bytes]:
    """Every record after a position."""
    while records := reader.read(after, PAGE_EVENTS):
        yield from records
        after = max(after + len(records), record_position(records[-1]))  # a log that is broken may lack some


def events_of(reader: Reader, after: int = 0) -> Iterator[StoredEvent]:
    """The same, decoded. Raises `Damaged` for one whose checksum is wrong."""
    return map(decode_record, records_of(reader, after))
