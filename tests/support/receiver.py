"""An HTTP server of the test's own, which takes what sinks publish: how it answers is set by the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

__all__ = ["Receiver", "Request"]


class Request(NamedTuple):
    """One that came."""

    headers: Mapping[str, str]
    """With lower-case names."""
    body: bytes


Answer = tuple[int, Mapping[str, str]]
"""The status, and headers."""


class Receiver:
    """Listens on the loopback while its block runs."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        """Those that were confirmed."""
        self.refused = 0
        self.answer: Callable[[Request], Answer] = lambda _request: (200, {})
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}/events"

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Return once that holds, which is checked after each request."""
        with self._changed:
            assert self._changed.wait_for(what, 60), (len(self.requests), self.refused)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _took(self, request: Request) -> Answer:
        with self._changed:
            status, headers = self.answer(request)
            if 200 <= status < 300:
                self.requests.append(request)
            else:
                self.refused += 1
            self._changed.notify_all()
            return status, headers

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = Request({name.lower(): value for name, value in self.headers.items()}, body)
                status, headers = receiver._took(request)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                """Nothing is printed."""

        return Handler
