"""Query frames: the kinds of frames between a client and a projector, how large they are, and what a projector answers.

Beside step [8]. `framing.py` has their form; their contents are in msgpack. From the client:

- `ASK`: needs (partition -> position), whether there is no other replica, whether each answer is to be pickled by
  itself, and a batch of queries
- `WAIT`: a batch of queries, and for each the seconds left until its deadline and its `after` (partition -> position).
  A query without a name only waits. More seconds than `LEFT_MAX_S` count as that

To the client, for each call:

- `ANSWERED`: the pickled answers to an `ASK`, the positions they were read at, and the incarnation of the process
- `SOME`: some answers to a `WAIT`, as index and pickled answer, the positions and the incarnation as above, and how
  many of its queries still wait; 0 ends the call
- `FAILED`: why the call was not answered, as text

and for none of them, while something waits:

- `REACHED`: the positions of the read model, and the incarnation of the process
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack

from ...runtime.batch_queue import BATCH_BYTES_MAX
from ...runtime.encoding.codec import MESSAGE_BYTES_MAX
from .framing import frame

__all__ = [
    "ANSWERED",
    "ANSWER_FRAME_BYTES_MAX",
    "ASK",
    "FAILED",
    "LEFT_MAX_S",
    "QUERIES_MAX",
    "QUERY_FRAME_BYTES_MAX",
    "REACHED",
    "SOME",
    "WAIT",
    "Answered",
    "AnsweredAfter",
    "pack_frame",
    "unpack_content",
]

ASK: Final = 1
WAIT: Final = 2
ANSWERED: Final = 3
SOME: Final = 4
FAILED: Final = 5
REACHED: Final = 6

QUERIES_MAX: Final = 1024
"""In one frame. Answered under one hold of the read model's lock: about 3 ms during which it takes in no event."""

LEFT_MAX_S: Final = 86_400.0
"""How long a query waits in a projector at most, whatever its caller allows: numbers without a limit, such as infinity,
have no place among deadlines."""

QUERY_FRAME_BYTES_MAX: Final = 2 * MESSAGE_BYTES_MAX + BATCH_BYTES_MAX
"""A batch that exceeds the batcher's limit is a single query of the largest size; the positions that a frame needs take
as much at most."""

ANSWER_FRAME_BYTES_MAX: Final = 1 << 30
"""Answers are the user's own values, and have no limit but memory; this one distinguishes garbage from them."""

_ITEMS_MAX: Final = 1 << 20
"""In one list or map of a frame: far more than a frame's bytes have room for in anything that is sent."""


class Answered(NamedTuple):
    """What a projector replies to a batch of queries, over a socket and through Ray."""

    answers: bytes
    """Pickled; empty if the replica has not come to what the call needs."""
    positions: dict[int, int]
    """Those that the answers were read at."""
    incarnation: bytes
    """Which process has answered."""


class AnsweredAfter(NamedTuple):
    """What it replies through Ray to queries of which each waits for a position."""

    answers: bytes
    """Those that can be given, by the index of the query; pickled."""
    positions: dict[int, int]
    incarnation: bytes
    ends: dict[int, int]
    """Where the logs end of which more was asked for than there is in this replica."""


def pack_frame(kind: int, call: int, content: Any) -> bytes:
    """A frame as it travels."""
    return frame(call, kind, msgpack.packb(content))


def unpack_content(packed: bytes) -> Any:
    """A content as it was packed, with lists as tuples. Raises many kinds of errors for what is none."""
    return msgpack.unpackb(
        packed,
        strict_map_key=False,
        use_list=False,
        max_array_len=_ITEMS_MAX,
        max_map_len=_ITEMS_MAX,
        max_ext_len=0,
    )
