"""A disk that fails: EIO and ENOSPC in place of every call by which a log is opened and written.

strace answers one call with an error instead of making it, the fdatasync and the write of the meta page among them.
Each time there has to be an error with a name, nothing stored of what failed, reads served meanwhile, and the same
commands sent again have to succeed, once each.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

from .contract import Context, Findings, Scenario
from .storage_child import Child, Nursery
from .storage_kill import FIRST, JOB, copy_of
from .storage_trace import Call, calls_of, with_fault
from .storage_workload import Expected, expected
from .storage_writing import acknowledged, judge, make_store

__all__ = ["SCENARIOS"]


def errors_at_every_call(context: Context) -> Findings:
    """EIO and ENOSPC in place of each call; the child tries again, and all must be as if nothing had happened."""
    findings = Findings({"calls_failed": 0, "reported": 0, "losses": 0, "twice": 0})
    seed = context.seed
    with Nursery() as nursery:
        while True:
            for gate in ("batch", "open"):
                _fail_each(context, nursery, seed, gate, findings)
            seed += 1
            if context.short or context.left_s < 0:
                return findings


def _fail_each(context: Context, nursery: Nursery, seed: int, gate: str, findings: Findings) -> None:
    last = FIRST + (2 if context.short else 5)
    wanted = expected(seed, last + 2)
    original = make_store(context.folder / f"original-{seed}-{gate}", seed, FIRST)
    job: dict[str, Any] = {"seed": seed, "first": FIRST, "last": last, "gate": gate}
    store = copy_of(original, context.folder / "copy")
    undisturbed = nursery.start(JOB, path=str(store.path), **job)
    calls = calls_of(undisturbed, context.folder / "calls", about=store.path)
    for call, error in itertools.product(calls, ("EIO",) if context.short else ("EIO", "ENOSPC")):
        store = copy_of(original, context.folder / "copy")
        child = with_fault(nursery.start(JOB, path=str(store.path), **job), call, f"error={error}")
        where = f"seed {seed}, {error} instead of {call}"
        findings.count("calls_failed")
        _looked_at(child, call, wanted, findings, where)
        done = max(FIRST, acknowledged(child.lines, seed, last + 2, findings))
        findings.check("I1", done == last, f"{where}: it went on to batch {done} of {last} only")
        judge(store, wanted, done, findings, where, verify=call.name == "fdatasync" or "I3" not in findings.checks)
        if context.left_s < 0:
            return


def _looked_at(child: Child, call: Call, wanted: Expected, findings: Findings, where: str) -> None:
    """The child ended well, named what failed, stored nothing of it, and served reads meanwhile."""
    findings.check("I10", child.status == 0, f"{where}: the process ended with status {child.status}")
    for line in child.lines:
        if "failed" in line:
            findings.count("reported")
            named = line["error"][0] in ("StorageFailed", "Damaged")
            findings.check("I10", named, f"{where}: {line['error']}")
            if isinstance(line["failed"], int):
                head, right = line["head"], wanted.ends[line["failed"]]
                findings.check("I7", head == right, f"{where}: reported as rolled back, but the head is {head}")
                findings.check("I1", line["served"], f"{where}: reads are not served meanwhile")


SCENARIOS: Final = (
    Scenario(
        "disk-errors",
        "EIO and ENOSPC in place of every call of opening and committing",
        errors_at_every_call,
        needs=("strace",),
        invariants=("I1", "I2", "I3", "I4", "I7", "I10"),
        short_s=6,
        long_s=60,
    ),
)
