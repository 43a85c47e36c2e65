"""Envelope: a command on its way. Its id, the aggregate it is for, and how it is packed for the wire.

Step [1] of the write path. Before it: the caller's `execute`. After it: the router (`actors/client/command_router.py`)
picks the partition. The client packs once; the bytes travel unopened in a batch until `unpack_batch` in the actor.

Rule kept here: a command id makes a command take effect at most once, so it is part of the command from the very
beginning, and a digest of the content (`content.py`) distinguishes a repeat from a different command under the same id.
The digest is keyed with the secret of the log: without it, the content of a command cannot be found by guessing.

UUIDv7 follows RFC 9562 (method 3: the sub-millisecond time fills `rand_a`), because ids that grow with time keep the
log's index of command ids near its right edge: random keys about halve the speed of the log.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

import msgpack

from ..arguments import not_a_message
from ..domain.aggregate import Aggregate
from ..domain.messages import Command
from ..errors import InvalidId, InvalidMessage
from ..log.format import stream_id
from ..own_random import OWN
from ..printable import shown
from ..stream import ANY, ID_BYTES_MAX, StreamId
from .codec import MESSAGE_BYTES_MAX
from .content import RAW_BYTES_MAX, condensed, pack_with_content
from .facts import shown_as_text

__all__ = ["FINAL", "HOPS_MAX", "Envelope", "PackedCommand", "derived_id", "new_command_id", "pack", "unpack_batch"]

_NAME_CHARS_MAX: Final = 64
"""Longest aggregate type, as in `TYPE_NAME_PATTERN`: longer ones have no key, so not even a digest."""

_VERSION_MAX: Final = (1 << 63) - 1


_pack: Final = msgpack.Packer(autoreset=True).pack
"""Safe to share between threads: it runs no Python while it packs. 0.5 us less than `packb`, which makes a new one."""

FINAL: Final = 2
"""As `PackedCommand.decisive`: a refusal, a failure and an outcome without events use the id up (`refusals.py`)."""

HOPS_MAX: Final = 10_000
"""Inputs of processes and commands that follow from one another without a pause of a second; what goes on after them is
parked, or not sent. Real chains have some ten; those without end take a few seconds, and 10 MB of log, to get there."""

DIGEST_BYTES: Final = 20
"""Length of a command's digest: never taken for one of formats 1 and 2, which have 16."""

_blake2b: Final = hashlib.blake2b

_new: Final = tuple.__new__
"""Makes a named tuple in half the time (0.2 us): the class's own `__new__` is a function in Python."""


@dataclass(frozen=True, slots=True, kw_only=False)
class Envelope:
    """A command with its address, for `execute_all`. Everything after `command` is optional.

    Example:
        commands = [Envelope(Account, f"account-{number}", Deposit(amount=1)) for number in range(1000)]
        for envelope, outcome in bank.execute_all(commands):
            if not isinstance(outcome, Receipt):
                print(envelope.id, outcome)
    """

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
    decisive: bool = False
    """A refusal uses the command id up: it is stored, and every repeat of the id gets the same `Rejected`."""


class PackedCommand(NamedTuple):
    """A command as it arrives in an actor: addressed, its payload not yet decoded."""

    command_id: bytes
    stream: StreamId
    name: str
    payload: bytes
    expected_version: int
    correlation_id: bytes
    causation_id: bytes
    content: bytes = b""
    """What the sender has set (`content.py`); empty where that is the payload."""
    decisive: int = False
    """True: a refusal is kept under the id. From `FINAL` on: whatever comes of it is, and what is over `FINAL` are
    the hops that have led to it (`HOPS_MAX`). An integer on the wire only then."""

    def digest(self, secret: bytes) -> bytes:
        """20 bytes over the secret of a log, stream, name and content: what makes two commands the same.

        The secret stands first and is not a key of BLAKE2b, which would take twice as long (1.5 instead of 0.7 us).
        Such a hash cannot be extended without the secret: BLAKE2b marks the last block that it takes in.
        `expected_version` is left out: it is a condition on taking effect, not part of the effect.
        """
        _, stream, name, payload, _, _, _, content, _ = self
        encoded = name.encode()
        content = content or (b"=" + payload if len(payload) <= RAW_BYTES_MAX else condensed(payload))
        what = b"%b%b%c%b%b" % (secret, stream.key, len(encoded), encoded, content)
        return _blake2b(what, digest_size=DIGEST_BYTES).digest()

    def old_digest(self, payload: bytes) -> bytes:
        """The digest of logs of formats 1 and 2, 16 bytes over stream, name and a payload, which has no key."""
        encoded = self.name.encode()
        what = b"%b%c%b%b" % (self.stream.key, len(encoded), encoded, payload)
        return _blake2b(what, digest_size=16).digest()


def new_command_id() -> bytes:
    """The 16 bytes of a fresh UUIDv7: time first, so that ids sort as they were made."""
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = (rest_ns << 12) // 1_000_000
    random_bits = OWN.getrandbits(62)
    return ((milliseconds << 80) | (0x7000 | fraction) << 64 | (1 << 63) | random_bits).to_bytes(16, "big")


