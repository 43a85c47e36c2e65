"""The standing check: what is not a fold of the log is found, named, dropped, and nothing waits for it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from rayfold.runtime.checks.standing import Alarms, StandingCheck, StreamChecks, check_read_model, copied, folded
from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event, Query
from rayfold.runtime.domain.projection import Projection, answer, forget, project
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.encoding.saved_state import encode_state, state_fingerprint
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.stream import StreamId
from rayfold.runtime.write.write_loop import WriteLoop

ALICE = StreamId("Till", "alice")
CALLS = [0]


class Pay(Command):
    amount: int


class Paid(Event):
    amount: int


class Till(Aggregate, placement=Shared(), snapshot_every=3):
    total: int = 0
    notes: dict[str, list[int]] = {}

    @decide
    def pay(self, command: Pay) -> Paid:
        return Paid(amount=command.amount)

    @evolve
    def paid(self, event: Paid) -> None:
        self.total += event.amount
        self.notes.setdefault("all", []).append(event.amount)


class Unsteady(Aggregate, placement=Shared(), snapshot_every=0):
    """Its handler gives another result each time."""

    total: int = 0

    @decide
    def pay(self, command: Pay) -> Paid:
        return Paid(amount=command.amount)

    @evolve
    def paid(self, event: Paid) -> None:
        CALLS[0] += 1
        self.total = CALLS[0]


class TotalOf(Query[int]):
    pass


class Sums(Projection):
    total: int = 0
    by_amount: dict[int, int] = field(default_factory=dict)

    @project
    def paid(self, event: Paid) -> None:
        self.total += event.amount
        self.by_amount[event.amount] = self.by_amount.get(event.amount, 0) + 1

    @answer
    def of(self, query: TotalOf) -> int:
        return self.total


class InOrder(Projection):
    """What it holds depends on which partition's events come first; its total does not."""

    amounts: list[int] = []
    first: int = 0
    open_at_once: int = 0
    most_at_once: int = 0
    total: int = 0

    @project
    def paid(self, event: Paid) -> None:
        self.amounts.append(event.amount)
        self.first = self.first or event.amount
        self.open_at_once += 1 if event.amount % 2 else -1
        self.most_at_once = max(self.most_at_once, self.open_at_once)
        self.total += event.amount


CATALOGUE = Catalogue([Till, Unsteady], [Sums, InOrder])


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def loop(log: MemoryLog) -> WriteLoop:
    loop = WriteLoop(0, log, CATALOGUE)
    loop.activate()
    return loop


def pay(loop: WriteLoop, *amounts: int, cls: type[Any] = Till) -> None:
    for amount in amounts:
        loop.execute([pack(Envelope(cls, "alice", Pay(amount=amount)))[0]])


def checks_of(loop: WriteLoop, log: MemoryLog, alarms: Alarms) -> StreamChecks:
    lock = threading.Lock()
    return StreamChecks(CATALOGUE, log, "in partition 0", alarms, lambda: lock, loop.residents.distrust)


def nothing() -> None:
    """No pause."""


def test_a_right_resident_and_a_right_snapshot_raise_no_alarm(loop: WriteLoop, log: MemoryLog) -> None:
    pay(loop, 1, 2, 3, 4)
    alarms = Alarms()
    checks = checks_of(loop, log, alarms)
    checks.resident(loop.residents, nothing)
    checks.snapshot(nothing)
    assert (alarms.count, alarms.kept) == (0, ())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda till: setattr(till, "total", -810), "total is -810, where it was 10"),
        (lambda till: till.notes["all"].append(9), "notes['all'] has 5 items, [1, 2, 3, 4, 9], where it had 4, "
            "[1, 2, 3, 4]"),
        (lambda till: setattr(till, "undeclared", 1), "undeclared was not there"),
        (lambda till: setattr(till, "total", 10.0), "total is a float, 10.0, where it was a int, 10"),
    ],
)  # fmt: skip
def test_a_wrong_resident_is_named_and_dropped(
    loop: WriteLoop, log: MemoryLog, spoil: Callable[[Any], None], told: str
) -> None:
    pay(loop, 1, 2, 3, 4)
    resident = loop.residents.check_out(ALICE)
    spoil(resident)
    loop.residents.put_back(resident, ALICE)
    alarms = Alarms()
    checks_of(loop, log, alarms).resident(loop.residents, nothing)
    (alarm,) = alarms.kept
    assert (alarm.kind, alarm.subject, alarm.what) == ("resident", "Till/alice at version 4 in partition 0", told)
    assert loop.residents.check_out(ALICE).__dict__ == folded(CATALOGUE, log, ALICE, 4).__dict__


