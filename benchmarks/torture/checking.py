"""The checks after a scenario: a walk over the logs, record by record, against the history and the read models.

Rules kept here: the log is read past all actors, and each record is decoded; nothing that wrote it is asked what it
wrote. Each look is counted, so that a check over nothing is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgpack

from rayfold import Envelope
from rayfold.actors.api.session import Session
from rayfold.runtime.checks.agendas import verify_with_agendas
from rayfold.runtime.errors import RayfoldError, Unavailable
from rayfold.runtime.log.contract import StoredEvent
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.readable_store import ReadableStore
from rayfold.runtime.store.report import Report
from rayfold.runtime.store.store import Store

from ..harness.log_walk import PAGE_EVENTS, records_of
from .bank import Jar, Put, Total, Totals
from .contract import Findings
from .history import Entry, History, Sender, is_refused

_LOOK_S: Final = 0.02
"""How often the watcher reads."""

_RETRY_S: Final = 0.05


def stored_records(store: ReadableStore, partition: int) -> Iterator[bytes]:
    """Every record of a partition, in order."""
    with contextlib.closing(store.open_reader(partition)) as reader:
        yield from records_of(reader)


def stored_events(store: ReadableStore) -> dict[int, list[StoredEvent]]:
    """Partition -> its events. Raises `Damaged` for a record whose checksum is wrong."""
    return {number: [decode_record(one) for one in stored_records(store, number)] for number in range(store.partitions)}


def fold_of(events: Mapping[int, list[StoredEvent]]) -> dict[str, list[int]]:
    """Stream -> coins and number of events: what `Totals` must be, without any code of it."""
    totals: dict[str, list[int]] = {}
    for stored in (one for log in events.values() for one in log):
        total = totals.setdefault(str(stored.stream), [0, 0])
        amount = msgpack.unpackb(stored.payload)["amount"]
        total[0] += amount if stored.name == "PutIn" else -amount
        total[1] += 1
    return totals


def check_read_model(
    name: str, answered: Mapping[str, list[int]], events: Mapping[int, list[StoredEvent]], findings: Findings
) -> None:
    """I5: what a read model has answered at the end of the log is the fold of the log."""
    expected = fold_of(events)
    wrong = [stream for stream in expected.keys() | answered.keys() if expected.get(stream) != answered.get(stream)]
    findings.check("I5", not wrong, f"{name} differs from the log at {wrong[:3]}")


async def read_own_writes(
    session: Session,
    sender: Sender,
    jar: str,
    stop: asyncio.Event,
    findings: Findings,
    unanswered: Callable[[RayfoldError], None],
    timeout_s: float,
) -> None:
    """I9: a session writes to a jar of its own and reads it until `stop`: its own writes are there, and nothing goes
    back."""
    least = 0
    while not stop.is_set():
        await sender.history.going.wait()
        entry = await sender.send(Envelope(Jar, jar, Put(amount=1, note=jar)))
        if isinstance(entry.outcome, Receipt):
            session.join(entry.outcome)
            least = max(least, entry.outcome.version)
        else:
            await asyncio.sleep(_RETRY_S)
        try:
            _, events = await session.ask(Totals, Total(jar=f"Jar/{jar}"), timeout_s=timeout_s)
        except RayfoldError as error:
            unanswered(error)
            continue
        findings.count("session_reads")
        findings.check("I9", events >= least, f"{jar}: {events} events seen, after {least} were seen or written")
        least = max(least, events)


def check_log(
    store: ReadableStore, history: History, findings: Findings, *, others: int = 0
) -> dict[int, list[StoredEvent]]:
    """I1 to I4, I7 and I8 over the whole store; returns its events. `others`: events that other
    programs may have added beside the history. A store in one directory is verified too; the shares of one on several
    nodes are verified by their nodes (`check_report`)."""
    for name in ("commands", "acknowledged", "repeated", "unknown", "refused", "lost", "twice"):
        findings.count(name, 0)
    if isinstance(store, Store):
        check_report(verify_with_agendas(store.path), findings)
    try:
        events = stored_events(store)
    except RayfoldError as error:
        findings.violate("I10", f"the log cannot be read: {error}")
        return {}
    for partition, log in events.items():
        _check_order(partition, log, findings)
    _check_effects(events, history, findings, others)
    _check_real_time(history, findings)
    return events


def check_report(report: Report, findings: Findings) -> None:
    """I1: what `verify` has found."""
    findings.check("I1", report.ok, lambda: f"verify: {report.problems[:3]}")


def _check_order(partition: int, log: list[StoredEvent], findings: Findings) -> None:
    """Positions 1..n, and the versions of each stream 1..n."""
    versions: dict[Any, int] = {}
    for position, stored in enumerate(log, 1):
        where = f"partition {partition}, position {position}"
        findings.check("I4", stored.position == position, f"{where}: the record has {stored.position}")
        version = versions.get(stored.stream, 0) + 1
        versions[stored.stream] = stored.version
        findings.check("I3", stored.version == version, f"{where}: {stored.stream} {stored.version}, not {version}")


def _check_effects(events: Mapping[int, list[StoredEvent]], history: History, findings: Findings, others: int) -> None:
    """What was acknowledged is at the position of its receipt; nothing took effect twice, or after it was refused."""
    effects = Counter(stored.command_id for log in events.values() for stored in log)
    for entry in history.entries:
        findings.count("commands")
        times = effects.pop(entry.packed.command_id, 0)
        name = f"{entry.packed.stream} command {entry.packed.command_id.hex()}"
        if not findings.check("I2", times <= 1, f"{name} took effect {times} times"):
            findings.count("twice")
        if isinstance(entry.outcome, Receipt):
            findings.count("acknowledged")
            findings.count("repeated", entry.outcome.repeated)
            _check_receipt(events, entry, entry.outcome, findings, name)
        elif is_refused(entry):
            findings.count("refused")
            findings.check("I7", not times, f"{name} was refused and is in the log")
        else:
            findings.count("unknown")
    strangers = sum(effects.values())
    findings.check("I7", strangers <= others, f"{strangers} events in the log that were not sent, {others} expected")


def _check_receipt(
    events: Mapping[int, list[StoredEvent]], entry: Entry, receipt: Receipt, findings: Findings, name: str
) -> None:
    log = events[receipt.partition]
    stored = log[receipt.position - 1] if receipt.position <= len(log) else None
    sent = msgpack.unpackb(entry.packed.payload)
    there = stored is not None and (stored.stream, stored.version, stored.command_id) == (
        receipt.stream,
        receipt.version,
        entry.packed.command_id,
    )
    if stored is not None and there and "amount" in sent:
        kept = msgpack.unpackb(stored.payload)
        there = (kept["amount"], kept["note"]) == (sent["amount"], sent.get("note", ""))
    if not findings.check("I1", there, f"{name} was acknowledged at {receipt.partition}:{receipt.position}, not there"):
        findings.count("lost")
    for again in entry.repeats:
        same = (again.partition, again.position, again.version) == receipt[1:4] and again.repeated
        findings.check("I2", same, f"{name} got {receipt} and, when it was sent again, {again}")


def _check_real_time(history: History, findings: Findings) -> None:
    """I8: what was acknowledged before another command of the stream was sent has the lower version."""
    streams: dict[Any, list[tuple[Entry, int]]] = defaultdict(list)
    for entry, receipt in history.acknowledged():
        streams[receipt.stream].append((entry, receipt.version))
    for stream, known in streams.items():
        told = sorted(known, key=lambda one: one[0].told_s)
        highest = index = 0
        for entry, version in sorted(known, key=lambda one: one[0].sent_s):
            while told[index][0].told_s < entry.sent_s:
                highest = max(highest, told[index][1])
                index += 1
            findings.check("I8", version > highest, f"{stream}: {highest} was acknowledged before {version} was sent")


class Watcher(threading.Thread):
    """A reader beside everything that happens: what it has seen has to be the beginning of the log at the end."""

    def __init__(self, store: ReadableStore, look_s: float = _LOOK_S) -> None:
        super().__init__(name="torture-watcher", daemon=True)
        self.seen: list[list[int]] = [[] for _ in range(store.partitions)]
        """Of each partition: a checksum of each record. Bounded by the history."""
        self.failed = ""
        """Why it has stopped to look, if it has."""
        self._store = store
        self._look_s = look_s
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        """Read what is new, again and again."""
        readers = [self._store.open_reader(number) for number in range(self._store.partitions)]
        try:
            while not self._ended.wait(self._look_s):
                for reader, seen in zip(readers, self.seen, strict=True):
                    with contextlib.suppress(Unavailable):  # its home is another node, which is away and will be back
                        seen += map(zlib.crc32, reader.read(len(seen), PAGE_EVENTS))
        except RayfoldError as error:
            self.failed = str(error)
        finally:
            for reader in readers:
                reader.close()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()

    def end(self, findings: Findings) -> None:
        """Stop, and check what was seen."""
        self.stop()
        check_seen(self.seen, self.failed, self._store, findings)


def check_seen(seen: Sequence[Sequence[int]], failed: str, store: ReadableStore, findings: Findings) -> None:
    """I4: what a reader has read beside the writers is a prefix of the log as it is now."""
    findings.check("I4", not failed, f"a reader beside the writers failed: {failed}")
    for partition, read in enumerate(seen):
        longer = len(read)
        for position, (one, record) in enumerate(zip(read, stored_records(store, partition), strict=False), 1):
            longer -= 1
            if not findings.check("I4", one == zlib.crc32(record), f"{partition}:{position} was read otherwise"):
                return
        findings.check("I4", not longer, f"partition {partition}: {longer} events were read that are not there")
