"""Calls: the frames in which one program calls another over a socket, after the handshake: numbered, answered in any
order.

Beside all steps. Around it: `../system/relay.py`, which answers, and `../client/relay_connection.py`, which asks.

A frame: the length of its content (4 bytes), the number of the call (8 bytes), its kind (1 byte), its content in
msgpack (`records.py`). A call has the kind `CALL`, and the content `[target, method, timeout in seconds, arguments]`.
The caller chooses its number, and has at most `CALLS_MAX` calls without an answer. An answer has the number of its
call, and one of the other kinds. A call whose timeout has passed is never answered, and its number is free.

Bytes in, frames out: no socket, no event loop, no thread, no clock.

Rule kept here: the length of a frame is checked before anything of that length is kept.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from ...runtime.encoding.frames import REQUEST_BYTES_MAX

__all__ = [
    "ACTOR_AWAY",
    "ACTOR_DIED",
    "ANSWER_BYTES_MAX",
    "CALL",
    "CALLS_MAX",
    "CALL_BYTES_MAX",
    "ERROR",
    "FAILED",
    "VALUE",
    "Frame",
    "FrameReader",
    "frame",
]

CALL: Final = 0
VALUE: Final = 1
ERROR: Final = 2
"""One of ours, as a value."""
ACTOR_DIED: Final = 3
"""The actor has ended for good; with a text."""
ACTOR_AWAY: Final = 4
"""The actor's process has ended, and is being started again; with a text."""
FAILED: Final = 5
"""Anything else; with a text."""

CALLS_MAX: Final = 4096
"""Calls of one program without an answer. A program has two batches on their way to each actor, and a few questions."""

CALL_BYTES_MAX: Final = REQUEST_BYTES_MAX + 65_536
"""A batch of the largest size, and the positions that 1,024 queries wait for."""

ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
"""The answers to 1,024 queries, of 256 KiB each. Larger ones are refused by name."""

_HEAD: Final = struct.Struct(">IQB")


class Frame(NamedTuple):
    """One call, or one answer."""

    number: int
    kind: int
    content: bytes


def frame(number: int, kind: int, content: bytes) -> bytes:
    """A frame as it travels."""
    return _HEAD.pack(len(content), number, kind) + content


class FrameReader:
    """What one end reads of the other's frames."""

    def __init__(self, bytes_max: int) -> None:
        self.refused = ""
        """Why the connection has to be ended. Nothing more may be given to `receive` then."""
        self._bytes_max = bytes_max
        self._received = bytearray()
        """The beginning of a frame: at most `bytes_max`, and what one read adds to it."""

    def receive(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes."""
        received = self._received
        received += data
        frames: list[Frame] = []
        at = 0
        while len(received) - at >= _HEAD.size:
            size_bytes, number, kind = _HEAD.unpack_from(received, at)
            if size_bytes > self._bytes_max:
                self.refused = f"a frame of {size_bytes} bytes, over {self._bytes_max}"
                break
            end = at + _HEAD.size + size_bytes
            if len(received) < end:
                break
            frames.append(Frame(number, kind, bytes(memoryview(received)[at + _HEAD.size : end])))
            at = end
        if at:
            del received[:at]
        return frames
