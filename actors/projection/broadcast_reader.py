"""BroadcastReader: where a projector reads what partitions of its own machine broadcast over a socket.

Step [7] of the read path. Before it: a partition's `ProjectorLink` (`../partition/projector_links.py`), which the
`QueryServer` (`query_server.py`) has accepted and greeted. After it: `ReadModel.apply`, which sees no difference to a
call through Ray.

What the bytes mean is decided by `BroadcastServerProtocol` (`broadcast_protocol.py`); here they are read, and events
taken in. Nothing is sent back: a partition that is too fast finds the socket full, and leaves out what the log has.

Rules kept here: connections are bounded, each reads no more while it takes in what it has read; one that sends what is
no broadcast, or only half a frame, is cut off, and the log has the reason; where events cannot be taken in the
connection ends, and the partition continues through Ray.

Why a thread for each connection: it blocks in `recv`, so an idle one costs nothing, nothing is woken but by events, and
a log that has to be read for one partition holds up no other's bytes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Container, Sequence
from typing import Final

from ...runtime.printable import printable_log
from ..sockets.listening import CONNECTIONS_MAX, other_end
from .broadcast_protocol import BroadcastServerProtocol

__all__ = ["Apply", "BroadcastReader"]

log = printable_log(__name__)

_READ_BYTES: Final = 128 * 1024
"""At a time: some hundred events, which are taken in together."""

_STALLED_S: Final = 10.0
"""How long a frame may take to come: a thousand times what it takes. A partition that was stopped for longer connects
again."""

Apply = Callable[[int, int, Sequence[bytes], int], None]
"""See `ReadModel.apply`."""


class BroadcastReader:
    """The connections of partitions to one projector, and the threads that read them."""

    def __init__(self, name: str, partitions: Container[int], apply: Apply) -> None:
        """`name`: of the projector's socket, for the log; `partitions`: those of the store."""
        self._name, self._partitions, self._apply = name, partitions, apply
        self._connections: set[socket.socket] = set()
        self._closed = False

    def take(self, connected: socket.socket, rest: bytes) -> None:
        """Read this connection, whose greeting is done, to its end. `rest`: what came behind the greeting."""
        connected.setblocking(True)
        self._connections.add(connected)
        if self._closed or len(self._connections) > CONNECTIONS_MAX:
            self._end(connected)
            return
        try:
            threading.Thread(
                target=self._read, args=(connected, rest), name="rayfold-broadcast-reader", daemon=True
            ).start()
        except RuntimeError as error:  # there may be no more threads
            log.warning("%s ends a connection; its partition continues through Ray: %s", self._name, error)
            self._end(connected)

    def close(self) -> None:
        """End every connection. Closing twice is allowed."""
        self._closed = True
        for one in list(self._connections):
            with contextlib.suppress(OSError):  # which also wakes the thread that waits there
                one.shutdown(socket.SHUT_RDWR)

    def close_in_child(self) -> None:
        """See `closed_in_children`."""
        for one in list(self._connections):
            one.close()

    def _read(self, connected: socket.socket, data: bytes) -> None:
        """Take in what one partition sends, until it goes."""
        protocol, within, name = BroadcastServerProtocol(self._partitions), False, "a partition"
        try:
            name = f"process {other_end(connected)[0]}"
            while True:
                for committed in protocol.receive(data):
                    self._apply(*committed)
                if protocol.refused:
                    log.warning("%s cuts %s off: %s", self._name, name, protocol.refused)
                    return
                if protocol.within != within:
                    within = protocol.within
                    connected.settimeout(_STALLED_S if within else None)
                if not (data := connected.recv(_READ_BYTES)):
                    return
        except TimeoutError:
            log.warning("%s cuts %s off: it owes the rest of a frame for %g s", self._name, name, _STALLED_S)
        except OSError as error:
            log.debug("%s: %s has gone: %s", self._name, name, error)
        except BaseException:  # on this thread nothing else would see it
            if not self._closed:
                log.exception("%s: events could not be taken in; their partition continues through Ray", self._name)
        finally:
            self._end(connected)

    def _end(self, connected: socket.socket) -> None:
        self._connections.discard(connected)
        connected.close()
