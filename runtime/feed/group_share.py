"""GroupShare: which partitions a member of a group reads, and which streams of them are its own.

Beside the read path. Before it: `subscription.py` opens a member. After it: `event_filter.py`.

The members of a group divide the store like a line: partition 0 is its piece from 0 to 1, partition 1 that from 1 to 2,
and a stream is at a point in the piece of its partition, by a hash of its own. Of `n` members each has an n-th of the
line. So all have equally much, whatever the numbers; up to as many members as partitions, most partitions are read by
one member alone, and no more than two read any; and all members together read the store once, and a piece of each
partition once more for each border in it. As Akka divides the slices of a projection among its instances.

Rule kept here: members are disjoint and together complete, by whole numbers: nothing is rounded twice.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Final, Literal, TypeAlias

from ..stream import StreamId

__all__ = ["Divided", "GroupShare", "partitions_of", "readers_of"]

Divided: TypeAlias = Literal["by stream", "by key"]
"""How a group divides the events: by key every member reads all partitions, since a key is anywhere."""

_WHOLE: Final = 1 << 64
"""The length of a partition's piece: a hash of 8 bytes is a point in it."""

_STREAMS_KNOWN_MAX: Final = 16_384
"""Streams whose point is remembered."""


class GroupShare:
    """What member `member` of `of` has of a store with so many partitions."""

    def __init__(self, member: int, of: int, divided: Divided, partitions: int) -> None:
        self._pieces: dict[int, tuple[int, int]] = dict.fromkeys(range(partitions), (0, _WHOLE))
        if of > 1 and divided == "by stream":
            begin, end = (number * partitions * _WHOLE // of for number in (member, member + 1))
            first, last = begin // _WHOLE, (end - 1) // _WHOLE
            self._pieces = {
                partition: (max(begin - partition * _WHOLE, 0), min(end - partition * _WHOLE, _WHOLE))
                for partition in range(first, last + 1)
            }

    @property
    def partitions(self) -> list[int]:
        """The partitions that it reads."""
        return list(self._pieces)

    def has(self, partition: int, stream: StreamId) -> bool:
        """Whether a stream of this partition is its own."""
        begin, end = self._pieces.get(partition, (0, 0))
        return end - begin == _WHOLE or begin <= _point(stream.key) < end


@lru_cache(_STREAMS_KNOWN_MAX)
def _point(stream_key: bytes) -> int:
    """The same in every process and version, and independent of what places the stream in its partition."""
    return int.from_bytes(blake2b(stream_key, digest_size=8, person=b"rayfold group").digest(), "big")


def partitions_of(member: int, of: int, divided: Divided, partitions: int) -> list[int]:
    """The partitions that a member reads."""
    return GroupShare(member, of, divided, partitions).partitions


def readers_of(partition: int, of: int, divided: Divided, partitions: int) -> list[int]:
    """The members that read a partition."""
    if of == 1 or divided == "by key":
        return list(range(of))
    first = partition * of // partitions
    around = range(max(first - 1, 0), min((partition + 1) * of // partitions + 2, of))
    return [member for member in around if partition in partitions_of(member, of, divided, partitions)]
