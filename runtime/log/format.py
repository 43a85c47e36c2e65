"""The one home of the log's bytes: every constant, every layout, every checksum of what is stored.

Step [5] of the write path. Before it: a decided batch of `Append`s. After it: the records that are broadcast.

Rules kept here:
- nothing is read that was not checked: a flipped byte, a value under another key or in another database is
  `Damaged`, never data (of 60 bit flips in LMDB files, 49 came back silently as wrong values)
- sizes are capped before decoding, and nothing stored is ever unpickled
- numbers in keys are big-endian, so that LMDB's order of bytes is the order of numbers

`docs/log-format.md` gives the same layouts as a grammar with a worked example, and a test compares the two.

Why SHA-256 for the chain: 0.5 us for a 330-byte record on a CPU with SHA instructions, BLAKE2b 0.7 us. Why CRC-32
beside it: 0.2 us, and a reader that starts in the middle can check it without the record before.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgpack

from ..errors import Damaged, InvalidId, InvalidMessage
from ..printable import shown
from ..stream import ID_BYTES_MAX, TYPE_NAME_PATTERN, StreamId
from .contract import CommandEntry, NewEvent, StoredEvent

__all__ = [
    "CHAIN_START",
    "COMMANDS",
    "DATABASES",
    "EVENTS",
    "FORMAT_VERSION",
    "HEADER_BYTES_MAX",
    "HEADER_HOPS",
    "HEADER_ITEMS_MAX",
    "HEADER_OUTPUTS",
    "HEADER_STATE",
    "META",
    "NO_HEADERS",
    "OLD_BODY",
    "READABLE_FORMATS",
    "RECORD_BYTES_MAX",
    "SECRET_BYTES",
    "SNAPSHOTS",
    "SNAPSHOT_BYTES_MAX",
    "STREAMS",
    "NextRecord",
    "StreamEntry",
    "body_start",
    "belongs_to",
    "chain_of",
    "check_command",
    "check_headers",
    "check_ids",
    "check_record",
    "check_stream_entry",
    "checked_stream",
    "decode_command",
    "decode_meta",
    "decode_record",
    "decode_snapshot",
    "decode_stream_entry",
    "encode_command",
    "encode_meta",
    "encode_record",
    "encode_snapshot",
    "encode_stream_entry",
    "is_intact",
    "next_chain",
    "record_position",
    "snapshot_link",
    "split_versioned_key",
    "state_hash",
    "stream_id",
    "versioned_key",
]

FORMAT_VERSION: Final = 3
"""The version of everything in this file. A log of a version that is not known is refused, never guessed at."""

READABLE_FORMATS: Final = (1, 2, FORMAT_VERSION)
"""In format 1 the stream index never lags (`index_buffer.py`); in 1 and 2 a record has no headers, and `meta` no
holdings and no secret. An activation makes such a log one of format 3 (`upgrade.py`); its records stay as they are."""

EVENTS: Final = b"events"
STREAMS: Final = b"streams"
COMMANDS: Final = b"commands"
SNAPSHOTS: Final = b"snapshots"
META: Final = b"meta"
DATABASES: Final = (EVENTS, STREAMS, COMMANDS, SNAPSHOTS, META)
"""The named LMDB databases of one partition's log."""

RECORD_BYTES_MAX: Final = 2 << 20
"""Largest stored record: a message may have 1 MiB, and what surrounds it is under 1 KiB."""

SNAPSHOT_BYTES_MAX: Final = 64 << 20
"""The size of one snapshot's state. A larger one is not saved: loading it would save no time."""

ID_BYTES: Final = 16
"""The size of a command id, correlation id and causation id."""

DIGEST_BYTES: Final = 20
"""Length of a command's digest. Those of formats 1 and 2, which have no key, are recognised by their length."""

OLD_DIGEST_BYTES: Final = 16

NAME_CHARS_MAX: Final = 64
"""The length of an event's name, like every name (`stream.TYPE_NAME_PATTERN`)."""

NAME_OR_ID_CHARS_MAX: Final = 1024
"""Longest decoded name or id: more than any may have (`stream.ID_BYTES_MAX`)."""

SCHEMA_BYTES_MAX: Final = 254
"""Longest schema fingerprint of a snapshot: its length is one byte, of which 255 means that a link comes first."""

