"""What is really on the disk: every event of a store, read past all actors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rayfold.runtime.log.contract import StoredEvent
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.store import open_store
from rayfold.runtime.store.verify import verify_store


def stored_events(path: Path) -> dict[int, list[StoredEvent]]:
    """Partition -> all of its events, in order."""
    store = open_store(path)
    events: dict[int, list[StoredEvent]] = {}
    for partition in range(store.partitions):
        reader = store.open_reader(partition)
        events[partition] = [decode_record(record) for record in reader.read(0, 10_000_000)]
        reader.close()
    return events


def check_nothing_lost_nothing_twice(path: Path, receipts: list[Receipt]) -> None:
    """Each acknowledged command is there exactly once, at the position of its receipt; and the store verifies."""
    report = verify_store(path)
    assert report.ok, report.problems
    events = stored_events(path)
    ends = Counter[bytes]()
    for stored in (event for log in events.values() for event in log):
        ends[stored.command_id] += 1
    for receipt in receipts:
        stored = events[receipt.partition][receipt.position - 1]
        assert (stored.stream, stored.version) == (receipt.stream, receipt.version)
        assert stored.command_id == receipt.command_bytes
        assert ends[receipt.command_bytes] == 1, f"command {receipt.command_id} took effect twice"
