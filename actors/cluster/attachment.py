"""Attachment: the node that this program's Ray is attached to, and the head of its cluster: whether they are there.

Beside all steps; for programs that are connected to a cluster (`system/remote.py`). A driver of Ray is attached to one
node of its machine. Once that node has ended, what Ray is given to send does not arrive dependably any more, not even
when a node has been started in its place: the program has to connect anew. The end of the *head* is another thing: what
runs goes on, but nothing is found by name, and a look-up by name waits in Ray for up to a minute.

A connection is held open to the socket of the node, and one to the port of the head. Nothing is sent; the kernel ends
them with the processes at the other end. Rule kept here: a node counts as ended on that evidence alone, never because
it did not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from typing import Final

from ...runtime.errors import Unavailable

__all__ = ["Attachment", "head_is_away"]

_CONNECT_TIMEOUT_S: Final = 5.0
_LOOK_S: Final = 0.5
"""Between two attempts to reach the head while it is away."""

_READ_BYTES: Final = 4096
"""Bytes of the other end's greeting, which are ignored."""

_open_here: Final[weakref.WeakSet[Attachment]] = weakref.WeakSet()
"""Those of this process: all to the same cluster, since a process can be connected to one only."""


def head_is_away() -> bool:
    """Whether the head of this process's cluster is known to be away. From any thread."""
    return any(attachment.head_away_since_s is not None for attachment in list(_open_here))


class Attachment:
    """Used on the event loop of its connection only."""

    def __init__(self, node_socket: str, head: str) -> None:
        """`node_socket`: the path of the node's socket. `head`: `HOST:PORT`."""
        self.lost = asyncio.Event()
        """Set once the node has ended."""
        self.head = head
        self.head_away_since_s: float | None = None
        """`time.time()` of when the head was found to be away; None while it is there."""
        self._node_socket = node_socket
        self._watching: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Return once both are watched. Raises `Unavailable` if the node has ended already."""
        try:
            opened = await asyncio.open_unix_connection(self._node_socket)
        except OSError as error:
            what = f"the node that this program is attached to has ended: {error.strerror or error}"
            raise Unavailable(f"the Ray cluster {self.head!r}", what) from None
        _open_here.add(self)
        self._watching = [asyncio.create_task(self._watch_node(*opened)), asyncio.create_task(self._watch_head())]

    def close(self) -> None:
        """Watch no more."""
        _open_here.discard(self)
        for task in self._watching:
            task.cancel()

    async def _watch_node(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _end_of(reader, writer)
        self.lost.set()

    async def _watch_head(self) -> None:
        host, _, port = self.head.rpartition(":")
        while True:
            try:
                connecting = asyncio.open_connection(host.strip("[]"), int(port))
                opened = await asyncio.wait_for(connecting, _CONNECT_TIMEOUT_S)
            except OSError:
                if self.head_away_since_s is None:
                    self.head_away_since_s = time.time()
                await asyncio.sleep(_LOOK_S)
            else:
                self.head_away_since_s = None
                began_s = time.monotonic()
                await _end_of(*opened)
                if time.monotonic() - began_s < _LOOK_S:  # it is there, and ends what does not answer
                    await asyncio.sleep(_LOOK_S)


async def _end_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Return when the other end has ended the connection."""
    try:
        with contextlib.suppress(OSError):
            while await reader.read(_READ_BYTES):
                pass
    finally:
        writer.close()
