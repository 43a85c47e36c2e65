"""A process that has everything imported, and forks a child for each job in 10 ms, where starting Python and importing
the runtime takes half a second. It has a single thread, so forking is safe.

Rules kept here: what a child has reported is there whatever happens to it, and nothing of a scenario outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from ..harness.processes import Child, Job, function_of, name_of
from .contract import Findings, Invariant

Line = dict[str, Any]

_FORKED_S: Final = 60.0
"""The longest silence of a forked child: one that takes longer hangs."""

PR_SET_PDEATHSIG: Final = 1
PR_SET_PTRACER: Final = 0x59616D61
PR_SET_PTRACER_ANY: Final = ctypes.c_ulong(-1)
"""Let strace attach, which is not an ancestor of the child. Where a kernel does not ask for that, nothing happens."""


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
        self.write_line(json.dumps({"job": name_of(job), "arguments": arguments}))
        self._forked = Forked(self, int(self.next_line()))
        return self._forked

    def run(self, job: Job, **arguments: Any) -> Forked:
        """Start a child and wait until it has ended."""
        return self.start(job, **arguments).wait()

    def next_line(self, timeout_s: float = _FORKED_S) -> str:
        """Of the server, or of its child."""
        try:
            return super().next_line(timeout_s)
        except TimeoutError:
            self._kill_forked()
            raise

    def _kill_forked(self) -> None:
        if self._forked is not None and self._forked.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._forked.pid, signal.SIGKILL)

    def __exit__(self, *raised: object) -> None:
        self._kill_forked()
        super().__exit__(*raised)


def _serve() -> None:
    """The server's side: fork for each order, wait, report the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the scenario ends this
    _die_with_parent()
    for line in sys.stdin.buffer:
        if not line.strip():  # it was to let a child go on that was dead by then
            continue
        order = json.loads(line)
        job = function_of(order["job"])  # imported once, for all children to come
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
        raise RuntimeError(f"{child.name} failed:\n{child.errors()}")
    return done
