"""Place: one position for each partition, a point in the whole store, and the ways in which a caller can give one.

Beside the read path: what `after=` of a query takes becomes positions here, before step [8], and a session's token is
made and read here.

Rules kept here: what cannot be a place in this store is refused before anything is sent; a token of another store, of
another version, with a letter changed or made up is refused by name, never read as a place that happens to fit.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Final, Protocol
from uuid import UUID

from ..arguments import several
from ..errors import InvalidMessage
from ..printable import shown
from ..receipt import Receipt
from ..store.readable_store import ReadableStore
from ..store.store import PARTITIONS_MAX

__all__ = ["After", "HasPositions", "check_store", "join_place", "place_asked", "place_of_token", "token_of_place"]

_TOKEN_VERSION: Final = 2
"""Tokens of version 1 were not signed."""
_TOKEN_HEAD: Final = struct.Struct(">B16s")
"""Version, and the store's id."""
_TOKEN_ENTRY: Final = struct.Struct(">HQ")
"""Partition and position; a partition at 0 is left out. Then the signature, and a CRC-32 of all of it."""
_POSITIONS: Final = 1 << 64
"""More than a log, or a token, has numbers for."""
_SIGNATURE_BYTES: Final = 12
_CHECKSUM: Final = struct.Struct(">I")
_TOKEN_BYTES_MAX: Final = _TOKEN_HEAD.size + PARTITIONS_MAX * _TOKEN_ENTRY.size + _SIGNATURE_BYTES + _CHECKSUM.size


class HasPositions(Protocol):
    """A session or an embedded replica: it knows how far it has come."""

    @property
    def positions(self) -> Mapping[int, int]:
        """Partition -> position."""
        ...


After = Receipt | Mapping[int, int] | Iterable[Receipt] | HasPositions
"""What `after=` takes: a receipt, several, positions by partition, a session, or an embedded replica."""


def place_asked(after: After | None, partitions: int, store_id: str = "") -> dict[int, int]:
    """The value of `after=`, as positions by partition. `store_id`: of this store; empty where any receipt will do.

    Raises `InvalidMessage` for what is not a place in this store.
    """
    if after is None:
        return {}
    if isinstance(after, Receipt):
        check_store("after", after, store_id)
        positions = {after.partition: after.position}
    elif isinstance(after, Mapping):
        positions = dict(after)
    elif isinstance(given := getattr(after, "positions", None), Mapping):
        positions = dict(given)
    else:
        positions = _of_receipts(after, store_id)
    for partition, position in positions.items():
        numbers = isinstance(position, int) and not isinstance(position, bool) and 0 <= position < _POSITIONS
        if isinstance(partition, bool) or partition not in range(partitions) or not numbers:
            what = f"{shown(partition)}: {shown(position)} is not a position in this store"
            raise InvalidMessage("after", what, f"its partitions are 0 to {partitions - 1}")
    return positions


def check_store(argument: str, receipt: Receipt, store_id: str) -> None:
    """Raise `InvalidMessage` for a receipt of another store: for example, of the one that this was restored from."""
    if receipt.store_id and store_id and receipt.store_id != store_id:
        what = f"the receipt is of the store {receipt.store_id}, and this is the store {store_id}"
        raise InvalidMessage(argument, what, "a restored store has positions of its own; read without it")


def _of_receipts(receipts: object, store_id: str) -> dict[int, int]:
    positions: dict[int, int] = {}
    for receipt in several("after", receipts) if isinstance(receipts, Iterable) else [receipts]:
        if not isinstance(receipt, Receipt):
            remedy = "give a receipt, several, positions by partition, or a session"
            raise InvalidMessage("after", f"is {type(receipt).__name__}", remedy)
        check_store("after", receipt, store_id)
        join_place(positions, {receipt.partition: receipt.position})
    return positions


def join_place(positions: dict[int, int], seen: Mapping[int, int]) -> None:
    """Let `positions` grow so far that they include `seen`; nothing in them ever goes back."""
    for partition, position in seen.items():
        if position > positions.get(partition, 0):
            positions[partition] = position


def token_of_place(positions: Mapping[int, int], store: ReadableStore, secret: bytes) -> str:
    """The place as text for URLs, cookies and headers: 44 characters, and 13 for each partition that has events.

    `secret`: of the store; who does not know it cannot make a token up.
    """
    head = _TOKEN_HEAD.pack(_TOKEN_VERSION, UUID(store.store_id).bytes)
    entries = (_TOKEN_ENTRY.pack(*entry) for entry in sorted(positions.items()) if entry[1])
    content = b"".join((head, *entries))
    content += _signature(content, secret)
    return _as_text(content + _CHECKSUM.pack(zlib.crc32(content)))


def _signature(content: bytes, secret: bytes) -> bytes:
    return hashlib.blake2b(content, key=secret, digest_size=_SIGNATURE_BYTES, person=b"rayfold token").digest()


def place_of_token(token: str, store: ReadableStore, secret: bytes) -> dict[int, int]:
    """The place that a token stands for. Raises `InvalidMessage` for one that is damaged, of another store, of an older
    release, or not signed with the `secret` of this store."""
    content = _checked(token)
    version, store_id = _TOKEN_HEAD.unpack_from(content)
    if version != _TOKEN_VERSION:
        raise _refused(f"is of version {version}, and this runtime reads version {_TOKEN_VERSION}")
    if store_id != UUID(store.store_id).bytes:
        raise _refused(f"is of the store {UUID(bytes=store_id)}, and this is the store {UUID(store.store_id)}")
    content, signature = content[:-_SIGNATURE_BYTES], content[-_SIGNATURE_BYTES:]
    if (len(content) - _TOKEN_HEAD.size) % _TOKEN_ENTRY.size:
        raise _refused("is not a text that `token()` has made")
    if not hmac.compare_digest(signature, _signature(content, secret)):
        raise _refused("is not signed by this store")
    return place_asked(dict(_TOKEN_ENTRY.iter_unpack(content[_TOKEN_HEAD.size :])), store.partitions)


def _checked(token: object) -> bytes:
    """The bytes of a token without their checksum, which is right."""
    if not isinstance(token, str) or not token.isascii() or len(token) > 2 * _TOKEN_BYTES_MAX:
        raise _refused("is not a text that `token()` has made")
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _refused("is not a text that `token()` has made") from None
    content, checksum = raw[: -_CHECKSUM.size], raw[-_CHECKSUM.size :]
    if _as_text(raw) != token:  # spare bits of its last letter
        raise _refused("is not a text that `token()` has made")
    if len(content) < _TOKEN_HEAD.size or checksum != _CHECKSUM.pack(zlib.crc32(content)):
        raise _refused("is damaged: its checksum is not that of its content")
    return content


def _as_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _refused(what: str) -> InvalidMessage:
    return InvalidMessage("the session token", what, "begin a session without it")
