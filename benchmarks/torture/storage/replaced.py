"""Files that are not what they should be: logs swapped, emptied, or of another store, format or engine; manifests, too.

Whatever is put where a file of the store belongs, opening it is an error with a name and changes nothing, or what is
read is the truth. A log carries whose it is, a manifest a checksum. There is one format of stores so far, and the step
from logs of formats 1 and 2 to 3 is one transaction, that of an activation.
"""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import lmdb

from rayfold.runtime.errors import RayfoldError, StoreMismatch, StoreMissing
from rayfold.runtime.log.format import META, META_FORMAT, encode_meta
from rayfold.runtime.store.store import create_or_open_store, open_store
from rayfold.runtime.store.verify import verify_store

from ..contract import Context, Findings, scenario
from ..processes import Forked, ForkServer
from .damage import BATCHES, make_two
from .workload import copy_of, data_of, everything, expected, plain

Swap = Callable[[Path, Path], object]
"""Given the folder of a store, and that of another store."""


def _exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _become_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _manifest(store: Path) -> Path:
    return store / "store.json"


def _lock(store: Path) -> Path:
    return data_of(store).with_name("lock.mdb")


def _halves(one: Path, other: Path) -> bytes:
    return one.read_bytes()[:40_960] + other.read_bytes()[40_960:]


_SWAPS: Final[dict[str, Swap]] = {
    "the folders of two partitions are exchanged": lambda s, _: _exchange(data_of(s).parent, data_of(s, 1).parent),
    "the logs of two partitions are exchanged": lambda s, _: _exchange(data_of(s), data_of(s, 1)),
    "a log is a copy of another partition's": lambda s, _: data_of(s).write_bytes(data_of(s, 1).read_bytes()),
    "a log is of another store": lambda s, other: data_of(s).write_bytes(data_of(other).read_bytes()),
    "a log is empty": lambda s, _: data_of(s).write_bytes(b""),
    "a log is gone": lambda s, _: data_of(s).unlink(),
    "a log is a text": lambda s, _: data_of(s).write_bytes(b"Once upon a time there was a store.\n" * 2_000),
    "a log is noise": lambda s, _: data_of(s).write_bytes(random.Random(1).randbytes(40_960)),
    "a log is zeros": lambda s, _: data_of(s).write_bytes(bytes(40_960)),
    "a log is a folder": lambda s, _: _become_folder(data_of(s)),
    "a log is a link to itself": lambda s, _: _link_to_itself(data_of(s)),
    "two halves of two logs": lambda s, _: data_of(s).write_bytes(_halves(data_of(s), data_of(s, 1))),
    "a partition's folder is gone": lambda s, _: shutil.rmtree(data_of(s).parent),
    "the manifest is of another store": lambda s, other: _manifest(s).write_bytes(_manifest(other).read_bytes()),
    "the manifest is gone": lambda s, _: _manifest(s).unlink(),
    "the manifest is empty": lambda s, _: _manifest(s).write_bytes(b""),
    "the manifest is a list": lambda s, _: _manifest(s).write_bytes(b"[1, 2]"),
    "the manifest is deep": lambda s, _: _manifest(s).write_bytes(b"[" * 60_000),
    "the manifest is a folder": lambda s, _: _become_folder(_manifest(s)),
    "the lock file of LMDB is noise": lambda s, _: _lock(s).write_bytes(random.Random(2).randbytes(8_192)),
    "the lock file of LMDB is cut off": lambda s, _: _lock(s).write_bytes(b"LMDB"),
    "the lock file of LMDB is a folder": lambda s, _: _become_folder(_lock(s)),
    "the lock file of the store is noise": lambda s, _: (s / "store.lock").write_bytes(random.Random(3).randbytes(100)),
    "the lock file of the store is a folder": lambda s, _: _become_folder(s / "store.lock"),
}
"""What is done to the files, by its description."""


@scenario(
    "swapped-files",
    "files of a store swapped, emptied, replaced by others",
    "I10",
    counts="swaps refused right wrong ended",
    times=(4, 10, 0.3),
)
def swapped_files(context: Context, findings: Findings) -> None:
    """Every swap, and every byte of the manifest flipped; where time is short those that it is enough for."""
    original = make_two(context.folder / "original", context.seed).path
    other = make_two(context.folder / "other", context.seed + 2).path
    manifest = _manifest(original).read_bytes()
    swaps = list(_SWAPS.items())
    for at in range(0, len(manifest), 7 if context.short else 1):
        flipped = manifest[:at] + bytes([manifest[at] ^ 1 << at % 8]) + manifest[at + 1 :]
        swaps.append((f"byte {at} of the manifest is flipped", partial(_write_bytes_of_manifest, flipped)))
    if not context.short:
        context.rng.shuffle(swaps)
    with ForkServer() as server:
        for what, swap in swaps:
            if not context.short and findings.checks and context.left_s < 0:
                break
            folder = copy_of(original, context.folder / "swapped")
            swap(folder, other)
            before = _content(folder)
            _check_told(server.run(look, path=str(folder), seed=context.seed), what, findings)
            findings.check("I10", _content(folder) == before, f"{what}: looking has changed the files")


def _write_bytes_of_manifest(content: bytes, store: Path, _other: Path) -> None:
    _manifest(store).write_bytes(content)


