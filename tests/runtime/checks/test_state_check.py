"""`rayfold verify STORE MODULE:APP`: what was saved is compared with folds of the log, and what differs is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayfold import Application
from rayfold.runtime.checks.states import SavedReadModel, StateReport, check_states
from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.domain.projection import Projection, forget, project
from rayfold.runtime.domain.read_store import DuckDb, InMemory, Lmdb
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.encoding.saved_state import state_fingerprint
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.read.stores.lmdb import Rows
from rayfold.runtime.store.store import Store, create_or_open_store
from rayfold.runtime.stream import StreamId
from rayfold.runtime.write.write_loop import WriteLoop

ROOT = Path(__file__).parents[3]
CALLS = [0]


class Pay(Command):
    amount: int


class Paid(Event):
    amount: int


class Till(Aggregate, placement=Shared(), snapshot_every=2):
    total: int = 0

    @decide
    def pay(self, command: Pay) -> Paid:
        return Paid(amount=command.amount)

    @evolve
    def paid(self, event: Paid) -> None:
        self.total += event.amount


class InFields(Projection):
    totals: dict[str, int] = {}

    @project
    def paid(self, event: Paid, recorded: Recorded) -> None:
        who = recorded.aggregate_id
        self.totals[who] = self.totals.get(who, 0) + event.amount


class InRows(Projection, store=Lmdb()):
    rows: Rows

    @project
    def paid(self, event: Paid, recorded: Recorded) -> None:
        who = recorded.aggregate_id
        self.rows[who] = self.rows.get(who, 0) + event.amount


class InTables(Projection, store=DuckDb("CREATE TABLE IF NOT EXISTS paid (who VARCHAR, amount INTEGER)")):
    @project
    def paid(self, event: Paid, recorded: Recorded) -> None:
        self.append("paid", (recorded.aggregate_id, event.amount))


class Unsteady(Projection):
    calls: int = 0

    @project
    def paid(self, event: Paid) -> None:
        CALLS[0] += 1
        self.calls = CALLS[0]


class Forgetful(Projection):
    last: str = ""

    @project
    def paid(self, event: Paid, recorded: Recorded) -> None:
        self.last = recorded.aggregate_id

    @forget
    def dropped(self, stream: StreamId) -> None:
        pass


class InOrderInFields(Projection):
    order: list[str] = []
    total: int = 0

    @project
    def paid(self, event: Paid, recorded: Recorded) -> None:
        self.order.append(recorded.aggregate_id)
        self.total += event.amount


class InOrderInRows(Projection, store=Lmdb()):
    @project
    def paid(self, event: Paid, recorded: Recorded) -> None:
        self.rows["total"] = self.rows.get("total", 0) + event.amount
        self.rows["order"] = [*self.rows.get("order", []), recorded.aggregate_id]
        self.rows[f"last/{event.amount}"] = recorded.aggregate_id


class InOrderInTables(
    Projection,
    store=DuckDb("CREATE TABLE IF NOT EXISTS last (who VARCHAR); CREATE TABLE IF NOT EXISTS paid (n INTEGER)"),
):
    @project
    def paid(self, event: Paid, recorded: Recorded) -> None:
        self.sql("DELETE FROM last")
        self.sql("INSERT INTO last VALUES (?)", [recorded.aggregate_id])
        self.sql("INSERT INTO paid VALUES (?)", [event.amount])


IN_ORDER = [InOrderInFields, InOrderInRows, InOrderInTables]
CATALOGUE = Catalogue([Till], [InFields, InRows, InTables, Unsteady, *IN_ORDER])
APPLICATION = Application("till", aggregates=[Till], projections=[InFields, InRows])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two partitions with three tills of five payments each in the first, and a snapshot at 2 and 4."""
    store = create_or_open_store(tmp_path / "store", 2)
    log = store.open_log(0)
    loop = WriteLoop(0, log, CATALOGUE)
    loop.activate()
    for amount in range(5):
        loop.execute([pack(Envelope(Till, who, Pay(amount=amount)))[0] for who in ("a", "b", "c")])
    log.close()
    return store


def saved(store: Store, *projections: type[Projection]) -> list[SavedReadModel]:
    """Read models of the whole log, kept where the projectors of a system keep them."""
    readers = {number: store.open_reader(number) for number in range(2)}
    found = []
    for projection in projections:
        folder = store.path / "projections" / f"{projection.projection_name}-v1" / "0-0"
        read_model = ReadModel(projection, CATALOGUE, readers, directory=folder)
        read_model.open()
        read_model.catch_up(0)
        if isinstance(projection.read_store, InMemory):
            assert read_model.checkpoint() > 0
        read_model.close()
        found.append(SavedReadModel(projection, 0, 0, folder))
    for reader in readers.values():
        reader.close()
    return found


