"""Processes of their own: what is killed as a whole, traced, given a wrong clock, another environment or another Ray.

- `Child`: one Python process that runs one function, with arguments in JSON; what it prints is for its parent
- `ForkServer`: one that has everything imported, and forks a child for each job in 10 ms, where starting Python and
  importing the runtime takes half a second. It has a single thread, so forking is safe

Rules kept here: what starts a process ends it, and everything below it, also after Ctrl-C; no line is waited for
without a deadline; what a process has reported is there whatever happens to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final, Self

import rayfold

from .contract import Findings, Invariant, Violation

Line = dict[str, Any]
Job = Callable[..., Any]

ERRORS_BYTES_MAX: Final = 20_000
"""Of a child's standard error, the end."""

_END_TIMEOUT_S: Final = 20.0

_LIFE_S: Final = 180.0
"""Of a child that is to end by itself, and the longest silence of any other: Ray starts in 5 s, on a busy machine in
30."""

_FORKED_S: Final = 60.0
"""The longest silence of a forked child: one that takes longer hangs."""

_LOOK_S: Final = 0.05

PR_SET_PDEATHSIG: Final = 1
PR_SET_PTRACER: Final = 0x59616D61
PR_SET_PTRACER_ANY: Final = ctypes.c_ulong(-1)
"""Let strace attach, which is not an ancestor of the child. Where a kernel does not ask for that, nothing happens."""


class ChildEnded(Exception):
    """A process has ended before it has answered, or does not answer."""


class Child:
    """A Python process that runs one function. A context manager that leaves no process behind."""

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
        """`job`: the function, or `module:name`. `within`: the command that runs it, for example `ip netns exec NAME`.
        `listens`: whether it reads its standard input. `errors`: the file for its standard error, if that is to
        stay."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        place = str(Path(rayfold.__file__).parents[1])
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
        self.job = _name_of(job)
        self._read = b""
        """Of its standard output, what was read and is not a whole line yet."""
        # a pipe would be full at 64 KiB, and nothing reads it before the end
        self._errors: IO[bytes] = errors.open("w+b") if errors is not None else tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", __name__, self.job, json.dumps(arguments)],
            stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
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
        while b"\n" not in self._read:
            if not select.select([descriptor], [], [], max(0.0, end_s - time.monotonic()))[0]:
                raise TimeoutError(f"{self.job} (process {self.pid}) does not come to its end:\n{self.errors()}")
            more = os.read(descriptor, 1 << 20)
            if not more:
                return None
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line + b"\n"

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
        return f"{self.job} has ended by itself: {' / '.join(self.errors().strip().splitlines()[-5:])}"

    def wait(self, timeout_s: float = _LIFE_S) -> int:
        """Its exit status. Raises `TimeoutError` if it does not end, and ends it."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise TimeoutError(f"{self.job} (process {self.pid}) has not ended within {timeout_s:g} s") from None

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
                self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_TIMEOUT_S)
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _name_of(job: Job | str) -> str:
    return job if isinstance(job, str) else f"{job.__module__}:{job.__name__}"


def _function_of(name: str) -> Job:
    module, _, function = name.partition(":")
    found: Job = getattr(import_module(module), function)
    return found


# --- one that forks ---------------------------------------------------------------------------------------------------


class Report:
    """How a forked job talks to its scenario."""

    def send(self, **facts: Any) -> None:
        """One line, by one system call: it is reported whole or not at all."""
        line = json.dumps(facts).encode() + b"\n"
        assert len(line) <= select.PIPE_BUF
        os.write(1, line)

    def wait_at_barrier(self) -> None:
        """Report it, and wait until the scenario has whatever it watches with in place.

        By a call that nothing else here makes: whether a watcher still sees it is a matter of timing.
        """
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)
        self.send(at_barrier=True)
        os.readv(0, [bytearray(1)])


@dataclass(slots=True)
class Forked:
    """A child that runs a job, or has run it."""

    server: ForkServer
    pid: int
    status: int | None = None
    """As `subprocess` has it: the exit status, or minus the signal that ended it."""
    lines: list[Line] = field(default_factory=list)
    """What it has reported."""

    def pass_barrier(self) -> None:
        """Let it go on."""
        self.server.write_line("")

    def next_line(self) -> Line:
        """What it reports next, while it goes on."""
        known = len(self.lines)
        while len(self.lines) == known:
            self._advance()
        return self.lines[known]

    def wait(self) -> Self:
        """Until it has ended. What it reported is in `lines`, how it ended in `status`."""
        while self.status is None:
            self._advance()
        return self

    def _advance(self) -> None:
        line = self.server.next_line()
        if line.startswith("{"):
            self.lines.append(json.loads(line))
        else:
            self.status = os.waitstatus_to_exitcode(int(line))

    def check_status(self, findings: Findings, where: str, invariant: Invariant = "I10") -> None:
        """Note whether it came to its end."""
        told = f"{where}: the process ended with status {self.status}: {self.server.errors()[-500:]}"
        findings.check(invariant, self.status == 0, told)