def test_a_wrong_snapshot_is_named_and_its_stream_is_loaded_from_its_events(loop: WriteLoop, log: MemoryLog) -> None:
    pay(loop, 1, 2)
    wrong = folded(CATALOGUE, log, ALICE, 2)
    assert isinstance(wrong, Till)
    wrong.total = 999
    resident = loop.residents.check_out(ALICE)
    resident.__dict__.update(total=999)
    loop.residents.put_back(resident, ALICE)
    pay(loop, 3, 4)  # the third takes a snapshot
    found = log.find_snapshot(ALICE, state_fingerprint(Till))
    assert found is not None
    assert found.version == 3
    loop.residents.forget_all()
    loaded = loop.residents.load(ALICE)
    assert isinstance(loaded, Till)
    assert loaded.total == 1006
    alarms = Alarms()
    checks_of(loop, log, alarms).snapshot(nothing)
    (alarm,) = alarms.kept
    assert (alarm.kind, alarm.what) == ("snapshot", "total is 1002, where it was 6")
    loaded = loop.residents.load(ALICE)
    assert isinstance(loaded, Till)
    assert loaded.total == 10


def test_handlers_that_are_not_deterministic_are_called_that(loop: WriteLoop, log: MemoryLog) -> None:
    pay(loop, 1, 2, cls=Unsteady)
    alarms = Alarms()
    checks_of(loop, log, alarms).resident(loop.residents, nothing)
    (alarm,) = alarms.kept
    assert alarm.what.startswith("its handlers are not deterministic, two folds of the same events differ: total is ")


def read_model_of(log: MemoryLog, directory: Path | None = None) -> ReadModel:
    read_model = ReadModel(Sums, CATALOGUE, {0: log}, directory=directory)
    read_model.open()
    read_model.catch_up(0)
    return read_model


def check(read_model: ReadModel, log: MemoryLog) -> Alarms:
    alarms = Alarms()
    for _ in check_read_model(read_model, Sums, CATALOGUE, {0: log}, 0, alarms, nothing):
        pass
    return alarms


def test_a_wrong_read_model_is_named_and_goes_on_from_what_the_log_says(
    loop: WriteLoop, log: MemoryLog, tmp_path: Path
) -> None:
    pay(loop, 1, 2, 3)
    read_model = read_model_of(log, tmp_path)
    assert check(read_model, log).kept == ()
    read_model._kept.model.__dict__["by_amount"][7] = 1
    (alarm,) = check(read_model, log).kept
    assert (alarm.kind, alarm.subject) == ("read model", "Sums, part 0")
    assert alarm.what == "by_amount has 4 keys, where it had 3: 7 is new"
    assert check(read_model, log).kept == ()
    pay(loop, 4)
    read_model.catch_up(0)
    with read_model.reading() as model:
        assert model.__dict__["by_amount"] == {1: 1, 2: 1, 3: 1, 4: 1}
    assert read_model.checkpoint_due()


@pytest.fixture
def mixed() -> tuple[ReadModel, dict[int, MemoryLog]]:
    """A read model of two partitions, which has taken their events in as they came: by turns, the second's first."""
    logs = {0: MemoryLog(), 1: MemoryLog()}
    for partition, amounts in ((0, (1, 2, 3, 4)), (1, (11, 12, 13, 14))):
        loop = WriteLoop(partition, logs[partition], CATALOGUE)
        loop.activate()
        pay(loop, *amounts)
    read_model = ReadModel(InOrder, CATALOGUE, logs)
    read_model.open()
    for up_to in range(1, 5):
        read_model.catch_up(1, up_to)
        read_model.catch_up(0, up_to)
    return read_model, logs


