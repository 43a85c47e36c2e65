"""Programs of their own: what has to be killed as a whole, or to have another environment or another Ray.

Rules kept here: a child is `MODULE:FUNCTION` of this folder with arguments in JSON; what it prints is for its parent;
whoever starts one ends it, and everything below it, also after Ctrl-C; nobody waits for one without a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import rayfold

from .contract import Findings, Violation

__all__ = ["Child", "findings_of_child", "print_findings", "processes_below"]

ERRORS_BYTES_MAX: Final = 20_000
"""Of a child's standard error, the end."""

_RAYS_AGENTS: Final = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own two, which end up to a minute after a raylet that was killed; nothing of a store is in them."""

_END_TIMEOUT_S: Final = 20.0

_LIFE_S: Final = 180.0
"""Of a child that is to end by itself, and the longest silence of any other: Ray starts in 5 s, on a busy machine in
30."""

_LOOK_S: Final = 0.05


class Child:
    """A Python process that runs one function of this folder."""

    def __init__(
        self,
        job: str,
        environment: Mapping[str, str] | None = None,
        *,
        within: Sequence[str] = (),
        told: bool = False,
        complaints: Path | None = None,
        **arguments: Any,
    ) -> None:
        """`within`: the command that runs it, `ip netns exec NAME` say. `told`: whether it listens to its standard
        input. `complaints`: the file for its standard error, if that is to stay."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        place = str(Path(rayfold.__file__).parents[1])
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
        self._job = job
        self._said = b""
        """Of its standard output, what was read and is no whole line yet."""
        self._complaints = complaints.open("w+b") if complaints is not None else _no_name()
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", f"{__package__}.child", job, json.dumps(arguments)],
            stdin=subprocess.PIPE if told else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env={**inherited, **(environment or {})},
        )

    @property
    def pid(self) -> int:
        """Of the process itself."""
        return self._process.pid

    def lines(self, timeout_s: float = _LIFE_S) -> Iterator[str]:
        """What it prints, until it ends. Raises `TimeoutError` if that takes longer."""
        end_s = time.monotonic() + timeout_s
        while (line := self._line(end_s)) is not None:
            yield line.decode()

    def _line(self, end_s: float) -> bytes | None:
        """What it prints next; None if it has ended, maybe in the middle of a line."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._said:
            if not select.select([descriptor], [], [], max(0.0, end_s - time.monotonic()))[0]:
                raise TimeoutError(f"{self._job} (process {self.pid}) does not come to its end:\n{self.errors()}")
            read = os.read(descriptor, 1 << 20)
            if not read:
                return None
            self._said += read
        line, _, self._said = self._said.partition(b"\n")
        return line + b"\n"

    def errors(self) -> str:
        """The end of what it has complained."""
        size = os.fstat(self._complaints.fileno()).st_size
        read = os.pread(self._complaints.fileno(), ERRORS_BYTES_MAX, max(0, size - ERRORS_BYTES_MAX))
        return read.decode(errors="replace")

    def wait(self, timeout_s: float = _LIFE_S) -> int:
        """Its exit status. Raises `TimeoutError` if it does not end, and ends it."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise TimeoutError(f"{self._job} (process {self.pid}) has not ended within {timeout_s:g} s") from None

    def kill(self) -> None:
        """SIGKILL, to it alone."""
        self._process.kill()

    def signal(self, number: signal.Signals) -> None:
        """Any other signal, to it alone."""
        self._process.send_signal(number)

    def processes(self) -> set[int]:
        """It, and every process below it now."""
        return processes_below(self.pid)

    def wait_until_gone(self, pids: set[int], timeout_s: float) -> dict[int, str]:
        """Those that still run after so long: process -> name."""
        self.wait(timeout_s)
        end_s = time.monotonic() + timeout_s
        while (left := _alive(pids)) and time.monotonic() < end_s:
            time.sleep(_LOOK_S)
        return left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
                self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_TIMEOUT_S)
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _no_name() -> IO[bytes]:
    """A file that nobody has to remove. What nobody reads before the end must not be a pipe: that is full at 64 KiB."""
    return tempfile.TemporaryFile()  # noqa: SIM115, it is closed with its child


def _alive(pids: set[int]) -> dict[int, str]:
    names = {pid: _name_if_alive(pid) for pid in pids}
    return {pid: name for pid, name in names.items() if name and not name.startswith(_RAYS_AGENTS)}


def _name_if_alive(pid: int) -> str:
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return ""
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().strip() or "?"
    except OSError:
        return ""


def processes_below(pid: int) -> set[int]:
    """A process and every one below it."""
    found: set[int] = set()
    fresh = {pid}
    while fresh:
        found |= fresh
        fresh = {child for parent in fresh for child in _children(parent)} - found
    return found


def _children(pid: int) -> set[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return {int(child) for task in tasks for child in (task / "children").read_text().split()}
    except OSError:
        return set()


def print_findings(findings: Findings) -> None:
    """On the way from a child to its parent."""
    parts = {
        "figures": findings.figures,
        "violations": findings.violations,
        "unlisted": findings.unlisted,
        "checks": findings.checks,
        "skipped": findings.skipped,
        "unreached": findings.unreached,
    }
    print("findings " + json.dumps(parts), flush=True)


def findings_of_child(
    job: str, environment: Mapping[str, str] | None = None, *, timeout_s: float = _LIFE_S, **arguments: Any
) -> Findings:
    """Run a child that ends by itself after `print_findings`. Raises `RuntimeError` if it did not get that far, and
    `TimeoutError` if it does not end."""
    with Child(job, environment, **arguments) as child:
        told = [line for line in child.lines(timeout_s) if line.startswith("findings ")]
        if child.wait() or not told:
            raise RuntimeError(f"{job} failed:\n{child.errors()}")
    parts = json.loads(told[-1].removeprefix("findings "))
    parts["violations"] = [Violation(*one) for one in parts["violations"]]
    return Findings(**parts)


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    getattr(import_module(f"{__package__}.{module}"), function)(**json.loads(sys.argv[2]))
