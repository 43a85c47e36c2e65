"""BroadcastServerProtocol: what a projector's end of a connection to a partition does, without a socket.

Step [7]. Around it: `BroadcastReader` (`broadcast_reader.py`), which moves the bytes. Its counterpart:
`BroadcastClientProtocol` (`../partition/broadcast_protocol.py`).

Bytes in, committed records out: no socket, no thread, no clock. Frames that have come together, and whose records
adjoin, come out as one.

Rule kept here: whatever does not have the form of a broadcast is refused by name. Whether its records are intact, and
the next ones, the read model decides.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, Final, NamedTuple

from ..sockets.broadcast_frames import BROADCAST_FRAME_BYTES_MAX, COMMITTED
from ..sockets.frame_protocol import FrameProtocol, expect
from ..sockets.framing import Frame
from ..sockets.query_frames import unpack_content

__all__ = ["BroadcastServerProtocol", "Committed"]

_POSITIONS: Final = 1 << 63


class Committed(NamedTuple):
    """Records at adjoining positions, and a head of their log."""

    partition: int
    first: int
    records: Sequence[bytes]
    head: int


class BroadcastServerProtocol(FrameProtocol):
    """One connection, from the end of its greeting to its own."""

    def __init__(self, partitions: Container[int]) -> None:
        """`partitions`: those of the store."""
        super().__init__(BROADCAST_FRAME_BYTES_MAX)
        self._partitions = partitions

    def receive(self, data: bytes) -> list[Committed]:
        """What `data` completes."""
        came: list[Committed] = []
        for one in self._reader.receive(data):
            try:
                fresh = self._committed(one)
            except Exception as error:  # whatever a value of another form raises
                self._refuse(one, "broadcast", error)
                break
            if came and (joined := _joined(came[-1], fresh)) is not None:
                came[-1] = joined
            else:
                came.append(fresh)
        return came

    def _committed(self, one: Frame) -> Committed:
        expect(one.kind == COMMITTED, "a known kind")
        partition, first, head, records = unpack_content(one.content)
        expect(type(partition) is int and partition in self._partitions, "a partition of the store")
        expect(_is_position(first) and _is_position(head), "positions")
        expect(type(records) is tuple and all(type(record) is bytes for record in records), "records")
        return Committed(partition, first, records, head)


def _joined(before: Committed, fresh: Committed) -> Committed | None:
    """Both as one, if they adjoin."""
    if before.partition != fresh.partition or before.first + len(before.records) != fresh.first:
        return None
    return Committed(before.partition, before.first, (*before.records, *fresh.records), max(before.head, fresh.head))


def _is_position(value: Any) -> bool:
    return type(value) is int and 0 < value < _POSITIONS
