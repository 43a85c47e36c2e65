"""Power cut: what a real run wrote to its disk, replayed up to any moment with whatever was not synced yet missing.

strace records every write and sync of a child that runs the real write loop, and what it acknowledged in between. Each
state that the disk may be in at each moment is laid into a copy of the store, which is then opened, compared with what
was acknowledged by that moment, written to, and verified.

What a power cut leaves, by the rules that POSIX and the disks give: a completed fdatasync makes every earlier write to
the file durable, a write through an O_DSYNC descriptor is durable when it returns, and of all else each page may have
reached the disk or not, in any order, torn between two sectors of 512 bytes. A page that was written twice since the
last sync may be in either form. A file that had grown may be short, or long with holes.

Why from the trace and not with a device that loses writes: it needs no root and no kernel module, and it can take every
combination instead of the one that happened.

Rule kept here: the model is generous to the disk and never to the database: whatever hardware may legally do is a
state. It knows nothing of what the bytes mean.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

from lmdb import verify as lmdb_verify

from rayfold.runtime.store.store import Store

from ..contract import Context, Findings, scenario
from ..processes import ForkServer
from .system_calls import traced
from .workload import FIRST, Expected, copy_of, data_of, expected, judge, make_store, write

__all__ = ["Acknowledgement", "Cut", "Disk", "Step", "Sync", "Write", "cuts", "images", "record", "replay", "steps_of"]

VERIFY_EVERY: Final = 4
"""States between two that are verified as `rayfold verify` does; all are opened, compared and written to."""

PAGE_BYTES: Final = 4_096
SECTOR_BYTES: Final = 512

TRACED: Final = "openat,pwrite64,pwritev,pwritev2,write,writev,lseek,fdatasync,fsync,msync,ftruncate,fallocate"
"""Every call that can change a file's bytes or make them durable. Those that the replay does not know stop it."""

_STRACE_OPTIONS: Final = ("-xx", "-s", "4194304", "-e", f"trace={TRACED}")


class Write(NamedTuple):
    """Bytes that went to the file."""

    offset: int
    data: bytes
    durable: bool
    """Through a descriptor with O_DSYNC: on the disk when the call returns."""


class Sync(NamedTuple):
    """An fdatasync or fsync of the file that has succeeded."""


class Acknowledgement(NamedTuple):
    """A line that the process has reported: from here on its parent may rely on it."""

    facts: dict[str, Any]


Step = Write | Sync | Acknowledgement

_LINE: Final = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)(?:<[^>]*>)?(?: .*)?$")
_STRING: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


def steps_of(trace: Path, file: Path) -> list[Step]:
    """What a trace of `_STRACE_OPTIONS` has about one file, and what the process has reported. Raises `ValueError` for
    a call that changes the file in a way that is not known here."""
    names: dict[int, tuple[str, bool]] = {}
    places: dict[int, int] = {}
    steps: list[Step] = []
    for line in trace.read_text().splitlines():
        match = _LINE.match(line)
        if match is None or int(match[3]) < 0:
            continue
        call, arguments, result = match[1], match[2], int(match[3])
        if call == "openat":
            names[result], places[result] = (_text(arguments).decode(), "SYNC" in arguments), 0
            continue
        descriptor = int(arguments.split(",", 1)[0])
        name, durable = names.get(descriptor, ("", False))
        if not name and call == "write" and (said := _text(arguments)).startswith(b"{"):
            steps.append(Acknowledgement(json.loads(said)))
        elif name != str(file):
            continue
        elif call == "lseek":
            places[descriptor] = result
        elif call in ("pwrite64", "write", "writev"):
            data = _text(arguments)[:result]
            at = int(arguments.rsplit(",", 1)[1]) if call == "pwrite64" else places[descriptor]
            if call != "pwrite64":
                places[descriptor] = at + result
            if len(data) != result:
                raise ValueError(f"strace has shortened a write of {result} bytes")
            steps.append(Write(at, data, durable))
        elif call in ("fdatasync", "fsync"):
            steps.append(Sync())
        else:
            raise ValueError(f"a call that the disk model does not know: {line[:200]}")
    return steps


