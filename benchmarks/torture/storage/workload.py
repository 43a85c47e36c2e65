"""The workload of the storage scenarios: seeded batches, what they must come to, how they are written, and the judge.

Rules kept here: everything follows from the seed. So from the seed every record of the log is known in advance,
including its hash chain. A store is right if its log is, byte for byte, the expected records up to the end of a batch
that is not before the last acknowledged one; and if it then goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

from rayfold import Command, Envelope
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import PackedCommand, pack
from rayfold.runtime.encoding.outcome import Outcome
from rayfold.runtime.errors import RayfoldError, StoreError
from rayfold.runtime.log import index_buffer
from rayfold.runtime.log.contract import Reader, WriteLog
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.store import Store, create_or_open_store, open_store
from rayfold.runtime.store.verify import verify_store
from rayfold.runtime.write.write_loop import WriteLoop

from ...harness.log_walk import PAGE_EVENTS, records_of
from ..bank import Put, Split, Take, Till
from ..contract import Findings
from ..processes import Line

TILLS: Final = 6
"""Few, so that streams get long and most commands meet a stream that is there."""

NOTE_CHARS_MAX: Final = 9_000
"""Of a note: over 4,070 bytes a record takes overflow pages of its own."""

FIRST_TICK_US: Final = 1_700_000_000_000_000

FIRST: Final = 12
"""Batches that a store has before: the indexes have more than one page then."""

ATTEMPTS_MAX: Final = 4
"""Of one batch whose append fails. A fault is injected once, so the second attempt succeeds."""

EVENTS_A_ROUND: Final = 2
"""Instead of 256: the logs here are small, and the stream index is to be behind and to catch up in them all the
same."""


# --- the batches, and what they must come to --------------------------------------------------------------------------


def batches(seed: int) -> Iterator[list[PackedCommand]]:
    """Batches of 1 to 6 commands without end, the same for the same seed. Each command id appears once."""
    rng = random.Random(seed)
    for _ in itertools.count():
        yield [_command(rng) for _ in range(rng.choice((1, 1, 2, 3, 6)))]


def _command(rng: random.Random) -> PackedCommand:
    amount = rng.randint(1, 100)
    command: Command
    kind = rng.random()
    if kind < 0.7:
        command = Put(amount=amount, note="n" * rng.choice((0, 30, 300, rng.randint(0, NOTE_CHARS_MAX))))
    else:
        command = Take(amount=amount) if kind < 0.85 else Split(amounts=(amount, 1))
    command_id = UUID(int=rng.getrandbits(128))  # random keys touch the most pages of the index of commands
    return pack(Envelope(Till, f"till-{rng.randrange(TILLS)}", command, command_id))[0]


def clock() -> Callable[[], int]:
    """A clock that every log of the workload gets: the same times whenever and wherever it runs."""
    return lambda: FIRST_TICK_US


@cache
def _catalogue() -> Catalogue:
    return Catalogue([Till])


def write_loop(log: WriteLog) -> WriteLoop:
    """The real write loop over a log, activated."""
    loop = WriteLoop(0, log, _catalogue())
    loop.activate()
    return loop


class Expected(NamedTuple):
    """What the first batches of a seed must come to."""

    batches: list[list[PackedCommand]]
    outcomes: list[list[Outcome]]
    """Of each batch, in order."""
    records: list[bytes]
    """The whole log."""
    ends: list[int]
    """`ends[n]`: how many records there are after n batches."""

    def batches_in(self, records: Sequence[bytes]) -> int | None:
        """How many whole batches these records are, byte for byte; None if they are anything else.

        Batches that store nothing count as done: they cannot be distinguished from batches that are still to come.
        """
        if list(records) != self.records[: len(records)] or len(records) not in self.ends:
            return None
        return len(self.ends) - 1 - self.ends[::-1].index(len(records))


@cache
def expected(seed: int, count: int) -> Expected:
    """What the first `count` batches of a seed must come to, from the memory log."""
    loop = write_loop(MemoryLog(clock()))
    result = Expected(list(islice(batches(seed), count)), [], [], [0])
    for batch in result.batches:
        done = loop.execute(batch)
        result.outcomes.append(done.outcomes)
        result.records.extend(done.records)
        result.ends.append(len(result.records))
    assert any(isinstance(one, Receipt) for outcomes in result.outcomes for one in outcomes)
    return result


# --- stores with it ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def short_turns() -> Iterator[None]:
    """The stream index catches up after a few events meanwhile (`runtime/log/index_buffer.py`)."""
    before, index_buffer.EVENTS_A_ROUND = index_buffer.EVENTS_A_ROUND, EVENTS_A_ROUND
    try:
        yield
    finally:
        index_buffer.EVENTS_A_ROUND = before


def open_clocked(store: Store, partition: int = 0, **options: Any) -> LmdbLog:
    """The log of a partition, with the clock of the workload."""
    path, identity = store.partition_path(partition), store.identity(partition)
    return open_log(path, f"partition {partition}", identity=identity, create=False, now_us=clock(), **options)


@short_turns()
def make_store(path: Path, seed: int, count: int, partitions: int = 1) -> Store:
    """A new store with the first `count` batches in it: of the seed, and of those after it in further partitions."""
    store = create_or_open_store(path, partitions)
    for partition in range(partitions):
        log = open_clocked(store, partition)
        loop = write_loop(log)
        for batch in islice(batches(seed + partition), count):
            loop.execute(batch)
        log.close()
    return store


def copy_of(store: Path, path: Path) -> Path:
    """A copy of a store that is not in use, in place of an earlier one."""
    shutil.rmtree(path, ignore_errors=True)
    return Path(shutil.copytree(store, path))


def data_of(store: Path, partition: int = 0) -> Path:
    """The file with the log of a partition."""
    return store / f"partition-{partition:05d}" / "data.mdb"


def plain(outcome: Outcome | RayfoldError) -> list[Any]:
    """An outcome as a child reports it."""
    if isinstance(outcome, Receipt):
        return ["Receipt", outcome.position, outcome.version]
    return [type(outcome).__name__, str(outcome)]


def everything(reader: Reader) -> list[bytes]:
    """All records of a log."""
    return list(records_of(reader))


@short_turns()
def write(
    report: Any, *, path: str, seed: int, last: int, barrier: str = "", ended: Callable[[int], bool] = lambda _: False
) -> None:
    """A job: write the batches `FIRST..last - 1`, report each once it is acknowledged, and try again what failed.

    `barrier`: where to wait for the scenario: before the log is opened (`open`), or before the first batch
    (`batch`). `ended` is asked before each batch whether that is enough.
    """
    store = open_store(path)
    if barrier == "open":
        report.wait_at_barrier()
    log, loop = _take_over(report, store)
    if barrier == "batch":
        report.wait_at_barrier()
    for number, batch in enumerate(islice(batches(seed), FIRST, last), FIRST):
        if ended(number):
            break
        outcomes = loop.execute(batch).outcomes
        for _ in range(ATTEMPTS_MAX):
            failed = next((one for one in outcomes if isinstance(one, StoreError)), None)
            if failed is None:
                break
            head = log.head()
            served = len(log.read(0, PAGE_EVENTS)) == min(head, PAGE_EVENTS)
            report.send(failed=number, error=plain(failed), head=head, served=served)
            outcomes = loop.execute(batch).outcomes
        report.send(acknowledged=number, outcomes=[plain(one) for one in outcomes])
    log.close()


def _take_over(report: Any, store: Store) -> tuple[LmdbLog, WriteLoop]:
    """The log, activated; what fails is reported and tried again, as a partition's actor is started again."""
    for _ in range(ATTEMPTS_MAX):
        try:
            log = open_clocked(store)
        except StoreError as error:
            report.send(failed="open", error=plain(error))
            continue
        try:
            return log, write_loop(log)
        except StoreError as error:
            report.send(failed="activate", error=plain(error))
            log.close()
    raise AssertionError("a log cannot be opened, though the fault was injected once")


