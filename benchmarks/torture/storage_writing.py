"""Writing the workload to a real store, reading back what is there, and judging it: shared by the storage scenarios.

Rule kept here: a store is right if its log is, byte for byte, the expected records up to the end of a batch that is not
before the last acknowledged one; and if it then goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from rayfold.runtime.encoding.outcome import Outcome
from rayfold.runtime.errors import RayfoldError, StoreError
from rayfold.runtime.log import index_buffer
from rayfold.runtime.log.contract import Reader
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.check import verify_store
from rayfold.runtime.store.store import Store, create_or_open_store, open_store
from rayfold.runtime.write.write_loop import WriteLoop

from .contract import Findings
from .storage_child import Line
from .storage_workload import Expected, batches, clock, expected, write_loop

__all__ = ["acknowledged", "everything", "judge", "make_store", "open_clocked", "plain", "short_turns", "write"]

ATTEMPTS_MAX: Final = 4
"""Of one batch whose append fails. A fault is injected once, so the second attempt succeeds."""

PAGE_EVENTS: Final = 1_000

EVENTS_A_TURN: Final = 2
"""Instead of 256: the logs here are small, and the stream index is to be behind and to catch up in them all the
same."""


@contextlib.contextmanager
def short_turns() -> Iterator[None]:
    """The stream index catches up after a few events meanwhile (`runtime/log/index_buffer.py`)."""
    before, index_buffer.EVENTS_A_TURN = index_buffer.EVENTS_A_TURN, EVENTS_A_TURN
    try:
        yield
    finally:
        index_buffer.EVENTS_A_TURN = before


def open_clocked(store: Store, partition: int = 0) -> LmdbLog:
    """The log of a partition, with the clock of the workload."""
    path, identity = store.partition_path(partition), store.identity(partition)
    return open_log(path, f"partition {partition}", identity=identity, create=False, now_us=clock())


@short_turns()
def make_store(path: Path, seed: int, count: int) -> Store:
    """A new store with the first `count` batches of the seed in it."""
    store = create_or_open_store(path, 1)
    log = open_clocked(store)
    loop = write_loop(log)
    for batch in islice(batches(seed), count):
        loop.execute(batch)
    log.close()
    return store


def plain(outcome: Outcome | RayfoldError) -> list[Any]:
    """An outcome as a child reports it."""
    if isinstance(outcome, Receipt):
        return ["Receipt", outcome.position, outcome.version]
    return [type(outcome).__name__, str(outcome)]


@short_turns()
def write(
    report: Any,
    *,
    path: str,
    seed: int,
    first: int,
    last: int,
    gate: str = "",
    ended: Callable[[int], bool] = lambda _: False,
) -> None:
    """A job: write the batches `first..last - 1`, report each once it is acknowledged, and try again what failed.

    `gate` says where to wait for the scenario: before the log is opened (`open`), or before the first batch (`batch`).
    `ended` is asked before each batch whether that is enough.
    """
    store = open_store(path)
    if gate == "open":
        report.wait_at_gate()
    log, loop = _opened(report, store)
    if gate == "batch":
        report.wait_at_gate()
    for number, batch in enumerate(islice(batches(seed), first, last), first):
        if ended(number):
            break
        outcomes = loop.execute(batch).outcomes
        for _ in range(ATTEMPTS_MAX):
            failed = next((one for one in outcomes if isinstance(one, StoreError)), None)
            if failed is None:
                break
            head = log.head()
            served = len(log.read(0, PAGE_EVENTS)) == min(head, PAGE_EVENTS)
            report.say(failed=number, error=plain(failed), head=head, served=served)
            outcomes = loop.execute(batch).outcomes
        report.say(acknowledged=number, outcomes=[plain(one) for one in outcomes])
    log.close()


def _opened(report: Any, store: Store) -> tuple[LmdbLog, WriteLoop]:
    """The log, taken over; what fails is reported and tried again, as a partition's actor is started again."""
    for _ in range(ATTEMPTS_MAX):
        try:
            log = open_clocked(store)
        except StoreError as error:
            report.say(failed="open", error=plain(error))
            continue
        try:
            return log, write_loop(log)
        except StoreError as error:
            report.say(failed="activate", error=plain(error))
            log.close()
    raise AssertionError("a log cannot be opened, though the fault was injected once")


