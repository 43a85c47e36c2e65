"""Streams: the names of histories, the numbers in them, and which partition a stream belongs to.

A stream is the history of one aggregate, named by its type and its id: `Account/alice`. It has *versions* 1, 2, 3, …;
version 0 means that it does not exist. The log of a partition has *positions* 1, 2, 3, … over all its streams. Both are
plain `int`s behind distinct types, so that a checker distinguishes them.

Rule kept here: ids from outside never become file paths and never exceed what an LMDB key can hold (`stream_id` in
`log/format.py` checks them, since the errors it raises name streams). Ids are compared as the exact bytes of their
UTF-8: case, Unicode normalisation, `/`, NUL and `..` all keep two ids apart.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from hashlib import blake2b
from secrets import token_hex
from typing import Final, NamedTuple, NewType

__all__ = [
    "ANY",
    "ID_BYTES_MAX",
    "NO_STREAM",
    "OLD_PLACEMENT",
    "REFUSALS",
    "RESERVED_PREFIX",
    "TYPE_NAME_PATTERN",
    "Position",
    "StreamId",
    "Version",
    "is_placement",
    "is_reserved",
    "new_placement",
    "partition_of",
]

Version = NewType("Version", int)
"""The number of an event in its stream, from 1; 0 is the version of a stream without events."""

Position = NewType("Position", int)
"""The number of an event in its partition's log, from 1, without gaps; 0 is the position before the first."""

ANY: Final = Version(-1)
"""As `expected_version`: append whatever the version of the stream is."""

NO_STREAM: Final = Version(0)
"""As `expected_version`: the stream must not exist yet."""

ID_BYTES_MAX: Final = 400
"""An LMDB key holds 511 bytes: 1 + 64 of type name, 2 + 400 of id and 8 of version make 475."""

TYPE_NAME_PATTERN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
"""What names of aggregate types, commands, events and queries look like: ASCII, 64 characters at most."""


RESERVED_PREFIX: Final = "rayfold."
"""What names of Rayfold's own aggregate types, events, projections and subscriptions begin with; nothing of an
application may bear one. A stream of such a type holds what Rayfold itself stores, and readers that do not know it pass
over its records."""


OLD_PLACEMENT: Final = "crc32"
"""The placement rule of stores that were made before there was another one."""

GROUPS_RULE: Final = "blake2b-groups:"
"""What the other one begins with; its key follows, in hexadecimal."""

PLACEMENT_KEY_BYTES: Final = 16

_CACHED_MAX: Final = 16_384
"""Streams whose check and key are remembered: some 6 MiB at the worst, and most commands go to streams lately used."""


class StreamId(NamedTuple):
    """The name of one aggregate's history, `Account/alice`. Aggregates and events have it; ids have at most 400 bytes
    of UTF-8.

    Example:
        bank.subscribe(streams=[StreamId("Account", "alice")])
    """

    type: str
    id: str

    def __str__(self) -> str:
        return f"{self.type}/{self.id}"

    @property
    def key(self) -> bytes:
        """The stream as the prefix of an LMDB key: both parts preceded by their length, so that no stream's
        key is a prefix of another's."""
        return _key_of(self)


REFUSALS: Final = StreamId(f"{RESERVED_PREFIX}Refusals", "all")
"""The stream, in each log, of the refusals that have used up their command ids (`refusals.py`)."""


def is_reserved(type_name: str) -> bool:
    """Whether a name is one of Rayfold's own: of an aggregate type, an event or a projection."""
    return type_name.startswith(RESERVED_PREFIX)


@lru_cache(_CACHED_MAX)
def _key_of(stream: StreamId) -> bytes:
    """Remembered (0.1 instead of 0.8 us), as one command needs the key three times on its way."""
    name, ident = stream[0].encode(), stream[1].encode()
    return b"%c%b%b%b" % (len(name), name, len(ident).to_bytes(2, "big"), ident)


def partition_of(stream: StreamId, partitions: int, placement: str = OLD_PLACEMENT) -> int:
    """The partition of a stream by the placement rule of its store, which never changes (see its manifest).

    Ask the store: `store.partition_of(stream)`.
    """
    if placement == OLD_PLACEMENT:
        return zlib.crc32(stream.key) % partitions
    return _placed(stream, partitions, placement)


def new_placement() -> str:
    """A rule for a new store: `blake2b-groups` with a random key.

    Streams are placed by a keyed hash, so that a client that chooses ids cannot find out which of them share a
    partition. Streams whose ids have the same `{group}` in them are placed in one partition, whatever their types: then
    what stands between the first `{` and the first `}` after it is hashed, if anything does, as in Redis Cluster.
    """
    return GROUPS_RULE + token_hex(PLACEMENT_KEY_BYTES)


def is_placement(placement: str) -> bool:
    """Whether a rule is one of those that are known here."""
    key = placement.removeprefix(GROUPS_RULE)
    return placement == OLD_PLACEMENT or (key != placement and re.fullmatch("[0-9a-f]{32}", key) is not None)


@lru_cache(_CACHED_MAX)
def _placed(stream: StreamId, partitions: int, placement: str) -> int:
    """Remembered (0.1 instead of 1.2 us), since most commands go to streams lately used."""
    group = _group_in(stream[1])
    placed_by = stream.key if not group else b"\0" + group.encode()
    key = bytes.fromhex(placement.removeprefix(GROUPS_RULE))
    return int.from_bytes(blake2b(placed_by, digest_size=8, key=key).digest(), "big") % partitions


def _group_in(ident: str) -> str:
    """What an id has between its first `{` and the first `}` after that; empty if there is no such place."""
    begin = ident.find("{")
    end = ident.find("}", begin + 1) if begin >= 0 else -1
    return ident[begin + 1 : end] if end > begin else ""
