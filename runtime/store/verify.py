"""Walks a whole store and reports what is wrong, and where: what `rayfold verify` runs.

Beside the write path: it only reads, also while the store is in use.

Rules kept here:
- memory stays bounded however large the store is: every walk goes in chunks, each in a read transaction of its own,
  so that no page is pinned either. What is at or before the head at the start of a walk never changes any more
- everything is checked from both sides: events know their place in the stream index and in the command index, and both
  indexes know their events; those that the stream index does not hold yet (`index_buffer.py`) continue their streams
- nothing is repaired, and nothing is trusted that was not checked: a file whose B-tree is broken is not opened at
  all, because LMDB may crash the process on it

The structure of the file (pages, B-trees, free list) is checked by LMDB's own offline verifier. It reads the file
beside LMDB, so what it finds counts only without a commit meanwhile; a log that is written to all the time is reported
as `structure_checked=False`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import lmdb
from lmdb import verify as lmdb_verify

from ..errors import Damaged, StoreError
from ..log.contract import CommandEntry, StoredEvent
from ..log.format import (
    BODY_AT,
    CHAIN_START,
    COMMANDS,
    EVENTS,
    META,
    OLD_BODY,
    SECRET_BYTES,
    SNAPSHOTS,
    STREAMS,
    belongs_to,
    body_start,
    chain_of,
    check_record,
    decode_command,
    decode_record,
    decode_snapshot,
    decode_stream_entry,
    next_chain,
    pack_position,
    snapshot_link,
    split_versioned_key,
    versioned_key,
)
from ..log.index_buffer import answered_version, group_of
from ..log.reader import HOLDINGS_SINCE, LmdbReader
from ..stream import StreamId, is_reserved
from .report import PartitionReport, Problem, Report
from .store import Store, open_store

__all__ = ["PartitionReport", "Problem", "Report", "check_structure", "verify_store"]

CHUNK_PAIRS: Final = 1024
"""Pairs checked in one read transaction: about 10 ms, in which a writer frees no page."""

STRUCTURE_ATTEMPTS_MAX: Final = 6
"""Attempts of the check of a file's structure, when it finds a problem while a process writes to the file."""

KINDS_MAX: Final = 100_000
"""Kinds of events that are compared with those that the log names: far more than any code has."""

Look = Callable[["lmdb.Transaction[bytes]", bytes, bytes], bool]
"""Checks one pair in a transaction; False ends the walk."""


