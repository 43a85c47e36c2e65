"""Faults at every system call: of a writer that takes its log over and commits, and of the making of a store.

strace is attached to a child that waits at its barrier: to count its system calls, and then to break one in each run.
SIGKILL before a call: what is found has to be the expected log up to the end of a batch, with every batch whose
acknowledgement came through. An error in place of a call, the fdatasync and the write of the meta page among them:
there has to be an error with a name, nothing stored of what failed, reads served meanwhile, and the same commands sent
again have to succeed, once each. A store whose making is interrupted is whole, or not there.

Rule kept here: a call is named by what it is and by how many of its kind came before it since the barrier, which is how
strace counts (`inject=NAME:when=N`). The child is attached to, not started under strace, so that only what follows the
barrier is counted and Python's start is not traced.
"""

from __future__ import annotations

import itertools
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from rayfold.runtime.errors import RayfoldError, StoreMissing
from rayfold.runtime.store.store import create_or_open_store, open_store
from rayfold.runtime.store.verify import verify_store

from ..contract import Context, Findings, scenario
from ..processes import Forked, ForkServer
from .workload import FIRST, Expected, acknowledged, copy_of, expected, judge, make_store, plain, write

__all__ = ["traced"]

ATTACH_S: Final = 30.0
PARTITIONS: Final = 2
CALLS_BETWEEN: Final = 6
"""The short form interrupts the making of a store at every sixth call."""

_KILLED: Final = ("signal=SIGKILL",)
_ERRORS: Final = ("error=EIO", "error=ENOSPC")
_CALL: Final = re.compile(r"(?:\d+ +)?(\w+)\(")


class Call(NamedTuple):
    """One system call of a run."""

    name: str
    number: int
    """Among those of its name, from 1."""

    def __str__(self) -> str:
        return f"{self.name} {self.number}"


@contextmanager
def traced(child: Forked, *options: str, output: Path | None = None) -> Iterator[None]:
    """Let a child through its barrier under strace with these options; at the end, wait for both."""
    assert child.next_line() == {"at_barrier": True}
    out = str(output) if output is not None else "/dev/null"
    command = ["strace", "-o", out, *options, "-p", str(child.pid)]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert strace.stderr is not None
    try:
        first = strace.stderr.readline()
        if "attached" not in first:
            raise RuntimeError(f"strace does not attach: {first.strip()}")
        child.pass_barrier()
        yield
        child.wait()
        strace.wait(ATTACH_S)
    finally:
        strace.kill()
        strace.wait(ATTACH_S)
        strace.stderr.close()


def _calls_of(child: Forked, output: Path, about: Path | None, *, reports: bool = False) -> list[Call]:
    """The system calls that a child makes after its barrier, in order; those that end the process left out. With
    `about` only those on files in that folder, and with `reports` those by which it acknowledges."""
    with traced(child, "-y", "-s", "200", output=output):
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


def _with_fault(child: Forked, call: Call, fault: str) -> Forked:
    """Let a child run, with one of its calls broken: `signal=SIGKILL` before it, or `error=EIO` instead of it."""
    with traced(child, "-e", f"trace={call.name}", "-e", f"inject={call.name}:{fault}:when={call.number}"):
        pass
    return child


@dataclass(frozen=True, slots=True)
class _Run:
    """A child that wrote some batches over a copy of a store, with one call broken."""

    child: Forked
    call: Call
    store: Path
    wanted: Expected
    where: str
    last: int
    """How many batches it was to come to."""
    done: int
    """How many are acknowledged."""


def _runs(context: Context, findings: Findings, lengths: dict[str, int], faults: Sequence[str]) -> Iterator[_Run]:
    """One run for each call and fault: of a writer of so many batches, that takes its log over (`open`), or has it
    (`batch`). The long form goes on with other seeds."""
    folder, kills = context.folder, faults == _KILLED
    with ForkServer() as server:
        for seed in map(context.seed.__add__, context.rounds()):
            for barrier, batches in lengths.items():
                last = FIRST + batches
                wanted = expected(seed, last + 2)
                original = make_store(folder / f"{seed}-{barrier}", seed, FIRST).path

                def start() -> Forked:
                    store = copy_of(original, folder / "copy")  # noqa: B023
                    return server.start(write, path=str(store), seed=seed, last=last, barrier=barrier)  # noqa: B023

                about = folder / "copy" if context.short or not kills else None
                calls = _calls_of(start(), folder / "calls", about, reports=kills)
                if kills:
                    judge(folder / "copy", wanted, last, findings, "undisturbed")
                for call, fault in itertools.product(calls, faults):
                    child = _with_fault(start(), call, fault)
                    done = acknowledged(child.lines, wanted, findings, FIRST)
                    yield _Run(child, call, folder / "copy", wanted, f"seed {seed}, {fault} at {call}", last, done)
                    if context.left_s < 0:
                        break