def _content(folder: Path) -> dict[str, bytes | int]:
    """Every file that holds data, with its bytes. Lock files are left out; of all else only that it is there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.name in ("data.mdb", "store.json") and path.is_file()
        else 0
        for path in folder.rglob("*")
        if path.name not in ("lock.mdb", "store.lock")
    }


def _check_told(child: Forked, what: str, findings: Findings) -> None:
    findings.count("swaps")
    if child.status:
        findings.count("ended")
        child.check_status(findings, what)
        return
    told = {line["asked"]: line["told"] for line in child.lines}
    verified = told.pop("verify")
    wrong = [asked for asked, one in told.items() if one == "wrong"]
    refused = any(isinstance(one, list) for one in told.values())
    findings.count("wrong" if wrong else "refused" if refused else "right")
    findings.check("I10", not wrong, f"{what}: wrong answers from {', '.join(wrong)}")
    reads = [one for asked, one in told.items() if asked.startswith("read")]
    if any(one != "right" for one in reads):
        findings.check("I10", verified != "right", f"{what}: {told}, but verify finds nothing")


def look(report: Any, *, path: str, seed: int) -> None:
    """A job: open the store in every way, and report of each answer whether it is right."""
    wanted = [expected(seed + partition, BATCHES) for partition in range(2)]

    def ask(asked: str, ask: Callable[[], bool]) -> None:
        try:
            told: Any = "right" if ask() else "wrong"
        except RayfoldError as error:
            told = plain(error)
        report.send(asked=asked, told=told)

    def read(partition: int) -> bool:
        with closing(open_store(path).open_reader(partition)) as reader:
            return everything(reader) == wanted[partition].records

    def write(partition: int) -> bool:
        with closing(open_store(path).open_log(partition)) as log:
            return log.head() == len(wanted[partition].records)

    def hold() -> bool:
        with open_store(path).hold("a runtime"):
            return True

    for partition in range(2):
        ask(f"read {partition}", lambda: read(partition))  # noqa: B023
        ask(f"write {partition}", lambda: write(partition))  # noqa: B023
    ask("verify", lambda: verify_store(path).ok)
    ask("hold", hold)


# --- another format, another engine -----------------------------------------------------------------------------------


@scenario(
    "another-format",
    "stores of older and newer formats, and logs of another LMDB engine",
    "I1 I10",
    counts="stores refused changed",
    times=(2, 5, 0.2),
)
def another_format(context: Context, findings: Findings) -> None:
    """Older and newer formats and the other engine, tried in every way that a store is opened."""
    original = make_two(context.folder / "original", context.seed).path
    kinds: dict[str, Callable[[Path], object]] = {
        f"a manifest of format {version}": partial(_write_manifest, format=version) for version in (0, 2, 99, "1", None)
    }
    kinds |= {f"a log of format {version}": partial(_write_log_format, version=version) for version in (0, 4, 1 << 40)}
    kinds["a manifest with another hash"] = partial(_write_manifest, hash="xxh3")
    kinds["a log of the other engine"] = partial(_make_lmdb, engine=1)
    kinds["a log that is another program's"] = partial(_make_lmdb, engine=0)
    for kind, change in kinds.items():
        folder = copy_of(original, context.folder / "store")
        change(folder)
        before = _content(folder)
        findings.count("stores")
        for way, use in _ways(folder).items():
            told = _told(use)
            named = isinstance(told, RayfoldError)
            findings.count("refused", named)
            findings.check("I10", named, f"{kind}, {way}: accepted, {told}")
            findings.check("I10", not isinstance(told, StoreMissing), f"{kind}, {way}: reported as missing: {told}")
            if not findings.check("I1", _content(folder) == before, f"{kind}, {way}: the store is not what it was"):
                findings.count("changed")


def _ways(folder: Path) -> dict[str, Callable[[], object]]:
    """Every way to get at partition 0 of a store."""
    return {
        "opened": lambda: open_store(folder).open_log(0),
        "opened or made": lambda: create_or_open_store(folder, 2).open_log(0),
        "read": lambda: open_store(folder).open_reader(0),
        "verified": lambda: _verify(folder),
    }


def _told(use: Callable[[], object]) -> object:
    try:
        return use()
    except RayfoldError as error:
        return error


def _verify(folder: Path) -> object:
    report = verify_store(folder)
    return StoreMismatch(str(folder), report.problems[0].what) if report.problems else report


def _write_manifest(folder: Path, **changes: object) -> None:
    path = _manifest(folder)
    facts = json.loads(path.read_text()) | changes
    del facts["checksum"]
    checksum = zlib.crc32(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())
    path.write_text(json.dumps(facts | {"checksum": f"{checksum:08x}"}, indent=2))


def _write_log_format(folder: Path, version: int) -> None:
    value = encode_meta(META_FORMAT, version.to_bytes(8, "big"))
    with lmdb.open(str(data_of(folder).parent), max_dbs=16, lib_version=0) as environment:
        database = environment.open_db(META, create=False)
        with environment.begin(write=True) as transaction:
            transaction.put(META_FORMAT, value, db=database)


def _make_lmdb(store: Path, engine: int) -> None:
    """An environment of some other program, in place of a log."""
    folder = data_of(store).parent
    shutil.rmtree(folder)
    with lmdb.open(str(folder), max_dbs=4, lib_version=engine) as environment:
        database = environment.open_db(b"things")
        with environment.begin(write=True) as transaction:
            transaction.put(b"one", b"thing", db=database)
