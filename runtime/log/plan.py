"""What a batch will write, worked out completely before anything is written.

Step [5] of the write path. Before it: a batch of `Append`s. After it: the log puts the plan's pairs and commits.

Rules kept here:
- every check and every encoding of a whole batch comes before its first put, so that what can be refused is
  refused while there is nothing to undo
- the command id is checked before the expected version: a repeat stays a repeat when the stream has moved on
- a later append of the batch sees the effects of the earlier ones

Both logs use this one function, which is why they cannot differ in what they accept. It is the hot loop of a
partition: plain tuples and prebound functions, no value objects (`docs/log-format.md` has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from ..errors import CommandIdReused, Conflict, InvalidMessage
from ..printable import printable_log
from ..stream import ANY, REFUSALS, StreamId, is_reserved
from .contract import Append, Appended, CommandEntry, NewEvent
from .format import (
    BODY_AT,
    CHAIN_AT,
    DIGEST_BYTES,
    HEADER_OUTPUTS,
    HEADER_STATE,
    ID_BYTES,
    SCHEMA_BYTES_MAX,
    SNAPSHOT_BYTES_MAX,
    chain_of,
    check_headers,
    check_ids,
    checked_stream,
    encode_command,
    encode_record,
    encode_snapshot,
    encode_stream_entry,
    pack_position,
    state_hash,
)
from .holdings import Kinds, kind_of

__all__ = ["STREAMS_KNOWN_MAX", "Pair", "Plan", "Tail", "plan"]

logger = printable_log("rayfold.log")

STREAMS_KNOWN_MAX: Final = 32_768
"""Streams whose version a writer remembers: about 10 MiB. Beyond it all are forgotten and looked up again (2 us)."""

BATCH_BYTES_MAX: Final = 256 << 20
"""Bytes of all records of one batch: twice that is held in memory, and one transaction must fit a fraction of the
map."""

_new: Final = tuple.__new__
"""Makes a named tuple in half the time (0.2 us): the class's own `__new__` is a function in Python."""

Pair = tuple[bytes, bytes]
"""A key and its value."""


class Tail:
    """The end of a log as its writer knows it. Planning moves it on; after a failed commit it is thrown away."""

    __slots__ = ("chain", "head", "kinds", "noted", "streams", "transaction")

    def __init__(self, head: int, chain: bytes, kinds: Kinds, transaction: int = 0) -> None:
        self.head = head
        self.chain = chain
        self.kinds = kinds
        """What the log names as held (`holdings.py`)."""
        self.noted: dict[str, int] = {}
        """Event name -> the version of it that was last seen to be named: half the time of a lookup in `kinds`."""
        self.streams: dict[StreamId, tuple[bytes, int, int]] = {}
        """The key, the version and the last position of streams lately written to."""
        self.transaction = transaction
        """The LMDB transaction that wrote this end: if the next one is not its successor, another process wrote."""


class Plan(NamedTuple):
    """The pairs that a batch puts into each database, and the results for its callers once they are committed."""

    events: list[Pair]
    streams: list[Pair]
    commands: list[Pair]
    snapshots: list[Pair]
    kinds: Kinds
    """The kinds of events and aggregates that the log has not held before."""
    outcomes: list[Appended]


