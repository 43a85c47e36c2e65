"""The standing check: states in memory and saved ones are compared with a fold of the log, while a system runs.

Beside all steps. `rayfold verify STORE MODULE:APP` does the same to everything at once (`checks/states.py`).

Rules kept here:
- only the log is the truth: what differs from a fold of it is dropped, and an alarm reports where and how
- commands and events wait for no fold: what is checked is copied, and folded aside, from events that cannot change
- bounded: one thread, which sleeps a hundred times as long as it has worked (`Settings.standing_check_share`); what has
  over `ITEMS_MAX` values is left to `rayfold verify`, because copying it would hold up commands, and a second one of it
  may not fit into memory
- what differs is folded once more: if the two folds differ, the handlers are not deterministic, and that is the alarm
- nothing orders the events of two partitions: a read model is not compared where folds in several orders of the
  partitions differ, since it is as right as each of them
"""

from __future__ import annotations

import copy
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeVar

from ..domain.aggregate import Aggregate
from ..domain.difference import attributes_of, difference, differing_fields
from ..domain.projection import Projection
from ..domain.read_store import InMemory
from ..domain.state import Stateful
from ..encoding.catalogue import Catalogue
from ..encoding.saved_state import decode_state, encode_state, state_fingerprint
from ..errors import InvalidMessage, RayfoldError
from ..log.contract import Reader
from ..log.format import decode_record
from ..own_random import OWN
from ..printable import printable_log
from ..read.read_model import ReadModel
from ..stream import StreamId
from ..user_code import is_ctrl_c
from ..write.residents import Residents, take_in

__all__ = [
    "ALARMS_MAX",
    "PARTITION_ORDERS",
    "Alarm",
    "Alarms",
    "StandingCheck",
    "StreamChecks",
    "check_read_model",
    "copied",
    "fold_aside",
    "folded",
    "loose_places",
    "unlike_its_fold",
    "wrong_state",
]

log = printable_log(__name__)

ALARMS_MAX: Final = 100
"""Alarms kept by one process: the first ones, which are the most useful; the others are counted."""

ITEMS_MAX: Final = 100_000
"""Values in a state that is checked at run time: copying so many holds up commands for some 20 ms."""

_VERSION: Final = re.compile(r" at version \d+")

_PAGE: Final = 256
"""Events folded at a time, between two pauses."""

_SHORTEST_S: Final = 0.02
"""The least work that a pause is counted from: so a check that costs nothing is made every two seconds."""

A = TypeVar("A", bound=Stateful)


class Alarm(NamedTuple):
    """A state that differs from the log."""

    kind: str
    """`resident`, `snapshot`, `read model` or `checkpoint`."""
    subject: str
    """`Account/alice at version 17 in partition 3`, or `Balances, part 0`."""
    what: str
    """Where it differs, with both values, each of at most 80 characters."""
    at: str
    """Time of the finding: ISO 8601, UTC."""

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}: {self.what}"


