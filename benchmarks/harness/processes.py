"""Processes of their own, for one block: a program of any kind, or one Python function, which take and print lines.

- `RunningProgram`: any command; lines go in, and lines come out
- `Child`: one Python process that runs one function, with arguments in JSON; what it prints is for its parent

Rules kept here: what starts a process ends it, also after Ctrl-C: its input ends, it is asked to end, and it is killed
if it does not; no line is waited for without a deadline.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final, Self

import rayfold

Job = Callable[..., Any]

ERRORS_BYTES_MAX: Final = 20_000
"""Of a program's standard error, the end."""

_END_TIMEOUT_S: Final = 20.0

_LIFE_S: Final = 180.0
"""Of a program that is to end by itself, and the longest silence of any other: Ray starts in 5 s, on a busy machine in
30."""

_LOOK_S: Final = 0.05
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class ChildEnded(Exception):
    """A process has ended before it has answered, or does not answer."""


class RunningProgram:
    """A command that runs. A context manager that leaves no process behind."""

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        *,
        name: str = "",
        listens: bool = False,
        errors: Path | None = None,
        stop: signal.Signals = signal.SIGINT,
        **how: Any,
    ) -> None:
        """`environment`: this process's own if none is given. `name`: in errors. `listens`: whether it reads its
        standard input. `errors`: the file for its standard error, if that is to stay. `stop`: how it is asked to end,
        after its input has ended. `how`: for `subprocess.Popen`."""
        self.name = name or Path(command[0]).name
        self._stop = stop
        self._read = b""
        """Of its standard output, what was read and is not a whole line yet."""
        # a pipe would be full at 64 KiB, and nothing reads it before the end
        self._errors: IO[bytes] = errors.open("w+b") if errors is not None else tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            **how,
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
        while b"\n" not in self._read:
            if not select.select([descriptor], [], [], max(0.0, end_s - time.monotonic()))[0]:
                raise TimeoutError(f"{self.name} (process {self.pid}) does not come to its end:\n{self.errors()}")
            more = os.read(descriptor, 1 << 20)
            if not more:
                return None
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line + b"\n"

    def next_line(self, timeout_s: float = _LIFE_S) -> str:
        """What it prints next. Raises `TimeoutError`, and `ChildEnded` if it has ended instead."""
        line = self._line(time.monotonic() + timeout_s)
        if line is None:
            raise ChildEnded(self.why_ended())
        return line.decode()

    def write_line(self, line: str) -> None:
        """Write a line to its standard input. Raises `ChildEnded`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildEnded(self.why_ended()) from None

    def errors(self) -> str:
        """The end of its standard error."""
        size = os.fstat(self._errors.fileno()).st_size
        read = os.pread(self._errors.fileno(), ERRORS_BYTES_MAX, max(0, size - ERRORS_BYTES_MAX))
        return read.decode(errors="replace")

    def why_ended(self) -> str:
        """The end of the standard error of a process that has ended by itself."""
        self.wait()
        return f"{self.name} has ended by itself: {' / '.join(self.errors().strip().splitlines()[-5:])}"

    def wait(self, timeout_s: float = _LIFE_S) -> int:
        """Its exit status. Raises `TimeoutError` if it does not end, and ends it."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise TimeoutError(f"{self.name} (process {self.pid}) has not ended within {timeout_s:g} s") from None

    def signal(self, number: signal.Signals = signal.SIGKILL) -> None:
        """A signal to it alone."""
        self._process.send_signal(number)

    def wait_until_gone(self, pids: set[int], timeout_s: float) -> dict[int, str]:
        """Those that still run after so long: process -> title."""
        self.wait(timeout_s)
        end_s = time.monotonic() + timeout_s
        while (left := _left_of(pids)) and time.monotonic() < end_s:
            time.sleep(_LOOK_S)
        return left

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        if self.runs:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(self._stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_TIMEOUT_S)
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


class Child(RunningProgram):
    """A Python process that runs one function."""

    def __init__(
        self,
        job: Job | str,
        environment: Mapping[str, str] | None = None,
        *,
        within: Sequence[str] = (),
        listens: bool = False,
        errors: Path | None = None,
        **arguments: Any,
    ) -> None:
        """`job`: the function, or `module:name`. `environment`: beside this process's own, of which Ray's part is left
        out. `within`: the command that runs it, for example `ip netns exec NAME`. `listens`, `errors`: see
        `RunningProgram`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        place = str(Path(rayfold.__file__).parents[1])
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
        name = name_of(job)
        command = [*within, sys.executable, "-P", "-m", __name__, name, json.dumps(arguments)]
        super().__init__(command, inherited | dict(environment or {}), name=name, listens=listens, errors=errors)


def name_of(job: Job | str) -> str:
    """As a process is given it: `module:name`."""
    return job if isinstance(job, str) else f"{job.__module__}:{job.__name__}"


def function_of(name: str) -> Job:
    """What `name_of` names, imported."""
    module, _, function = name.partition(":")
    found: Job = getattr(import_module(module), function)
    return found


# --- what the kernel knows --------------------------------------------------------------------------------------------


def title_of(pid: int) -> str:
    """The title of a process, for example `ray::NodeAgent`; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace").strip()
    except OSError:
        return ""


def runs(pid: int) -> bool:
    """Whether a process is there, and not merely its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def rss_mib(pid: int) -> int:
    """The memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def cpu_s(pid: int) -> float:
    """User and system time of a process, all its threads together; 0 for one that has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return 0.0


def processes_below(pid: int) -> set[int]:
    """A process and every one below it."""
    found: set[int] = set()
    fresh = {pid}
    while fresh:
        found |= fresh
        fresh = {child for parent in fresh for child in _children(parent)} - found
    return found


def pids_titled(part: str) -> set[int]:
    """The workers of Ray below this process whose title has this in it: `ray::PartitionActor.execute`."""
    titles = {pid: title_of(pid) for pid in processes_below(os.getpid())}
    return {pid for pid, title in titles.items() if title.startswith("ray::") and part in title}


def _children(pid: int) -> set[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return {int(child) for task in tasks for child in (task / "children").read_text().split()}
    except OSError:
        return set()


def _left_of(pids: set[int]) -> dict[int, str]:
    return {pid: title_of(pid) or "?" for pid in pids if runs(pid)}


if __name__ == "__main__":
    function_of(sys.argv[1])(**json.loads(sys.argv[2]))
