"""Files in the wrong place: logs swapped, taken from another store, emptied, replaced; a manifest that decayed.

Whatever is put where a file of the store belongs, opening it is an error with a name, or what is read is the truth. A
log carries whose it is, a manifest a checksum.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from rayfold.runtime.errors import RayfoldError
from rayfold.runtime.store.check import verify_store
from rayfold.runtime.store.store import open_store

from .contract import Context, Findings, Scenario
from .storage_child import Child, Nursery
from .storage_damage import BATCHES, make_two
from .storage_workload import expected
from .storage_writing import everything, plain

__all__ = ["SCENARIOS", "SWAPS"]

Swap = Callable[[Path, Path], None]
"""Given the folder of a store, and that of another store."""


def _data(store: Path, partition: int) -> Path:
    return store / f"partition-{partition:05d}" / "data.mdb"


def _exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _replace(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _become_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


SWAPS: Final[dict[str, Swap]] = {
    "the folders of two partitions are exchanged": lambda s, _: _exchange(_data(s, 0).parent, _data(s, 1).parent),
    "the logs of two partitions are exchanged": lambda s, _: _exchange(_data(s, 0), _data(s, 1)),
    "a log is a copy of another partition's": lambda s, _: _replace(_data(s, 0), _data(s, 1).read_bytes()),
    "a log is of another store": lambda s, other: _replace(_data(s, 0), _data(other, 0).read_bytes()),
    "a log is empty": lambda s, _: _replace(_data(s, 0), b""),
    "a log is gone": lambda s, _: _data(s, 0).unlink(),
    "a log is a text": lambda s, _: _replace(_data(s, 0), b"Once upon a time there was a store.\n" * 2_000),
    "a log is noise": lambda s, _: _replace(_data(s, 0), random.Random(1).randbytes(40_960)),
    "a log is zeros": lambda s, _: _replace(_data(s, 0), bytes(40_960)),
    "a log is a folder": lambda s, _: _become_folder(_data(s, 0)),
    "a log is a link to itself": lambda s, _: _loop(_data(s, 0)),
    "two halves of two logs": lambda s, _: _replace(
        _data(s, 0), _data(s, 0).read_bytes()[:40_960] + _data(s, 1).read_bytes()[40_960:]
    ),
    "a partition's folder is gone": lambda s, _: shutil.rmtree(_data(s, 0).parent),
    "the manifest is of another store": lambda s, other: _replace(
        s / "store.json", (other / "store.json").read_bytes()
    ),
    "the manifest is gone": lambda s, _: (s / "store.json").unlink(),
    "the manifest is empty": lambda s, _: _replace(s / "store.json", b""),
    "the manifest is a list": lambda s, _: _replace(s / "store.json", b"[1, 2]"),
    "the manifest is deep": lambda s, _: _replace(s / "store.json", b"[" * 60_000),
    "the manifest is a folder": lambda s, _: _become_folder(s / "store.json"),
    "the lock file of LMDB is noise": lambda s, _: _replace(
        _data(s, 0).with_name("lock.mdb"), random.Random(2).randbytes(8_192)
    ),
    "the lock file of LMDB is cut off": lambda s, _: _replace(_data(s, 0).with_name("lock.mdb"), b"LMDB"),
    "the lock file of LMDB is a folder": lambda s, _: _become_folder(_data(s, 0).with_name("lock.mdb")),
    "the lock file of the store is noise": lambda s, _: _replace(s / "store.lock", random.Random(3).randbytes(100)),
    "the lock file of the store is a folder": lambda s, _: _become_folder(s / "store.lock"),
}
"""What is done to the files, by how one would tell it."""


def swapped_files(context: Context) -> Findings:
    """Every swap, and every byte of the manifest flipped; where time is short those that it is enough for."""
    findings = Findings({"swaps": 0, "refused": 0, "right": 0, "wrong": 0, "died": 0})
    seed = context.seed
    original = make_two(context.folder / "original", seed)
    other = make_two(context.folder / "other", seed + 2)
    manifest = (original.path / "store.json").read_bytes()
    swaps = dict(SWAPS)
    for at in range(0, len(manifest), 7 if context.short else 1):
        flipped = manifest[:at] + bytes([manifest[at] ^ 1 << at % 8]) + manifest[at + 1 :]
        swaps[f"byte {at} of the manifest is flipped"] = partial(_flip_manifest, flipped=flipped)
    order = list(swaps.items())
    if not context.short:
        context.rng.shuffle(order)
    with Nursery() as nursery:
        for what, swap in order:
            if not context.short and findings.checks and context.left_s < 0:
                break
            folder = context.folder / "swapped"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(original.path, folder)
            swap(folder, other.path)
            before = _listing(folder)
            child = nursery.run("storage_swap:look", path=str(folder), seed=seed)
            _judged(child, what, findings)
            findings.check("I10", _listing(folder) == before, f"{what}: looking has changed the files")
    return findings


def _flip_manifest(store: Path, _other: Path, flipped: bytes) -> None:
    _replace(store / "store.json", flipped)


def _listing(folder: Path) -> dict[str, bytes | int]:
    """Every file that holds data, with its bytes. Lock files and what is no file: only that they are there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.name in ("data.mdb", "store.json") and path.is_file()
        else 0
        for path in folder.rglob("*")
        if path.name not in ("lock.mdb", "store.lock")
    }


def _judged(child: Child, what: str, findings: Findings) -> None:
    findings.count("swaps")
    if child.status:
        findings.count("died")
        findings.check("I10", False, f"{what}: the process ended with status {child.status}, {child.lines}")
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
    """A job: open the store in every way, and say of each answer whether it is right."""
    wanted = [expected(seed + partition, BATCHES) for partition in range(2)]

    def ask(asked: str, ask: Callable[[], bool]) -> None:
        try:
            told: Any = "right" if ask() else "wrong"
        except RayfoldError as error:
            told = plain(error)
        report.say(asked=asked, told=told)

    def read(partition: int) -> bool:
        reader = open_store(path).open_reader(partition)
        try:
            return everything(reader) == wanted[partition].records
        finally:
            reader.close()

    def write(partition: int) -> bool:
        log = open_store(path).open_log(partition)
        try:
            return log.head() == len(wanted[partition].records)
        finally:
            log.close()

    def hold() -> bool:
        with open_store(path).hold("a runtime"):
            return True

    for partition in range(2):
        ask(f"read {partition}", lambda: read(partition))  # noqa: B023
        ask(f"write {partition}", lambda: write(partition))  # noqa: B023
    ask("verify", lambda: verify_store(path).ok)
    ask("hold", hold)


SCENARIOS: Final = (
    Scenario(
        "swapped-files",
        "files of a store swapped, emptied, replaced by others",
        swapped_files,
        invariants=("I10",),
        short_s=4,
        long_s=10,
        weight=0.3,
    ),
)
