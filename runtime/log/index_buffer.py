"""IndexBuffer: the latest appends, which the stream index does not hold yet.

Step [5] of the write path. Before it: a planned batch. After it: those of its stream entries that are due are put.

An entry of the stream index lands on a page of its own for nearly every stream, and each page that is touched is
copied, written and synced: put batch by batch, these entries cost as much as all the rest of a commit. So they are put
later, those of one stream together. All streams are divided into `GROUPS` groups, and with every `EVENTS_A_ROUND`
events comes the group that waited for longest. What the index lacks meanwhile is in the events themselves.

Rules kept here:
- up to where the index holds the appends of each group stands in `meta`, and is put by the same transaction; what a
  reader sees is therefore whole: the index up to there, and the events after it
- the index lags behind by a bounded number of events and bytes, so that scanning them is bounded
- a writer caches these appends (`IndexBuffer`), and adds to them after a commit, never before
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from heapq import nsmallest
from itertools import groupby
from typing import Final, NamedTuple

from ..errors import Damaged
from ..stream import REFUSALS
from .contract import StoredEvent
from .format import (
    META_INDEXED,
    decode_meta,
    decode_record,
    encode_meta,
    encode_stream_entry,
    record_position,
    versioned_key,
)
from .plan import Pair

__all__ = [
    "GROUPS",
    "IndexBuffer",
    "appends_in",
    "decode_indexed",
    "encode_indexed",
    "group_of",
    "index_entry",
    "unindexed_entries",
    "answered_version",
]

GROUPS: Final = 32
"""The groups of streams. Part of the log's format."""

EVENTS_A_ROUND = 256
BYTES_A_ROUND = 128 * 1024
"""The bytes of records between two turns. The index lags by at most some 8,192 events or 4 MiB, and
what the largest batch adds: a reader of a stream scans half of that on the average (2 ms), and a writer that takes the
log over decodes it once (20 ms)."""

_INDEXED: Final = struct.Struct(f">{GROUPS}Q")

_crc32: Final = zlib.crc32


def group_of(stream_key: bytes) -> int:
    """To which group a stream belongs. From the upper bits: the lower ones have chosen the partition."""
    return (_crc32(stream_key) * GROUPS) >> 32


def encode_indexed(positions: Sequence[int]) -> bytes:
    """The value in `meta` with the position up to which the stream index holds the appends of each group."""
    return encode_meta(META_INDEXED, _INDEXED.pack(*positions))


def decode_indexed(value: bytes, log: str) -> Sequence[int]:
    """The positions, by group, in that value. Raises `Damaged`."""
    content = decode_meta(META_INDEXED, value, log)
    if len(content) != _INDEXED.size:
        raise Damaged(f"{log}, meta 'indexed'", f"it has {len(content)} bytes, not {_INDEXED.size}")
    return _INDEXED.unpack(content)