def check(store: Store, read_models: list[SavedReadModel], *, in_use: bool = False) -> StateReport:
    readers = {number: store.open_reader(number) for number in range(2)}
    try:
        return check_states(CATALOGUE, readers, read_models, in_use=in_use)
    finally:
        for reader in readers.values():
            reader.close()


def test_what_is_right_is_good_whatever_it_is_kept_in(store: Store) -> None:
    report = check(store, saved(store, InFields, InRows, InTables))
    assert report.differences == []
    assert (report.events, report.streams, report.snapshots, report.read_models) == (15, 3, 6, 3)
    assert report.ok


def test_a_wrong_snapshot_is_named_by_stream_version_and_field(store: Store) -> None:
    log = store.open_log(0)
    loop = WriteLoop(0, log, CATALOGUE)
    loop.activate()
    stream = pack(Envelope(Till, "b", Pay(amount=1)))[0].stream
    resident = loop.residents.check_out(stream)
    resident.__dict__["total"] = -810
    loop.residents.put_back(resident, stream)
    loop.execute([pack(Envelope(Till, "b", Pay(amount=1)))[0]])
    log.close()
    report = check(store, [])
    assert [tuple(one) for one in report.differences] == [
        ("snapshot", "Till/b at version 6 in partition 0", "total is -809, where it was 11")
    ]
    assert not report.ok


def wrong_fields(folder: Path) -> None:
    from rayfold.runtime.read.stores.memory import MemoryStore

    model, kept = InFields(), MemoryStore()
    checkpoint = kept.open(model, folder)
    assert checkpoint is not None
    model.totals["b"] = 999
    kept.commit(checkpoint)
    kept.write(kept.encode())


def wrong_rows(folder: Path) -> None:
    kept, model = Lmdb().make(), InRows()
    checkpoint = kept.open(model, folder)
    assert checkpoint is not None
    kept.begin()
    model.rows["b"] = 999
    del model.rows["c"]
    kept.commit(checkpoint)
    kept.close()


def wrong_tables(folder: Path) -> None:
    kept, model = DuckDb().make(), InTables()
    checkpoint = kept.open(model, folder)
    assert checkpoint is not None
    kept.begin()
    model.append("paid", ("z", 7))
    kept.commit(checkpoint)
    kept.close()


@pytest.mark.parametrize(
    ("projection", "spoil", "what"),
    [
        (InFields, wrong_fields, "totals['b'] is 999, where it was 10"),
        (InRows, wrong_rows, "rows['b'] is 999, where it was 10"),
        (InTables, wrong_tables, "row 16 of paid is ('z', 7), where there was nothing"),
    ],
)
def test_a_wrong_read_model_is_named_by_place_and_both_values(
    store: Store, projection: type[Projection], spoil: Any, what: str
) -> None:
    (kept,) = saved(store, projection)
    folder = kept.folder / state_fingerprint(projection).hex()
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    report = check(store, [kept])
    assert [tuple(one) for one in report.differences] == [
        ("read model", f"{projection.projection_name}, part 0, replica 0", what)
    ]
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_handlers_that_are_not_deterministic_are_called_that(store: Store) -> None:
    report = check(store, saved(store, Unsteady))
    (one,) = report.differences
    assert one.what.startswith("its handlers are not deterministic, two folds of the same events differ: calls is ")


def saved_mixed(store: Store, projection: type[Projection]) -> tuple[SavedReadModel, Path]:
    """A read model of both partitions, which has taken their events in by turns, the second's first."""
    log = store.open_log(1)
    loop = WriteLoop(1, log, CATALOGUE)
    loop.activate()
    for amount in range(5):
        loop.execute([pack(Envelope(Till, who, Pay(amount=amount)))[0] for who in ("x", "y", "z")])
    log.close()
    readers = {number: store.open_reader(number) for number in range(2)}
    folder = store.path / "projections" / f"{projection.projection_name}-v1" / "0-0"
    read_model = ReadModel(projection, CATALOGUE, readers, directory=folder)
    read_model.open()
    for up_to in (3, 9, 15):
        read_model.catch_up(1, up_to)
        read_model.catch_up(0, up_to)
    read_model.checkpoint()
    read_model.close()
    for reader in readers.values():
        reader.close()
    return SavedReadModel(projection, 0, 0, folder), folder / state_fingerprint(projection).hex()