def _text(arguments: str) -> bytes:
    """All strings among the arguments of a call, joined: what it writes, or the path it opens."""
    parts = _STRING.findall(arguments)
    if any(shortened for _, shortened in parts):
        raise ValueError("strace has shortened a string")
    return b"".join(bytes.fromhex(part.replace("\\x", "")) for part, _ in parts)


class Cut(NamedTuple):
    """A moment at which the power may fail, and what the disk may hold then."""

    step: int
    disk: Disk
    told: list[dict[str, Any]]
    """What the process had reported by then."""


class Disk:
    """The file as it is on the disk for certain, and for each page what else may be there."""

    def __init__(self, content: bytes) -> None:
        self.durable = bytearray(content)
        self.pending: dict[int, list[bytes]] = {}
        """By page: the contents it had after each write since the last sync, oldest first."""

    def copy(self) -> Disk:
        """As it is now."""
        other = Disk(bytes(self.durable))
        other.pending = {page: list(contents) for page, contents in self.pending.items()}
        return other

    def write(self, step: Write) -> None:
        """Note what a write may have changed."""
        for page in range(step.offset // PAGE_BYTES, (step.offset + len(step.data) - 1) // PAGE_BYTES + 1):
            start = page * PAGE_BYTES
            content = bytearray(self._latest(page))
            first, last = max(step.offset, start), min(step.offset + len(step.data), start + PAGE_BYTES)
            content[first - start : last - start] = step.data[first - step.offset : last - step.offset]
            self.pending.setdefault(page, []).append(bytes(content))

    def sync(self, pages: Sequence[int] | None = None) -> None:
        """Make the latest content of all pages, or of these, durable."""
        for page in list(self.pending if pages is None else pages):
            content = self.pending.pop(page)[-1]
            start = page * PAGE_BYTES
            self.durable.extend(bytes(max(0, start + PAGE_BYTES - len(self.durable))))
            self.durable[start : start + PAGE_BYTES] = content

    def _latest(self, page: int) -> bytes:
        return self.pending[page][-1] if page in self.pending else self.old(page)

    def old(self, page: int) -> bytes:
        """What is on the disk for certain; zeros where the file had not been so long."""
        content = bytes(self.durable[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
        return content.ljust(PAGE_BYTES, b"\0")


def cuts(content: bytes, steps: Sequence[Step]) -> Iterator[Cut]:
    """The moments that differ: before a sync or a durable write is done, and after each report."""
    disk, told = Disk(content), list[dict[str, Any]]()
    for number, step in enumerate(steps):
        if isinstance(step, Write):
            disk.write(step)
            if step.durable:
                yield Cut(number, disk.copy(), list(told))
                disk.sync(range(step.offset // PAGE_BYTES, (step.offset + len(step.data) - 1) // PAGE_BYTES + 1))
        elif isinstance(step, Sync):
            yield Cut(number, disk.copy(), list(told))
            disk.sync()
        else:
            told.append(step.facts)
            yield Cut(number, disk.copy(), list(told))


def images(disk: Disk, rng: random.Random, limit: int) -> Iterator[bytes]:
    """What the disk may hold: every combination if there are at most `limit`, else a sample (`_telling`).

    Always also states with pages torn between sectors, and short files, which no combination of whole pages gives.
    """
    pages = sorted(disk.pending)
    choices = [[disk.old(page), *disk.pending[page]] for page in pages]
    if math.prod(map(len, choices)) <= limit:
        every: Iterator[Sequence[bytes]] = itertools.product(*choices)
    else:
        telling = _telling(choices, rng, limit)
        every = ([choice[pick] for choice, pick in zip(choices, picks, strict=True)] for picks in telling)
    for chosen in every:
        yield _image(disk, dict(zip(pages, chosen, strict=True)))
    for _ in range(min(limit // 8, 4 * len(pages))):
        torn = [_torn(rng.choice(choice), rng.choice(choice), rng) for choice in choices]
        yield _image(disk, dict(zip(pages, torn, strict=True)))
    for length in sorted({(page + 1) * PAGE_BYTES for page in pages if page * PAGE_BYTES >= len(disk.durable)}):
        whole = _image(disk, {page: choice[-1] for page, choice in zip(pages, choices, strict=True)})
        yield whole[: length - PAGE_BYTES]
        yield whole[: length - SECTOR_BYTES]


def _telling(choices: list[list[bytes]], rng: random.Random, limit: int) -> Iterator[list[int]]:
    """None written, all written, each one missing, each one alone; then at random."""
    newest = [len(choice) - 1 for choice in choices]
    yield [0] * len(choices)
    yield newest
    for at in range(len(choices)):
        yield [0 if at == other else newest[other] for other in range(len(choices))]
        yield [newest[other] if at == other else 0 for other in range(len(choices))]
    for _ in range(max(0, limit - 2 - 2 * len(choices))):
        yield [rng.randrange(len(choice)) for choice in choices]


def _torn(one: bytes, other: bytes, rng: random.Random) -> bytes:
    """A page of which some sectors are of one write and some of another."""
    starts = range(0, PAGE_BYTES, SECTOR_BYTES)
    return b"".join((one if rng.random() < 0.5 else other)[start : start + SECTOR_BYTES] for start in starts)


def _image(disk: Disk, pages: dict[int, bytes]) -> bytes:
    """The file with these pages in it; one that grew only as far as anything of it reached the disk."""
    content = bytearray(disk.durable)
    for page, new in pages.items():
        start = page * PAGE_BYTES
        if start >= len(disk.durable) and new == disk.old(page):
            continue
        content.extend(bytes(max(0, start + PAGE_BYTES - len(content))))
        content[start : start + PAGE_BYTES] = new
    return bytes(content)


# --- the scenario -----------------------------------------------------------------------------------------------------


@scenario(
    "power-cut",
    "power cut: the real writes replayed, with what was not synced missing in every way",
    "I1 I2 I3 I4 I7",
    counts="moments states_tried losses unreadable twice",
    needs=("strace",),
    times=(8, 60, 2.0),
)
def power_cuts(context: Context, findings: Findings) -> None:
    """One recorded run; the long form goes on with other seeds."""
    batches, limit = (5, 64) if context.short else (8, 256)
    with ForkServer() as server:
        for seed in (context.seed + number for number in context.rounds()):
            folder = context.folder / f"seed-{seed}"
            store, steps = record(server, folder, seed, batches)
            wanted = expected(seed, FIRST + batches + 2)
            replay(
                store, (folder / "before").read_bytes(), steps, wanted, random.Random(seed), limit, findings, context
            )
            shutil.rmtree(folder)


def record(server: ForkServer, folder: Path, seed: int, batches: int) -> tuple[Store, list[Step]]:
    """A store, and what a child did to its file while it wrote so many batches. `folder/before` is the file before."""
    store = make_store(folder / "store", seed, FIRST)
    shutil.copy(data_of(store.path), folder / "before")
    child = server.start(write, barrier="open", path=str(store.path), seed=seed, last=FIRST + batches)
    with traced(child, *_STRACE_OPTIONS, output=folder / "trace"):
        pass
    assert child.status == 0
    return store, steps_of(folder / "trace", data_of(store.path))


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
    state = copy_of(store.path, context.folder / "state")
    data = data_of(state)
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
            if broken := _structure_of(data.parent):
                findings.count("unreadable")
                findings.check("I1", False, f"{where}: {done} batches acknowledged, and {broken}")
                continue
            judge(state, wanted, done, findings, where, verify=len(tried) % VERIFY_EVERY == 1)
        if context.left_s < 0:
            return


def _structure_of(folder: Path) -> str:
    """What is wrong with the pages of an LMDB file, by a verifier that reads it without LMDB, which would abort."""
    try:
        return next(iter(lmdb_verify.verify(str(folder))), "")  # type: ignore[no-untyped-call]
    except (lmdb_verify.VerifyError, OSError) as error:
        return str(error)
