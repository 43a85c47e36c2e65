"""Broadcast frames: what a partition sends to a projector of its own machine, and how large it is.

Beside step [6]. `framing.py` has the form of a frame. There is one kind, from the partition to the projector, and
nothing comes back: how far the projector is, only its queries need to know. The content is in msgpack: the number of
the partition, the position of the first record, a head of the log, and the records, which are at adjoining positions.
The projector reads from the log what is missing up to the head. So without records the frame only reports the head.

A frame is made once, whatever the number of projectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgpack

from .framing import frame

__all__ = ["BROADCAST_BYTES_MAX", "BROADCAST_FRAME_BYTES_MAX", "COMMITTED", "committed_frame"]

COMMITTED: Final = 7
"""The kind. No frame between a client and a projector has it."""

BROADCAST_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of records that wait for one projector, and so of those in a frame. About a tenth of a second of full speed: a
projector further behind is better off reading the log."""

BROADCAST_FRAME_BYTES_MAX: Final = BROADCAST_BYTES_MAX + BROADCAST_BYTES_MAX // 8
"""A record takes 5 bytes more in a frame, and has over 50 by itself."""


def committed_frame(partition: int, first: int, records: Sequence[bytes], head: int) -> bytes:
    """A frame as it travels."""
    return frame(0, COMMITTED, msgpack.packb((partition, first, head, records)))