def derived_id(*parts: str | int | bytes | UUID) -> UUID:
    """A command id computed from your own keys: the same parts give the same id, in any process, permanently.

    Use it where a command may be sent again after a crash. The result is a UUIDv8 (RFC 9562) over a BLAKE2b hash of
    the parts, each preceded by its type and length.

    Example:
        bank.execute(Account, "alice", Deposit(amount=5), command_id=derived_id("payment", 17))
    """
    if not parts:
        raise InvalidId("derived id", "", "needs at least one part")
    hashed = hashlib.blake2b(digest_size=16, person=b"rayfold id")
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int | bytes | UUID):
            raise InvalidId(
                "part of a derived id", shown(part), f"is {type(part).__name__}, not str, int, bytes or UUID"
            )
        kind, data = _part_bytes(part)
        hashed.update(b"%b:%d:%b" % (kind, len(data), data))
    number = int.from_bytes(hashed.digest(), "big")
    number = number & ~(0xF << 76) | (8 << 76)
    number = number & ~(0x3 << 62) | (2 << 62)
    return UUID(int=number)


def pack(envelope: Envelope) -> tuple[PackedCommand, bytes]:
    """Check an envelope and pack it. Raises `InvalidId` or `InvalidMessage`; nothing has been sent then."""
    aggregate, command = envelope.aggregate, envelope.command
    if not (isinstance(aggregate, type) and issubclass(aggregate, Aggregate)):
        raise InvalidMessage(type(aggregate).__name__, "is not an Aggregate class", "give the class itself")
    if not isinstance(command, Command):
        raise not_a_message(command, Command)
    command_id, correlation_id, causation_id = envelope.command_id, envelope.correlation_id, envelope.causation_id
    decisive = envelope.decisive
    if decisive is not True and decisive is not False:
        raise InvalidMessage("decisive", f"is {shown(decisive)}", "give True or False")
    payload, content = pack_with_content(command)
    fields = (
        new_command_id() if command_id is None else _id_bytes("command id", command_id),
        stream_id(aggregate.aggregate_type, envelope.id),
        command.message_name,
        payload,
        _checked_version(envelope.expected_version),
        b"" if correlation_id is None else _id_bytes("correlation id", correlation_id),
        b"" if causation_id is None else _id_bytes("causation id", causation_id),
        content,
        decisive is True,
    )
    packed = _new(PackedCommand, fields)
    return packed, _pack(packed)


def unpack_batch(blob: bytes) -> Iterator[PackedCommand]:
    """The commands that were packed one by one and joined into `blob`, in order.

    Raises `InvalidMessage` where the bytes stop being that. Only the frame is checked: names, ids and payloads are
    checked for each command by itself, later.
    """
    unpacker = msgpack.Unpacker(
        use_list=False,
        max_buffer_size=len(blob),
        max_bin_len=MESSAGE_BYTES_MAX,
        max_str_len=ID_BYTES_MAX,
        max_array_len=len(PackedCommand._fields),
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(blob)
    read_bytes = 0
    try:
        for command_id, (
            type_name,
            ident,
        ), name, payload, expected, correlation, causation, content, decisive in unpacker:
            in_bytes = (
                type(command_id) is type(payload) is type(correlation) is type(causation) is type(content) is bytes
            )
            in_text = type(type_name) is type(ident) is type(name) is str
            if not (in_bytes and in_text and type(expected) is int and _is_decisive(decisive)):
                raise TypeError("a field is of the wrong type")
            if len(type_name) > _NAME_CHARS_MAX:
                raise ValueError(f"an aggregate type has {len(type_name)} characters, over {_NAME_CHARS_MAX}")
            stream = _new(StreamId, (type_name, ident))
            fields = (command_id, stream, name, payload, expected, correlation, causation, content, decisive)
            yield _new(PackedCommand, fields)
            read_bytes = unpacker.tell()
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise _no_batch(read_bytes, str(error) or type(error).__name__) from error
    if read_bytes != len(blob):
        raise _no_batch(read_bytes, f"the last of {len(blob)} is missing something")


def _is_decisive(decisive: object) -> bool:
    return type(decisive) is bool or (type(decisive) is int and FINAL <= decisive <= FINAL + HOPS_MAX + 1)


def join(packed: Iterable[bytes]) -> bytes:
    """Packed commands as one batch."""
    return b"".join(packed)


def _no_batch(at_byte: int, what: str) -> InvalidMessage:
    return InvalidMessage("batch of commands", f"from byte {at_byte} on it holds no packed command: {what}")


def _part_bytes(part: str | int | bytes | UUID) -> tuple[bytes, bytes]:
    """Kind and content of a part. A subclass, such as an enum, counts as its plain value: its name may change."""
    try:
        if isinstance(part, bytes):
            return b"bytes", bytes(part)
        if isinstance(part, str):
            return b"str", str.encode(part)
        if isinstance(part, int):
            return b"int", b"%d" % int(part)
    except ValueError as error:
        what = "has over 4,300 digits" if isinstance(part, int) else "is not well-formed Unicode"
        raise InvalidId("part of a derived id", type(part).__name__, what) from error
    return b"UUID", str(part).encode()


def _id_bytes(kind: str, value: UUID) -> bytes:
    if not isinstance(value, UUID):
        raise InvalidId(
            kind, shown_as_text(value), f"is {type(value).__name__}, not uuid.UUID; derived_id() makes one from a key"
        )
    return value.bytes


def _checked_version(version: int) -> int:
    if isinstance(version, bool) or not isinstance(version, int) or not ANY <= version <= _VERSION_MAX:
        raise InvalidMessage(
            "expected_version", f"{shown(version)} is not a version", "give ANY, NO_STREAM or a number from 1"
        )
    return version
