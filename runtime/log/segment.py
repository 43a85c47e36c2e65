"""LogSegment: whole commands of a log as they are stored, on their way into another log.

Beside the write path: what a backup keeps and a restored store is made of. The bytes of the events stay what they are,
so that checksums and hash chain still hold at the other end; the indexes are made anew from them.

Rules kept here: a segment begins and ends between two commands, since the events of one command are stored together or
not at all; nothing is written that does not follow, by position and by hash, from what is stored already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..errors import Damaged
from .contract import Reader
from .environment import Environment
from .format import (
    CHAIN_START,
    COMMANDS,
    EVENTS,
    META,
    STREAMS,
    chain_of,
    check_record,
    decode_record,
    encode_command,
    next_chain,
    record_position,
)
from .holdings import kinds_of, put_holdings
from .identity import put_format, put_secret
from .index_buffer import GROUPS, answered_version, appends_in, index_entry
from .plan import Pair

if TYPE_CHECKING:
    import lmdb

__all__ = ["SEGMENT_BYTES", "LogSegment", "SegmentReader", "last_boundary", "put_segment", "read_log_segment"]

SEGMENT_BYTES: Final = 8 << 20
"""Bytes of records: about 25,000 records, in memory twice and in one transaction."""

SEGMENT_EVENTS_MAX: Final = 100_000
"""Records of one segment, however small they are."""


class LogSegment(NamedTuple):
    """Adjoining records, and the digest of each command that they came from, in order."""

    records: list[bytes]
    digests: list[bytes]
    """What distinguishes a repeat of a command from another command under the same id."""
    shapes: dict[tuple[str, int], bytes] = {}  # noqa: RUF012 - a tuple's default
    """The shapes of the events in the log that it was read from, by name and schema version (`holdings.py`)."""
    secret: bytes = b""
    """The secret of that log: the digests are keyed with it."""

    @property
    def first(self) -> int:
        """The position of its first event."""
        return record_position(self.records[0])

    @property
    def last(self) -> int:
        """The position of its last event."""
        return record_position(self.records[-1])


class SegmentReader(Reader, Protocol):
    """A reader of a log that is kept: of LMDB's, here or on another node."""

    def segment(self, after: int, up_to: int) -> LogSegment | None:
        """The next whole commands after a position, up to another, as another log takes them in."""
        ...

    def subscription_rows(self, prefix: str = "") -> dict[str, bytes]:
        """What subscriptions of a name keep in it (`subscription_rows.py`)."""
        ...


class ShapedReader(Reader, Protocol):
    """A reader that also returns the shapes of what it reads: LMDB's."""

    def shapes(self) -> dict[tuple[str, int], bytes]:
        """The shapes that the log has stored, by event name and schema version."""
        ...


def read_log_segment(reader: ShapedReader, after: int, up_to: int, bytes_max: int = SEGMENT_BYTES) -> LogSegment | None:
    """The next whole commands after a position, up to another; None if there are none. Raises `Damaged`."""
    records = reader.read(after, min(up_to - after, SEGMENT_EVENTS_MAX), bytes_max) if up_to > after else []
    if not records:
        return None
    last = record_position(records[-1])
    if (boundary := last_boundary(reader, last)) != last:  # the last command goes on: without it, or with all of it
        records = records[: max(boundary - after, 0)] or reader.read(after, _end_of(reader, last) - after)
        if record_position(records[-1]) > up_to:
            return None
    digests = []
    for events in appends_in(records):
        command_id, end = events[0].command_id, events[-1].position
        entry = reader.find_command(command_id)
        if entry is None or entry.position != end:
            raise Damaged(f"event {end}", f"the command index does not lead from its command {command_id.hex()} to it")
        digests.append(entry.digest)
    return LogSegment(records, digests, reader.shapes(), reader.secret())


def last_boundary(reader: ShapedReader, position: int) -> int:
    """The last position at or before this one at which a command ends."""
    if position < 1 or _end_of(reader, position) == position:
        return position
    command_id = decode_record(reader.read(position - 1, 1)[0]).command_id
    while position and decode_record(reader.read(position - 1, 1)[0]).command_id == command_id:
        position -= 1
    return position


def _end_of(reader: ShapedReader, position: int) -> int:
    """Where the command ends that the event at this position came from."""
    event = decode_record(reader.read(position - 1, 1)[0])
    entry = reader.find_command(event.command_id)
    if entry is None or entry.position < position:
        raise Damaged(f"event {position}", f"the command index does not hold its command {event.command_id.hex()}")
    return entry.position


def put_segment(
    transaction: lmdb.Transaction[bytes], environment: Environment, segment: LogSegment, unindexed: Sequence[Pair]
) -> None:
    """Put a segment at the end of a log, of whose appends the stream index lacks these entries: it has all of them
    then. Raises `Damaged` unless the segment follows from what the log holds."""
    database, log = environment.database, environment.name
    cursor = transaction.cursor(database(EVENTS))
    head, chain = 0, CHAIN_START
    if cursor.last():
        head, chain = int.from_bytes(cursor.key(), "big"), chain_of(cursor.value())
    events, commands = [], []
    for record in segment.records:
        head += 1
        key = head.to_bytes(8, "big")
        check_record(record, key, log)
        if next_chain(chain, record) != chain_of(record):
            raise Damaged(f"{log}, event {head}", "its hash does not follow from the events before it")
        chain = chain_of(record)
        events.append((key, record))
    streams = list(unindexed)
    for of_append, digest in zip(appends_in(segment.records, checked=True), segment.digests, strict=True):
        last = of_append[-1]
        streams.append(index_entry(of_append))
        commands.append(
            (last.command_id, encode_command(last.command_id, digest, last.position, answered_version(last)))
        )
    for name, pairs in ((EVENTS, events), (STREAMS, sorted(streams)), (COMMANDS, sorted(commands))):
        _, added = transaction.cursor(database(name)).putmulti(pairs, overwrite=False, append=name == EVENTS)
        if added != len(pairs):
            raise Damaged(f"{log}, database {name.decode()}", f"{len(pairs) - added} of its keys are there already")
    shown = kinds_of(events)
    shown |= {kind: segment.shapes[kind] for kind in shown if isinstance(kind, tuple) and kind in segment.shapes}
    put_holdings(transaction, database(META), shown)
    if segment.secret:
        put_secret(transaction, database(META), segment.secret)
    put_format(transaction, database(META), [head] * GROUPS)
