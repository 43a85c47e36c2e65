"""FrameProtocol: a reader of frames that refuses contents of another form than its own.

Beside steps [7] and [8]. The base of the protocols of a projector: of what partitions broadcast to it
(`../projection/broadcast_protocol.py`), and of what clients ask it (`../projection/query_protocol.py`).
"""

from __future__ import annotations

from .framing import Frame, FrameReader

__all__ = ["FrameProtocol", "expect"]


class FrameProtocol:
    """What is read of one connection, and why it has to be ended, if it has."""

    def __init__(self, bytes_max: int) -> None:
        """`bytes_max`: of the content of a frame."""
        self._reader = FrameReader(bytes_max)
        self._wrong = ""

    @property
    def refused(self) -> str:
        """Why the connection has to be ended. Nothing more may be given to `receive` then."""
        return self._wrong or self._reader.refused

    @property
    def within(self) -> bool:
        """Whether the beginning of a frame has come, and its end has not."""
        return self._reader.within

    def _refuse(self, one: Frame, what: str, error: Exception) -> None:
        """A frame is not `what` it has to be: `error` came of reading it."""
        self._wrong = f"a frame of kind {one.kind} that is no {what}: {type(error).__name__}: {error}"[:300]


def expect(right: bool, what: str) -> None:
    """Raises `ValueError`, with what was expected, if it is not right."""
    if not right:
        raise ValueError(f"{what} expected")
