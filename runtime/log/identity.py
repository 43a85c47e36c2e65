"""The identity of a log in its LMDB environment: written into a new one, checked at each opening.

Beside the write path.
"""

from __future__ import annotations

from collections.abc import Sequence
from secrets import token_bytes
from typing import TYPE_CHECKING

from ..errors import Damaged, StoreMismatch
from .environment import NOT_OURS, Environment
from .format import (
    DATABASES,
    FORMAT_VERSION,
    META,
    META_FORMAT,
    META_IDENTITY,
    META_INDEXED,
    META_SECRET,
    READABLE_FORMATS,
    SECRET_BYTES,
    decode_meta,
    encode_meta,
)
from .index_buffer import GROUPS, encode_indexed

if TYPE_CHECKING:
    import lmdb

__all__ = ["check_identity", "is_new", "put_format", "put_secret", "read_identity", "write_identity"]


def check_identity(environment: Environment, identity: str) -> None:
    """Check that this is our format and the log that it should be. Raises `StoreMismatch`, `Damaged`."""
    stored = environment.read(lambda txn: txn.get(META_FORMAT, db=environment.database(META)))
    where = str(environment.path)
    if stored is None:
        raise StoreMismatch(where, NOT_OURS)
    version = int.from_bytes(decode_meta(META_FORMAT, stored, environment.name), "big")
    if version not in READABLE_FORMATS:
        known = ", ".join(map(str, READABLE_FORMATS))
        raise StoreMismatch(where, f"its log has format {version}, this version of Rayfold reads formats {known}")
    found = read_identity(environment)
    if identity and found != identity:
        raise StoreMismatch(
            where,
            f"this is the log {found or 'of no store'!r}, not {identity!r}",
            "partition folders must not be moved between stores; put the right one back",
        )


def is_new(environment: Environment) -> bool:
    """Whether nothing was ever stored here: a log that was just made, or whose making was interrupted."""
    return not any(environment.entries(name) for name in DATABASES)


def write_identity(environment: Environment, identity: str) -> None:
    """Make an empty environment a log."""

    def put(transaction: lmdb.Transaction[bytes]) -> None:
        meta = environment.database(META)
        put_format(transaction, meta, [0] * GROUPS)
        transaction.put(META_IDENTITY, encode_meta(META_IDENTITY, identity.encode()), db=meta)
        put_secret(transaction, meta, token_bytes(SECRET_BYTES))

    environment.write(put)


def put_format(transaction: lmdb.Transaction[bytes], meta: lmdb._Database, indexed: Sequence[int]) -> None:
    """Record that the log has the present format, and up to where its stream index holds each group
    (`index_buffer.py`)."""
    transaction.put(META_FORMAT, encode_meta(META_FORMAT, FORMAT_VERSION.to_bytes(8, "big")), db=meta)
    transaction.put(META_INDEXED, encode_indexed(indexed), db=meta)


def put_secret(transaction: lmdb.Transaction[bytes], meta: lmdb._Database, secret: bytes) -> None:
    """Give the log this secret, in place of any that it has."""
    transaction.put(META_SECRET, encode_meta(META_SECRET, secret), db=meta)


def read_identity(environment: Environment) -> str:
    """The identity of this log: what `open_log` was given when it was new."""
    stored = environment.read(lambda txn: txn.get(META_IDENTITY, db=environment.database(META)))
    if stored is None:
        raise Damaged(f"{environment.name}, meta 'identity'", "it is missing")
    return decode_meta(META_IDENTITY, stored, environment.name).decode(errors="replace")
