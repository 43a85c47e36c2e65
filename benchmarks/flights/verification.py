"""The verification: whether a run came to what it had to come to.

Rule kept here: nothing is taken on trust from the runtime that ran. The read models are held against the oracle, what
callers were answered against the oracle and against the log. The log is read from its files after everything that wrote
them has ended; on a cluster, where the files are on several machines, as any program of the cluster reads it.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rayfold import RayfoldError, Receipt, Recorded, Rejected, Subscription, Unavailable
from rayfold.runtime.encoding.codec import decode_payload
from rayfold.runtime.log.contract import Reader, StoredEvent
from rayfold.runtime.store.report import Report
from rayfold.runtime.store.store import open_store
from rayfold.runtime.stream import is_reserved

from ..harness.log_walk import events_of
from .compensation import Authority, Claim, Fund, Noted, Paid
from .domain import Timetable
from .feed import Feed
from .oracle import Expected, Table
from .visitors import GuestBook

_SHOWN_MAX: Final = 5
"""Differences that are put into words; of the others only the number is given."""

_KEY_FIELDS: Final = {"Punctuality": 1, "Routes": 2, "AirportHours": 2, "Distances": 1, "Delays": 3, "Claims": 1}
"""How many of the first fields of a row are its key."""

_OF_NO_FLIGHT: Final = {one.aggregate_type for one in (GuestBook, Timetable, Claim, Fund, Authority)}
"""Whose events are in the log beside those of the flights."""

_NONE_BEFORE: Final[Mapping[int, int]] = {}

_SETTLING: Final = {Paid.message_name, Noted.message_name}
"""The events of which each claim has one."""

LATER_REASON: Final = "time_ran_backwards"
"""The reason that a refused command may get instead of its first one when it is decided a second time, after later
commands to the same aggregate: in a second run, or when the first answer was lost with a killed process."""


def _ignore(done: int) -> None:
    """For a walk whose progress is not shown."""


class Ledger:
    """What each command was answered, by its number in the feed.

    One line for each, and a receipt is never overwritten by anything else. What the log is held against at the end is
    what the callers were answered, not what the runtime has noted. About 20 bytes a command, so that a year fits.
    """

    def __init__(self, commands: int) -> None:
        self.partition = array("i", bytes(4 * commands))
        """Where the events are by their receipts; meaningless where `position` is 0."""
        self.position = array("q", bytes(8 * commands))
        self.version = array("q", bytes(8 * commands))
        self.streams: list[str] = [""] * commands
        self.told = 0
        """How many commands have an answer that settles them."""
        self.accepted = 0
        self.repeated = 0
        """How many of the accepted were stored by an earlier run, or by an earlier try whose answer was lost."""
        self.rejected: dict[int, str] = {}
        """The reason, by the number of the command."""
        self.unanswered: list[int] = []
        """Commands of which it is unknown whether they took effect: they are sent again under the same id."""
        self.failures: list[str] = []
        """Answers that no flight should get, the first few in words."""

    def note(self, number: int, outcome: Receipt | RayfoldError) -> None:
        """Write down what the command of this number was answered."""
        if isinstance(outcome, Unavailable):
            self.unanswered.append(number)
            return
        self.told += 1
        if isinstance(outcome, Receipt):
            self._accept(number, outcome)
        elif isinstance(outcome, Rejected):
            self.rejected[number] = outcome.reason
        else:
            self.failures.append(str(outcome))

    @property
    def rejected_by_reason(self) -> dict[str, int]:
        """How often each reason was given, the most frequent first."""
        return dict(Counter(self.rejected.values()).most_common())

    def take_unanswered(self) -> list[int]:
        """The commands to send again, in their order; the list begins anew."""
        numbers, self.unanswered = self.unanswered, []
        return numbers

    def _accept(self, number: int, receipt: Receipt) -> None:
        assert self.position[number] == 0, f"command {number} was answered twice"
        self.partition[number] = receipt.partition
        self.position[number] = receipt.position
        self.version[number] = receipt.version
        self.streams[number] = str(receipt.stream)
        self.accepted += 1
        self.repeated += receipt.repeated


@dataclass(slots=True)
class Check:
    """One thing that was checked: what, how much of it, and what is wrong with it."""

    name: str
    compared: str = ""
    problems: list[str] = field(default_factory=list)
    found: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.found

    def complain(self, problem: str) -> None:
        """Count a problem; the first few are kept in words."""
        self.found += 1
        if len(self.problems) < _SHOWN_MAX:
            self.problems.append(problem)


@dataclass(slots=True)
class LogFacts:
    """What the log holds of the flights, and of whatever else."""

    events: int = 0
    """Of flights."""
    before: int = 0
    """Of these, that were stored before this run."""
    duplicates: int = 0
    """Events of a command id that the log had already."""
    streams: int = 0
    """Of airports and aircraft."""
    signatures: int = 0
    """Of visitors, in the guest books. The ledger does not have them."""
    claims: int = 0
    """That were opened."""


def check_figures(name: str, expected: Table, rows: Iterable[Any]) -> Check:
    """Each row of a read model against the oracle's, figure by figure."""
    check = Check(f"read model {name}")
    got = {tuple(row.values())[: _KEY_FIELDS[name]]: row for row in map(asdict, rows)}
    for key in sorted(expected.keys() | got.keys()):
        label = " ".join(map(str, key))
        if key not in got:
            check.complain(f"{label} is missing")
        elif key not in expected:
            check.complain(f"{label} should not be there")
        else:
            for figure, value in expected[key].items():
                if got[key][figure] != value:
                    check.complain(f"{label}: {figure} is {got[key][figure]:,}, in the table {value:,}")
    figures = sum(len(row) for row in expected.values())
    check.compared = f"{len(expected):,} rows, {figures:,} figures"
    return check


