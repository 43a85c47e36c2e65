"""ClientProtocol: what the client's end of a connection to a partition does, without a socket.

Between steps [2] and [3] of the write path. Around it: `SocketConnection` (`socket_client.py`), which moves the bytes.
Its counterpart: `ServerProtocol` (`../partition/socket_protocol.py`).

Bytes and attempts in, bytes and answers out, after the manner of h11: no socket, no event loop, no thread, no clock. So
the simulation drives this very code, with a network of its own.

Before the first attempt both ends greet each other (`../sockets/handshake.py`). Who may connect is decided by the file
system (`socket_server.py`), and each attempt names its client. Attempts leave in the order in which they are sent; an
answer names its attempt, and is matched by that name.

Rules kept here: a length is checked before anything of that length is kept; an answer to no attempt of this client ends
the connection; when the connection has ended, what became of every attempt on it is unknown, and each is named once.
"""

from __future__ import annotations

from ...runtime.encoding.frames import ANSWER, ANSWER_BYTES_MAX, REQUEST

__all__ = ["ClientProtocol"]


class ClientProtocol:
    """One connection, from the first attempt to its end."""

    def __init__(self, client: bytes) -> None:
        """`client`: its 16 bytes, which every attempt carries."""
        self.answered = False
        """Something came back: it is a partition that listens there."""
        self.refused = ""
        """Why the connection has to be ended: no partition of Rayfold's sends such an answer. Nothing more is read
        then."""
        self._client = client
        self._in_flight: set[int] = set()
        """Attempts; bounded by the router's `IN_FLIGHT_MAX`."""
        self._received = bytearray()
        """The beginning of an answer; bounded by `ANSWER_BYTES_MAX`, and what one read adds to it."""

    def send(self, attempt: int, predecessor: int, batch: bytes) -> bytes:
        """The frame of an attempt, which is in flight from now on."""
        self._in_flight.add(attempt)
        return REQUEST.pack(len(batch), self._client, attempt, predecessor) + batch

    def receive(self, data: bytes) -> list[tuple[int, bytes]]:
        """The answers that `data` completes, each with its attempt: none, if it is a part of one, or several."""
        received = self._received
        received += data
        answers: list[tuple[int, bytes]] = []
        at = 0
        while not self.refused and len(received) - at >= ANSWER.size:
            size_bytes, attempt = ANSWER.unpack_from(received, at)
            begin, end = at + ANSWER.size, at + ANSWER.size + size_bytes
            if size_bytes > ANSWER_BYTES_MAX:
                self.refused = f"an answer of {size_bytes} bytes, over {ANSWER_BYTES_MAX}"
            elif attempt not in self._in_flight:
                self.refused = f"an answer to attempt {attempt}, which is not in flight"
            elif len(received) < end:
                break
            else:
                self._in_flight.remove(attempt)
                answers.append((attempt, bytes(memoryview(received)[begin:end])))
                at = end
        if at:
            del received[:at]
            self.answered = True
        return answers

    def end(self) -> list[int]:
        """The connection has ended: the attempts whose result is unknown, in the order they were sent."""
        unknown = sorted(self._in_flight)
        self._in_flight.clear()
        return unknown