class IndexBuffer:
    """The writer's cache of stream-index entries of appends that the index does not hold yet, up to `head`.

    Changed by the writer alone. Other threads may read at the same time, with `head` compared before and after.
    """

    __slots__ = ("_groups", "_indexed", "_rest_bytes", "_staged", "head")

    def __init__(self) -> None:
        self.head = -1
        """Head of the log that the entries belong to; -1 while that is not known."""
        self._groups: list[dict[bytes, list[Pair]]] = []
        """Entries in the order of their versions, by group and stream key."""
        self._indexed: Sequence[int] = ()
        """Position up to which the index holds the appends of each group."""
        self._rest_bytes = 0
        """The bytes of records since the last turn that came for the sake of bytes."""
        self._staged: _Staged | None = None

    def learn(self, indexed: Sequence[int], pairs: Iterable[Pair], head: int) -> None:
        """Begin anew, with the progress of a log's index, and the entries that it lacks."""
        self.head = -1
        self._groups, self._indexed, self._rest_bytes = [{} for _ in range(GROUPS)], indexed, 0
        for pair in pairs:
            stream_key = pair[0][:-8]
            self._groups[group_of(stream_key)].setdefault(stream_key, []).append(pair)
        self.head = head

    def entries(self, stream_key: bytes, first: int | None) -> Sequence[Pair]:
        """The entries of a stream from the one on that covers the version `first`; without that, its last one alone."""
        pairs = self._groups[group_of(stream_key)].get(stream_key, [])
        return pairs[-1:] if first is None else pairs[bisect_left(pairs, (versioned_key(stream_key, first), b"")) :]

    def version(self, stream_key: bytes) -> int:
        """The last version of a stream, if one of its appends is known here; else 0."""
        pairs = self._groups[group_of(stream_key)].get(stream_key)
        return int.from_bytes(pairs[-1][0][-8:], "big") if pairs else 0

    def stage(self, pairs: Sequence[Pair], size_bytes: int, head: int) -> tuple[list[Pair], Sequence[int] | None]:
        """What a batch with these entries puts into the index, sorted, and the new progress of the index, if that
        changes. It is not cached here until `commit`."""
        assert head >= self.head, "the head of a log never goes back"
        rounds = head // EVENTS_A_ROUND - self.head // EVENTS_A_ROUND
        by_bytes, rest_bytes = divmod(self._rest_bytes + size_bytes, BYTES_A_ROUND)
        groups = [group_of(key[:-8]) for key, _ in pairs]
        due = set(nsmallest(max(rounds, by_bytes), range(GROUPS), self._indexed.__getitem__))
        indexed = [head if group in due else known for group, known in enumerate(self._indexed)] if due else None
        self._staged = _Staged(pairs, groups, due, indexed, rest_bytes, head)
        to_put = [pair for group in due for of_stream in self._groups[group].values() for pair in of_stream]
        to_put += [pair for pair, group in zip(pairs, groups, strict=True) if group in due] if due else ()
        return sorted(to_put), indexed

    def commit(self) -> None:
        """What was staged last is in the log now."""
        staged, self.head = self._staged, -1
        assert staged is not None, "nothing was staged"
        for group in staged.due:
            self._groups[group] = {}
        for pair, group in zip(staged.pairs, staged.groups, strict=True):
            if group not in staged.due:
                self._groups[group].setdefault(pair[0][:-8], []).append(pair)
        self._indexed, self._rest_bytes = staged.indexed or self._indexed, staged.rest_bytes
        self._staged, self.head = None, staged.head


class _Staged(NamedTuple):
    """A batch that is about to be committed."""

    pairs: Sequence[Pair]
    groups: Sequence[int]
    """The group of each pair."""
    due: set[int]
    indexed: Sequence[int] | None
    rest_bytes: int
    head: int


def appends_in(records: Iterable[bytes], *, checked: bool = False) -> Iterator[list[StoredEvent]]:
    """The events of each append, in order: they adjoin each other, and no two appends have a command id in common.

    `checked` as in `decode_record`. Raises `Damaged`.
    """
    events = (decode_record(record, f"event {record_position(record)}", checked=checked) for record in records)
    for _, of_append in groupby(events, lambda event: event.command_id):
        yield list(of_append)


def index_entry(events: Sequence[StoredEvent]) -> Pair:
    """What the stream index holds of an append with these events."""
    last = events[-1]
    key = versioned_key(last.stream.key, last.version)
    return key, encode_stream_entry(key, last.position, len(events))


def answered_version(event: StoredEvent) -> int:
    """The version that the command index has for a command that ends with this event: 0 for a refusal."""
    return 0 if event.stream == REFUSALS else event.version


def unindexed_entries(indexed: Sequence[int], records: Iterable[bytes]) -> Iterator[Pair]:
    """The entries that the stream index lacks, in the order of the log, from all its records after `min(indexed)`."""
    for events in appends_in(records, checked=True):
        if events[0].position > indexed[group_of(events[0].stream.key)]:
            yield index_entry(events)