def check_answers(expected: Expected, feed: Feed, ledger: Ledger, *, asked_again: bool) -> Iterator[Check]:
    """What callers were answered: one answer for each command, and exactly the refusals that the oracle knows.

    `asked_again`: commands may have been decided a second time, because of an earlier run or a killed process.
    """
    answered = Check("every command has its answer", f"{len(feed):,} commands")
    for failure in ledger.failures:
        answered.complain(failure)
    for number in ledger.unanswered:
        answered.complain(f"{_named(feed, number)} was never answered")
    if ledger.told != len(feed) or len(feed) != expected.commands:
        answered.complain(f"{ledger.told:,} answers, {len(feed):,} commands, in the table {expected.commands:,}")
    yield answered
    refusals = Check("refused is what had to be", f"{len(expected.refused):,} refusals, one by one")
    told = {feed.step(number): (number, reason) for number, reason in ledger.rejected.items()}
    for key in sorted(told.keys() - expected.refused.keys()):
        number, reason = told[key]
        refusals.complain(f"{_named(feed, number)} was refused as {reason}, the table has nothing against it")
    for key, reason in sorted(expected.refused.items()):
        if key not in told:
            refusals.complain(f"flight {key[0]} {key[1]} was not refused, by the table it is {reason}")
        elif told[key][1] not in (reason, LATER_REASON if asked_again else reason):
            refusals.complain(f"{_named(feed, told[key][0])} was refused as {told[key][1]}, not as {reason}")
    yield refusals


def check_log(
    path: Path,
    feed: Feed,
    ledger: Ledger,
    on_event: Callable[[int], None] = _ignore,
    heads_before: Mapping[int, int] = _NONE_BEFORE,
) -> LogCheck:
    """Walk every event of every partition, in the files, and hold it against the receipts."""
    store = open_store(path)
    found = LogCheck(feed, ledger, heads_before)
    for partition in range(store.partitions):
        with closing(store.open_reader(partition)) as reader:
            found.partition(partition, reader, on_event)
    found.finish()
    return found


async def walk(
    events: Subscription,
    heads: Mapping[int, int],
    feed: Feed,
    ledger: Ledger,
    on_event: Callable[[int], None] = _ignore,
    heads_before: Mapping[int, int] = _NONE_BEFORE,
) -> LogCheck:
    """The same with what a subscription from the beginning delivers, up to these positions: all but what Rayfold itself
    has stored. Whether there are gaps in the logs is for their nodes to verify."""
    found = LogCheck(feed, ledger, heads_before, whole=False)
    batches = events.batches()
    while any(events.positions[partition] < head for partition, head in heads.items()):
        for event, recorded in await anext(batches):
            found.event(recorded.partition, recorded, getattr(event, "claim", ""))
        on_event(found.walked)
    found.finish()
    return found


def check_store(report: Report) -> Check:
    """What `rayfold verify` does: structure, checksums, hash chain, indexes."""
    events = sum(partition.events for partition in report.partitions)
    check = Check("structure, checksums, hash chain, indexes", f"{events:,} events")
    for partition in report.partitions:
        for problem in partition.problems:
            check.complain(f"partition {problem.partition} {problem.database} {problem.key}: {problem.what}")
    return check