def acknowledged(lines: list[Line], seed: int, count: int, findings: Findings) -> int:
    """How many batches are acknowledged for certain; every outcome that was told is compared with the expected one."""
    wanted, done = expected(seed, count), 0
    for line in lines:
        if "acknowledged" in line:
            number = line["acknowledged"]
            right = [plain(one) for one in wanted.outcomes[number]]
            findings.check("I1", line["outcomes"] == right, f"batch {number}: {line['outcomes']}, not {right}")
            done = number + 1
    return done


def everything(reader: Reader) -> list[bytes]:
    """All records of a log."""
    records: list[bytes] = []
    while more := reader.read(len(records), PAGE_EVENTS):
        records += more
    return records


def judge(store: Store, wanted: Expected, done: int, findings: Findings, where: str, *, verify: bool = True) -> None:
    """Whether the store holds what was acknowledged and nothing that was not sent, and goes on from there.

    `done` batches are acknowledged for certain. Counts `losses`, `unreadable`, `sent_again` and `twice`, and looks at
    I1, I2, I3 (if it is to be verified), I4 and I7.
    """
    try:
        log = open_clocked(store)
    except RayfoldError as error:
        findings.count("losses" if done else "unreadable")
        findings.check("I1", False, f"{where}: {done} batches acknowledged, and the log cannot be opened: {error}")
        return
    try:
        records = everything(log)
        whole = wanted.batches_in(records)
        kept = whole is not None and whole >= done
        findings.count("losses", 0 if kept else 1)
        findings.check(
            "I1", kept, lambda: f"{where}: {done} batches acknowledged, the log holds {_held(wanted, records)}"
        )
        findings.check("I4", whole is not None, lambda: f"{where}: the log holds {_held(wanted, records)}")
        if whole is not None:
            _go_on(log, wanted, whole, findings, where)
    except RayfoldError as error:
        findings.count("losses")
        findings.check("I1", False, f"{where}: {done} batches acknowledged, and the log cannot be read: {error}")
    finally:
        log.close()
    if verify:
        problems = verify_store(store.path).problems
        findings.check("I3", not problems, lambda: f"{where}: verify finds {problems[0]}")


def _held(wanted: Expected, records: list[bytes]) -> str:
    common = next((i for i, (a, b) in enumerate(zip(records, wanted.records, strict=False)) if a != b), len(records))
    batch = sum(end <= common for end in wanted.ends) - 1
    return f"{len(records)} records, right up to {common} (batch {batch} ends at {wanted.ends[batch]})"


def _go_on(log: LmdbLog, wanted: Expected, whole: int, findings: Findings, where: str) -> None:
    """Send again what is stored, then what is not: repeats get their first receipts, and the log ends as expected."""
    loop = write_loop(log)
    repeated = twice = 0
    for number in range(max(0, whole - 2), whole):  # the last two: those whose acknowledgement may have been lost
        first = [one for one in wanted.outcomes[number] if isinstance(one, Receipt)]
        ids = {one.command_bytes for one in first}
        again = loop.execute([one for one in wanted.batches[number] if one.command_id in ids])
        repeated += len(again.outcomes)
        twice += len(again.records)
        right = again.outcomes == [one._replace(repeated=True) for one in first]
        findings.check("I2", right and not again.records, lambda: f"{where}: sent again: {again.outcomes}, not {first}")  # noqa: B023
    findings.count("sent_again", repeated)
    findings.count("twice", twice)
    outcomes = [list(map(plain, loop.execute(batch).outcomes)) for batch in wanted.batches[whole:]]
    right = outcomes == [list(map(plain, one)) for one in wanted.outcomes[whole:]]
    held = everything(log)
    findings.check("I1", right, lambda: f"{where}: after batch {whole} it does not go on as it should: {outcomes}")
    findings.check("I7", held == wanted.records, lambda: f"{where}: in the end the log holds {_held(wanted, held)}")