HEADER_OUTPUTS: Final = 2
"""The key of a header: what the decision of an aggregate sends and arms, packed (`encoding/outputs.py`). In the last
record of its command."""

HEADER_HOPS: Final = 3
"""The key of a header: how many inputs and commands have led to this one, each at once (`envelope.HOPS_MAX`)."""

HEADER_STATE: Final = 1
"""The key of a header: the hash of the snapshot that was saved at the version of this record. The chain covers it."""

SECRET_BYTES: Final = 32
"""The size of a log's secret, with which the digests of its commands are keyed."""

CHAIN_START: Final = bytes(32)
"""What stands for the chain before the first record."""

VERSION_END: Final = b"\xff" * 8
"""Sorts after every version of a stream."""

_IDS_CHECKED_MAX: Final = 16_384
"""Streams whose check is remembered, as many as those whose keys are (`stream.py`): most commands go to streams lately
used."""

_new: Final = tuple.__new__
"""Makes a named tuple in half the time (0.2 us): the class's own `__new__` is a function in Python."""

_U64: Final = struct.Struct(">Q")
_CRC: Final = struct.Struct(">I")
_HEADER: Final = struct.Struct(">IQ")
_STREAM_ENTRY: Final = struct.Struct(">QI")
_COMMAND: Final = struct.Struct(">20sQQ")
_OLD_COMMAND: Final = struct.Struct(">16sQQ")

pack_position: Final = _U64.pack
_pack_crc: Final = _CRC.pack
_unpack_header: Final = _HEADER.unpack_from
_crc32: Final = zlib.crc32

CHAIN_AT: Final = 12
BODY_AT: Final = 44
"""A record is crc (4) | position (8) | chain (32) | body."""

BODY_FIELDS: Final = 11
"""The last one is the header map. In records of formats 1 and 2 it is missing."""

OLD_BODY_FIELDS: Final = 10

OLD_BODY: Final = 0x90 | OLD_BODY_FIELDS
"""The first byte of a body of formats 1 and 2."""

NO_HEADERS: Final[Mapping[int, Any]] = {}
"""The headers of a record without any, and of every record of formats 1 and 2."""

HEADER_BYTES_MAX: Final = 64 * 1024
"""The size of a record's header map, packed. The record's own bound leaves that much beside the largest message."""

HEADER_ITEMS_MAX: Final = 1024
"""Items of the header map, and of each map or list in it: bounds what a record decodes to."""


# --- events: position -> record ---------------------------------------------------------------------------------


class NextRecord(NamedTuple):
    """What surrounds an event in its record, besides the event itself."""

    position: int
    previous_chain: bytes
    stream: StreamId
    version: int
    recorded_at_us: int
    command_id: bytes
    correlation_id: bytes
    causation_id: bytes