# --- the judge --------------------------------------------------------------------------------------------------------


def acknowledged(lines: list[Line], wanted: Expected, findings: Findings, done: int = 0) -> int:
    """How many batches are acknowledged for certain, `done` at least; every outcome that was reported is compared
    with the expected one."""
    for line in lines:
        if "acknowledged" in line:
            number = line["acknowledged"]
            right = [plain(one) for one in wanted.outcomes[number]]
            findings.check("I1", line["outcomes"] == right, f"batch {number}: {line['outcomes']}, not {right}")
            done = number + 1
    return done


def judge(store: Path, wanted: Expected, done: int, findings: Findings, where: str, *, verify: bool = True) -> None:
    """Whether the store holds what was acknowledged and nothing that was not sent, and goes on from there.

    `done` batches are acknowledged for certain. Counts `losses`, `unreadable`, `sent_again` and `twice`, and checks
    I1, I2, I3 (if it is to be verified), I4 and I7.
    """
    where_done = f"{where}: {done} batches acknowledged"
    try:
        log = open_clocked(open_store(store))
    except RayfoldError as error:
        findings.count("losses" if done else "unreadable")
        findings.check("I1", False, f"{where_done}, and the log cannot be opened: {error}")
        return
    try:
        records = everything(log)
        whole = wanted.batches_in(records)
        kept = whole is not None and whole >= done
        findings.count("losses", 0 if kept else 1)
        findings.check("I1", kept, lambda: f"{where_done}, the log holds {_held(wanted, records)}")
        findings.check("I4", whole is not None, lambda: f"{where}: the log holds {_held(wanted, records)}")
        if whole is not None:
            _go_on(log, wanted, whole, findings, where)
    except RayfoldError as error:
        findings.count("losses")
        findings.check("I1", False, f"{where_done}, and the log cannot be read: {error}")
    finally:
        log.close()
    if verify:
        problems = verify_store(store).problems
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
