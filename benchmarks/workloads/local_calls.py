"""Effects that call an HTTP server of this machine, and that server: what a call costs, and nothing else.

The server answers every request at once. The client keeps its connections, as a real one does, and no library is
between it and the socket.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from rayfold import Call, Done, Effects, NotDone, effect

from .steps import Asked

AT_ONCE: Final = 200

_ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


_idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
"""Connections without a request, of one runner."""


class Posting(Effects):
    """One request for each event."""

    @effect(timeout_s=30, at_once=AT_ONCE)
    async def post(self, event: Asked, call: Call) -> Done | NotDone:
        try:
            reader, writer = _idle.pop() if _idle else await asyncio.open_connection("127.0.0.1", event.number)
        except ConnectionRefusedError as error:
            return NotDone(str(error))
        body = call.key.encode()
        writer.write(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        answer = await reader.readexactly(len(_ANSWER))
        _idle.append((reader, writer))
        return Done(note=answer[-2:].decode())


async def _serve() -> None:
    """Answer requests, and print the port, then at each line of standard input how many keys there were."""
    keys: dict[bytes, int] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                key = await reader.readexactly(32)
                keys[key] = keys.get(key, 0) + 1
                writer.write(_ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(len(keys), sum(keys.values()), flush=True)


def serve() -> None:
    """What the server's process runs."""
    asyncio.run(_serve())
