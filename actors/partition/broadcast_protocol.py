"""BroadcastClientProtocol: what a partition's end of a connection to a projector does, without a socket.

Step [6] of the write path. Around it: a `ProjectorLink` (`projector_links.py`), which moves the bytes. Its counterpart:
`BroadcastServerProtocol` (`../projection/broadcast_protocol.py`).

Frames in, bytes out, as many as the socket takes at a time: no socket, no thread, no clock.

Rule kept here: what waits is bounded, in frames and in bytes. What does not fit is left out, and so is what follows,
until all that waits has left; then the projector is sent the head of the log, and reads the rest there.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ..sockets.broadcast_frames import BROADCAST_FRAME_BYTES_MAX, committed_frame

__all__ = ["WAITING_FRAMES_MAX", "BroadcastClientProtocol"]

WAITING_FRAMES_MAX: Final = 256
"""The same as of those that wait for a projector that is reached through Ray (`broadcast.py`)."""


class BroadcastClientProtocol:
    """One connection, from the end of its greeting to its own."""

    def __init__(
        self,
        partition: int,
        *,
        frames_max: int = WAITING_FRAMES_MAX,
        bytes_max: int = BROADCAST_FRAME_BYTES_MAX,
    ) -> None:
        self._partition = partition
        self._frames_max, self._bytes_max = frames_max, bytes_max
        self._waiting: deque[bytes] = deque()
        """Frames, of which the first may have left in part."""
        self._waiting_bytes = 0
        self._at = 0
        """How much of the first one has left."""
        self._left_out = 0
        """The head of the log at the last frame that was left out, if no head was sent since; else 0."""

    def put(self, frame: bytes, head: int) -> None:
        """Have a frame leave after all that waits. `head`: the position of its last record."""
        full = len(self._waiting) >= self._frames_max or self._waiting_bytes + len(frame) > self._bytes_max
        if self._left_out or full:
            self._left_out = head
        else:
            self._append(frame)

    def unsent(self) -> memoryview | None:
        """What to send next; some of it may be sent. None if nothing waits."""
        if not self._waiting:
            if not self._left_out:
                return None
            head, self._left_out = self._left_out, 0
            self._append(committed_frame(self._partition, head + 1, (), head))
        return memoryview(self._waiting[0])[self._at :]

    def sent(self, size_bytes: int) -> None:
        """So much of the last `unsent` has left."""
        self._at += size_bytes
        if self._at == len(self._waiting[0]):
            self._waiting_bytes -= len(self._waiting.popleft())
            self._at = 0

    def _append(self, frame: bytes) -> None:
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
