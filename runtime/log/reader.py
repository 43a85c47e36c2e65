"""Reading a log that LMDB holds, from any thread and from any process.

Beside the write path: catch-up of projectors, replay of aggregates, `rayfold verify`.

Rules kept here:
- every call is one short read transaction: it sees exactly one commit, takes no lock that the writer needs, and
  pins no page once it returns
- every record and every index entry is checked before it is handed out; a hole where an event must be is `Damaged`,
  never a shorter answer
- the stream index lags behind (`index_buffer.py`): the end of a stream is searched among the latest events as well
- where something ends, what stands there is checked as well: LMDB finds keys by comparing them, so a key that decayed
  looks like the end of a stream, and a page that decayed like the end of the log
- a snapshot is a hint: a damaged or outdated one is passed over, and so is one that does not match the record of its
  version
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ..errors import Damaged, InvalidId, RayfoldError
from ..stream import StreamId
from .contract import STREAM_PAGE_BYTES, CommandEntry, Holdings, Snapshot
from .environment import Environment
from .format import (
    BODY_AT,
    COMMANDS,
    EVENTS,
    META,
    META_EPOCH,
    META_FORMAT,
    META_INDEXED,
    META_SEAL,
    META_SECRET,
    SNAPSHOTS,
    STREAMS,
    VERSION_END,
    belongs_to,
    body_start,
    check_command,
    check_command_id,
    check_record,
    check_stream_entry,
    checked_stream,
    decode_command,
    decode_meta,
    decode_record,
    decode_snapshot,
    decode_stream_entry,
    is_intact,
    is_version,
    pack_position,
    record_position,
    snapshot_link,
    versioned_key,
)
from .holdings import Kinds, as_holdings, holdings_in, kinds_of
from .index_buffer import GROUPS, decode_indexed, group_of
from .sealing import WriteOwnership, chain_at, decode_seal
from .segment import LogSegment, read_log_segment
from .subscription_rows import StoredRows

if TYPE_CHECKING:
    import lmdb

__all__ = ["HOLDINGS_SINCE", "LmdbReader"]

Pair = tuple[bytes, bytes]
"""A key and its value."""

_NO_PAIR: Final[Pair] = (b"", b"")

HOLDINGS_SINCE: Final = 3
"""The format from which on `meta` records what the log holds."""

SNAPSHOTS_TRIED_MAX: Final = 16
"""How many outdated or damaged snapshots are passed over before the events are read instead."""


class LmdbReader:
    """The `Reader` of `contract.py` over LMDB. Made by `open_reader`, and what `LmdbLog` is besides a writer."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    @property
    def name(self) -> str:
        """What errors call this log."""
        return self.environment.name

    def head(self) -> int:
        """The position of the last event; 0 for an empty log."""
        return self.environment.read(self._head)

    def _head(self, transaction: lmdb.Transaction[bytes]) -> int:
        last = self.last_position(transaction)
        self._check_end(transaction, last)
        return last

    def last_position(self, transaction: lmdb.Transaction[bytes]) -> int:
        """The position in the last key, unchecked: for `rayfold verify`, which checks all of them."""
        cursor = transaction.cursor(self.environment.database(EVENTS))
        return int.from_bytes(cursor.key(), "big") if cursor.last() else 0

    def _check_end(self, transaction: lmdb.Transaction[bytes], last: int) -> None:
        """Raises `Damaged` unless the log has as many events as the position of its last one."""
        entries = transaction.stat(self.environment.database(EVENTS))["entries"]
        if entries != last:
            raise Damaged(f"{self.name}, event {last}", f"it seems to be the last of the {entries:,} that there are")

    def epoch(self) -> int:
        """The epoch of the latest activation; 0 before the first."""
        return self.environment.read(self.epoch_in)

    def epoch_in(self, transaction: lmdb.Transaction[bytes]) -> int:
        """`epoch`, as this transaction sees it."""
        stored = transaction.get(META_EPOCH, db=self.environment.database(META))
        return 0 if stored is None else int.from_bytes(decode_meta(META_EPOCH, stored, self.name), "big")

    def indexed_in(self, transaction: lmdb.Transaction[bytes]) -> Sequence[int]:
        """For each group of streams the position up to which the stream index holds its appends, and no further
        (`index_buffer.py`); in a log of format 1 it holds all of them."""
        meta = self.environment.database(META)
        if (stored := transaction.get(META_INDEXED, db=meta)) is not None:
            return decode_indexed(stored, self.name)
        if self.format_in(transaction) != 1:
            raise Damaged(f"{self.name}, meta 'indexed'", "it is missing")
        return [self.last_position(transaction)] * GROUPS

    def format_in(self, transaction: lmdb.Transaction[bytes]) -> int:
        """The format of the log, as this transaction sees it; 0 if it names none."""
        stored = transaction.get(META_FORMAT, db=self.environment.database(META))
        return 0 if stored is None else int.from_bytes(decode_meta(META_FORMAT, stored, self.name), "big")

    def holdings(self) -> Holdings:
        """The event names, schema versions and aggregate types that the log holds; an old log is scanned for them."""
        return as_holdings(self.environment.read(self.kinds_in))

    def secret(self) -> bytes:
        """The key of the digests of commands; empty in a log of format 1 or 2 that was not taken over yet."""
        return self.environment.read(self.secret_in)

    def secret_in(self, transaction: lmdb.Transaction[bytes]) -> bytes:
        """`secret`, as this transaction sees it."""
        stored = transaction.get(META_SECRET, db=self.environment.database(META))
        return b"" if stored is None else decode_meta(META_SECRET, stored, self.name)

    def shapes(self) -> dict[tuple[str, int], bytes]:
        """The shapes that `meta` has; none in a log of format 1 or 2."""
        return self.environment.read(lambda transaction: as_holdings(self._kinds_named(transaction)).events)

    def _kinds_named(self, transaction: lmdb.Transaction[bytes]) -> Kinds:
        return holdings_in(transaction, self.environment.database(META), self.name)

    def kinds_in(self, transaction: lmdb.Transaction[bytes]) -> Kinds:
        """The `holdings`, as this transaction sees them."""
        if self.format_in(transaction) >= HOLDINGS_SINCE:
            return self._kinds_named(transaction)
        return kinds_of(transaction.cursor(self.environment.database(EVENTS)).iternext())

    def subscription_rows(self, prefix: str = "") -> dict[str, bytes]:
        """What subscriptions of a name keep here (`subscription_rows.py`): the rows whose keys begin so."""

        def read(transaction: lmdb.Transaction[bytes]) -> dict[str, bytes]:
            return StoredRows(transaction, self.environment.database(META), self.name).beginning(prefix)

        return self.environment.read(read)

    def successor(self) -> str:
        """The node for which the log is sealed (`sealing.py`); empty if it is not."""
        return self.write_ownership().successor

    def write_ownership(self) -> WriteOwnership:
        """The right to write the log, as stored in it (`sealing.py`)."""
        return self.environment.read(self.write_ownership_in)

    def write_ownership_in(self, transaction: lmdb.Transaction[bytes]) -> WriteOwnership:
        """`write_ownership`, as this transaction sees it."""
        stored, epoch = transaction.get(META_SEAL, db=self.environment.database(META)), self.epoch_in(transaction)
        return (
            WriteOwnership(epoch) if stored is None else decode_seal(epoch, decode_meta(META_SEAL, stored, self.name))
        )

    def end(self) -> tuple[int, bytes]:
        """Position and chain link of the last event; they stand for the whole history."""
        head = self.head()
        return head, chain_at(self, head)

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """The records at `after + 1, after + 2, …`: at most `limit`, none further once `bytes_max` is reached."""
        if limit < 1:
            return []
        first = max(after, 0) + 1
        return self.environment.read(lambda transaction: self._read(transaction, first, limit, bytes_max))

    def _read(self, transaction: lmdb.Transaction[bytes], first: int, limit: int, bytes_max: int) -> list[bytes]:
        records: list[bytes] = []
        cursor = transaction.cursor(self.environment.database(EVENTS))
        if not cursor.set_range(pack_position(first)):
            self._head(transaction)
            return records
        size_bytes, position, name = 0, first, self.name
        for key, record in cursor.iternext():
            if key != pack_position(position):
                raise Damaged(f"{name}, event {position}", "it is missing")
            if not is_intact(record, key):
                check_record(record, key, name)
            records.append(record)
            size_bytes += len(record)
            position += 1
            if len(records) == limit or size_bytes >= bytes_max:
                return records
        self._check_end(transaction, position - 1)
        return records

    def segment(self, after: int, up_to: int) -> LogSegment | None:
        """The next whole commands after a position, up to another, as another log takes them in (`log/segment.py`)."""
        return read_log_segment(self, after, up_to)

    def version(self, stream: StreamId) -> int:
        """The version of the stream; 0 if it has no events."""
        checked_stream(stream)
        return self.environment.read(lambda transaction: self.version_in(transaction, stream))

    def version_in(self, transaction: lmdb.Transaction[bytes], stream: StreamId) -> int:
        """`version`, as this transaction sees it."""
        latest = self._unindexed(transaction, stream, None)
        return latest[-1][0] if latest else self.indexed_version(transaction, stream.key)

    def indexed_version(self, transaction: lmdb.Transaction[bytes], stream_key: bytes) -> int:
        """The last version of a stream that the stream index holds; 0 if it holds none."""
        sought, cursor = stream_key + VERSION_END, transaction.cursor(self.environment.database(STREAMS))
        _, (key, _) = _around(cursor, sought, check_stream_entry, self.name)
        of_the_stream = len(key) == len(sought) and key.startswith(stream_key)
        return int.from_bytes(key[-8:], "big") if of_the_stream else 0

    def _unindexed(
        self, transaction: lmdb.Transaction[bytes], stream: StreamId, first: int | None
    ) -> list[tuple[int, int]]:
        """Version and position, in order, of those events of a stream from a version on (or of its last one) that the
        stream index does not hold yet, and perhaps of some before that version."""
        body, indexed = body_start(stream), self.indexed_in(transaction)
        latest = self._read(transaction, indexed[group_of(stream.key)] + 1, 1 << 62, 1 << 62)
        found = [record for record in latest if record.startswith(body, BODY_AT)]
        if not found:
            return []
        last = decode_record(found[-1], self.name, checked=True).version
        return list(zip(range(last - len(found) + 1, last + 1), map(record_position, found), strict=True))

    def read_stream(
        self,
        stream: StreamId,
        from_version: int = 1,
        to_version: int | None = None,
        limit: int | None = None,
        bytes_max: int = STREAM_PAGE_BYTES,
    ) -> list[bytes]:
        """The records of versions `from_version..to_version` (both included): at most `limit`, none further once
        `bytes_max` is reached."""
        first = max(from_version, 1)
        last = (1 << 63) if to_version is None else to_version
        if limit is not None:
            last = min(last, first + limit - 1)
        key = checked_stream(stream)
        if last < first:
            return []
        return self.environment.read(
            lambda transaction: self._read_stream(transaction, stream, key, first, last, bytes_max)
        )

    def _read_stream(
        self,
        transaction: lmdb.Transaction[bytes],
        stream: StreamId,
        stream_key: bytes,
        first: int,
        last: int,
        bytes_max: int = 1 << 62,
    ) -> list[bytes]:
        records, size_bytes, start = list[bytes](), 0, body_start(stream)
        for version, position in self._places_of(transaction, stream, stream_key, first, last):
            record = self._event_of(transaction, stream, version, position, start)
            records.append(record)
            size_bytes += len(record)
            if size_bytes >= bytes_max:
                break
        return records

    def _places_of(
        self, transaction: lmdb.Transaction[bytes], stream: StreamId, stream_key: bytes, first: int, last: int
    ) -> Iterator[tuple[int, int]]:
        """Version and position of each event. Walks the index entries from the one that covers `first`: each has the
        positions of one append's events."""
        cursor = transaction.cursor(self.environment.database(STREAMS))
        sought, wanted, key_length = versioned_key(stream_key, first), first, len(stream_key) + 8
        found = cursor.set_range(sought)
        for key, value in cursor.iternext() if found else ():
            if len(key) != key_length or not key.startswith(stream_key):
                decode_stream_entry(key, value, self.name)
                break
            entry_last = int.from_bytes(key[-8:], "big")
            position, count = decode_stream_entry(key, value, self.name)
            entry_first = entry_last - count + 1
            if not entry_first <= wanted <= entry_last or (wanted > first and entry_first != wanted):
                raise Damaged(f"{self.name}, stream index of {stream}", f"version {wanted} is missing or there twice")
            for version in range(wanted, min(entry_last, last) + 1):
                yield version, position - (entry_last - version)
            wanted = entry_last + 1
            if wanted > last:
                return
        if wanted == first:
            _around(cursor, sought, check_stream_entry, self.name)
        for version, position in self._unindexed(transaction, stream, wanted):
            if not wanted <= version <= last:
                continue
            if version != wanted:
                raise Damaged(f"{self.name}, stream index of {stream}", f"version {wanted} is missing or there twice")
            yield version, position
            wanted += 1

    def _event_of(
        self,
        transaction: lmdb.Transaction[bytes],
        stream: StreamId,
        version: int,
        position: int,
        start: tuple[bytes, bytes],
    ) -> bytes:
        """The record that the stream index points at, which must be the one of this stream and version. `start`: how
        the body of any record of this stream begins."""
        key = pack_position(position)
        record = transaction.get(key, db=self.environment.database(EVENTS))
        if record is None:
            raise Damaged(f"{self.name}, event {position}", f"it is missing, though it is {stream} version {version}")
        if not is_intact(record, key):
            check_record(record, key, self.name)
        if not is_version(record, start, version):
            raise Damaged(f"{self.name}, stream index of {stream} version {version}", f"event {position} is another")
        return record

    def find_command(self, command_id: bytes) -> CommandEntry | None:
        """What is stored about this command id. Raises `InvalidId` if it is not 16 bytes."""
        check_command_id(command_id)
        return self.environment.read(lambda transaction: self._find_command(transaction, command_id))

    def _find_command(self, transaction: lmdb.Transaction[bytes], command_id: bytes) -> CommandEntry | None:
        cursor = transaction.cursor(self.environment.database(COMMANDS))
        key, entry = _around(cursor, command_id, check_command, self.name)[0]
        return decode_command(key, entry, self.name) if key == command_id else None

    def find_commands(self, command_ids: Sequence[bytes]) -> dict[bytes, CommandEntry | RayfoldError]:
        """What is stored about each of these ids; an id that is none, or a damaged entry, has its error instead."""
        return self.environment.read(lambda transaction: self._find_commands(transaction, command_ids))

    def _find_commands(
        self, transaction: lmdb.Transaction[bytes], command_ids: Sequence[bytes]
    ) -> dict[bytes, CommandEntry | RayfoldError]:
        """In one transaction: one for each costs 3 us more. A new UUIDv7 is beyond the last id: 0.1 us, another 2."""
        found: dict[bytes, CommandEntry | RayfoldError] = {}
        cursor = transaction.cursor(self.environment.database(COMMANDS))
        last = self._last_intact(cursor)
        for command_id in command_ids:
            try:
                check_command_id(command_id)
                if last is not None and command_id > last:
                    continue
                key, entry = _around(cursor, command_id, check_command, self.name)[0]
                if key == command_id:
                    found[command_id] = decode_command(key, entry, self.name)
            except (Damaged, InvalidId) as error:
                found[command_id] = error
        return found

    def _last_intact(self, cursor: lmdb.Cursor[bytes]) -> bytes | None:
        """The last command id, if its entry is intact: no id that is greater is stored. None if that is not known."""
        if not cursor.last():
            return b""
        key, value = cursor.item()
        try:
            decode_command(key, value, self.name)
        except Damaged:
            return None
        return key

    def find_snapshot(self, stream: StreamId, schema: bytes, at_or_before: int | None = None) -> Snapshot | None:
        """The latest good snapshot of the stream (at or before a version) that `schema` wrote, if there is one."""
        key = checked_stream(stream)
        if at_or_before is not None and at_or_before < 1:
            return None
        bound = VERSION_END if at_or_before is None else pack_position(at_or_before)
        return self.environment.read(lambda transaction: self._find_snapshot(transaction, stream, key, schema, bound))

    def _find_snapshot(
        self, transaction: lmdb.Transaction[bytes], stream: StreamId, stream_key: bytes, schema: bytes, bound: bytes
    ) -> Snapshot | None:
        import lmdb  # not with this file: a program without a log imports it too

        try:
            cursor = transaction.cursor(self.environment.database(SNAPSHOTS))
            found = _at_or_before(cursor, stream_key + bound)
            for _ in range(SNAPSHOTS_TRIED_MAX):
                key = cursor.key() if found else b""
                if len(key) != len(stream_key) + 8 or not key.startswith(stream_key):
                    return None
                snapshot = self._usable(transaction, stream, key, cursor.value(), schema)
                if snapshot is not None:
                    return snapshot
                found = cursor.prev()
        except (lmdb.CorruptedError, lmdb.PageNotFoundError):
            return None
        return None

    def _usable(
        self, transaction: lmdb.Transaction[bytes], stream: StreamId, key: bytes, value: bytes, schema: bytes
    ) -> Snapshot | None:
        """The snapshot in a stored pair; none if it is damaged, of another schema, or not the one that was saved with
        the event of its version."""
        version = int.from_bytes(key[-8:], "big")
        try:
            written_by, state = decode_snapshot(key, value, self.name)
            if written_by != schema or not snapshot_link(value):
                return None
            record = self.record_of(transaction, stream, version)
        except Damaged:
            return None
        good = record is not None and belongs_to(value, schema, state, record)
        return Snapshot(version, state) if good else None

    def record_of(self, transaction: lmdb.Transaction[bytes], stream: StreamId, version: int) -> bytes | None:
        """The record of one version of a stream, if there is one. Raises `Damaged`."""
        records = self._read_stream(transaction, stream, stream.key, version, version)
        return records[0] if records else None

    def close(self) -> None:
        """Release every resource. Closing twice is allowed."""
        self.environment.close()


def _around(
    cursor: lmdb.Cursor[bytes], sought: bytes, check: Callable[[bytes, bytes, str], None], log: str
) -> tuple[Pair, Pair]:
    """The pair at or after a key, and the one before it if the key is not there itself; both checked. Empty for none.

    A key that decayed is where LMDB searches for the original, and its checksum is wrong; a page above that decayed
    leads to keys out of order. So what hides an entry is `Damaged`, where a plain lookup would report it as missing.
    """
    after = _NO_PAIR
    if cursor.set_range(sought):
        after = key, value = cursor.item()
        check(key, value, log)
        if key == sought:
            return after, _NO_PAIR
        there, in_order = cursor.prev(), key > sought
    else:
        there, in_order = cursor.last(), True
    if not there:
        return after, _NO_PAIR
    before = key, value = cursor.item()
    check(key, value, log)
    if not in_order or key >= sought:
        raise Damaged(f"{log}, key {sought.hex()}", "the keys around it are out of order")
    return after, before


def _at_or_before(cursor: lmdb.Cursor[bytes], key: bytes) -> bool:
    """Put the cursor on the last key that is not after `key`; False if there is none."""
    if not cursor.set_range(key):
        return cursor.last()
    return cursor.key() == key or cursor.prev()