@scenario(
    "kill-in-commit",
    "SIGKILL before every system call of a commit",
    "I1 I2 I3 I4 I7",
    counts="crash_points losses twice not_reached",
    needs=("strace",),
    times=(5, 30, 1),
)
def kill_at_every_call(context: Context, findings: Findings) -> None:
    """Both halves of a writer's life: committing, and taking the log over. At the calls on files and those by which it
    acknowledges; in the long form also at those for memory and all else."""
    for run in _runs(context, findings, {"batch": 2 if context.short else 4, "open": 1}, _KILLED):
        findings.count("crash_points" if run.child.status == -signal.SIGKILL else "not_reached")
        judge(run.store, run.wanted, run.done, findings, run.where, verify=run.call.number % 4 == 1)


@scenario(
    "disk-errors",
    "EIO and ENOSPC in place of every call of opening and committing",
    "I1 I2 I3 I4 I7 I10",
    counts="calls_failed reported losses twice",
    needs=("strace",),
    times=(6, 60, 1),
)
def errors_at_every_call(context: Context, findings: Findings) -> None:
    """EIO and ENOSPC in place of each call; the child tries again, and all must be as if nothing had happened."""
    batches = 2 if context.short else 5
    for run in _runs(context, findings, {"batch": batches, "open": batches}, _ERRORS[: 1 if context.short else 2]):
        findings.count("calls_failed")
        _check_reported(run.child, run.wanted, findings, run.where)
        findings.check("I1", run.done == run.last, f"{run.where}: it went on to batch {run.done} only")
        verify = run.call.name == "fdatasync" or "I3" not in findings.checks
        judge(run.store, run.wanted, run.done, findings, run.where, verify=verify)


def _check_reported(child: Forked, wanted: Expected, findings: Findings, where: str) -> None:
    """The child ended well, named what failed, stored nothing of it, and served reads meanwhile."""
    child.check_status(findings, where)
    for line in child.lines:
        if "failed" in line:
            findings.count("reported")
            findings.check("I10", line["error"][0] in ("StorageFailed", "Damaged"), f"{where}: {line['error']}")
            if isinstance(line["failed"], int):
                head, right = line["head"], wanted.ends[line["failed"]]
                findings.check("I7", head == right, f"{where}: reported as rolled back, but the head is {head}")
                findings.check("I1", line["served"], f"{where}: reads are not served meanwhile")


# --- a creation that is interrupted -----------------------------------------------------------------------------------


def create(report: Any, *, path: str) -> None:
    """A job: make a store."""
    report.wait_at_barrier()
    try:
        report.send(created=create_or_open_store(path, PARTITIONS).store_id)
    except RayfoldError as error:
        report.send(refused=plain(error))


@scenario(
    "interrupted-creation",
    "SIGKILL and EIO at every call of making a store",
    "I1 I10",
    counts="crash_points calls_failed opened missing half",
    needs=("strace",),
    times=(5, 20, 0.5),
)
def interrupted_creation(context: Context, findings: Findings) -> None:
    """SIGKILL before, and EIO in place of, every call of making a store; then it is opened, and made again."""
    folder = context.folder / "store"
    with ForkServer() as server:
        calls = _calls_of(server.start(create, path=str(folder)), context.folder / "calls", folder)
        every = CALLS_BETWEEN if context.short else 1
        chosen = calls[context.seed % every :: every]
        for fault, call in itertools.product(("signal=SIGKILL", "error=EIO"), chosen):
            shutil.rmtree(folder, ignore_errors=True)
            child = _with_fault(server.start(create, path=str(folder)), call, fault)
            _check_created(child, folder, findings, f"making a store, {fault} at {call}")
            if context.left_s < 0:
                return


def _check_created(child: Forked, folder: Path, findings: Findings, where: str) -> None:
    killed = child.status == -signal.SIGKILL
    findings.count("crash_points" if killed else "calls_failed")
    if not killed:
        child.check_status(findings, where)
    created = next((line["created"] for line in child.lines if "created" in line), None)
    try:
        found = open_store(folder)
        findings.count("opened")
        whole = verify_store(folder).ok and (created is None or found.store_id == created)
        findings.check("I1", whole, f"{where}: it opens, but is not whole")
        findings.count("half", not whole)
    except StoreMissing as error:
        findings.count("missing")
        findings.check("I1", created is None, f"{where}: it was made, and now {error}")
    again = create_or_open_store(folder, PARTITIONS)
    findings.check("I1", created in (None, again.store_id), f"{where}: made twice")
    findings.check("I10", verify_store(folder).ok, f"{where}: made again, it is not whole")
