"""Power cut: what a real run wrote to its disk, replayed up to any moment with whatever was not synced yet missing.

strace records every write and sync of a child that runs the real write loop, and what it acknowledged in between. Each
state that the disk may be in at each moment (`storage_disk.py`) is laid into a copy of the store, which is then opened,
compared with what was acknowledged by that moment, written to, and verified.

Why from the trace and not with a device that loses writes: it needs no root and no kernel module, and it can take every
combination instead of the one that happened.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from lmdb import verify as lmdb_verify

from rayfold.runtime.store.store import Store

from .contract import Context, Findings, Scenario
from .storage_child import Nursery
from .storage_disk import STRACE_OPTIONS, Step, cuts, images, steps_of
from .storage_kill import copy_of
from .storage_trace import watched
from .storage_workload import Expected, expected
from .storage_writing import judge, make_store

__all__ = ["SCENARIOS", "record", "replay"]

FIRST: Final = 12
VERIFY_EVERY: Final = 4
"""States between two that are verified as `rayfold verify` does; all are opened, compared and written to."""


def power_cuts(context: Context) -> Findings:
    """One recorded run; the long form goes on with other seeds."""
    findings = Findings({"moments": 0, "states_tried": 0, "losses": 0, "unreadable": 0, "twice": 0})
    seed = context.seed
    with Nursery() as nursery:
        while True:
            batches, limit = (5, 64) if context.short else (8, 256)
            folder = context.folder / f"seed-{seed}"
            store, steps = record(nursery, folder, seed, batches)
            content = (folder / "before").read_bytes()
            wanted = expected(seed, FIRST + batches + 2)
            replay(store, content, steps, wanted, random.Random(seed), limit, findings, context)
            shutil.rmtree(folder)
            seed += 1
            if context.short or context.left_s < 0:
                return findings


def record(nursery: Nursery, folder: Path, seed: int, batches: int) -> tuple[Store, list[Step]]:
    """A store, and what a child did to its file while it wrote so many batches. `folder/before` is the file before."""
    store = make_store(folder / "store", seed, FIRST)
    data = store.partition_path(0) / "data.mdb"
    shutil.copy(data, folder / "before")
    job: dict[str, Any] = {"path": str(store.path), "seed": seed, "first": FIRST, "last": FIRST + batches}
    child = nursery.start("storage_writing:write", gate="open", **job)
    with watched(child, *STRACE_OPTIONS, output=folder / "trace"):
        pass
    assert child.status == 0
    steps = steps_of(folder / "trace", data)
    return store, steps


def replay(
    store: Store,
    content: bytes,
    steps: Sequence[Step],
    wanted: Expected,
    rng: random.Random,
    limit: int,
    findings: Findings,
    context: Context,
) -> None:
    """Judge every state that the disk may be in at every moment of these steps."""
    state = copy_of(store, context.folder / "state")
    data = state.partition_path(0) / "data.mdb"
    tried: set[bytes] = set()
    for cut in cuts(content, steps):
        findings.count("moments")
        done = max((FIRST, *(line["acknowledged"] + 1 for line in cut.told)))
        for number, image in enumerate(images(cut.disk, rng, limit)):
            known = blake2b(image, digest_size=16, salt=done.to_bytes(16, "big")).digest()
            if known in tried:
                continue
            tried.add(known)
            data.write_bytes(image)
            (data.parent / "lock.mdb").unlink(missing_ok=True)
            findings.count("states_tried")
            where = f"power cut at step {cut.step}, state {number}"
            if broken := structure_of(data.parent):
                findings.count("unreadable")
                findings.check("I1", False, f"{where}: {done} batches acknowledged, and {broken}")
                continue
            judge(state, wanted, done, findings, where, verify=len(tried) % VERIFY_EVERY == 1)
        if context.left_s < 0:
            return


def structure_of(folder: Path) -> str:
    """What is wrong with the pages of an LMDB file, by a verifier that reads it without LMDB, which would abort."""
    try:
        return next(iter(lmdb_verify.verify(str(folder))), "")  # type: ignore[no-untyped-call]
    except (lmdb_verify.VerifyError, OSError) as error:
        return str(error)


SCENARIOS: Final = (
    Scenario(
        "power-cut",
        "power cut: the real writes replayed, with what was not synced missing in every way",
        power_cuts,
        needs=("strace",),
        invariants=("I1", "I2", "I3", "I4", "I7"),
        short_s=8,
        long_s=60,
        weight=2.0,
    ),
)
