"""A saved agenda that is not what its log leads to is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayfold.benchmarks.torture.shop import AGGREGATES, Fulfilment, Order, Place
from rayfold.runtime.checks.agendas import differences, verify_with_agendas
from rayfold.runtime.checks.process_fit import fold_up_to
from rayfold.runtime.log.agenda_file import ARMED, PARKED, SENDS, TIMERS, open_agenda_file
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.processes.agenda import Agenda
from rayfold.runtime.processes.stored_step import step_in
from rayfold.runtime.store.store import create_or_open_store
from rayfold.runtime.stream import StreamId
from tests.runtime.log.appends import ALICE, deposits
from tests.runtime.processes.test_courier import Gift, Give
from tests.support.process_world import World

WALLET, ORDER = StreamId("Wallet", "w"), StreamId("Fulfilment", "o1")


def world() -> World:
    """A courier that has sent what is not answered, armed timers and a parked instance."""
    made = World([*AGGREGATES, Gift], [Fulfilment], partitions=1)
    made.silent = {WALLET, StreamId("Stock", "i")}
    made.execute(Order, "o1", Place(wallet="w", item="i", total=1))
    made.execute(Order, "o2", Place(wallet="w", item="i", total=13))
    made.execute(Gift, "g1", Give(amount=1))
    made.run(for_us=1_000)
    return made


def save(made: World, folder: Path) -> None:
    agenda = Agenda(open_agenda_file(folder, "agenda"))
    agenda.open(made.logs[0])
    for record in made.logs[0].read(0, 1 << 20):
        stored = decode_record(record)
        if (step := step_in(stored)) is not None:
            agenda.fold(step)
        agenda.reached(record, stored.position)
    agenda.save()
    agenda.shut()


def test_an_agenda_that_was_saved_is_what_its_log_leads_to(tmp_path: Path) -> None:
    made = world()
    save(made, tmp_path / "a")
    assert list(differences(made.logs[0], tmp_path / "a")) == []
    other = World(AGGREGATES, [Fulfilment], partitions=1)
    assert list(differences(other.logs[0], tmp_path / "a")) == []  # of another log: it is not used


@pytest.mark.parametrize("database", [SENDS, PARKED, ARMED], ids=["sends", "parked", "armed"])
def test_what_is_missing_in_a_saved_agenda_and_what_is_too_much_is_found(tmp_path: Path, database: bytes) -> None:
    made = world()
    save(made, tmp_path / "a")
    file = open_agenda_file(tmp_path / "a", "agenda")
    rows = file.rows(database)
    key, value = rows[-1]
    file.write({database: {key: None}})
    file.close()
    [(_, what)] = differences(made.logs[0], tmp_path / "a")
    assert "not there, by the log it is there" in what
    file = open_agenda_file(tmp_path / "a", "agenda")
    further = StreamId("Fulfilment", "o3").key + key[len(ORDER.key) :]
    file.write({database: {key: value, further: value}})
    file.close()
    [(_, what)] = differences(made.logs[0], tmp_path / "a")
    assert "by the log it is not there" in what


def test_a_timer_that_is_due_at_another_time_is_found(tmp_path: Path) -> None:
    made = world()
    save(made, tmp_path / "a")
    file = open_agenda_file(tmp_path / "a", "agenda")
    key, value = file.rows(TIMERS)[0]
    file.write({TIMERS: {key: None, bytes(8) + key[8:]: value}})
    file.close()
    [(where, what)] = differences(made.logs[0], tmp_path / "a")
    assert "timer" in where
    assert what.endswith("by the log it is not there")


def test_a_verification_reports_an_agenda_that_differs_and_one_that_is_broken(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "s", 1)
    log = store.open_log(0)
    epoch = log.activate()
    log.append(epoch, [deposits(ALICE, 1)])
    folder = store.path / "agendas" / "partition-00000"
    agenda = Agenda(open_agenda_file(folder, "agenda"))
    agenda.open(log)
    [record] = log.read(0, 9)
    agenda.reached(record, 1)
    agenda.save()
    agenda.shut()
    log.close()
    assert verify_with_agendas(store.path).ok
    file = open_agenda_file(folder, "agenda")
    file.write({ARMED: {ORDER.key + b"late": bytes(16)}})
    file.close()
    [problem] = verify_with_agendas(store.path).problems
    assert (problem.database, problem.key) == ("agenda", "Fulfilment/o1 timer late")
    assert problem.what.endswith(f"remove {folder} while nothing runs")
    damaged = bytearray((folder / "data.mdb").read_bytes())
    damaged[2 * 4096 : 4 * 4096] = b"\xff" * 2 * 4096
    (folder / "data.mdb").write_bytes(damaged)
    [problem] = verify_with_agendas(store.path).problems
    assert (problem.database, problem.kind) == ("agenda", "structure")
    shutil.rmtree(folder)
    assert verify_with_agendas(store.path).ok


def test_a_saved_agenda_of_another_state_of_the_log_is_named_as_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = create_or_open_store(tmp_path / "s", 1)
    log = store.open_log(0)
    log.append(log.activate(), [deposits(ALICE, 1)])
    log.close()
    shutil.copytree(store.partition_path(0), tmp_path / "copy")
    log = store.open_log(0)
    log.append(log.activate(), [deposits(ALICE, 2)])
    folder = store.path / "agendas" / "partition-00000"
    fold_up_to(log, 2, agenda := Agenda(open_agenda_file(folder, "agenda")))
    agenda.save()
    agenda.shut()
    log.close()
    assert verify_with_agendas(store.path).partitions[0].warnings == []
    shutil.rmtree(store.partition_path(0))
    shutil.copytree(tmp_path / "copy", store.partition_path(0))
    report = verify_with_agendas(store.path)
    [warning] = report.partitions[0].warnings
    assert report.ok
    assert warning.what == "it is of another state of the log, and is not used; it may be removed while nothing runs"
    log = store.open_log(0)
    for readonly in (True, False):  # as what runs before a start, and the start itself
        caplog.clear()
        fold_up_to(log, 1, agenda := Agenda(open_agenda_file(folder, "agenda", readonly=readonly)))
        what = "the agenda is read from the log anew: its file is of another state of the log"
        assert [record.getMessage() for record in caplog.records] == [what]
        assert agenda.position == 1
        agenda.save()
        agenda.shut()
    log.close()
    assert verify_with_agendas(store.path).partitions[0].warnings == []
