"""Another format, another engine, an interrupted creation: a store opens whole or is refused unchanged, never half.

There is one format of stores so far, and the step from logs of formats 1 and 2 to 3 is one transaction, that of an
activation.
What there is: stores and logs that say they are of an older or newer format, logs of LMDB's other engine, and the
making of a store, which is killed, or told EIO, at every call it makes.
"""

from __future__ import annotations

import json
import shutil
import signal
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import lmdb

from rayfold.runtime.errors import RayfoldError, StoreMismatch, StoreMissing
from rayfold.runtime.log.format import META, META_FORMAT, encode_meta
from rayfold.runtime.store.check import verify_store
from rayfold.runtime.store.store import create_or_open_store, open_store

from .contract import Context, Findings, Scenario
from .storage_child import Nursery
from .storage_damage import make_two
from .storage_trace import Call, calls_of, with_fault
from .storage_writing import plain

__all__ = ["SCENARIOS"]

PARTITIONS: Final = 2
CALLS_BETWEEN: Final = 6
"""The short form tries every sixth call."""


def another_format(context: Context) -> Findings:
    """Older and newer formats and the other engine, tried in every way that a store is opened."""
    findings = Findings({"stores": 0, "refused": 0, "changed": 0})
    original = make_two(context.folder / "original", context.seed).path
    kinds: dict[str, Callable[[Path], object]] = {
        f"a manifest of format {version}": partial(_write_manifest, format=version) for version in (0, 2, 99, "1", None)
    }
    kinds |= {f"a log of format {version}": partial(_write_log_format, version=version) for version in (0, 4, 1 << 40)}
    kinds["a manifest with another hash"] = partial(_write_manifest, hash="xxh3")
    kinds["a log of the other engine"] = _write_other_engine
    kinds["a log that is another program's"] = _write_foreign
    for kind, change in kinds.items():
        folder = context.folder / "store"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        change(folder)
        before = _content(folder)
        findings.count("stores")
        for way, use in _ways(folder).items():
            told = _told(use)
            named = isinstance(told, RayfoldError)
            findings.count("refused", named)
            findings.check("I10", named, f"{kind}, {way}: accepted, {told}")
            findings.check("I10", not isinstance(told, StoreMissing), f"{kind}, {way}: said to be missing: {told}")
            if not findings.check("I1", _content(folder) == before, f"{kind}, {way}: the store is not what it was"):
                findings.count("changed")
    return findings


def _ways(folder: Path) -> dict[str, Callable[[], object]]:
    """Every way to get at partition 0 of a store."""
    return {
        "opened": lambda: open_store(folder).open_log(0),
        "opened or made": lambda: create_or_open_store(folder, PARTITIONS).open_log(0),
        "read": lambda: open_store(folder).open_reader(0),
        "verified": lambda: _raise_problem(folder),
    }


def _told(use: Callable[[], object]) -> object:
    try:
        return use()
    except RayfoldError as error:
        return error


def _raise_problem(folder: Path) -> object:
    report = verify_store(folder)
    if report.problems:
        raise StoreMismatch(str(folder), report.problems[0].what)
    return report


def _content(folder: Path) -> dict[str, bytes]:
    """All files that hold data."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock.mdb", "store.lock")
    }


def _write_manifest(folder: Path, **changes: object) -> None:
    path = folder / "store.json"
    facts = json.loads(path.read_text()) | changes
    del facts["checksum"]
    checksum = zlib.crc32(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())
    path.write_text(json.dumps(facts | {"checksum": f"{checksum:08x}"}, indent=2))


def _write_log_format(folder: Path, version: int) -> None:
    value = encode_meta(META_FORMAT, version.to_bytes(8, "big"))
    with lmdb.open(str(folder / "partition-00000"), max_dbs=16, lib_version=0) as environment:
        database = environment.open_db(META, create=False)
        with environment.begin(write=True) as transaction:
            transaction.put(META_FORMAT, value, db=database)


def _write_other_engine(folder: Path) -> None:
    _make_lmdb(folder / "partition-00000", 1)


def _write_foreign(folder: Path) -> None:
    _make_lmdb(folder / "partition-00000", 0)


def _make_lmdb(folder: Path, engine: int) -> None:
    """An environment of some other program, in place of a log."""
    shutil.rmtree(folder)
    with lmdb.open(str(folder), max_dbs=4, lib_version=engine) as environment:
        database = environment.open_db(b"things")
        with environment.begin(write=True) as transaction:
            transaction.put(b"one", b"thing", db=database)


# --- a creation that is interrupted -----------------------------------------------------------------------------------


def create(report: Any, *, path: str) -> None:
    """A job: make a store."""
    report.wait_at_gate()
    try:
        report.say(created=create_or_open_store(path, PARTITIONS).store_id)
    except RayfoldError as error:
        report.say(refused=plain(error))


def interrupted_creation(context: Context) -> Findings:
    """SIGKILL before, and EIO in place of, every call of making a store; then it is opened, and made again."""
    findings = Findings({"crash_points": 0, "calls_failed": 0, "opened": 0, "missing": 0, "half": 0})
    folder = context.folder / "store"
    with Nursery() as nursery:
        calls = calls_of(nursery.start("storage_upgrade:create", path=str(folder)), context.folder / "calls", folder)
        every = CALLS_BETWEEN if context.short else 1
        for fault in ("signal=SIGKILL", "error=EIO"):
            for call in calls[context.seed % every :: every]:
                _interrupt(nursery, folder, call, fault, findings)
                if context.left_s < 0:
                    return findings
    return findings


def _interrupt(nursery: Nursery, folder: Path, call: Call, fault: str, findings: Findings) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    child = with_fault(nursery.start("storage_upgrade:create", path=str(folder)), call, fault)
    where = f"making a store, {fault} at {call}"
    killed = child.status == -signal.SIGKILL
    findings.count("crash_points" if killed else "calls_failed")
    findings.check("I10", killed or child.status == 0, f"{where}: the process ended with status {child.status}")
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


SCENARIOS: Final = (
    Scenario(
        "another-format",
        "stores of older and newer formats, and logs of another LMDB engine",
        another_format,
        invariants=("I1", "I10"),
        short_s=2,
        long_s=5,
        weight=0.2,
    ),
    Scenario(
        "interrupted-creation",
        "SIGKILL and EIO at every call of making a store",
        interrupted_creation,
        needs=("strace",),
        invariants=("I1", "I10"),
        short_s=5,
        long_s=20,
        weight=0.5,
    ),
)
