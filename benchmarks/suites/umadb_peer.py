"""UmaDB: an event store server in Rust with group commit, asked from Python, one event a request.

Rule kept here: it is asked in the way that is fastest from Python: threads that each wait for one request, in a process
of their own, over a few connections. A request appends one event with the same payload as ours and the account as its
tag, without any condition: so it checks neither versions nor repeats, which ours does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..harness.contract import InvariantsBroken
from ..harness.processes import Child, ChildEnded, RunningProgram

CLIENTS_MAX: Final = 4
"""Connections, which the threads share: its best of 1, 4, 16 and 64, at 64 requests in flight as at 1,024. Its
pipelined writer and its page cache made no difference that showed."""

START_TIMEOUT_S: Final = 20.0
STACK_BYTES: Final = 512 * 1024
"""Of a thread: a thousand of them, each with one request."""

SERVER: Final = "import sys; from umadb.umadb_server_cli import main; sys.argv[0] = 'umadb'; main()"


def installed() -> bool:
    """Whether client and server are there; both come in one package."""
    return importlib.util.find_spec("umadb") is not None


def measure(folder: Path, depth: int, seconds: float) -> float:
    """Events appended per second with `depth` requests in flight. Raises `InvariantsBroken` if any are missing."""
    with _server(folder) as url, Child(generate, url=url, depth=depth, seconds=seconds) as generator:
        try:
            told = json.loads(generator.next_line(START_TIMEOUT_S * 2 + seconds * 3))
        except ChildEnded as ended:
            raise InvariantsBroken([f"UmaDB's load generator failed: {ended}"]) from None
    stored, acknowledged = told["head"], told["acknowledged"]
    if stored != acknowledged:
        raise InvariantsBroken([f"UmaDB has {stored} events, {acknowledged} were acknowledged"])
    per_second: float = told["events_per_s"]
    return per_second


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    """UmaDB's server over a fresh file, answering."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", SERVER, "--listen", address, "--db-path", str(folder / "uma.db")]
    with RunningProgram(command, stop=signal.SIGTERM):
        yield f"http://{address}"


def _connected(url: str) -> Any:
    """A client, once the server answers."""
    import umadb

    end_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client = umadb.Client(url)
            client.head()
        except (umadb.TransportError, OSError, RuntimeError):
            if time.monotonic() > end_s:
                raise
            time.sleep(0.05)
        else:
            return client


class _Requests:
    """Threads that each send one request after the other."""

    def __init__(self, url: str, depth: int, seconds: float) -> None:
        self.first = _connected(url)
        clients = [self.first, *(_connected(url) for _ in range(min(depth, CLIENTS_MAX) - 1))]
        self.begins_s = time.perf_counter() + seconds * 0.4
        self.ends_s = self.begins_s + seconds
        self.counted, self.acknowledged = [0] * depth, [0] * depth
        self.threads = [
            threading.Thread(target=self._run, args=(number, clients[number % len(clients)])) for number in range(depth)
        ]

    def _run(self, number: int, client: Any) -> None:
        import umadb

        from rayfold.runtime.encoding.codec import encode_message

        from ..workloads.bank import Deposited

        payload, tags = encode_message(Deposited(amount=1 + number % 1000)), [f"account-{number:06d}"]
        while (now_s := time.perf_counter()) < self.ends_s:
            client.append([umadb.Event("Deposited", payload, tags)])
            self.acknowledged[number] += 1
            self.counted[number] += now_s >= self.begins_s


def generate(url: str, depth: int, seconds: float) -> None:
    """What the load generator's process runs."""
    threading.stack_size(STACK_BYTES)
    requests = _Requests(url, depth, seconds)
    for thread in requests.threads:
        thread.start()
    for thread in requests.threads:
        thread.join()
    told = {
        "events_per_s": sum(requests.counted) / seconds,
        "acknowledged": sum(requests.acknowledged),
        "head": requests.first.head() or 0,
    }
    print(json.dumps(told))
