"""A program of its own that evaluates what it is sent: one Python expression a line, its value back as a line of JSON.

The process of the tests has a Ray already, and a process can be connected to one only; so what is to use another
cluster runs here. In its scope are the bank's classes, everything public of Rayfold, and `bank`, a `BlockingRuntime` on
the cluster (`console(address, path=...)`) or a connection by name (`console(address, name=...)`). `(name := value)`
keeps a value for later. An error comes back with its type and text, and is raised as `Told`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import rayfold
from rayfold.actors.api import connection
from rayfold.actors.settings import Settings
from tests import bank as bank_classes

ROOT: Final = Path(__file__).parents[2]


class Told(Exception):  # noqa: N818 - what an error was, in another process
    """An error of the program: the name of its type, and its text."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text


ANSWER_TIMEOUT_S: Final = 200.0
"""For one expression: longer than what a test waits for on a busy machine, and shorter than a test may take."""


class Console:
    """The tests' end of the pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, expression: str) -> Any:
        """The value of an expression over there. Raises `Told`. A program that does not answer is killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(expression)}\n")
        self.process.stdin.flush()
        too_long = threading.Timer(ANSWER_TIMEOUT_S, self.process.kill)
        too_long.start()
        try:
            line = self.process.stdout.readline()
        finally:
            too_long.cancel()
        assert line, f"the program has ended with {self.process.wait()}"
        kind, value = json.loads(line)
        if kind:
            raise Told(kind, value)
        return value


@contextlib.contextmanager
def console(
    address: str, *, path: Path | None = None, name: str = "", options: str = "", driver: bool = False
) -> Iterator[Console]:
    """A program with a runtime at `path` on the cluster at this address, or a connection to what has this name
    there. `driver`: that connection is a driver of Ray, as where no node of the machine serves programs."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    chosen = options or f"driver={driver}"
    command = [sys.executable, "-m", "tests.support.console", address, str(path or ""), name, chosen]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
    ) as process:
        told = Console(process)
        try:
            told("None")  # it is up
            yield told
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()  # else it is waited for without end
                raise


PAUSE_S: Final = 0.005
"""Between two deposits to one account: some hundred a second, which leave the core to what moves or comes back."""


class Load:
    """Deposits of one to several accounts, one thread for each, and how it went: `load.start([...])`, `load.stop()`."""

    def __init__(self, bank: Any) -> None:
        self._bank = bank
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.acknowledged: dict[str, int] = {}
        self.unknown: dict[str, int] = {}
        self.gaps_s: dict[str, float] = {}
        """The longest time between two acknowledgements."""
        self.errors: dict[str, list[str]] = {}

    def start(self, accounts: list[str], timeout_s: float = 10.0) -> None:
        """Until `stop`."""
        self._over.clear()
        for account in accounts:
            self.acknowledged.setdefault(account, 0)
            self.unknown.setdefault(account, 0)
            thread = threading.Thread(target=self._drive, args=(account, timeout_s), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> dict[str, int]:
        """How many were acknowledged, by account."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        return self.acknowledged

    def wait_for_more(self, accounts: list[str], timeout_s: float = 60.0) -> float:
        """Seconds until each of these accounts has had another deposit acknowledged."""
        began_s, before = time.monotonic(), dict(self.acknowledged)
        while any(self.acknowledged[account] == before[account] for account in accounts):
            assert time.monotonic() - began_s < timeout_s, "no more deposits are acknowledged"
            self._over.wait(0.01)
        return time.monotonic() - began_s

    def _drive(self, account: str, timeout_s: float) -> None:
        last_s = time.monotonic()
        while not self._over.is_set():
            try:
                self._bank.execute(bank_classes.Account, account, bank_classes.Deposit(amount=1), timeout_s=timeout_s)
            except rayfold.Unavailable as error:
                self.unknown[account] += "it was not sent" not in str(error)
                self.errors.setdefault(account, []).append(str(error))
                self._over.wait(0.05)
            else:
                now_s = time.monotonic()
                self.acknowledged[account] += 1
                self.gaps_s[account] = max(self.gaps_s.get(account, 0.0), now_s - last_s)
                last_s = now_s
                self._over.wait(PAUSE_S)


class LogFollower:
    """A subscription from here on, on a thread: `follower = Follower(bank)`."""

    def __init__(self, bank: Any) -> None:
        self.seen: list[tuple[int, int]] = []
        """Partition and position of each event, in the order they came."""
        self.errors: list[str] = []
        self._subscription = bank.subscribe(from_="end")
        threading.Thread(target=self._follow, daemon=True).start()

    def wait_for(self, partition: int, position: int, timeout_s: float = 60.0) -> None:
        """Return once that event has come."""
        deadline_s = time.monotonic() + timeout_s
        while (partition, position) not in self.seen:
            assert time.monotonic() < deadline_s, (self.seen, self.errors)
            threading.Event().wait(0.02)

    def _follow(self) -> None:
        try:
            for _, recorded in self._subscription:
                self.seen.append((recorded.partition, recorded.position))
        except Exception as error:
            self.errors.append(repr(error))


def of_partitions(running: Any, prefix: str = "a") -> list[str]:
    """An account of each partition of a running system, in order."""
    from rayfold.runtime.log.format import stream_id

    store = running._runtime._store
    partitions = store.partitions

    found: dict[int, str] = {}
    number = 0
    while len(found) < partitions:
        found.setdefault(store.partition_of(stream_id("Account", f"{prefix}{number}")), f"{prefix}{number}")
        number += 1
    return [found[partition] for partition in range(partitions)]


def main(address: str, path: str, name: str, options: str) -> None:
    """Until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints there
    scope: dict[str, Any] = {one: getattr(rayfold, one) for one in rayfold.__all__}
    scope |= {**vars(bank_classes), "of_partitions": of_partitions, "Follower": LogFollower, "Settings": Settings}
    chosen = eval(f"dict({options})", scope)
    running: Any
    if path:
        chosen.pop("driver", None)
        chosen = {"aggregates": [scope["Account"], scope["Vault"]], "projections": [scope["Balances"]], **chosen}
        running = rayfold.BlockingRuntime(path, cluster=address, **chosen)
    else:
        if chosen["driver"]:
            connection._folder_of_agents = lambda *_: None  # as without such a node
        running = rayfold.connect_blocking(name, address=address)
    opened, failure = False, None
    try:
        scope["bank"] = running.start()
        scope["load"] = Load(running)
        opened = True
    except Exception as error:
        failure = error
    try:
        for line in sys.stdin:
            try:
                if failure is not None:
                    raise failure
                answer = ["", _plain(eval(json.loads(line), scope))]
            except Exception as error:
                answer = [type(error).__name__, str(error)]
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        if opened:
            running.stop()


def _plain(value: Any) -> Any:
    """As JSON can have it: named tuples and dictionaries by their fields and keys, what JSON lacks as text."""
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


if __name__ == "__main__":
    main(*sys.argv[1:])
