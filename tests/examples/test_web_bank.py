"""The web service with two workers, under load, while the process that runs its system is killed and comes back."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayfold.runtime.store.store import open_store
from rayfold.runtime.store.store_lock import holder_of
from tests.support.driver import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

START_S = 400.0
VISITORS = 4


class Visitor:
    """A browser: it keeps one cookie, and takes a connection of its own for each request, so that workers change."""

    def __init__(self, port: int) -> None:
        self._port, self._cookie = port, ""

    def ask(self, method: str, path: str, body: dict[str, int] | None = None) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            headers = {"Content-Type": "application/json"} | ({"Cookie": self._cookie} if self._cookie else {})
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            self._cookie = (answer.getheader("Set-Cookie") or self._cookie).partition(";")[0]
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


def some_time(what: Callable[[], bool], limit_s: float = START_S) -> None:
    deadline_s, waiting = time.monotonic() + limit_s, threading.Event()
    while not what():
        assert time.monotonic() < deadline_s
        waiting.wait(0.1)


def is_healthy(port: int) -> bool:
    try:
        return Visitor(port).ask("GET", "/healthz")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def visit(port: int, account: str, deposited: list[int], workers: set[int], ending: threading.Event) -> None:
    """Pay in, and see it in the next request, until the end."""
    visitor = Visitor(port)
    while not ending.is_set():
        status, answer = visitor.ask("POST", f"/accounts/{account}/deposits", {"amount": 1})
        assert status in (200, 503), answer
        if status == 503:
            ending.wait(0.1)
            continue
        workers.add(answer["worker"])
        deposited.append(answer["version"])
        status, answer = visitor.ask("GET", f"/accounts/{account}")
        assert status in (200, 503), answer
        assert status == 503 or answer["balance"] >= len(deposited), "it did not see what it had written"


def test_two_workers_share_a_store_whose_system_is_killed_and_comes_back(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = tmp_path / "bank-data"
    command = [sys.executable, "-m", "uvicorn", "examples.web_bank:web", "--port", str(port), "--workers", "2"]
    environment = {**os.environ, "BANK_DATA": str(store)}
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    deposited: list[list[int]] = [[] for _ in range(VISITORS)]
    workers, ending, failures = set[int](), threading.Event(), list[BaseException]()

    def run(number: int) -> None:
        try:
            visit(port, f"account-{number}", deposited[number], workers, ending)
        except BaseException as error:
            failures.append(error)

    try:
        some_time(lambda: is_healthy(port))
        first = holder_of(store)
        assert first is not None
        visitors = [threading.Thread(target=run, args=(number,)) for number in range(VISITORS)]
        for one in visitors:
            one.start()
        some_time(lambda: min(map(len, deposited)) >= 10 and len(workers) == 2)
        os.kill(first.pid, signal.SIGKILL)
        some_time(lambda: not is_healthy(port))
        some_time(lambda: is_healthy(port))
        before = [len(one) for one in deposited]
        some_time(lambda: all(len(one) >= count + 10 for one, count in zip(deposited, before, strict=True)))
        ending.set()
        for one in visitors:
            one.join()
        assert not failures
        second = holder_of(store)
        assert second is not None
        assert second.pid != first.pid
        for number, versions in enumerate(deposited):
            status, answer = Visitor(port).ask("GET", f"/accounts/account-{number}")
            assert status == 200
            assert answer["balance"] >= len(versions) == len(set(versions))
    finally:
        ending.set()
        server.terminate()
        server.wait(60)
        log.close()
    some_time(lambda: holder_of(store) is None)
    assert open_store(store).partitions == 2
    assert "ends, since no program uses it" in (store / "lingering.log").read_text()
