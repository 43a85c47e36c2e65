"""A disk that is full, a map that is full, and a directory that may not be written: refused by name, and then resumed.

- *full file system*: a tmpfs of a few MiB, mounted where only the child sees it, filled to the brim and then freed; and
  a limit on the size of files (`RLIMIT_FSIZE`), which needs no mount
- *full map*: a map of 1 MiB that grows by itself, that has reached its bound, and that cannot grow for want of address
  space (`RLIMIT_AS`)
- *no permission*: a read-only mount, which readers may still use, and a store of another user

Rule kept here: each refusal is an error with a name while the store serves reads; the same commands, sent again as soon
as there is room, take effect once. What is written until a disk is full is not counted in advance: it is written until
it is.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from rayfold.runtime.errors import RayfoldError, StorageFailed
from rayfold.runtime.log import environment as log_environment
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.store.store import Store, open_store
from rayfold.runtime.stream import ANY, StreamId

from ..contract import OWN_MOUNTS, Context, Findings, missing, scenario
from ..processes import ForkServer
from .workload import (
    FIRST,
    acknowledged,
    data_of,
    everything,
    expected,
    judge,
    make_store,
    open_clocked,
    plain,
    write,
    write_loop,
)

LAST: Final = 30
"""Batches of a store that is only read."""

AFTERWARDS: Final = 6
"""Batches that are written once the disk is free again."""

BATCHES_MAX: Final = 500
"""By then any disk here is full: how much a batch takes is drawn, from nothing to 54,000 bytes; 2 KB on average."""
FILE_SYSTEM_MIB: Final = 3
ROOM_BYTES: Final = 40_960
"""What is left of the disk when it is as good as full: a batch or two."""

REFUSALS: Final = 2
"""Before the disk is freed: a batch is refused, and refused again."""

MAP_BYTES: Final = 1 << 18
"""Full after some batches."""

GROWING_BATCHES: Final = 400
"""Some 900 KB, and however they are drawn over half of it."""

ADDRESS_SPACE_BYTES: Final = 30 << 20
"""What a process has left: enough to work and to double such a map a few times, and then no more."""

HEAVY_BYTES: Final = 200_000
HEAVY_MAX: Final = 200
"""Appends of that size: 40 MB, far more than either bound allows."""

ANOTHER_USER: Final = 65_534
"""`nobody`, on every Linux."""


@scenario(
    "disk-full",
    "a full disk while writing, then freed",
    "I1 I2 I3 I4 I7 I10 I11",
    counts="refused losses twice",
    times=(3, 10, 0.3),
)
def full_disk(context: Context, findings: Findings) -> None:
    """Fill it while writing, read, free it, go on."""
    wanted = expected(context.seed, BATCHES_MAX)
    jobs = {"limit": full_limit} if missing("mount") else {"limit": full_limit, "tmpfs": full_tmpfs}
    with ForkServer(OWN_MOUNTS if len(jobs) > 1 else ()) as server:
        for kind, job in jobs.items():
            folder = context.folder / kind
            folder.mkdir()
            child = server.run(job, folder=str(folder), seed=context.seed)
            refused = [line for line in child.lines if "failed" in line]
            findings.count("refused", len(refused))
            child.check_status(findings, kind)
            findings.reach(len(refused) >= REFUSALS, f"{kind}: refused {len(refused)} times, so nothing was tried")
            for line in refused:
                head, right = line["head"], wanted.ends[line["failed"]]
                findings.check("I10", line["error"][0] == "StorageFailed", f"{kind}: {line['error']}")
                findings.check("I11", line["served"], f"{kind}: no reads while the disk is full")
                findings.check("I7", head == right, f"{kind}: reported as undone, but the head is {head}, not {right}")
            done = acknowledged(child.lines, wanted, findings)
            resumed = bool(refused) and done > refused[-1]["failed"] + AFTERWARDS
            findings.check("I1", resumed, f"{kind}: writes have not resumed after batch {done}")
            for line in child.lines:  # what it has found by itself, in a mount that only it sees
                if "violations" in line:
                    part = Findings(checks=line["checks"])
                    for invariant, what in line["violations"]:
                        part.violate(invariant, what)
                    findings.include(part)


def full_limit(report: Any, *, folder: str, seed: int) -> None:
    """A job: files may not grow beyond a limit, which is then lifted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = make_store(Path(folder, "store"), seed, FIRST)
    size_bytes = data_of(store.path).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes + ROOM_BYTES, hard))
    _write_until_freed(report, store, seed, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))