def verify_store(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Report:
    """Check every byte that the store at `path` holds, or a copy of it; it may be in use by other processes.

    `progress` is called with the number of pairs done and the number at the start. What is wrong inside the logs is in
    the report; of one node's share, the logs whose home it is are checked. A store that cannot be opened raises
    `StoreMissing`, `StoreMismatch` or `StorageFailed`.
    """
    store = open_store(path)
    reports = {partition: PartitionReport(partition) for partition in store.here}
    readers = {}
    try:
        for report in reports.values():
            reader = _open_checked(store, report)
            if reader is not None:
                readers[report.partition] = reader
        total = sum(_pairs_of(reader) for reader in readers.values())
        done = 0

        def advance(pairs: int) -> None:
            nonlocal done
            done = min(done + pairs, total)
            if progress is not None:
                progress(done, total)

        advance(0)
        for partition, reader in readers.items():
            _PartitionCheck(store, reader, reports[partition], advance).run()
        advance(total)
    finally:
        for reader in readers.values():
            reader.close()
    return Report(str(store.path), store.store_id, list(reports.values()))


def _open_checked(store: Store, report: PartitionReport) -> LmdbReader | None:
    """A reader of a partition whose file is sound; none, and a problem in the report, otherwise."""
    findings = check_structure(store.partition_path(report.partition))
    report.structure_checked = findings is not None
    for finding in findings or []:
        report.add_problem("file", "data.mdb", "structure", finding)
    if report.problems:
        return None
    try:
        reader = store.open_reader(report.partition)
    except StoreError as error:
        report.add_problem("file", "data.mdb", "open", str(error))
        return None
    try:
        report.head, report.epoch = reader.environment.read(reader.last_position), reader.epoch()
    except StoreError as error:
        report.add_problem("meta", "epoch", "checksum", str(error))
        reader.close()
        return None
    return reader


def check_structure(folder: Path) -> list[str] | None:
    """What LMDB's verifier finds in the file; None if it was written to during every attempt.

    A finding counts when it is found twice in a file that stayed as it was: a file's time has ticks of milliseconds.
    """
    previous = None
    for _ in range(STRUCTURE_ATTEMPTS_MAX):
        before = (folder / "data.mdb").stat()
        try:
            findings = list(lmdb_verify.verify(str(folder)))  # type: ignore[no-untyped-call]
        except (lmdb_verify.VerifyError, OSError) as error:
            findings = [str(error)]
        after = (folder / "data.mdb").stat()
        untouched = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        if not findings or (untouched and findings == previous):
            return findings
        previous = findings if untouched else None
    return None


def _pairs_of(reader: LmdbReader) -> int:
    return sum(reader.environment.entries(name) for name in (EVENTS, STREAMS, COMMANDS, SNAPSHOTS))


class _PartitionCheck:
    """The four walks over one partition's log, each in the order of its keys."""

    def __init__(
        self, store: Store, reader: LmdbReader, report: PartitionReport, advance: Callable[[int], None]
    ) -> None:
        self._store, self._reader, self._report, self._advance = store, reader, report, advance
        self._environment = reader.environment
        self._next_position = 1
        self._chain: bytes | None = CHAIN_START
        self._command: tuple[bytes, CommandEntry | None] = (b"", None)
        self._last_entry = (b"", 0, 0)
        self._unindexed: dict[bytes, int] = {}
        """Stream key -> version of its last event that the stream index did not hold when we came by."""
        self._kinds: set[tuple[str, int]] = set()
        """Names and versions of the events that were seen."""
        self._types: set[str] = set()
        """Types of their streams."""
        self._unlinked = 0
        """Snapshots that an older format wrote, without link and hash."""
        self._new: dict[bytes, StreamId] = {}
        """Streams of which it held nothing then."""

    def run(self) -> None:
        """All walks. One that LMDB cannot finish is a problem, and the others go on."""
        self._walk(EVENTS, self._event)
        if self._next_position <= self._report.head:
            self._problem("events", str(self._next_position), "position", "it and all after it are missing")
        self._walk(STREAMS, self._stream_entry)
        for stream in self._new.values():
            self._count_stream(stream)
        self._walk(COMMANDS, self._command_entry)
        self._walk(SNAPSHOTS, self._snapshot)
        if self._unlinked:
            what = f"{self._unlinked:,} of format 1 or 2, without a hash, are passed over; events are read instead"
            self._warning("snapshots", "old ones", "snapshot", what)
        self._check_meta()

    def _check_meta(self) -> None:
        """The log's list of what it holds must be intact, and name every kind of event that was seen."""
        if self._environment.read(self._reader.format_in) < HOLDINGS_SINCE:
            return
        try:
            held = self._reader.holdings()
            self._reader.subscription_rows()
            if len(self._reader.secret()) != SECRET_BYTES:
                self._problem("meta", "secret", "checksum", "it is missing")
        except Damaged as error:
            self._problem("meta", error.where, "checksum", error.what)
            return
        for name, version in sorted(self._kinds - held.events.keys()):
            what = f"events of that name and version are there, and {META.decode()!r} does not name them"
            self._problem("meta", f"event/{name}/{version}", "holdings", what)
        for kind in sorted(self._types - held.aggregates):
            what = f"streams of that type are there, and {META.decode()!r} does not name it"
            self._problem("meta", f"aggregate/{kind}", "holdings", what)

    def _walk(self, database: bytes, look: Look) -> None:
        key: bytes | None = b""
        while key is not None:
            start = key
            try:
                key = self._environment.read(partial(self._chunk, database=database, start=start, look=look))
            except StoreError as error:
                self._problem(database.decode(), f"after {start.hex()}", "structure", str(error))
                return

    def _chunk(self, transaction: lmdb.Transaction[bytes], database: bytes, start: bytes, look: Look) -> bytes | None:
        """Check the pairs after `start`; returns where to continue, or None at the end."""
        cursor = transaction.cursor(self._environment.database(database))
        if not (cursor.set_range(start) if start else cursor.first()):
            return None
        if start and cursor.key() == start and not cursor.next():
            return None
        seen, resume_at = 0, None
        for key, value in cursor.iternext():
            if not look(transaction, key, value):
                break
            seen += 1
            if seen == CHUNK_PAIRS:
                resume_at = key
                break
        self._advance(seen)
        return resume_at

    def _problem(self, database: str, key: str, kind: str, what: str) -> None:
        self._report.add_problem(database, key, kind, what)

    def _warning(self, database: str, key: str, kind: str, what: str) -> None:
        self._report.add_warning(database, key, kind, what)

    # --- events: checksum, position, chain, and both indexes ---

    def _event(self, transaction: lmdb.Transaction[bytes], key: bytes, record: bytes) -> bool:
        position = int.from_bytes(key, "big")
        if len(key) != 8:
            self._problem("events", key.hex(), "key", f"a key of {len(key)} bytes is not a position")
            return True
        if position > self._report.head:
            return False
        if position != self._next_position:
            self._problem("events", str(self._next_position), "position", f"missing: the next is {position}")
            self._chain = None
        self._next_position = position + 1
        self._report.events += 1
        try:
            check_record(record, key, self._reader.name)
            event = decode_record(record, f"event {position}")
        except Damaged as error:
            self._problem("events", str(position), "checksum", error.what)
            self._chain = None
            return True
        if self._chain is not None and next_chain(self._chain, record) != chain_of(record):
            self._problem("events", str(position), "chain", "its hash does not follow from the records before it")
        self._chain = chain_of(record)
        if not is_reserved(event.stream.type) and len(self._kinds) < KINDS_MAX:
            if not is_reserved(event.name):
                self._kinds.add((event.name, event.schema_version))
            self._types.add(event.stream.type)
        self._indexed_by_stream(transaction, event)
        self._indexed_by_command(transaction, event)
        return True

    def _indexed_by_stream(self, transaction: lmdb.Transaction[bytes], event: StoredEvent) -> None:
        """The stream index must lead from the event's stream and version to its position, once it holds it."""
        cursor = transaction.cursor(self._environment.database(STREAMS))
        stream_key = event.stream.key
        what = f"it is {event.stream} version {event.version}, but the stream index does not lead to it"
        found = cursor.set_range(versioned_key(stream_key, event.version))
        key = cursor.key() if found else b""
        if len(key) == len(stream_key) + 8 and key.startswith(stream_key):
            try:
                position, count = decode_stream_entry(key, cursor.value(), self._reader.name)
            except Damaged:
                return  # the walk over the stream index reports it
            behind = int.from_bytes(key[-8:], "big") - event.version
            if behind < count and position - behind == event.position:
                return
        if event.position <= self._reader.indexed_in(transaction)[group_of(stream_key)]:
            self._problem("events", str(event.position), "index", what)
        else:
            self._continues(transaction, event, stream_key)

    def _continues(self, transaction: lmdb.Transaction[bytes], event: StoredEvent, stream_key: bytes) -> None:
        """An event that the stream index does not hold yet must have the next version of its stream."""
        before = self._unindexed.get(stream_key)
        if before is None:
            before = self._reader.indexed_version(transaction, stream_key)
            if not before:
                self._new[stream_key] = event.stream
        if event.version != before + 1:
            what = f"it is {event.stream} version {event.version}, but the version before it in the log is {before}"
            self._problem("events", str(event.position), "index", what)
        self._unindexed[stream_key] = event.version

    def _indexed_by_command(self, transaction: lmdb.Transaction[bytes], event: StoredEvent) -> None:
        """The command index must hold the event's command, which ends at this event or at one adjoining it."""
        if self._command[0] != event.command_id:
            stored = transaction.get(event.command_id, db=self._environment.database(COMMANDS))
            try:
                entry = None if stored is None else decode_command(event.command_id, stored, self._reader.name)
            except Damaged:
                entry = None  # the walk over the command index reports it
                if stored is not None:
                    return
            self._command = (event.command_id, entry)
        entry = self._command[1]
        place, command = str(event.position), event.command_id.hex()
        if entry is None:
            self._problem("events", place, "command", f"its command {command} is not in the command index")
        elif not _ends_at_or_after(entry, event):
            what = f"its command {command} is listed as ending at position {entry.position}, version {entry.version}"
            self._problem("events", place, "command", what)

    # --- stream index: checksum, versions 1..n, and every event it points at ---

    def _stream_entry(self, transaction: lmdb.Transaction[bytes], key: bytes, value: bytes) -> bool:
        try:
            stream, last = split_versioned_key(key)
        except (ValueError, IndexError) as error:
            self._problem("streams", key.hex(), "key", str(error))
            return True
        shown, same = f"{stream} version {last}", self._last_entry[0] == key[:-8]
        before_version, before_position = self._last_entry[1:] if same else (0, 0)
        try:
            position, count = decode_stream_entry(key, value, self._reader.name)
        except Damaged as error:
            self._problem("streams", shown, "checksum", error.what)
            self._last_entry = (key[:-8], last, before_position)
            return True
        if position > self._report.head and self._is_there(transaction, position):
            return True  # appended after this check began
        if not same:
            self._new.pop(key[:-8], None)
            self._count_stream(stream)
        self._last_entry = (key[:-8], last, position)
        if last - count != before_version:
            what = f"it covers versions {last - count + 1}..{last}, but the entry before it ends at {before_version}"
            self._problem("streams", shown, "index", what)
        if position - count < before_position:
            self._problem("streams", shown, "index", f"its events are before those of version {before_version}")
        for version in range(last - count + 1, last + 1):
            self._points_at(transaction, stream, version, position - (last - version))
        return True

    def _points_at(self, transaction: lmdb.Transaction[bytes], stream: StreamId, version: int, position: int) -> None:
        record = transaction.get(pack_position(position), db=self._environment.database(EVENTS))
        if record is None:
            self._problem("streams", f"{stream} version {version}", "index", f"its event {position} is missing")
        elif not record.startswith(body_start(stream, version), BODY_AT):
            self._problem("streams", f"{stream} version {version}", "index", f"event {position} is another")

    def _is_there(self, transaction: lmdb.Transaction[bytes], position: int) -> bool:
        return transaction.get(pack_position(position), db=self._environment.database(EVENTS)) is not None

    def _count_stream(self, stream: StreamId) -> None:
        self._report.streams += 1
        belongs = self._store.partition_of(stream)
        if is_reserved(stream.type):
            return  # each log has its own
        if belongs != self._report.partition:
            self._warning("streams", str(stream), "placement", f"commands to it go to partition {belongs}")

    # --- command index: checksum, and the event that each command ends with ---

    def _command_entry(self, transaction: lmdb.Transaction[bytes], key: bytes, value: bytes) -> bool:
        try:
            entry = decode_command(key, value, self._reader.name)
        except Damaged as error:
            self._problem("commands", key.hex(), "checksum", error.what)
            return True
        if entry.position > self._report.head and self._is_there(transaction, entry.position):
            return True  # appended after this check began
        self._report.commands += 1
        record = transaction.get(pack_position(entry.position), db=self._environment.database(EVENTS))
        if record is None:
            self._problem("commands", key.hex(), "command", f"its last event {entry.position} is missing")
            return True
        try:
            event = decode_record(record)
        except Damaged:
            return True  # the walk over the events reports it
        if event.command_id != key or answered_version(event) != entry.version:
            what = f"event {entry.position} is version {event.version} of {event.stream} by another command or version"
            self._problem("commands", key.hex(), "command", what)
        return True

    # --- snapshots: hints, so that one that decayed is a warning; but one that was exchanged is a problem ---

    def _snapshot(self, transaction: lmdb.Transaction[bytes], key: bytes, value: bytes) -> bool:
        self._report.snapshots += 1
        try:
            stream, version = split_versioned_key(key)
            schema, state = decode_snapshot(key, value, self._reader.name)
            record = self._reader.record_of(transaction, stream, version)
        except Damaged as error:
            self._warning("snapshots", str(error.where), "checksum", f"{error.what}; it is passed over")
            return True
        except (ValueError, IndexError) as error:
            self._warning("snapshots", key.hex(), "key", str(error))
            return True
        shown = f"{stream} version {version}"
        if record is None:
            self._problem("snapshots", shown, "snapshot", "there is no event of its version")
        elif not snapshot_link(value) and record[BODY_AT] == OLD_BODY:
            self._unlinked += 1
        elif not belongs_to(value, schema, state, record):
            what = "it is not the state that was saved with the event of its version; it is passed over"
            self._problem("snapshots", shown, "snapshot", what)
        return True


def _ends_at_or_after(entry: CommandEntry, event: StoredEvent) -> bool:
    """Whether the command that an event came from may end where the command index has it."""
    behind = entry.position - event.position
    return behind >= 0 and entry.version == (answered_version(event) and event.version + behind)
