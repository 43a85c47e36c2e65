"""The one writer of a log: takes it over, and appends whole batches durably.

Step [5] of the write path. Before it: `runtime/write/write_loop.py` has decided a batch. After it: the batch is on the
disk, and its records go to the broadcast.

Rules kept here:
- one `append` is one LMDB transaction; it is planned in full, put, and fsynced, or nothing of it is stored
- the epoch is compared inside that transaction: a writer that was taken over stores nothing any more
- what the writer remembers (head, chain, versions of streams, appends not indexed yet) counts only if the transaction
  before this one was its own, which LMDB's transaction number shows; it is dropped on any error
- every result of a put is checked: LMDB answers an append out of order with False and raises nothing
- whether a command id is stored is found by putting it, which LMDB refuses then; only such a batch is planned again
  with every id looked up (looking them up took 0.9 us each, after the write loop had just done so)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Final, TypeVar

from ..errors import CallerError, Damaged, Fenced, InvalidId, Refusal
from ..stream import StreamId
from .contract import Append, Appended, CommandEntry
from .environment import Environment
from .format import (
    CHAIN_START,
    COMMANDS,
    EVENTS,
    META,
    META_INDEXED,
    SNAPSHOTS,
    STREAMS,
    chain_of,
    check_record,
    checked_stream,
    decode_command,
    decode_stream_entry,
    record_position,
    versioned_key,
)
from .holdings import checked_shapes, holdings_in, put_holdings
from .index_buffer import IndexBuffer, encode_indexed, unindexed_entries
from .plan import Pair, Plan, Tail, plan
from .reader import LmdbReader
from .sealing import WriteOwnership, activated, put_write_ownership
from .segment import LogSegment, put_segment
from .subscription_rows import Change, StoredRows
from .upgrade import upgrade

if TYPE_CHECKING:
    import lmdb

__all__ = ["LmdbLog"]

Result = TypeVar("Result")

SNAPSHOTS_KEPT: Final = 4
"""Snapshots of a stream that are kept, the last ones; for older ones see `_thin_out`. A reader passes over one that is
damaged or outdated."""


class _Stored(Exception):  # noqa: N818 - a signal inside this file, not an error
    """Some command id of the batch is stored already. Ends the transaction, so nothing of it is."""


_NewStreams = tuple[int, Set[StreamId]]
"""A head of the log, and streams that had no events then."""

_NONE_NEW: Final[_NewStreams] = (0, frozenset())


class LmdbLog(LmdbReader):
    """The `Log` of `contract.py` over LMDB. Made by `open_log`."""

    def __init__(self, environment: Environment, now_us: Callable[[], int]) -> None:
        super().__init__(environment)
        self._now_us = now_us
        self._tail: Tail | None = None
        self._recent = IndexBuffer()
        self._declared: dict[tuple[str, int], bytes] = {}
        self._new = _NONE_NEW
        """What the next append need not look up again."""
        self._writing = threading.Lock()

    def activate(self) -> int:
        """Take the log over: durably raise the epoch, and return it. Appends of older epochs are refused.

        Raises `Sealed` if the log was handed over to another node.
        """
        with self._writing:
            self._tail = None
            return self.environment.write(self._activate)

    def _activate(self, transaction: lmdb.Transaction[bytes]) -> int:
        write_ownership, meta = (
            activated(self.write_ownership_in(transaction), self.name),
            self.environment.database(META),
        )
        indexed, kinds, secret = self.indexed_in(transaction), self.kinds_in(transaction), self.secret_in(transaction)
        upgrade(transaction, meta, indexed, kinds, secret)
        self._learn(transaction, self._head(transaction))
        put_write_ownership(transaction, meta, write_ownership)
        return write_ownership.epoch

    def change_write_ownership(self, change: Callable[[WriteOwnership], WriteOwnership]) -> WriteOwnership:
        """Replace who may write the log, in one durable transaction; see `sealing.py`."""

        def put(transaction: lmdb.Transaction[bytes]) -> WriteOwnership:
            present = self.write_ownership_in(transaction)
            changed = change(present)
            if changed != present:
                put_write_ownership(transaction, self.environment.database(META), changed)
            return changed

        with self._writing:
            self._tail = None
            return self.environment.write(put)

    def change_rows(self, epoch: int, change: Change[Result]) -> Result:
        """What `change` makes of the rows that subscriptions keep here, in one transaction, fsynced when this returns.

        Raises `Fenced` for the epoch of an earlier activation, and what `change` raises; then nothing is changed.
        """

        def put(transaction: lmdb.Transaction[bytes]) -> tuple[Result, bool, int]:
            current = self.epoch_in(transaction)
            if epoch != current:
                raise Fenced(self.name, epoch, current)
            rows = StoredRows(transaction, self.environment.database(META), self.name)
            return change(rows), rows.changed, transaction.id()

        with self._writing:
            remembered, self._tail = self._tail, None
            result, changed, number = self.environment.write(put)
            if remembered is not None and remembered.transaction == number - 1:  # no event came in between
                remembered.transaction = number if changed else number - 1
                self._tail = remembered
        return result

    def put_rows(self, rows: Mapping[str, bytes]) -> None:
        """Have exactly these rows, in a copy of a log that has no other writer."""

        def put(transaction: lmdb.Transaction[bytes]) -> None:
            stored = StoredRows(transaction, self.environment.database(META), self.name)
            for key in stored.beginning(""):
                stored.remove(key)
            for key, content in rows.items():
                stored.put(key, content)

        with self._writing:
            self._tail = None
            self.environment.write(put)

    def declare(self, shapes: Mapping[tuple[str, int], bytes]) -> None:
        """The shapes of the events that will be appended. Raises `InvalidMessage` for one that is too large."""
        self._declared = self._declared | checked_shapes(shapes)

    def new_streams(self, streams: Iterable[StreamId]) -> Set[StreamId]:
        """Those of these streams that have no events, as one commit has it. One whose entry is damaged is not among
        them. For the thread that appends: the next append does not look these up again."""

        def look(transaction: lmdb.Transaction[bytes]) -> tuple[int, Set[StreamId]]:
            head, recent, found = self.last_position(transaction), self._recent, set()
            for stream in streams if recent.head == head else ():
                try:
                    key = checked_stream(stream)
                    if not recent.version(key) and not self.indexed_version(transaction, key):
                        found.add(stream)
                except (Damaged, InvalidId):  # loading it raises that
                    continue
            return head, found

        self._new = self.environment.read(look)
        return self._new[1]

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        """All of `appends` in one transaction, fsynced when this returns; one `Appended` for each, in order.

        Raises `Fenced`, `Conflict`, `CommandIdReused`, `InvalidId`, `InvalidMessage`, `Damaged` or
        `StorageFailed`; then nothing of the whole batch is stored.
        """
        with self._writing:
            try:
                return self._append_all(epoch, appends, look_up=not all(append.events for append in appends))
            except (_Stored, CallerError, Refusal, Damaged):  # a repeat is a repeat, whatever else is wrong with it
                return self._append_all(epoch, appends, look_up=True)

    def _append_all(self, epoch: int, appends: Sequence[Append], *, look_up: bool) -> list[Appended]:
        remembered, self._tail = self._tail, None
        new, self._new = self._new, _NONE_NEW
        recorded_at_us = self._now_us()
        planned, self._tail = self.environment.write(
            lambda transaction: self._append(transaction, epoch, appends, recorded_at_us, remembered, look_up, new)
        )
        self._recent.commit()
        return planned.outcomes

    def _append(
        self,
        transaction: lmdb.Transaction[bytes],
        epoch: int,
        appends: Sequence[Append],
        recorded_at_us: int,
        remembered: Tail | None,
        look_up_ids: bool,
        new: _NewStreams = _NONE_NEW,
    ) -> tuple[Plan, Tail]:
        """Plan and put a batch. May run again with a grown map, so `remembered` is checked."""
        current = self.epoch_in(transaction)
        if epoch != current:
            raise Fenced(self.name, epoch, current)
        number = transaction.id()
        usable = remembered is not None and remembered.transaction == number - 1
        tail = remembered if remembered is not None and usable else self._find_tail(transaction)
        tail.transaction, before = -1, tail.head
        if self._recent.head != tail.head:
            self._learn(transaction, tail.head)
        recent, commands = self._recent, self.environment.database(COMMANDS)
        look_up, name, streams = transaction.get, self.name, self.environment.database(STREAMS)

        def find_command(command_id: bytes) -> CommandEntry | None:
            stored = look_up(command_id, None, commands)
            return None if stored is None else decode_command(command_id, stored, name)

        new_ones = new[1] if new[0] == before else frozenset()

        def find_version(stream: StreamId, key: bytes) -> int:
            return 0 if stream in new_ones else recent.version(key) or self.indexed_version(transaction, key)

        def find_position(key: bytes) -> int:
            pairs = recent.entries(key[:-8], None)
            entry = pairs[-1][1] if pairs else look_up(key, None, streams)
            return decode_stream_entry(key, entry or b"", name)[0]

        planned = plan(
            tail,
            appends,
            recorded_at_us,
            find_version,
            find_position,
            find_command if look_up_ids else None,
            self._declared,
        )
        assert tail.head == before + len(planned.events), "positions follow one another without a gap"
        assert len(planned.outcomes) == len(appends), "an append without an outcome"
        size_bytes = sum([len(record) for _, record in planned.events])
        due, indexed = recent.stage(planned.streams, size_bytes, tail.head)
        self._put(transaction, EVENTS, planned.events, in_order=True)
        self._put(transaction, STREAMS, due)
        if indexed is not None:
            transaction.put(META_INDEXED, encode_indexed(indexed), db=self.environment.database(META))
        if self._put(transaction, COMMANDS, sorted(planned.commands), may_be_there=not look_up_ids):
            raise _Stored
        if planned.snapshots:
            self._put(transaction, SNAPSHOTS, planned.snapshots)
            for key, _ in planned.snapshots:
                self._thin_out(transaction, key)
        if planned.kinds:
            put_holdings(transaction, self.environment.database(META), planned.kinds)
        tail.transaction = number if planned.events else number - 1
        return planned, tail

    def add_segment(self, segment: LogSegment) -> None:
        """Add a segment (`segment.py`) to the end of this log, which has no other writer, in one transaction, fsynced
        when this returns. Raises `Damaged`, and adds nothing, unless it follows from what the log holds."""

        def put(transaction: lmdb.Transaction[bytes]) -> None:
            unindexed = self.unindexed_in(transaction, self.indexed_in(transaction))
            put_segment(transaction, self.environment, segment, unindexed)

        with self._writing:
            self.environment.write(put)

    def close(self) -> None:
        """Release every resource, after an append that is under way. Closing twice is allowed."""
        with self._writing:
            super().close()

    def _put(
        self,
        transaction: lmdb.Transaction[bytes],
        database: bytes,
        pairs: list[Pair],
        *,
        in_order: bool = False,
        may_be_there: bool = False,
    ) -> int:
        """Put new pairs. Sorted keys cost less: neighbours land on the same page. Returns how many were there already,
        if that may be."""
        if not pairs:
            return 0
        cursor = transaction.cursor(self.environment.database(database))
        _, added = cursor.putmulti(pairs, overwrite=False, append=in_order)
        if added != len(pairs) and not may_be_there:
            what = f"{len(pairs) - added} of {len(pairs)} new keys were there already or out of order"
            raise Damaged(f"{self.name}, database {database.decode()}", what)
        return len(pairs) - added

    def _thin_out(self, transaction: lmdb.Transaction[bytes], latest: bytes) -> None:
        """Remove old snapshots of a stream: the last ones stay, and of those before one for each doubling of the
        distance, so that a state in the past is folded from one that is not far. Bounded by the versions' logarithm."""
        cursor = transaction.cursor(self.environment.database(SNAPSHOTS))
        stream_key, newest = latest[:-8], int.from_bytes(latest[-8:], "big")
        versions: list[int] = []
        there = cursor.set_key(latest)
        while there and cursor.key()[:-8] == stream_key:
            versions.append(int.from_bytes(cursor.key()[-8:], "big"))
            there = cursor.prev()
        distance = 0
        for number, version in enumerate(versions):
            if number < SNAPSHOTS_KEPT or newest - version >= 2 * distance:
                distance = newest - version
            else:
                transaction.delete(versioned_key(stream_key, version), db=self.environment.database(SNAPSHOTS))

    def unindexed_in(self, transaction: lmdb.Transaction[bytes], indexed: Sequence[int]) -> list[Pair]:
        """The entries that the stream index lacks, as this transaction sees it; `indexed` is the progress of the
        index."""
        return list(unindexed_entries(indexed, self._read(transaction, min(indexed) + 1, 1 << 62, 1 << 62)))

    def _learn(self, transaction: lmdb.Transaction[bytes], head: int) -> None:
        """Cache what the stream index lacks: at the activation, since loading an aggregate asks for it."""
        indexed = self.indexed_in(transaction)
        self._recent.learn(indexed, self.unindexed_in(transaction, indexed), head)

    def _unindexed(
        self, transaction: lmdb.Transaction[bytes], stream: StreamId, first: int | None
    ) -> list[tuple[int, int]]:
        """From the cache, unless the writer commits just now."""
        head, recent = self.last_position(transaction), self._recent
        if recent.head == head:
            pairs = recent.entries(stream.key, first)
            if recent.head == head:
                return [place for pair in pairs for place in self._places(*pair)]
        return super()._unindexed(transaction, stream, first)

    def _places(self, key: bytes, value: bytes) -> Iterator[tuple[int, int]]:
        """Version and position of each event of an append."""
        last, (position, count) = int.from_bytes(key[-8:], "big"), decode_stream_entry(key, value, self.name)
        return zip(range(last - count + 1, last + 1), range(position - count + 1, position + 1), strict=True)

    def _find_tail(self, transaction: lmdb.Transaction[bytes]) -> Tail:
        """The end of the log as it is stored."""
        kinds = holdings_in(transaction, self.environment.database(META), self.name)
        cursor = transaction.cursor(self.environment.database(EVENTS))
        if not cursor.last():
            return Tail(0, CHAIN_START, kinds)
        key, record = cursor.item()
        check_record(record, key, self.name)
        return Tail(record_position(record), chain_of(record), kinds)
