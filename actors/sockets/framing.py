"""Framing: a stream of bytes as frames, each with the number of a call, a kind, and a content.

Beside all steps. A frame: the length of its content (4 bytes), the number of the call (8 bytes), its kind (1 byte), its
content. What kinds there are, and what they contain: `calls.py` for those between programs, `query_frames.py` for those
between a client and a projector, `broadcast_frames.py` for those from a partition.

Bytes in, frames out: no socket, no event loop, no thread, no clock.

Rule kept here: the length of a frame is checked before anything of that length is kept.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

__all__ = ["Frame", "FrameReader", "frame"]

_HEAD: Final = struct.Struct(">IQB")


_new: Final = tuple.__new__


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

    @property
    def within(self) -> bool:
        """Whether the beginning of a frame has come, and its end has not."""
        return bool(self._received)

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
                received.clear()
                return frames
            end = at + _HEAD.size + size_bytes
            if len(received) < end:
                break
            frames.append(_new(Frame, (number, kind, bytes(memoryview(received)[at + _HEAD.size : end]))))
            at = end
        if at:
            del received[:at]
        return frames
