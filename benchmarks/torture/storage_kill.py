"""SIGKILL at every system call of a commit: a crash between any two steps loses nothing that was acknowledged.

A child runs the real write loop over a copy of a store, and dies before its n-th call of each kind, for every call
that one undisturbed run makes: on the files, of the acknowledgement and, in the long form, for memory and all else.
What the parent then finds has to be the expected log up to the end of a batch, with every batch whose acknowledgement
came through.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Final

from rayfold.runtime.store.store import Store, open_store

from .contract import Context, Findings, Scenario
from .storage_child import Nursery
from .storage_trace import calls_of, with_fault
from .storage_workload import expected
from .storage_writing import acknowledged, judge, make_store

__all__ = ["SCENARIOS"]

FIRST: Final = 12
"""Batches that the store has before: the indexes have more than one page then."""

JOB: Final = "storage_writing:write"


def copy_of(store: Store, path: Path) -> Store:
    """A copy of a store that nobody uses, in place of an earlier one."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(store.path, path)
    return open_store(path)


def kill_at_every_call(context: Context) -> Findings:
    """Both halves of a writer's life: taking the log over, and committing. The long form goes on with other seeds."""
    findings = Findings({"crash_points": 0, "losses": 0, "twice": 0, "not_reached": 0})
    seed = context.seed
    with Nursery() as nursery:
        while True:
            _kill_in(context, nursery, seed, "batch", 2 if context.short else 4, findings)
            _kill_in(context, nursery, seed, "open", 1, findings)
            seed += 1
            if context.short or context.left_s < 0:
                return findings


def _kill_in(context: Context, nursery: Nursery, seed: int, gate: str, batches: int, findings: Findings) -> None:
    """Every crash point of a child that is let go at `gate` and writes so many batches."""
    last = FIRST + batches
    wanted = expected(seed, last + 2)
    original = make_store(context.folder / f"original-{seed}-{gate}", seed, FIRST)
    job = {"seed": seed, "first": FIRST, "last": last, "gate": gate}
    undisturbed = copy_of(original, context.folder / "copy")
    child = nursery.start(JOB, path=str(undisturbed.path), **job)
    calls = calls_of(child, context.folder / "calls", undisturbed.path if context.short else None, reports=True)
    judge(undisturbed, wanted, last, findings, "undisturbed")
    for call in calls:
        store = copy_of(original, context.folder / "copy")
        child = with_fault(nursery.start(JOB, path=str(store.path), **job), call, "signal=SIGKILL")
        findings.count("crash_points" if child.status == -signal.SIGKILL else "not_reached")
        done = max(FIRST, acknowledged(child.lines, seed, last + 2, findings))
        judge(store, wanted, done, findings, f"seed {seed}, killed before {call}", verify=call.number % 4 == 1)
        if context.left_s < 0:
            return


SCENARIOS: Final = (
    Scenario(
        "kill-in-commit",
        "SIGKILL before every system call of a commit",
        kill_at_every_call,
        needs=("strace",),
        invariants=("I1", "I2", "I3", "I4", "I7"),
        short_s=5,
        long_s=30,
    ),
)