@pytest.mark.parametrize(
    ("projection", "places"),
    [
        (InOrderInFields, "order is not compared"),
        (InOrderInRows, "last/0, last/1, last/2 and 3 more are not compared"),
        (InOrderInTables, "last is not compared"),
    ],
)
def test_what_depends_on_the_order_between_partitions_is_good_and_said(
    store: Store, projection: type[Projection], places: str
) -> None:
    kept, _ = saved_mixed(store, projection)
    report = check(store, [kept])
    assert report.differences == []
    (note,) = report.notes
    assert note == (
        f"{projection.projection_name}, part 0, replica 0: {places}: folded in another order of the partitions, which "
        "nothing determines, it is something else"
    )


def spoil_total(folder: Path) -> None:
    from rayfold.runtime.read.stores.memory import MemoryStore

    model, kept = InOrderInFields(), MemoryStore()
    checkpoint = kept.open(model, folder)
    assert checkpoint is not None
    model.total = 999
    kept.commit(checkpoint)
    kept.write(kept.encode())


def spoil_total_row(folder: Path) -> None:
    kept, model = Lmdb().make(), InOrderInRows()
    checkpoint = kept.open(model, folder)
    assert checkpoint is not None
    kept.begin()
    model.rows["total"] = 999
    kept.commit(checkpoint)
    kept.close()


@pytest.mark.parametrize(
    ("projection", "spoil", "what"),
    [
        (InOrderInFields, spoil_total, "total is 999, where it was 60"),
        (InOrderInRows, spoil_total_row, "rows['total'] is 999, where it was 60"),
    ],
)
def test_beside_what_depends_on_that_order_what_is_wrong_is_named(
    store: Store, projection: type[Projection], spoil: Any, what: str
) -> None:
    kept, folder = saved_mixed(store, projection)
    spoil(folder)
    report = check(store, [kept])
    assert [one.what for one in report.differences] == [what]


def test_what_cannot_be_compared_is_said(store: Store, tmp_path: Path) -> None:
    (rows,) = saved(store, InRows)
    report = check(store, [rows, SavedReadModel(InFields, 0, 0, tmp_path / "nowhere")], in_use=True)
    assert report.notes == [
        "InRows, part 0, replica 0: not compared, its database is in use",
        "InFields, part 0, replica 0: nothing is saved that this code would use",
    ]


def test_streams_of_a_type_that_was_given_up_are_no_difference(store: Store) -> None:
    reader = store.open_reader(0)
    given_up = Catalogue([], retired=["Till", "Paid"])
    report = check_states(given_up, {0: reader}, [], in_use=False)
    unknown = check_states(Catalogue([]), {0: reader}, [], in_use=False)
    reader.close()
    assert report.ok
    assert [one.subject for one in unknown.differences] == ["Till in partition 0"]


def test_a_read_model_with_events_out_of_order_is_not_compared(store: Store) -> None:
    reader = store.open_reader(0)
    folder = store.path / "projections" / "Forgetful-v1" / "0-0"
    catalogue = Catalogue([Till], [Forgetful])
    read_model = ReadModel(Forgetful, catalogue, {0: reader}, directory=folder)
    read_model.open()
    read_model.catch_up(0)
    read_model.rebuild_stream(StreamId("Till", "a"), 0)
    assert read_model.checkpoint() > 0
    read_model.close()
    report = check_states(catalogue, {0: reader}, [SavedReadModel(Forgetful, 0, 0, folder)], in_use=False)
    reader.close()
    assert report.ok
    assert report.notes == ["Forgetful, part 0, replica 0: not compared, some events were taken in out of order"]


def verify(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rayfold.actors.cli", "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)


@pytest.mark.slow
def test_the_command_says_what_differs_and_ends_with_1(store: Store, tmp_path: Path) -> None:
    kept = saved(store, InFields, InRows)
    application, report = "tests.runtime.checks.test_state_check:APPLICATION", tmp_path / "report.json"
    good = verify(store.path, application, "--json", report)
    assert good.returncode == 0, good.stderr
    assert "folded 3 streams (15 events); compared 6 snapshots and 2 read models: no difference" in good.stdout
    assert json.loads(report.read_text())["states"]["ok"]

    wrong_fields(kept[0].folder / state_fingerprint(InFields).hex())
    bad = verify(store.path, application, "--json", report)
    assert bad.returncode == 1
    assert "read model InFields, part 0, replica 0: totals['b'] is 999, where it was 10" in bad.stdout
    assert [one["kind"] for one in json.loads(report.read_text())["states"]["differences"]] == ["read model"]
    assert verify(store.path).returncode == 0, "without the classes nothing can be folded"


@pytest.mark.slow
def test_the_command_refuses_a_wrong_name_before_it_verifies_anything(store: Store) -> None:
    refused = verify(store.path, "tests.runtime.checks.test_state_check:APLICATION")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "APLICATION" in refused.stderr
