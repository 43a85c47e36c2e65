"""Envelope: a command on its way. Its id, the aggregate it is for, and how it is packed for the wire.

Step [1] of the write path. Before it: the caller's `execute`. After it: the router (`actors/router.py`) picks the
partition. The client packs once; the bytes travel unopened in a batch until `unpack_batch` in the actor.

Rule kept here: a command id makes a command take effect at most once, so it is part of the command from the very
beginning, and a digest of the content tells a repeat from a different command under the same id.

UUIDv7 follows RFC 9562 (method 3: the sub-millisecond time fills `rand_a`), because ids that grow with time keep the
log's index of command ids near its right edge: random keys about halve the speed of the log.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

import msgpack

from .aggregate import Aggregate
from .codec import MESSAGE_BYTES_MAX, encode_message
from .errors import InvalidId, InvalidMessage
from .messages import Command
from .stream import ANY, StreamId, stream_id

__all__ = ["Envelope", "PackedCommand", "derived_id", "new_command_id", "pack", "unpack_batch"]

_ENVELOPE_BYTES_MAX: Final = MESSAGE_BYTES_MAX + 4096
"""A payload plus everything around it: ids of 400 and names of 64 bytes, five small fields."""

_VERSION_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=False)
class Envelope:
    """A command with its address, for `execute_all`. Everything after `command` is optional."""

    aggregate: type[Aggregate]
    id: str
    """Which aggregate of that type."""
    command: Command
    command_id: UUID | None = None
    """Takes effect at most once. A new UUIDv7 when none is given; see `derived_id` for one from your own keys."""
    expected_version: int = ANY
    """The version the stream must have: `ANY`, `NO_STREAM`, or a number from an earlier receipt."""
    correlation_id: UUID | None = None
    """Shared by all commands and events of one conversation."""
    causation_id: UUID | None = None
    """The command or event that led to this command."""


class PackedCommand(NamedTuple):
    """A command as it arrives in an actor: addressed, its payload not yet decoded."""

    command_id: bytes
    stream: StreamId
    name: str
    payload: bytes
    expected_version: int
    correlation_id: bytes
    causation_id: bytes

    @property
    def digest(self) -> bytes:
        """16 bytes over stream, name and payload: what makes two commands the same command.

        `expected_version` is left out: it is a condition on taking effect, not part of the effect.
        """
        name = self.name.encode()
        return hashlib.blake2b(b"%b%c%b%b" % (self.stream.key, len(name), name, self.payload), digest_size=16).digest()


def new_command_id() -> bytes:
    """The 16 bytes of a fresh UUIDv7: time first, so that ids sort as they were made."""
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = (rest_ns << 12) // 1_000_000
    random = int.from_bytes(os.urandom(8), "big") & 0x3FFF_FFFF_FFFF_FFFF
    return ((milliseconds << 80) | (0x7000 | fraction) << 64 | (1 << 63) | random).to_bytes(16, "big")


def derived_id(*parts: str | int | bytes | UUID) -> UUID:
    """A command id computed from your own keys: the same parts give the same id, in any process, for ever.

    Use it where a command may be sent again after a crash: `derived_id("payment", order_number)`. The result is a
    UUIDv8 (RFC 9562) over a BLAKE2b hash of the parts, each preceded by its type and length.
    """
    if not parts:
        raise InvalidId("derived id", "", "needs at least one part")
    hashed = hashlib.blake2b(digest_size=16, person=b"rayfold id")
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int | bytes | UUID):
            raise InvalidId("part of a derived id", repr(part), f"is {type(part).__name__}, not str, int, bytes or UUID")
        data = part if isinstance(part, bytes) else str(part).encode()
        hashed.update(b"%b:%d:%b" % (type(part).__name__.encode(), len(data), data))
    number = int.from_bytes(hashed.digest(), "big")
    number = number & ~(0xF << 76) | (8 << 76)
    number = number & ~(0x3 << 62) | (2 << 62)
    return UUID(int=number)


def pack(envelope: Envelope) -> tuple[PackedCommand, bytes]:
    """Check an envelope and pack it. Raises `InvalidId` or `InvalidMessage`; nothing has been sent then."""
    command = envelope.command
    if not isinstance(command, Command):
        raise InvalidMessage(type(command).__name__, "is not a Command", "declare it as class X(Command)")
    packed = PackedCommand(
        _id_bytes("command id", envelope.command_id) or new_command_id(),
        stream_id(envelope.aggregate.aggregate_type, envelope.id),
        command.message_name,
        encode_message(command),
        _checked_version(envelope.expected_version),
        _id_bytes("correlation id", envelope.correlation_id),
        _id_bytes("causation id", envelope.causation_id),
    )
    return packed, msgpack.packb(packed)


def unpack_batch(blob: bytes) -> Iterator[PackedCommand]:
    """The commands that were packed one by one and joined into `blob`, in order."""
    unpacker = msgpack.Unpacker(
        use_list=False,
        max_buffer_size=len(blob),
        max_bin_len=_ENVELOPE_BYTES_MAX,
        max_str_len=_ENVELOPE_BYTES_MAX,
        max_array_len=len(PackedCommand._fields),
        max_map_len=0,
    )
    unpacker.feed(blob)
    for command_id, (type_name, ident), name, payload, expected, correlation, causation in unpacker:
        yield PackedCommand(command_id, StreamId(type_name, ident), name, payload, expected, correlation, causation)


def join(packed: Iterable[bytes]) -> bytes:
    """Packed commands as one batch."""
    return b"".join(packed)


def _id_bytes(kind: str, value: UUID | None) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, UUID):
        raise InvalidId(kind, str(value), f"is {type(value).__name__}, not uuid.UUID; derived_id() makes one from a key")
    return value.bytes


def _checked_version(version: int) -> int:
    if isinstance(version, bool) or not isinstance(version, int) or not ANY <= version <= _VERSION_MAX:
        raise InvalidMessage("expected_version", f"{version!r} is not a version", "give ANY, NO_STREAM or a number from 1")
    return version
