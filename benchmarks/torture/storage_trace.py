"""strace, attached to a child that waits at its gate: to count its system calls, to break one, to record what it wrote.

Rule kept here: a call is named by what it is and by how many of its kind came before it since the gate, which is how
strace counts (`inject=NAME:when=N`). The child is attached to, not started under strace, so that only what follows the
gate is counted and Python's start is not traced.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from .storage_child import Child

__all__ = ["Call", "calls_of", "watched", "with_fault"]

ATTACH_S: Final = 30.0

_CALL: Final = re.compile(r"(?:\d+ +)?(\w+)\(")


class Call(NamedTuple):
    """One system call of a run."""

    name: str
    number: int
    """Among those of its name, from 1."""

    def __str__(self) -> str:
        return f"{self.name} {self.number}"


@contextmanager
def watched(child: Child, *options: str, output: Path | None = None) -> Iterator[None]:
    """Let a child through its gate under strace with these options; at the end, wait for both."""
    assert child.hear() == {"at_gate": True}
    out = str(output) if output is not None else "/dev/null"
    command = ["strace", "-o", out, *options, "-p", str(child.pid)]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert strace.stderr is not None
    try:
        first = strace.stderr.readline()
        if "attached" not in first:
            raise RuntimeError(f"strace does not attach: {first.strip()}")
        child.open_socket_server()
        yield
        child.wait()
        strace.wait(ATTACH_S)
    finally:
        strace.kill()
        strace.wait(ATTACH_S)
        strace.stderr.close()


def calls_of(child: Child, output: Path, about: Path | None = None, reports: bool = False) -> list[Call]:
    """The system calls that a child makes after its gate, in order; those that end the process left out.

    With `about` only those on files in that folder, and with `reports` also those by which it acknowledges.
    """
    with watched(child, "-y", "-s", "200", output=output):
        pass
    seen: Counter[str] = Counter()
    calls = []
    for line in output.read_text().splitlines():
        match = _CALL.match(line)
        if match and not match[1].startswith(("exit", "readv")):
            seen[match[1]] += 1
            if about is None or str(about) in line or (reports and match[1] == "write"):
                calls.append(Call(match[1], seen[match[1]]))
    return calls


def with_fault(child: Child, call: Call, fault: str) -> Child:
    """Let a child run, with one of its calls broken: `signal=SIGKILL` before it, or `error=EIO` instead of it."""
    with watched(child, "-e", f"trace={call.name}", "-e", f"inject={call.name}:{fault}:when={call.number}"):
        pass
    return child