def full_tmpfs(report: Any, *, folder: str, seed: int) -> None:
    """A job, in a process with mounts of its own: a small file system, filled by a file that is then removed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FILE_SYSTEM_MIB}m", "tmpfs", folder]
    subprocess.run(mount, check=True, stdout=sys.stderr)
    store = make_store(Path(folder, "store"), seed, FIRST)
    filler = Path(folder, "filler")
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4_096))
    os.truncate(filler, filler.stat().st_size - ROOM_BYTES)
    _write_until_freed(report, store, seed, filler.unlink)


class _FreeingReport:
    """A report that frees the disk once enough was refused."""

    def __init__(self, report: Any, free: Callable[[], object]) -> None:
        self._report, self._free, self.refused = report, free, 0

    def send(self, **facts: Any) -> None:
        self._report.send(**facts)
        if "failed" in facts:
            self.refused += 1
            if self.refused == REFUSALS:
                self._free()


def _write_until_freed(report: Any, store: Store, seed: int, free: Callable[[], object]) -> None:
    """Until enough was refused, and as many batches as are wanted were written afterwards."""
    freeing = _FreeingReport(report, free)
    last = BATCHES_MAX - 2

    def ended(number: int) -> bool:
        nonlocal last
        if freeing.refused >= REFUSALS:
            freeing.refused, last = 0, min(last, number + AFTERWARDS)
        return number >= last

    write(freeing, path=str(store.path), seed=seed, last=last, ended=ended)
    findings = Findings()
    judge(store.path, expected(seed, last + 2), last, findings, "afterwards")
    report.send(checks=findings.checks, violations=[(one.invariant, one.what[:300]) for one in findings.violations[:5]])


# --- a full map -----------------------------------------------------------------------------------------------------


@scenario(
    "map-full",
    "a full map that grows, that may not, that cannot",
    "I1 I10 I11",
    counts="maps_grown refused losses twice",
    times=(8, 10, 0.3),
)
def full_map(context: Context, findings: Findings) -> None:
    """A map that grows, one that may not, one that cannot."""
    with ForkServer() as server:
        for job in (growing_map, bounded_map, no_address_space):
            name, grows = job.__name__, job is growing_map
            child = server.run(job, folder=str(context.folder / name), seed=context.seed)
            child.check_status(findings, name)
            refused = [line for line in child.lines if "refused" in line]
            findings.count("refused", len(refused))
            for line in refused:
                findings.check("I10", line["refused"][0] == "StorageFailed", f"{name}: {line['refused']}")
                findings.check("I11", line["served"], f"{name}: no reads after {line['refused']}")
            grown = sum(line.get("grown", 0) for line in child.lines)
            findings.count("maps_grown", grown)
            findings.reach(grown > 0 or not grows, "the map did not have to grow")
            ended = [line["ended"] for line in child.lines if "ended" in line]
            findings.check("I1", ended == ["as expected"], f"{name}: {ended}")
            findings.check("I10", bool(refused) != grows, f"{name}: refused {len(refused)} times")


def growing_map(report: Any, *, folder: str, seed: int) -> None:
    """A job: a map far too small for what comes."""
    store = make_store(Path(folder), seed, 0)
    log = open_clocked(store, map_bytes=MAP_BYTES)
    before = log.environment.map_bytes()
    loop = write_loop(log)
    wanted = expected(seed, GROWING_BATCHES)
    for batch in wanted.batches:
        loop.execute(batch)
    report.send(grown=(log.environment.map_bytes() // before).bit_length() - 1)
    report.send(ended="as expected" if everything(log) == wanted.records else f"head {log.head()}")
    log.close()


def bounded_map(report: Any, *, folder: str, seed: int) -> None:
    """A job: the map has reached its bound, which is then raised."""
    bound = log_environment.MAP_BYTES_MAX

    def set_bound(size_bytes: int) -> None:
        log_environment.MAP_BYTES_MAX = size_bytes  # type: ignore[misc]

    _until_refused(report, folder, seed, lambda: set_bound(MAP_BYTES), lambda: set_bound(bound))


def no_address_space(report: Any, *, folder: str, seed: int) -> None:
    """A job: the process may not have a larger map, then it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    def set_limit() -> None:
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + ADDRESS_SPACE_BYTES, hard))

    _until_refused(report, folder, seed, set_limit, lambda: resource.setrlimit(resource.RLIMIT_AS, (soft, hard)))