def test_what_depends_on_the_order_between_partitions_raises_no_alarm_and_stays(
    mixed: tuple[ReadModel, dict[int, MemoryLog]],
) -> None:
    read_model, logs = mixed
    alarms = Alarms()
    list(check_read_model(read_model, InOrder, CATALOGUE, logs, 0, alarms, nothing))
    assert alarms.kept == ()
    with read_model.reading() as model:
        assert isinstance(model, InOrder)
        assert model.amounts == [11, 1, 12, 2, 13, 3, 14, 4]


def test_events_that_come_in_while_the_log_is_folded_aside_make_no_handler_unsteady() -> None:
    logs = {0: MemoryLog(), 1: MemoryLog()}
    loops = [WriteLoop(partition, log, CATALOGUE) for partition, log in logs.items()]
    read_model = ReadModel(InOrder, CATALOGUE, logs)
    read_model.open()
    amounts = iter(range(1, 9))

    def more() -> None:
        """One payment more in each partition, which the read model takes in at once: four times."""
        for partition, amount in ((1, next(amounts, 0)), (0, next(amounts, 0))):
            if amount:
                pay(loops[partition], amount)
                read_model.catch_up(partition)

    for loop in loops:
        loop.activate()
    more()
    alarms = Alarms()
    list(check_read_model(read_model, InOrder, CATALOGUE, logs, 0, alarms, more))
    assert next(amounts, 0) == 0
    assert alarms.kept == ()
    with read_model.reading() as model:
        assert isinstance(model, InOrder)
        assert model.amounts == [1, 2, 3, 4, 5, 6, 7, 8]


def test_beside_what_depends_on_that_order_a_wrong_field_is_found(
    mixed: tuple[ReadModel, dict[int, MemoryLog]],
) -> None:
    read_model, logs = mixed
    read_model._kept.model.__dict__["total"] = 7
    alarms = Alarms()
    list(check_read_model(read_model, InOrder, CATALOGUE, logs, 0, alarms, nothing))
    (alarm,) = alarms.kept
    assert alarm.what == "total is 7, where it was 60"
    with read_model.reading() as model:
        assert isinstance(model, InOrder)
        assert model.total == 60


def test_in_one_partition_the_order_counts(loop: WriteLoop, log: MemoryLog) -> None:
    pay(loop, 1, 2)
    read_model = ReadModel(InOrder, CATALOGUE, {0: log})
    read_model.open()
    read_model.catch_up(0)
    read_model._kept.model.__dict__["amounts"].reverse()
    alarms = Alarms()
    list(check_read_model(read_model, InOrder, CATALOGUE, {0: log}, 0, alarms, nothing))
    assert [alarm.what for alarm in alarms.kept] == ["amounts[0] is 2, where it was 1"]


OUTSIDE = {"down": False}


class Latest(Projection, on_failure="quarantine"):
    """It knows what came last, which depends on the order."""

    last: int = 0
    seen: list[int] = field(default_factory=list)

    @project
    def paid(self, event: Paid) -> None:
        if OUTSIDE["down"] and event.amount == 2:
            raise RuntimeError("something outside is down")
        self.last = event.amount
        self.seen.append(event.amount)

    @forget
    def dropped(self, stream: StreamId) -> None:
        self.seen.clear()


@pytest.mark.parametrize("how", ["out of quarantine", "with its stream"])
def test_what_was_taken_in_out_of_order_raises_no_alarm_and_stays_also_after_a_restart(
    log: MemoryLog, tmp_path: Path, how: str
) -> None:
    catalogue = Catalogue([Till], [Latest])
    loop = WriteLoop(0, log, catalogue)
    loop.activate()
    OUTSIDE["down"] = how == "out of quarantine"
    pay(loop, 1, 2)
    loop.execute([pack(Envelope(Till, "bob", Pay(amount=3)))[0]])

    def opened() -> ReadModel:
        read_model = ReadModel(Latest, catalogue, {0: log}, directory=tmp_path)
        read_model.open()
        read_model.catch_up(0)
        return read_model

    def checked(read_model: ReadModel) -> tuple[Any, int]:
        alarms = Alarms()
        for _ in check_read_model(read_model, Latest, catalogue, {0: log}, 0, alarms, nothing):
            pass
        with read_model.reading() as model:
            return alarms.kept, model.__dict__["last"]

    read_model = opened()
    assert checked(read_model) == ((), 3)
    OUTSIDE["down"] = False
    if how == "out of quarantine":
        assert read_model.retry_quarantined() == ()
    else:
        read_model.rebuild_stream(ALICE, 0)
    assert checked(read_model) == ((), 2)
    assert read_model.checkpoint() > 0
    read_model.close()
    again = opened()
    assert checked(again) == ((), 2)
    loop.execute([pack(Envelope(Till, "bob", Pay(amount=4)))[0]])
    again.catch_up(0)
    assert checked(again) == ((), 4)
    again._guard.unsure = True  # a query may have changed it
    assert again.checkpoint() > 0
    assert checked(again) == ((), 4)


