"""MemoryLogs: a store without a directory, for a system in the memory of one process.

Beside the write path, in place of `store.py`: as many logs as it has partitions (`log/memory.py`), an id, a rule by
which streams find their partitions. It ends with its process.

Rules kept here: what can be read of it is what can be read of a store on a disk, in the same form; streams are in the
same partitions in every run, so that a test which names a position finds it there tomorrow.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..errors import CallerError, Damaged
from ..log.format import CHAIN_START, chain_of, check_record, decode_record, next_chain, pack_position
from ..log.memory import MemoryLog
from ..stream import GROUPS_RULE, PLACEMENT_KEY_BYTES, StreamId, partition_of
from .report import PartitionReport, Report

__all__ = ["MemoryLogs", "no_directory"]

PLACEMENT: Final = GROUPS_RULE + "00" * PLACEMENT_KEY_BYTES
"""The rule of new stores, with the same key in every run."""

_CHECKED_AT_ONCE: Final = 1024
"""Records that are copied at a time while they are verified."""


class MemoryLogs:
    """The logs of a store, in memory. Keeps the contract `ReadableStore`. Safe from any thread."""

    def __init__(self, partitions: int, now_us: Callable[[], int]) -> None:
        """`now_us`: the clock of the events, microseconds since 1970."""
        self.store_id: Final = str(uuid.uuid4())
        """As that of a store on a disk: a receipt of another one is refused."""
        self.partitions: Final = partitions
        self.placement: Final = PLACEMENT
        self.path: Final = Path("memory")
        """What errors call it. There is no such directory."""
        self.logs: Final = [MemoryLog(now_us) for _ in range(partitions)]
        self.subscribed: Final[set[tuple[str, int]]] = set()
        """The members of subscriptions that are open (`feed/member_locks.py`)."""

    def partition_of(self, stream: StreamId) -> int:
        """In which partition a stream is."""
        return partition_of(stream, self.partitions, self.placement)

    def open_reader(self, partition: int) -> MemoryLog:
        """The log of a partition, which is its own reader."""
        return self.logs[partition]

    def folder_here(self) -> Path:
        """Raises `CallerError`: it has none."""
        raise no_directory()

    def verify(self) -> Report:
        """Check every record: its checksum, its place, its link to the record before it, its version."""
        reports = [self._verified(partition) for partition in range(self.partitions)]
        return Report(str(self.path), self.store_id, reports)

    def _verified(self, partition: int) -> PartitionReport:
        log = self.logs[partition]
        report = PartitionReport(partition, log.head(), log.epoch(), structure_checked=True)
        versions: dict[StreamId, int] = {}
        commands: set[bytes] = set()
        chain = CHAIN_START
        while report.events < report.head:
            for record in log.read(report.events, _CHECKED_AT_ONCE):
                report.events += 1
                try:
                    check_record(record, pack_position(report.events), f"partition {partition}")
                except Damaged as error:
                    report.add_problem("events", str(report.events), "checksum", str(error))
                    continue
                event = decode_record(record, checked=True)
                if next_chain(chain, record) != chain_of(record):
                    what = "its hash does not follow from the events before it"
                    report.add_problem("events", str(report.events), "chain", what)
                if event.version != versions.get(event.stream, 0) + 1:
                    what = f"{event.stream} has version {event.version} after {versions.get(event.stream, 0)}"
                    report.add_problem("streams", str(report.events), "index", what)
                versions[event.stream], chain = event.version, chain_of(record)
                commands.add(event.command_id)
        report.streams, report.commands = len(versions), len(commands)
        return report


def no_directory() -> CallerError:
    """What is raised where a directory is asked for."""
    return CallerError("this system is in memory and has no directory; give a test that needs one a Runtime")