def plan(
    tail: Tail,
    appends: Sequence[Append],
    recorded_at_us: int,
    find_version: Callable[[StreamId, bytes], int],
    find_position: Callable[[bytes], int],
    find_command: Callable[[bytes], CommandEntry | None] | None,
    declared: Mapping[tuple[str, int], bytes],
) -> Plan:
    """Work out what `appends` write after `tail`, and move `tail` to the end of it.

    `find_version` (of a stream, with its key), `find_position` (of a stream's last event, by the key of that version)
    and `find_command` read what is already stored. Without `find_command` the writer that puts the plan has to detect
    that a command id is stored already; then, or when something is refused, the batch must be planned again with it: a
    repeat is a repeat whatever else is wrong with it. `declared` has the shapes of events, for the first of their kind.
    Raises `Conflict`, `CommandIdReused`, `InvalidId` or `InvalidMessage`; `tail` is spoilt then.
    """
    planned = Plan([], [], [], [], {}, [])
    outcomes = planned.outcomes
    new_commands: dict[bytes, CommandEntry] = {}
    pack = msgpack.Packer(autoreset=True).pack
    known, noted = tail.streams, tail.noted
    room_bytes = BATCH_BYTES_MAX
    for append in appends:
        stream, expected_version, events, command_id, digest, correlation_id, causation_id, snapshot, _, _ = append
        if correlation_id or causation_id or len(command_id) != ID_BYTES or len(digest) != DIGEST_BYTES:
            check_ids(command_id, digest, correlation_id, causation_id)
        stored = new_commands.get(command_id)
        if stored is None and find_command is not None:
            stored = find_command(command_id)
        if stored is not None:
            outcomes.append(_repeat(append, stored))
            continue
        if stream in known:
            stream_key, version, last = known[stream]
        else:
            stream_key, last = checked_stream(stream), 0
            version = find_version(stream, stream_key)
            if len(known) >= STREAMS_KNOWN_MAX:
                known.clear()
        if expected_version != ANY and expected_version != version:
            raise Conflict(str(stream), expected_version, version)
        if not events:
            if version and not last:
                last = find_position(stream_key + pack_position(version))
            outcomes.append(Appended(last, version, ()))
            continue
        if snapshot:
            append = _with_usable_snapshot(append, version + len(events))
        records = _encode(append, tail, version, recorded_at_us, pack, planned.events)
        if not version:
            _note_type(stream, tail.kinds, planned.kinds)
        for event in events:
            if noted.get(event[0]) != event[1]:
                _note_event(stream, event, tail, planned.kinds, declared)
        room_bytes -= sum(map(len, records))
        if room_bytes < 0:
            raise InvalidMessage("batch", f"it has over {BATCH_BYTES_MAX:,} bytes of records", "append fewer at once")
        head, version = tail.head, version + len(records)
        known[stream] = stream_key, version, head
        answered = 0 if stream[0] == REFUSALS[0] else version
        new_commands[command_id] = _new(CommandEntry, (digest, head, answered))
        key = stream_key + pack_position(version)
        planned.streams.append((key, encode_stream_entry(key, head, len(records))))
        planned.commands.append((command_id, encode_command(command_id, digest, head, answered)))
        if snapshot and append.snapshot:
            link = chain_of(records[-1])
            planned.snapshots.append((key, encode_snapshot(key, append.snapshot_schema, append.snapshot, link)))
        outcomes.append(_new(Appended, (head, version, records, False)))
    return planned


def _encode(
    append: Append,
    tail: Tail,
    version: int,
    recorded_at_us: int,
    pack: Callable[[object], bytes],
    pairs: list[Pair],
) -> tuple[bytes, ...]:
    """The records of one append, which follow `tail` and move it on; added to `pairs` under their positions."""
    stream, _, events, command_id, _, correlation_id, causation_id, snapshot, schema, headers = append
    at_end: Mapping[int, Any] = headers
    if headers:
        check_headers(headers)
        headers = {key: value for key, value in headers.items() if key != HEADER_OUTPUTS}
    head, chain = tail.head, tail.chain
    if snapshot:
        at_end = {**at_end, HEADER_STATE: state_hash(schema, snapshot)}
    records, last = [], version + len(events)
    for event in events:
        head += 1
        version += 1
        if at_end and version == last:
            headers = at_end
        at = (head, chain, stream, version, recorded_at_us, command_id, correlation_id, causation_id)
        record = encode_record(at, event, pack, headers)
        chain = record[CHAIN_AT:BODY_AT]
        records.append(record)
        pairs.append((record[4:12], record))
    tail.head, tail.chain = head, chain
    return tuple(records)


def _note_type(stream: StreamId, held: Kinds, new: Kinds) -> None:
    """The first event of a stream: the log may not name its type yet."""
    if stream[0] not in held and not is_reserved(stream[0]):
        held[stream[0]] = new[stream[0]] = b""


def _note_event(
    stream: StreamId, event: NewEvent, tail: Tail, new: Kinds, declared: Mapping[tuple[str, int], bytes]
) -> None:
    """The log may not name events of this name and version yet."""
    if is_reserved(stream[0]):
        return
    if is_reserved(event[0]):  # a step of a process
        tail.noted[event[0]] = event[1]
        return
    kind = (event[0], event[1])
    if kind not in tail.kinds:
        tail.kinds[kind] = new[kind] = kind_of(event, declared)
    tail.noted[event[0]] = event[1]


def _with_usable_snapshot(append: Append, version: int) -> Append:
    """The append, without its snapshot if that is too large to be of use."""
    if len(append.snapshot) > SNAPSHOT_BYTES_MAX or len(append.snapshot_schema) > SCHEMA_BYTES_MAX:
        logger.warning(
            "snapshot of %s version %d not saved: it has %d bytes, over %d; the events are stored",
            append.stream,
            version,
            len(append.snapshot),
            SNAPSHOT_BYTES_MAX,
        )
        return append._replace(snapshot=b"")
    return append


def _repeat(append: Append, stored: CommandEntry) -> Appended:
    """The first receipt of a command that is already stored. Raises `CommandIdReused` if it is another command."""
    if stored.digest != append.command_digest:
        raise CommandIdReused(append.command_id.hex(), str(append.stream))
    return Appended(stored.position, stored.version, (), repeated=True)