def test_a_state_that_no_bytes_stand_for_is_checked_as_well(loop: WriteLoop) -> None:
    till = Till("alice", 1)
    till.notes["a"] = till.notes["b"] = [1]
    with pytest.raises(Exception, match="in two places"):
        encode_state(till)
    again = copied(till)
    assert again is not None
    assert again.notes["a"] is again.notes["b"] is not till.notes["a"]


class StoreLock(Command):
    what: UUID


class Held(Event):
    what: UUID


class Shelf(Aggregate, placement=Shared(), snapshot_every=2):
    """It holds one value in two places, as handlers do, and what it has used last at the end."""

    first: UUID | None = None
    last: UUID | None = None
    used: OrderedDict[UUID, int] = field(default_factory=OrderedDict)

    @decide
    def hold(self, command: StoreLock) -> Held:
        return Held(what=command.what)

    @evolve
    def held(self, event: Held) -> None:
        self.first = self.first or event.what
        self.last = event.what
        self.used[event.what] = self.used.get(event.what, 0) + 1
        self.used.move_to_end(event.what)


def test_values_in_two_places_and_dicts_with_an_order_of_their_own_raise_no_alarm(caplog: Any) -> None:
    log = MemoryLog()
    loop = WriteLoop(0, log, Catalogue([Shelf]))
    loop.activate()
    ids = [pack(Envelope(Shelf, "alice", StoreLock(what=UUID(int=n))))[0] for n in (1, 2, 1, 1)]
    for command in ids:
        loop.execute([command])
    alarms = Alarms()
    checks = StreamChecks(Catalogue([Shelf]), log, "here", alarms, threading.Lock, lambda stream: None)
    checks.resident(loop.residents, nothing)
    checks.snapshot(nothing)
    assert alarms.kept == ()
    assert log.find_snapshot(StreamId("Shelf", "alice"), state_fingerprint(Shelf)) is not None
    assert "no snapshot" not in caplog.text


def test_a_state_that_is_large_is_left_alone() -> None:
    till = Till("alice", 1)
    till.notes["a"] = list(range(200_000))
    assert copied(till) is None


def test_the_alarms_of_one_process_are_bounded_and_counted() -> None:
    alarms = Alarms()
    for number in range(150):
        alarms.raise_alarm("resident", str(number), "x")
    alarms.raise_alarm("resident", "0", "x")
    assert (alarms.count, len(alarms.kept), alarms.kept[0].subject) == (151, 100, "0")


def test_what_is_wrong_again_at_a_later_version_is_counted_and_not_kept_twice() -> None:
    alarms = Alarms()
    for version in range(5):
        alarms.raise_alarm("resident", f"Till/alice at version {version} in partition 0", "x")
    assert (alarms.count, len(alarms.kept)) == (5, 1)


def test_the_thread_makes_one_check_after_the_other_until_it_is_stopped() -> None:
    made = threading.Semaphore(0)

    def checks(pause: Callable[[], None]) -> Iterator[None]:
        made.release()
        pause()
        yield
        raise ValueError("a check that fails costs no other")

    standing = StandingCheck("test", 1.0, checks)
    for _ in range(3):
        assert made.acquire(timeout=30)
    standing.stop()


def test_no_thread_runs_when_it_is_off() -> None:
    before = threading.active_count()
    StandingCheck("test", 0.0, lambda pause: iter(()))
    assert threading.active_count() == before