def encode_record(
    at: NextRecord | tuple[int, bytes, StreamId, int, int, bytes, bytes, bytes],
    event: NewEvent,
    pack: Callable[[Any], bytes] = msgpack.packb,
    headers: Mapping[int, Any] = NO_HEADERS,
) -> bytes:
    """The stored bytes of one event. Raises `InvalidMessage` for an event that cannot be stored.

    `headers` are checked by `check_headers`. `at` has the fields of a `NextRecord`; a batch gives them as a plain tuple
    (0.3 us less), and as `pack` a prebound `Packer.pack` of msgpack's (0.4 instead of 0.6 us).
    """
    position, previous_chain, stream, version, recorded_at_us, command_id, correlation_id, causation_id = at
    name, schema_version, payload = event
    if not (type(payload) is bytes and type(name) is str and type(schema_version) is int):
        raise _unfit(event)
    try:
        body = pack(
            (
                stream[0],
                stream[1],
                version,
                recorded_at_us,
                name,
                schema_version,
                payload,
                command_id,
                correlation_id,
                causation_id,
                headers,
            )
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidMessage(f"event {name}", f"cannot be encoded: {error}") from error
    if len(body) > RECORD_BYTES_MAX - BODY_AT or not 0 < len(name) <= NAME_CHARS_MAX or schema_version < 1:
        raise _unfit(event)
    number = pack_position(position)
    checked = number + sha256(previous_chain + number + body).digest() + body
    return _pack_crc(_crc32(checked)) + checked


def _unfit(event: tuple[object, object, object]) -> InvalidMessage:
    """The error for an event whose parts are not what a record can hold."""
    name, schema_version, payload = event
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX:
        return InvalidMessage(f"event {str(name)[:80]!r}", f"its name must be text of 1 to {NAME_CHARS_MAX} characters")
    if type(schema_version) is not int or schema_version < 1:
        return InvalidMessage(f"event {name}", f"its schema version is {schema_version!r}, not an int from 1")
    if type(payload) is not bytes:
        return InvalidMessage(f"event {name}", f"its payload is {type(payload).__name__}, not bytes")
    return InvalidMessage(
        f"event {name}", f"its payload has {len(payload):,} bytes, over the {RECORD_BYTES_MAX:,} of a record"
    )


def decode_record(record: bytes, where: str = "record", *, checked: bool = False) -> StoredEvent:
    """The event in a stored record. Raises `Damaged` when its checksum or its shape is wrong.

    `where` is what the error calls the place that the record came from. `checked`: the record comes straight from a
    reader of this process, which has checked it; what came from another process is checked again.
    """
    if len(record) < BODY_AT:
        raise Damaged(where, f"it has {len(record)} bytes, fewer than the {BODY_AT} of a record's header")
    crc, position = _unpack_header(record)
    if not checked and _crc32(record[4:]) != crc:
        raise Damaged(where, "its checksum is wrong")
    try:
        fields = msgpack.unpackb(
            record[BODY_AT:],
            use_list=False,
            strict_map_key=False,
            max_str_len=HEADER_BYTES_MAX,
            max_bin_len=RECORD_BYTES_MAX,
            max_array_len=HEADER_ITEMS_MAX,
            max_map_len=HEADER_ITEMS_MAX,
            max_ext_len=0,
        )
        kind, ident, version, recorded_at_us, name, schema, payload, command, correlation, causation = fields[:10]
        headers = _headers_in(fields)
        if type(payload) is not bytes or max(len(kind), len(ident), len(name)) > NAME_OR_ID_CHARS_MAX:
            raise ValueError(f"its payload is {type(payload).__name__}, or a name in it is too long")
    except (ValueError, TypeError) as error:
        raise Damaged(where, f"its body is not that of an event: {error}") from error
    stream = _new(StreamId, (kind, ident))
    event = (position, stream, version, name, schema, payload, recorded_at_us, command, correlation, causation, headers)
    return _new(StoredEvent, event)


def _headers_in(fields: tuple[Any, ...]) -> Mapping[int, Any]:
    """The header map of a decoded body. Raises `ValueError` for a body of neither kind."""
    if len(fields) == OLD_BODY_FIELDS:
        return NO_HEADERS
    if len(fields) != BODY_FIELDS or type(fields[10]) is not dict:
        raise ValueError(f"it has {len(fields)} fields, or its last one is not a map of headers")
    return fields[10]


def check_headers(headers: Mapping[int, Any]) -> None:
    """Raises `InvalidMessage` for headers that no record may carry.

    The keys are integers from 0; the values are what msgpack holds without extension types. A reader keeps the keys
    that it does not know, and ignores them.
    """
    for key in headers:
        if type(key) is not int or not 0 <= key < 1 << 16:
            what = f"{key!r} is not a key of a header"
            raise InvalidMessage("headers", what, "headers have integers from 0 to 65,535")
    try:
        packed = msgpack.packb(headers)
        msgpack.unpackb(
            packed, strict_map_key=False, max_array_len=HEADER_ITEMS_MAX, max_map_len=HEADER_ITEMS_MAX, max_ext_len=0
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidMessage("headers", f"they cannot be stored: {error}") from error
    if len(packed) > HEADER_BYTES_MAX:
        raise InvalidMessage("headers", f"they have {len(packed):,} bytes, over {HEADER_BYTES_MAX:,}")


def record_position(record: bytes) -> int:
    """The position stored in a record. Cheap: checks nothing (`decode_record` does)."""
    return int.from_bytes(record[4:12], "big")


def chain_of(record: bytes) -> bytes:
    """The link that a record carries: the hash over all records up to and including it."""
    return record[CHAIN_AT:BODY_AT]


def next_chain(previous_chain: bytes, record: bytes) -> bytes:
    """The link that a record must carry if `previous_chain` is that of the record before it."""
    return sha256(previous_chain + record[4:12] + record[BODY_AT:]).digest()


def is_intact(record: bytes, key: bytes) -> bool:
    """Whether the record is intact and stands under the key of its position. `check_record` raises what is wrong."""
    return record[4:12] == key and len(record) >= BODY_AT and _pack_crc(_crc32(record[4:])) == record[:4]


def check_record(record: bytes, key: bytes, log: str) -> None:
    """Raises `Damaged` unless the record is intact and stands under the key of its position."""
    if len(record) < BODY_AT:
        raise Damaged(f"{log}, event {int.from_bytes(key, 'big')}", f"it has only {len(record)} bytes")
    if _crc32(record[4:]) != int.from_bytes(record[:4], "big"):
        raise Damaged(f"{log}, event {int.from_bytes(key, 'big')}", "its checksum is wrong")
    if record[4:12] != key:
        place = int.from_bytes(key, "big")
        raise Damaged(f"{log}, event {place}", f"the record stored here is that of position {record_position(record)}")


def body_start(stream: StreamId, version: int | None = None) -> tuple[bytes, bytes]:
    """How the body of the record of this stream (and version) may begin, in the present format and in the older ones:
    for `record.startswith(body_start(stream), BODY_AT)`, a cheap test of the stream of a record."""
    fields = stream if version is None else (*stream, version)
    rest = b"".join(map(msgpack.packb, fields))
    return b"%c%b" % (0x90 | BODY_FIELDS, rest), b"%c%b" % (0x90 | OLD_BODY_FIELDS, rest)


def is_version(record: bytes, start: tuple[bytes, bytes], version: int) -> bool:
    """Whether it is the record of this version in the stream whose `body_start` is `start`."""
    return record.startswith(start, BODY_AT) and record.startswith(msgpack.packb(version), BODY_AT + len(start[0]))


# --- keys of streams and versions ---------------------------------------------------------------------------------


def stream_id(type_name: str, ident: str) -> StreamId:
    """A checked `StreamId`. Raises `InvalidId` for an id that is empty, no text, or over 400 bytes of UTF-8."""
    return _checked_before(type_name, ident) if type(ident) is str else _checked(type_name, ident)


def _checked(type_name: str, ident: str) -> StreamId:
    if not TYPE_NAME_PATTERN.fullmatch(type_name):
        raise InvalidId("aggregate type", type_name, "is not an ASCII name of at most 64 characters")
    if not isinstance(ident, str):
        raise InvalidId("aggregate id", shown(ident), f"is {type(ident).__name__}, not str")
    if not ident:
        raise InvalidId("aggregate id", ident, "is empty")
    if len(ident) > ID_BYTES_MAX:
        raise InvalidId("aggregate id", ident, f"has {len(ident):,} characters, over {ID_BYTES_MAX} bytes of UTF-8")
    try:
        size_bytes = len(ident.encode())
    except UnicodeEncodeError as error:
        raise InvalidId("aggregate id", ascii(ident), "is not well-formed Unicode") from error
    if size_bytes > ID_BYTES_MAX:
        raise InvalidId("aggregate id", ident, f"has {size_bytes} bytes of UTF-8, over {ID_BYTES_MAX}")
    return StreamId(type_name, ident)


_checked_before: Final = lru_cache(_IDS_CHECKED_MAX)(_checked)
"""0.2 instead of 1.2 us. Only what passes is remembered."""


def checked_stream(stream: StreamId) -> bytes:
    """The key of a stream whose name is one. Raises `InvalidId` for one that no log may hold."""
    return stream_id(stream[0], stream[1]).key


def versioned_key(stream_key: bytes, version: int) -> bytes:
    """The key of a version of a stream, in `streams` and `snapshots`: sorts by stream, then by version."""
    return stream_key + pack_position(version)


def split_versioned_key(key: bytes) -> tuple[StreamId, int]:
    """The stream and the version in a key of `streams` or `snapshots`. Raises `ValueError` if it is no such key."""
    name_end = 1 + key[0] if key else 1
    ident_end = name_end + 2 + int.from_bytes(key[name_end : name_end + 2], "big")
    if len(key) != ident_end + 8:
        raise ValueError(f"a key of {len(key)} bytes is not a stream and a version")
    return StreamId(key[1:name_end].decode(), key[name_end + 2 : ident_end].decode()), int.from_bytes(key[-8:], "big")


def check_command_id(command_id: bytes) -> None:
    """Raises `InvalidId` for a command id that is not 16 bytes."""
    if len(command_id) != ID_BYTES:
        raise InvalidId("command id", command_id.hex(), f"has {len(command_id)} bytes, not {ID_BYTES}")


def check_ids(command_id: bytes, digest: bytes, correlation_id: bytes, causation_id: bytes) -> None:
    """Raises `InvalidId` for an id that is not 16 bytes (the last two may also be none) or what is not a digest."""
    check_command_id(command_id)
    if len(digest) not in (DIGEST_BYTES, OLD_DIGEST_BYTES):
        raise InvalidId("command digest", digest.hex(), f"has {len(digest)} bytes, not {DIGEST_BYTES}")
    if len(correlation_id) not in (0, ID_BYTES):
        raise InvalidId("correlation id", correlation_id.hex(), f"has {len(correlation_id)} bytes, not {ID_BYTES}")
    if len(causation_id) not in (0, ID_BYTES):
        raise InvalidId("causation id", causation_id.hex(), f"has {len(causation_id)} bytes, not {ID_BYTES}")


# --- values beside the events: crc (4) | content, the crc over database name | key | content ------------------------


_SEED_STREAMS: Final = _crc32(STREAMS)
_SEED_COMMANDS: Final = _crc32(COMMANDS)
_SEED_SNAPSHOTS: Final = _crc32(SNAPSHOTS)
_SEED_META: Final = _crc32(META)


class StreamEntry(NamedTuple):
    """One append to a stream: its key holds the last version, this where the events are."""

    position: int
    """Position of the append's last event; its events are at `position - events + 1 .. position`."""
    events: int


def encode_stream_entry(key: bytes, position: int, count: int) -> bytes:
    """The value in `streams` for an append of `count` events that ends at `position`."""
    content = _STREAM_ENTRY.pack(position, count)
    return _pack_crc(_crc32(content, _crc32(key, _SEED_STREAMS))) + content


def check_stream_entry(key: bytes, value: bytes, log: str) -> None:
    """Raises `Damaged` unless a value in `streams` is intact and stands under this key."""
    if not _intact(key, value, _SEED_STREAMS):
        raise Damaged(f"{log}, stream index of {_shown(key)}", "its checksum is wrong")


def decode_stream_entry(key: bytes, value: bytes, log: str) -> StreamEntry:
    """The append that a value in `streams` describes. Raises `Damaged`."""
    if len(value) != 4 + _STREAM_ENTRY.size or not _intact(key, value, _SEED_STREAMS):
        raise Damaged(f"{log}, stream index of {_shown(key)}", "its checksum is wrong")
    entry = StreamEntry(*_STREAM_ENTRY.unpack_from(value, 4))
    if not 1 <= entry.events <= min(entry.position, int.from_bytes(key[-8:], "big")):
        raise Damaged(f"{log}, stream index of {_shown(key)}", f"it counts {entry.events} events")
    return entry


def encode_command(command_id: bytes, digest: bytes, position: int, version: int) -> bytes:
    """The value in `commands` for a command whose last event is at `position`; version 0 is for a refusal."""
    layout = _COMMAND if len(digest) == DIGEST_BYTES else _OLD_COMMAND
    content = layout.pack(digest, position, version)
    return _pack_crc(_crc32(content, _crc32(command_id, _SEED_COMMANDS))) + content


def check_command(command_id: bytes, value: bytes, log: str) -> None:
    """Raises `Damaged` unless a value in `commands` is intact and stands under this id."""
    if not _intact(command_id, value, _SEED_COMMANDS):
        raise Damaged(f"{log}, command {command_id.hex()}", "its checksum is wrong")


def decode_command(command_id: bytes, value: bytes, log: str) -> CommandEntry:
    """The content of a value in `commands`. Raises `Damaged`."""
    layout = _COMMAND if len(value) == 4 + _COMMAND.size else _OLD_COMMAND
    if len(value) != 4 + layout.size or not _intact(command_id, value, _SEED_COMMANDS):
        raise Damaged(f"{log}, command {command_id.hex()}", "its checksum is wrong")
    return CommandEntry(*layout.unpack_from(value, 4))


def encode_snapshot(key: bytes, schema: bytes, state: bytes, link: bytes = b"") -> bytes:
    """The value in `snapshots`: crc | 255 (1) | link (32) | length of the fingerprint (1) | fingerprint | state.

    `link` is the chain's at the record of that version. Formats 1 and 2 had neither it nor the 255 before it.
    """
    content = b"%b%b%c%b%b" % (b"\xff" if link else b"", link, len(schema), schema, state)
    return _pack_crc(_crc32(content, _crc32(key, _SEED_SNAPSHOTS))) + content


def decode_snapshot(key: bytes, value: bytes, log: str) -> tuple[bytes, bytes]:
    """The schema's fingerprint and the state in a value of `snapshots`. Raises `Damaged`."""
    at = 4 if snapshot_link(value) == b"" else 5 + len(CHAIN_START)
    if len(value) < at + 1 or len(value) < at + 1 + value[at] or not _intact(key, value, _SEED_SNAPSHOTS):
        raise Damaged(f"{log}, snapshot of {_shown(key)}", "its checksum is wrong")
    return value[at + 1 : at + 1 + value[at]], value[at + 1 + value[at] :]


def snapshot_link(value: bytes) -> bytes:
    """The link in a value of `snapshots`; empty in one of format 1 or 2. Checks nothing."""
    return value[5 : 5 + len(CHAIN_START)] if value[4:5] == b"\xff" else b""


def state_hash(schema: bytes, state: bytes) -> bytes:
    """What the record of a snapshot's version carries as `HEADER_STATE`: 32 bytes over fingerprint and state."""
    return sha256(b"%c%b%b" % (len(schema), schema, state)).digest()


def belongs_to(value: bytes, schema: bytes, state: bytes, record: bytes) -> bool:
    """Whether the snapshot in this value is the one that was saved with the record of its version: it has the link that
    stands there, and the record has its hash. Then it is as trustworthy as the chain."""
    if snapshot_link(value) != chain_of(record):
        return False
    return decode_record(record, checked=True).headers.get(HEADER_STATE) == state_hash(schema, state)


def encode_meta(key: bytes, content: bytes) -> bytes:
    """The value in `meta`: crc | content."""
    return _pack_crc(_crc32(content, _crc32(key, _SEED_META))) + content


def decode_meta(key: bytes, value: bytes, log: str) -> bytes:
    """The content of a value in `meta`. Raises `Damaged`."""
    if len(value) < 4 or not _intact(key, value, _SEED_META):
        raise Damaged(f"{log}, meta {key.decode(errors='replace')!r}", "its checksum is wrong")
    return value[4:]


META_FORMAT: Final = b"format"
"""The format version, 8 bytes big-endian: the first thing read."""

META_INDEXED: Final = b"indexed"
"""Up to where the stream index holds the appends of each group of streams (`index_buffer.py`), 8 bytes big-endian
each."""

META_EPOCH: Final = b"epoch"
"""The epoch of the latest activation, 8 bytes big-endian."""

META_IDENTITY: Final = b"identity"
"""The identity of the log: store id, `/`, partition number, as UTF-8; empty for a log outside a store."""

META_SECRET: Final = b"secret"
"""The key of the digests of commands: random bytes, made with the log, and kept by its copies."""

META_SEAL: Final = b"seal"
"""Who goes on with this log elsewhere (`sealing.py`), as UTF-8. Missing as long as it is written here."""


def _intact(key: bytes, value: bytes, seed: int) -> bool:
    return _crc32(value[4:], _crc32(key, seed)) == int.from_bytes(value[:4], "big")


def _shown(key: bytes) -> str:
    """A key of `streams` or `snapshots` as people read it."""
    try:
        return "{} version {}".format(*split_versioned_key(key))
    except (ValueError, IndexError):
        return key.hex()