class ForkServer(Child):
    """Forks a child for each job, one at a time, and prints its pid, what it reports, and how it has ended.

    A command that it is `within` must become it, not stay beside it.
    """

    def __init__(self, within: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        super().__init__(_serve, environment, within=within, listens=True)
        self._forked: Forked | None = None

    def start(self, job: Job, **arguments: Any) -> Forked:
        """Fork a child that runs `job`, a function that takes a `Report` and these."""
        self.write_line(json.dumps({"job": _name_of(job), "arguments": arguments}))
        self._forked = Forked(self, int(self.next_line()))
        return self._forked

    def run(self, job: Job, **arguments: Any) -> Forked:
        """Start a child and wait until it has ended."""
        return self.start(job, **arguments).wait()

    def next_line(self) -> str:
        """Of the server, or of its child."""
        try:
            line = self._line(time.monotonic() + _FORKED_S)
        except TimeoutError:
            self._kill_forked()
            raise
        if line is None:
            raise ChildEnded(self.why_ended())
        return line.decode()

    def _kill_forked(self) -> None:
        if self._forked is not None and self._forked.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._forked.pid, signal.SIGKILL)

    def __exit__(self, *raised: object) -> None:
        self._kill_forked()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # it then ends by itself, after the child that it waits for
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_FORKED_S)
        super().__exit__(*raised)


def _serve() -> None:
    """The server's side: fork for each order, wait, report the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the scenario ends this
    _die_with_parent()
    for line in sys.stdin.buffer:
        if not line.strip():  # it was to let a child go on that was dead by then
            continue
        order = json.loads(line)
        job = _function_of(order["job"])  # imported once, for all children to come
        pid = os.fork()
        if pid == 0:
            _live(job, order["arguments"])
        os.write(1, b"%d\n" % os.waitpid(pid, 0)[1])


def _die_with_parent() -> None:
    """Whatever becomes of the scenario, nothing of it stays: not even a child that is stopped."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _live(job: Job, arguments: dict[str, Any]) -> None:
    """All that a forked child does: first of all it reports its pid."""
    _die_with_parent()
    os.write(1, b"%d\n" % os.getpid())
    status = 1
    try:
        job(Report(), **arguments)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


# --- findings on their way --------------------------------------------------------------------------------------------


def print_findings(findings: Findings) -> None:
    """On the way from a child to its parent."""
    print("findings " + json.dumps(asdict(findings)), flush=True)


def findings_of_child(
    job: Job, environment: Mapping[str, str] | None = None, *, timeout_s: float = _LIFE_S, **arguments: Any
) -> Findings:
    """Run a child that ends by itself after `print_findings`. Raises `RuntimeError` if it did not get that far, and
    `TimeoutError` if it does not end."""
    with Child(job, environment, **arguments) as child:
        told = [line for line in child.lines(timeout_s) if line.startswith("findings ")]
        if child.wait() or not told:
            raise RuntimeError(f"{child.job} failed:\n{child.errors()}")
    parts = json.loads(told[-1].removeprefix("findings "))
    parts["violations"] = [Violation(*one) for one in parts["violations"]]
    return Findings(**parts)


_TAKE_OVER_S: Final = 3.0
"""For a few milliseconds of work: who has not done it by then waits for the writer that was stopped."""


def take_over(child: Child) -> str:
    """The second line of a child that reports when it begins with a transaction, and when it is done. Empty if it has
    to wait, and was killed: a writer that was stopped inside a transaction holds the lock of the log until it goes on
    or ends."""
    lines = child.lines()
    began = next(lines, "")
    watching = threading.Timer(_TAKE_OVER_S, child.signal)
    watching.start()
    done = next(lines, "")
    watching.cancel()
    status = child.wait()
    if not began or not done and status != -signal.SIGKILL:
        raise RuntimeError(f"{child.job} failed:\n{child.errors()}")
    return done


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
    _function_of(sys.argv[1])(**json.loads(sys.argv[2]))