class LogCheck:
    """The walk through the log, and what it found."""

    def __init__(
        self, feed: Feed, ledger: Ledger, heads_before: Mapping[int, int] = _NONE_BEFORE, *, whole: bool = True
    ) -> None:
        """`heads_before`: of the partitions, before this run. `whole`: all that is stored comes, also what Rayfold has
        stored for itself."""
        self.facts = LogFacts()
        self.contiguous = Check("positions and versions have no gaps")
        self.lost = Check("nothing lost")
        self.extra = Check("nothing twice")
        self.settled = Check("each claim paid, or noted as owed, once")
        self.walked = 0
        """Events so far."""
        self._feed = feed
        self._ledger = ledger
        self._heads_before, self._whole = heads_before, whole
        self._before: dict[int, bytes] = {}
        """The id of the command of the event before, by partition: a process may store several events at once."""
        self._opened: set[str] = set()
        self._settling: Counter[str] = Counter()
        """By claim, how many events have settled it."""
        self._positions: dict[int, int] = {}
        self._versions: dict[str, int] = {}
        self._ids: set[bytes] = set()
        self._acknowledged: Mapping[tuple[int, int], int] = {
            (ledger.partition[number], position): number for number, position in enumerate(ledger.position) if position
        }
        self._seen = 0

    @property
    def checks(self) -> list[Check]:
        """The four things that the walk checks."""
        return [self.lost, self.extra, self.settled, self.contiguous]

    def partition(self, partition: int, log: Reader, on_event: Callable[[int], None] = _ignore) -> None:
        """Walk one partition."""
        position = 0
        for stored in events_of(log):
            self.event(partition, stored, _claim_of(stored))
            position = stored.position
            on_event(self.walked)
        if position != log.head():
            self.contiguous.complain(f"partition {partition} reads to {position}, but its head is {log.head()}")

    def event(self, partition: int, stored: StoredEvent | Recorded, claim: str = "") -> None:
        """The next event of a partition: its place, and the command that it came from. `claim`: that it settles."""
        self.walked += 1
        self._contiguous(partition, stored)
        self._acknowledged_once(partition, stored)
        if claim:
            self._settling[claim] += 1
        elif stored.stream.type == Claim.aggregate_type:
            self._opened.add(stored.stream.id)

    def finish(self) -> None:
        """Sum up, once all partitions are walked."""
        missing = self._ledger.accepted - self._seen
        if missing:
            self.lost.complain(f"{missing:,} acknowledged events are not at the positions of their receipts")
        for claim in sorted(self._opened | self._settling.keys()):
            if self._settling[claim] != 1 or claim not in self._opened:
                was = "opened" if claim in self._opened else "never opened"
                self.settled.complain(f"{claim} was {was}, and settled {self._settling[claim]} times")
        self.facts.claims = len(self._opened)
        self.settled.compared = f"{len(self._opened):,} claims"
        self.lost.compared = f"{self._ledger.accepted:,} receipts, each against its event"
        self.extra.compared = f"{self.walked:,} events, {self.facts.duplicates:,} duplicates"
        self.contiguous.compared = f"{self.walked:,} events in {len(self._versions):,} streams"

    def _contiguous(self, partition: int, stored: StoredEvent | Recorded) -> None:
        before = self._positions.get(partition, 0)
        if stored.position != before + 1 and (self._whole or stored.position <= before):
            self.contiguous.complain(f"partition {partition}: position {stored.position} follows {before}")
        self._positions[partition] = stored.position
        if is_reserved(stored.stream.type):  # one of that name in each partition
            return
        stream = str(stored.stream)
        last = self._versions.get(stream, 0)
        with_gaps = not self._whole and stored.stream.type == Claim.aggregate_type
        if stored.version != last + 1 and not (with_gaps and stored.version > last):
            self.contiguous.complain(f"{stream}: version {stored.version} follows {last}")
        self._versions[stream] = stored.version
        self.facts.streams += not last and stored.stream.type not in _OF_NO_FLIGHT

    def _acknowledged_once(self, partition: int, stored: StoredEvent | Recorded) -> None:
        before, self._before[partition] = self._before.get(partition), stored.command_id
        of_one_step = stored.stream.type == Claim.aggregate_type and stored.command_id == before
        if stored.command_id in self._ids and not of_one_step:
            self.facts.duplicates += 1
            self.extra.complain(f"{stored.stream} version {stored.version} repeats a command that is stored already")
        self._ids.add(stored.command_id)
        if stored.stream.type in _OF_NO_FLIGHT or is_reserved(stored.stream.type):
            self.facts.signatures += stored.stream.type == GuestBook.aggregate_type
            return
        self.facts.events += 1
        self.facts.before += stored.position <= self._heads_before.get(partition, 0)
        number = self._acknowledged.get((partition, stored.position))
        if number is None:
            where = f"partition {partition} position {stored.position}"
            self.extra.complain(f"{where} ({stored.stream} version {stored.version}) was never acknowledged")
        elif self._is_receipt_of(number, stored):
            self._seen += 1
        else:
            self.lost.complain(f"{_named(self._feed, number)} was acknowledged, but another event is in its place")

    def _is_receipt_of(self, number: int, stored: StoredEvent | Recorded) -> bool:
        return (
            stored.command_id == self._feed.command_id(number).bytes
            and stored.version == self._ledger.version[number]
            and str(stored.stream) == self._ledger.streams[number]
        )


def _claim_of(stored: StoredEvent) -> str:
    """The claim that an event settles; empty for others."""
    if stored.name not in _SETTLING:
        return ""
    claim: str = decode_payload(stored.payload, stored.name)["claim"]
    return claim


def _named(feed: Feed, number: int) -> str:
    envelope = feed.envelope(number)
    return f"{envelope.command.message_name} to {envelope.aggregate.aggregate_type}/{envelope.id}"
