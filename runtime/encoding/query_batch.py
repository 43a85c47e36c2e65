"""Query batch: queries as they travel together, as one piece of bytes.

Beside step [8]: made by a client, and taken apart by a projector, whichever way it goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgpack

__all__ = ["PackedQuery", "join_queries", "split_queries"]


class PackedQuery(NamedTuple):
    """A query as it arrives, its payload not yet decoded."""

    name: str
    payload: bytes


def join_queries(queries: Sequence[PackedQuery]) -> bytes:
    """Packed queries as one batch of bytes: Ray would pickle each of a list of tuples by itself."""
    batch: bytes = msgpack.packb(queries)
    return batch


def split_queries(batch: bytes) -> list[tuple[str, bytes]]:
    """The names and payloads in a batch."""
    queries: list[tuple[str, bytes]] = msgpack.unpackb(batch, use_list=False)
    return queries
