"""The processes that storage scenarios kill, trace and lie to: forked by a nursery that has everything imported.

A scenario needs hundreds of processes, and one takes half a second to start Python and import the runtime. So one
process, the nursery, is started and forks a child for each job: 10 ms. It has a single thread, so forking is safe.

`python -m rayfold.benchmarks.torture.storage_child ACKS_FD GATE_FD` reads jobs from its standard input, one line of
JSON each, and for each prints the pid of the child and then how it ended. A child reports through a pipe (`ACKS_FD`),
whose content survives whatever happens to the child, and waits at the gate (`GATE_FD`) until whoever watches is ready.

Rule kept here: the child runs what a partition's actor runs, `WriteLoop` over `LmdbLog`, and acknowledges after it.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from types import TracebackType
from typing import IO, Any, Final, Self

__all__ = ["Child", "Nursery", "Report"]

WAIT_S: Final = 60.0
"""For a child to be born, to end, or to report something: one that takes longer hangs."""

PR_SET_PDEATHSIG: Final = 1
PR_SET_PTRACER: Final = 0x59616D61
PR_SET_PTRACER_ANY: Final = ctypes.c_ulong(-1)
"""Let strace attach, which is no ancestor of the child. Where a kernel does not ask for that, nothing happens."""

Line = dict[str, Any]
Job = Callable[..., None]


class Report:
    """How a job talks to its scenario. A child has one."""

    def __init__(self, acks: int, gate: int) -> None:
        self._acks, self._gate = acks, gate

    def say(self, **facts: Any) -> None:
        """One line, by one system call: it is reported whole or not at all."""
        line = json.dumps(facts).encode() + b"\n"
        assert len(line) <= select.PIPE_BUF
        os.write(self._acks, line)

    def wait_at_gate(self) -> None:
        """Say so, and wait until the scenario has whatever it watches with in place.

        By a call that nothing else here makes: whether a watcher still sees it is a matter of timing.
        """
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)
        self.say(at_gate=True)
        os.readv(self._gate, [bytearray(1)])


@dataclass(slots=True)
class Child:
    """A child that runs a job, or has run it."""

    nursery: Nursery
    pid: int
    status: int | None = None
    """As `subprocess` has it: the exit status, or minus the signal that ended it."""
    lines: list[Line] = field(default_factory=list)

    def open_socket_server(self) -> None:
        """Let it go on."""
        os.write(self.nursery.gate, b"g")

    def hear(self) -> Line:
        """The next line that it reports, while it goes on."""
        return self.nursery.hear(self)

    def wait(self) -> Child:
        """Until it has ended. What it reported is in `lines`, how it ended in `status`."""
        return self.nursery.wait(self)


class Nursery:
    """The parent's side. One child at a time. A context manager that leaves no process behind.

    `under` is a command that the nursery is run by, such as `OWN_MOUNTS`; it must become it, not stay beside it.
    """

    def __init__(self, under: Sequence[str] = ()) -> None:
        self._under = under

    def __enter__(self) -> Self:
        acks_read, acks_write = os.pipe()
        gate_read, gate_write = os.pipe()
        os.set_blocking(acks_read, False)
        self._acks, self.gate = acks_read, gate_write
        self._process = subprocess.Popen(
            [*self._under, sys.executable, "-m", __name__, str(acks_write), str(gate_read)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(acks_write, gate_read),
        )
        os.close(acks_write)
        self._gate_read = gate_read
        self._left = b""
        self._child: Child | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._child is not None and self._child.status is None:
            with suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGKILL)
        self._process.stdin.close()  # the nursery then ends by itself, after the child that it waits for
        self._process.stdout.close()
        os.close(self.gate)
        os.close(self._gate_read)
        try:
            self._process.wait(WAIT_S)
        finally:
            self._process.kill()
            os.close(self._acks)

    def start(self, job: str, **arguments: Any) -> Child:
        """Fork a child that runs `job`, a function `module:name` of this folder that takes a `Report` and these."""
        line = json.dumps({"job": job, "arguments": arguments})
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        self._child = Child(self, int(self._answer()))
        return self._child

    def run(self, job: str, **arguments: Any) -> Child:
        """Start a child and wait until it has ended."""
        return self.start(job, **arguments).wait()

    def wait(self, child: Child) -> Child:
        """See `Child.wait`."""
        if child.status is None:
            child.status = os.waitstatus_to_exitcode(int(self._answer(child)))
            self._drain(child)
            if select.select([self._gate_read], [], [], 0)[0]:
                os.read(self._gate_read, 1)  # it died at the gate; the next child must not slip through
        return child

    def hear(self, child: Child) -> Line:
        """See `Child.hear`."""
        known, ends_at = len(child.lines), time.monotonic() + WAIT_S
        while len(child.lines) == known:
            if not select.select([self._acks], [], [], max(0.0, ends_at - time.monotonic()))[0]:
                raise TimeoutError(f"a child of the nursery has said nothing for {WAIT_S:.0f} s")
            self._drain(child)
        return child.lines[known]

    def _answer(self, child: Child | None = None) -> bytes:
        """The next line of the nursery; what the child reports is taken in meanwhile."""
        assert self._process.stdout is not None
        ends_at = time.monotonic() + WAIT_S
        line = b""
        while not line.endswith(b"\n"):
            sources = [self._process.stdout.fileno(), self._acks]
            ready, _, _ = select.select(sources, [], [], max(0.0, ends_at - time.monotonic()))
            if not ready:
                if child is not None:
                    os.kill(child.pid, signal.SIGKILL)
                raise TimeoutError(f"a child of the nursery has neither ended nor said anything for {WAIT_S:.0f} s")
            if self._acks in ready and child is not None:
                self._drain(child)
                ends_at = time.monotonic() + WAIT_S  # it goes on, however slowly
            if sources[0] in ready:
                more = os.read(sources[0], 1)
                if not more:
                    raise RuntimeError(f"the nursery has ended with status {self._process.wait(WAIT_S)}")
                line += more
        return line

    def _drain(self, child: Child) -> None:
        """Take in what the child has reported so far."""
        while True:
            try:
                more = os.read(self._acks, 65_536)
            except BlockingIOError:
                break
            self._left += more
            if not more:
                break
        *whole, self._left = self._left.split(b"\n")
        child.lines += [json.loads(line) for line in whole]


def _serve(acks: int, gate: int, orders: IO[bytes]) -> None:
    """The nursery's side: fork for each order, tell the pid, wait, tell the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the scenario ends this
    _die_with_parent()
    report = Report(acks, gate)
    for line in orders:
        order = json.loads(line)
        module, _, name = order["job"].partition(":")
        job: Job = getattr(import_module(f"{__package__}.{module}"), name)  # imported once, for all children to come
        pid = os.fork()
        if pid == 0:
            _live(job, report, order["arguments"])
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(status, flush=True)


def _die_with_parent() -> None:
    """Whatever becomes of the scenario, nothing of it stays: not even a child that is stopped."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _live(job: Job, report: Report, arguments: dict[str, Any]) -> None:
    """A child's whole life."""
    _die_with_parent()
    status = 1
    try:
        job(report, **arguments)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer)