def _until_refused(
    report: Any, folder: str, seed: int, squeeze: Callable[[], object], free: Callable[[], object]
) -> None:
    """Append until it is refused, check that reads are served, make room, and go on with what was refused."""
    store = make_store(Path(folder), seed, 0)
    log = open_clocked(store, map_bytes=MAP_BYTES)
    epoch = log.activate()
    squeeze()
    stored: list[bytes] = []
    refused = False

    def append_once() -> None:
        stored.append(sha256(log.append(epoch, [append])[0].records[0]).digest())

    for number in range(1, HEAVY_MAX):
        heavy = NewEvent("PaidIn", 1, bytes([number]) * HEAVY_BYTES)
        append = Append(StreamId("Till", "heavy"), ANY, (heavy,), number.to_bytes(16, "big"), bytes(16))
        try:
            append_once()
        except StorageFailed as error:
            report.send(refused=plain(error), served=_digests(log) == stored)
            if refused:
                break
            refused = True
            free()
            append_once()
        if refused and number % 8 == 0:
            break
    right = _digests(log) == stored and log.head() == number
    report.send(ended="as expected" if right else f"{len(stored)} stored, the head is {log.head()}")
    log.close()


def _digests(log: LmdbLog) -> list[bytes]:
    """Of all records, read a few at a time: the process has no room for all of them."""
    digests: list[bytes] = []
    while more := log.read(len(digests), 4):
        digests += [sha256(record).digest() for record in more]
    return digests


# --- no permission --------------------------------------------------------------------------------------------------


@scenario(
    "no-permission",
    "a read-only mount, and a store of another user",
    "I1 I10",
    counts="refused losses twice",
    times=(2, 10, 0.2),
)
def no_permission(context: Context, findings: Findings) -> None:
    """A read-only mount, and a store of another user."""
    wanted = expected(context.seed, LAST)
    store = make_store(context.folder / "store", context.seed, FIRST).path
    jobs: dict[Callable[..., None], tuple[str, ...]] = {of_another_user: (), read_only_mount: OWN_MOUNTS}
    if missing("mount"):
        del jobs[read_only_mount]
        findings.figures["without"] = missing("mount")
    for job, within in jobs.items():
        name = job.__name__
        with ForkServer(within) as server:
            child = server.run(job, path=str(store))
            child.check_status(findings, name)
        for line in child.lines:
            findings.count("refused", "refused" in line)
            if "refused" in line:
                findings.check("I10", line["refused"][0] == "StorageFailed", f"{name}: {line['refused']}")
            if "read" in line:
                findings.check("I11", line["read"] == wanted.ends[FIRST], f"{name}: read {line['read']}")
        findings.check("I10", any("refused" in line for line in child.lines), f"{name}: nothing was refused")
    judge(store, wanted, FIRST, findings, "afterwards")


def _try(report: Any, what: Callable[[], object]) -> None:
    try:
        report.send(accepted=repr(what()))
    except RayfoldError as error:
        report.send(refused=plain(error))


def read_only_mount(report: Any, *, path: str) -> None:
    """A job: no process may write here, all may read."""
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
    store = open_store(path)
    _try(report, lambda: open_clocked(store))
    _try(report, lambda: store.hold("a runtime"))
    reader = store.open_reader(0)
    report.send(read=len(everything(reader)))
    reader.close()


def of_another_user(report: Any, *, path: str) -> None:
    """A job: the process may not even list the directory. Without root its own user shuts itself out."""
    Path(path).chmod(0o700 if os.geteuid() == 0 else 0)
    if os.geteuid() == 0:
        os.setuid(ANOTHER_USER)
    _try(report, lambda: open_store(path))
    _try(report, lambda: open_log(Path(path, "partition-00000"), "partition 0"))
    with suppress(PermissionError):  # of root's store, which it may not touch any more
        Path(path).chmod(0o700)
