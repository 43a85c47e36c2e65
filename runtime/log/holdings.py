"""Holdings: which event names, schema versions and aggregate types a log holds, kept in its `meta`.

Step [5] of the write path. Before it: a batch is planned. After it: what is new of its kind is put by the transaction
that puts the events, so that the log never holds an event of a kind that it does not name.

Rules kept here: an entry is put once, and never changes; a shape that was declared (`Log.declare`) is stored as it is,
and otherwise the names of the fields are taken from the first payload; damaged records are passed over, since
`rayfold verify` reports them; streams of Rayfold's own (`rayfold.…`) are not listed.

Layout in `meta`: `event/NAME/VERSION` -> the packed shape, `aggregate/TYPE` -> nothing. Names have no slash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgpack

from ..errors import Damaged, InvalidMessage
from ..stream import is_reserved
from .contract import Holdings, NewEvent
from .format import BODY_AT, HEADER_ITEMS_MAX, decode_meta, encode_meta, is_intact

if TYPE_CHECKING:
    import lmdb

__all__ = [
    "Kinds",
    "as_holdings",
    "checked_shapes",
    "holdings_in",
    "kind_of",
    "kinds_of",
    "payload_shape",
    "put_holdings",
]

EVENT_PREFIX: Final = b"event/"
AGGREGATE_PREFIX: Final = b"aggregate/"

SHAPE_BYTES_MAX: Final = 1 << 20
"""Largest packed shape: a class of a thousand nested fields has under 100 KiB."""

Kinds = dict[tuple[str, int] | str, bytes]
"""What is held: a name and version of an event -> its shape; a type of an aggregate -> nothing."""


def checked_shapes(shapes: Mapping[tuple[str, int], bytes]) -> dict[tuple[str, int], bytes]:
    """A copy. Raises `InvalidMessage` for a shape that is too large."""
    for (name, version), shape in shapes.items():
        if len(shape) > SHAPE_BYTES_MAX:
            what = f"the shape of its version {version} has {len(shape):,} bytes, over {SHAPE_BYTES_MAX:,}"
            raise InvalidMessage(f"event {name}", what)
    return dict(shapes)


def payload_shape(*payloads: bytes) -> bytes:
    """The shape as these payloads show it: the names of their fields, without types; nothing where they do not show
    them."""
    names: dict[str, str] | None = None
    for payload in payloads:
        try:
            fields = msgpack.unpackb(payload, strict_map_key=False)
            if isinstance(fields, msgpack.ExtType):  # the form in which each value carries its type
                fields = msgpack.unpackb(fields.data, strict_map_key=False)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
            continue
        if isinstance(fields, dict):
            names = (names or {}) | {name: "" for name in fields if isinstance(name, str)}
    packed: bytes = b"" if names is None else msgpack.packb(names)
    return packed if len(packed) <= SHAPE_BYTES_MAX else b""


def kind_of(event: NewEvent, declared: Mapping[tuple[str, int], bytes]) -> bytes:
    """The shape under which the first event of its kind is entered."""
    shape = declared.get((event[0], event[1]))
    return payload_shape(event[2]) if shape is None else shape


def kinds_of(pairs: Iterable[tuple[bytes, bytes]]) -> Kinds:
    """The kinds of these records and keys. The shapes are the field names of the first and the last of each."""
    ends: dict[tuple[str, int], list[bytes]] = {}
    types: set[str] = set()
    for key, record in pairs:
        if not is_intact(record, key):
            continue
        fields = _fields(record)
        if fields is None or is_reserved(fields[0]):
            continue
        types.add(fields[0])
        if is_reserved(fields[4]):  # a step of a process
            continue
        ends.setdefault((fields[4], fields[5]), [fields[6]])[1:] = [fields[6]]
    shapes: Kinds = {kind: payload_shape(*payloads) for kind, payloads in ends.items()}
    return shapes | dict.fromkeys(types, b"")


def _fields(record: bytes) -> tuple[Any, ...] | None:
    try:
        fields = msgpack.unpackb(
            record[BODY_AT:],
            use_list=False,
            strict_map_key=False,
            max_array_len=HEADER_ITEMS_MAX,
            max_map_len=HEADER_ITEMS_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError):
        return None
    return fields if type(fields) is tuple and len(fields) >= 10 else None


def as_holdings(kinds: Kinds) -> Holdings:
    """The kinds by what they are."""
    events = {kind: shape for kind, shape in kinds.items() if isinstance(kind, tuple)}
    return Holdings(events, frozenset(kind for kind in kinds if isinstance(kind, str)))


def meta_pairs(kinds: Kinds) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of `meta` that stand for these kinds."""
    for kind, shape in kinds.items():
        key = (
            AGGREGATE_PREFIX + kind.encode()
            if isinstance(kind, str)
            else b"%b%b/%d"
            % (
                EVENT_PREFIX,
                kind[0].encode(),
                kind[1],
            )
        )
        yield key, encode_meta(key, shape)


def put_holdings(transaction: lmdb.Transaction[bytes], meta: lmdb._Database, kinds: Kinds) -> None:
    """Enter these kinds. What is entered already stays as it is."""
    for key, value in meta_pairs(kinds):
        transaction.put(key, value, db=meta, overwrite=False)


def holdings_in(transaction: lmdb.Transaction[bytes], meta: lmdb._Database, log: str) -> Kinds:
    """The kinds that are entered. Raises `Damaged`."""
    kinds: Kinds = {}
    cursor = transaction.cursor(meta)
    for prefix in (AGGREGATE_PREFIX, EVENT_PREFIX):
        for key, value in cursor.iternext() if cursor.set_range(prefix) else ():
            if not key.startswith(prefix):
                break
            content = decode_meta(key, value, log)
            name, _, version = key[len(prefix) :].decode(errors="replace").rpartition("/")
            if prefix == AGGREGATE_PREFIX:
                kinds[version] = b""
            elif version.isdecimal():
                kinds[name, int(version)] = content
            else:
                raise Damaged(f"{log}, meta {key.decode(errors='replace')!r}", "it names no version of an event")
    return kinds