class Alarms:
    """The alarms of one process. Any thread."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Alarm] = {}
        """By kind and subject, without the version: a repeated alarm adds nothing."""
        self._lock = threading.Lock()
        self.count = 0
        """The alarms that were raised, including those not kept."""

    def raise_alarm(self, kind: str, subject: str, what: str) -> None:
        """Count it; at the first time, keep it and log it."""
        key = kind, _VERSION.sub("", subject)
        with self._lock:
            self.count += 1
            if key in self._found or len(self._found) >= ALARMS_MAX:
                return
            self._found[key] = Alarm(kind, subject, what, datetime.now(UTC).isoformat(timespec="seconds"))
        log.error("the %s of %s differs from the log, and is not used: %s", kind, subject, what)

    @property
    def kept(self) -> tuple[Alarm, ...]:
        """The first ones, at most `ALARMS_MAX`."""
        with self._lock:
            return tuple(self._found.values())


def folded(
    catalogue: Catalogue, reader: Reader, stream: StreamId, up_to: int, pause: Callable[[], None] = lambda: None
) -> Aggregate:
    """The aggregate as its events make it, without any snapshot. Raises `Damaged`, `UnknownEvent`, `HandlerFailed`."""
    aggregate = catalogue.aggregate(stream.type)(stream.id)
    while aggregate.version < up_to:
        records = reader.read_stream(stream, aggregate.version + 1, up_to, _PAGE)
        for record in records:
            take_in(aggregate, catalogue, decode_record(record))
        pause()
        if not records:
            break
    return aggregate


def wrong_state(expected: Stateful, got: Stateful, fold_again: Callable[[], Stateful]) -> str:
    """How `got` differs from the fold `expected`, or from the one made by folding again; empty if it does not."""
    found = difference(expected, got)
    if not found:
        return ""
    unsteady = difference(expected, fold_again())
    if unsteady:
        return f"its handlers are not deterministic, two folds of the same events differ: {unsteady}"
    return found


def unlike_its_fold(instance: A, fold: Callable[[], A]) -> str:
    """How a state in memory differs from the fold of its events; empty if it does not. A fold that changes the state of
    the instance is one too: then they share what can change."""
    before = copied(instance)
    expected = fold()
    if before is None:
        before = instance
    elif what := difference(before, instance):
        return f"instances share a part of the state, and folding the events in another one has changed it: {what}"
    return wrong_state(expected, before, fold)


def copied(instance: A) -> A | None:
    """A copy that shares nothing with it; None for one that is too large, or cannot be copied."""
    if not _is_small(instance):
        return None
    cls = type(instance)
    try:
        return decode_state(cls, encode_state(instance), getattr(instance, "id", ""), getattr(instance, "version", 0))
    except InvalidMessage:
        pass
    try:
        return copy.deepcopy(instance)
    except BaseException as error:  # user code, or a thing that there is only one of
        if is_ctrl_c(error):
            raise
        return None


_SCALARS: Final = frozenset({int, str, bytes, float, bool, type(None)})
_SEQUENCES: Final = (list, tuple, set, frozenset, deque)


def _is_small(instance: Stateful) -> bool:
    waiting: deque[Any] = deque(attributes_of(instance).values())
    left = ITEMS_MAX
    seen: set[int] = set()
    while waiting and left > 0:
        value = waiting.popleft()
        left -= 1
        if type(value) in _SCALARS or id(value) in seen:
            continue
        seen.add(id(value))
        items = value.values() if isinstance(value, dict) else value if isinstance(value, _SEQUENCES) else ()
        left -= len(items)
        if left > 0:
            waiting += [item for item in items if type(item) not in _SCALARS]
            waiting += attributes_of(value).values()
    return left > 0


PARTITION_ORDERS: Final = ("ascending", "descending", "by turns")
"""In which partitions are folded: one after the other, or a few events of each in turn."""

_STEPS_MAX: Final = 10_000
"""Events of each partition in one turn: of a small log every turn is one event."""


def fold_aside(
    projection: type[Projection],
    catalogue: Catalogue,
    readers: Mapping[int, Reader],
    part: int,
    positions: Mapping[int, int],
    pause: Callable[[], None] = lambda: None,
    *,
    order: str = "ascending",
) -> ReadModel:
    """A read model in memory of its own, taken up to these positions. The caller closes it. Raises `RayfoldError`."""
    aside = ReadModel(projection, catalogue, readers, part=part)
    aside.open()
    for partition, up_to in _steps(positions, order):
        if aside.positions[partition] < up_to:
            aside.catch_up(partition, up_to)
            if aside.failed is not None:
                raise aside.failed.with_traceback(None)
            pause()
    return aside


def _steps(positions: Mapping[int, int], order: str) -> Iterator[tuple[int, int]]:
    """Partition and position, one step of the fold after the other."""
    last = max(positions.values(), default=0)
    if order == "by turns":
        step = 1 + last // _STEPS_MAX
        for up_to in range(step, last + step, step):
            yield from ((partition, min(up_to, position)) for partition, position in sorted(positions.items()))
        return
    for partition, position in sorted(positions.items(), reverse=order == "descending"):
        yield from ((partition, min(up_to, position)) for up_to in range(_PAGE, position + _PAGE, _PAGE))


Places = Callable[[ReadModel], Mapping[str, str]]
"""The places in which a fold differs from the expected one, each with what differs there."""


def loose_places(fold: Callable[[str], ReadModel], positions: Mapping[int, int], places: Places) -> set[str]:
    """Where a read model depends on the order between partitions: folds in other orders differ there, and each of
    them is right. `fold` makes one in the order that it is given."""
    loose: set[str] = set()
    if sum(position > 0 for position in positions.values()) > 1:
        for order in PARTITION_ORDERS[1:]:
            other = fold(order)
            try:
                loose.update(places(other))
            finally:
                other.close()
    return loose


class StreamChecks:
    """Checks of the aggregates of one log: residents, and snapshots of streams that are found at random."""

    def __init__(
        self,
        catalogue: Catalogue,
        reader: Reader,
        where: str,
        alarms: Alarms,
        step: Callable[[], AbstractContextManager[object]],
        distrust: Callable[[StreamId], None],
    ) -> None:
        """`where`: in words, for alarms. `step`: what is held while nothing else changes the residents; `distrust` is
        called inside, with a stream whose states in memory and snapshots must not be used any more."""
        self._catalogue, self._reader, self._where, self._alarms = catalogue, reader, where, alarms
        self._hold, self._distrust = step, distrust

    def resident(self, residents: Residents, pause: Callable[[], None]) -> None:
        """Compare one of the residents, each as likely as any other, with its events."""
        with self._hold():
            found = residents.sampled()
            copy_of = None if found is None else copied(found[1])
        if found is not None and copy_of is not None:
            self._compare("resident", found[0], copy_of, pause)

    def snapshot(self, pause: Callable[[], None]) -> None:
        """Compare the latest snapshot of the stream of an event that is found at random."""
        stream = _random_stream(self._reader)
        cls = None if stream is None else self._catalogue.aggregates.get(stream.type)
        if stream is None or cls is None or not cls.snapshot_every:
            return
        found = self._reader.find_snapshot(stream, state_fingerprint(cls))
        if found is not None:
            with suppress(InvalidMessage):  # a reader skips it
                restored = decode_state(cls, found.state, stream.id, found.version)
                self._compare("snapshot", stream, restored, pause)

    def _compare(self, kind: str, stream: StreamId, got: Aggregate, pause: Callable[[], None]) -> None:
        def fold() -> Aggregate:
            return folded(self._catalogue, self._reader, stream, got.version, pause)

        what = wrong_state(fold(), got, fold)
        if what:
            with self._hold():
                self._distrust(stream)
            self._alarms.raise_alarm(kind, f"{stream} at version {got.version} {self._where}", what)


def _random_stream(reader: Reader) -> StreamId | None:
    head = reader.head()
    records = reader.read(OWN.randrange(head), 1) if head else []
    return decode_record(records[0]).stream if records else None


def check_read_model(
    read_model: ReadModel,
    projection: type[Projection],
    catalogue: Catalogue,
    readers: Mapping[int, Reader],
    part: int,
    alarms: Alarms,
    pause: Callable[[], None],
) -> Iterator[None]:
    """Compare a read model in memory with one that is made aside from the log. One that is wrong continues from a fold
    of the log. A read model in a store of another kind is left to `rayfold verify`."""
    if not isinstance(projection.read_store, InMemory) or not read_model.may_be_checked():
        return

    begun, positions = dict(read_model.positions), dict[int, int]()

    def fold(order: str) -> ReadModel:
        """In ascending order the very steps of the first fold: what came in the meantime comes last."""
        steps = begun if order == PARTITION_ORDERS[0] else positions
        again = fold_aside(projection, catalogue, readers, part, steps, pause, order=order)
        for partition, position in positions.items():
            again.catch_up(partition, position)
        return again

    aside = fold(PARTITION_ORDERS[0])
    try:
        taken = read_model.taken(copied)
        if taken is None:
            return
        got, positions, quarantined = taken
        if quarantined:  # a fold would try them again
            return
        for partition, position in positions.items():
            aside.catch_up(partition, position)
        if aside.failed is not None or aside.positions != positions:
            return
        with aside.reading() as expected:
            what = difference(expected, got, ordered=False)  # a stream that was rebuilt has its keys at the end
        if what:
            what, steady = _judged(aside, got, what, fold, positions)
            if what and steady:
                read_model.go_on_from(aside)
            if what:
                alarms.raise_alarm("read model", f"{projection.projection_name}, part {part}", what)
    finally:
        aside.close()
    yield


def _judged(
    aside: ReadModel, got: Projection, what: str, fold: Callable[[str], ReadModel], positions: Mapping[int, int]
) -> tuple[str, bool]:
    """What is wrong with a state that differs from the fold in `what`: empty where the order between partitions
    explains it. And whether the fold can be trusted: two of the same order are equal."""

    def differing(other: ReadModel) -> dict[str, str]:
        with aside.reading() as expected, other.reading() as instance:
            return differing_fields(expected, instance)

    again = fold(PARTITION_ORDERS[0])
    try:
        unsteady = next(iter(differing(again).values()), "")
    finally:
        again.close()
    if unsteady:
        return f"its handlers are not deterministic, two folds of the same events differ: {unsteady}", False
    loose = loose_places(fold, positions, differing)
    with aside.reading() as expected:
        found = differing_fields(expected, got) or {"": what}
    return next((line for name, line in found.items() if name not in loose), ""), True


class StandingCheck:
    """A thread that makes one check after the other, and for `share` of one CPU at most. Ends with `stop`."""

    def __init__(self, name: str, share: float, checks: Callable[[Callable[[], None]], Iterator[None]]) -> None:
        """`checks` yields after each check; what it gets, it calls between pages. `share`: 0 for none."""
        self._share = share
        self._checks = checks
        self._ending = threading.Event()
        self._worked_s, self._process = 0.0, os.getpid()
        self._thread: threading.Thread | None = None
        if share > 0:
            self._thread = threading.Thread(target=self._run, name=f"rayfold check of {name}", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it; a check that is being made is given up."""
        self._ending.set()

    def _run(self) -> None:
        self._worked_s = time.thread_time()
        self._ending.wait(min(_SHORTEST_S / self._share, 10.0))
        while not self._ending.is_set():
            try:
                for _ in self._checks(self._pause):
                    self._pause(_SHORTEST_S)
            except _Ended:
                return
            except RayfoldError as error:  # the log cannot be read at the moment
                log.info("the standing check tries again later: %s", error)
            except BaseException:  # of user code too
                log.exception("the standing check goes on with something else")
            self._ending.wait(_SHORTEST_S / self._share)

    def _pause(self, at_least_s: float = 0.0) -> None:
        """Sleep so long that the CPU time since the last pause is `share` of the whole."""
        if os.getpid() != self._process:  # a child that a handler has forked: the check is its parent's
            os._exit(1)
        now_s = time.thread_time()
        worked_s, self._worked_s = max(now_s - self._worked_s, at_least_s), now_s
        if self._ending.wait(worked_s * (1 / self._share - 1)):
            raise _Ended


class _Ended(Exception):  # noqa: N818 - a signal to the thread itself
    """The check is to end."""
