"""Greeting: the handshake as a server does it that has a thread for each connection.

Beside all steps; what is sent is decided by `Handshake` (`handshake.py`). A peer that takes longer than `HANDSHAKE_S`
is cut off, however it spreads its bytes.
"""

from __future__ import annotations

import socket
import time

from .handshake import HANDSHAKE_S, Handshake

__all__ = ["greet_client"]


def greet_client(connection: socket.socket, handshake: Handshake, full: str = "") -> str:
    """Read the greeting of a client that has connected, and answer it. Returns why it was refused; empty if frames may
    follow: the connection blocks without a time limit then. `full`: why no client is taken in now. Raises `OSError`.
    """
    deadline_s = time.monotonic() + HANDSHAKE_S
    while wanted := handshake.wanted_bytes:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"no greeting came within {HANDSHAKE_S:g} s")
        connection.settimeout(left_s)
        data = connection.recv(wanted)
        if not data:
            raise ConnectionResetError("it ended before its greeting did")
        handshake.receive(data)
    if full and handshake.done:
        handshake.refuse(full)
    connection.settimeout(HANDSHAKE_S)
    connection.sendall(handshake.greeting())
    connection.settimeout(None)
    return handshake.refused
