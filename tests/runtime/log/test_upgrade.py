"""Logs that older versions wrote: read as they are, upgraded when they are taken over, never half, and then used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest

from rayfold.runtime.backup.restoring import restore_store
from rayfold.runtime.backup.taking import backup_store
from rayfold.runtime.encoding.outcome import Outcome
from rayfold.runtime.encoding.saved_state import state_fingerprint
from rayfold.runtime.errors import CommandIdReused
from rayfold.runtime.log import upgrade, writer
from rayfold.runtime.log.format import DATABASES, FORMAT_VERSION, OLD_BODY, decode_record
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.read.time_travel import history, state_at
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.store import Store, create_or_open_store, open_store
from rayfold.runtime.store.verify import verify_store
from rayfold.runtime.write.write_loop import WriteLoop
from tests.runtime.log.old_logs import CATALOGUE, NAILS, SCREWS, STORED, Stock, old_store, sent_again

OF_NAMES = {("Changed", 1): msgpack.packb({"by": ""}), ("Noted", 1): msgpack.packb({"text": ""})}


@pytest.fixture(params=[1, 2])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return old_store(tmp_path / "old", request.param)


def loop_over(log: LmdbLog) -> WriteLoop:
    loop = WriteLoop(0, log, CATALOGUE)
    loop.activate()
    return loop


def places(outcomes: list[Outcome]) -> list[tuple[int, int, bool] | str]:
    return [
        (one.position, one.version, one.repeated) if isinstance(one, Receipt) else type(one).__name__
        for one in outcomes
    ]


REPEATS = [(position, version, True) for _, _, position, version in STORED]


def content(log: LmdbLog) -> dict[bytes, list[tuple[bytes, bytes]]]:
    return log.environment.read(
        lambda txn: {name: list(txn.cursor(log.environment.database(name)).iternext()) for name in DATABASES}
    )


def format_of(log: LmdbLog) -> int:
    return log.environment.read(log.format_in)


def is_as_it_was(path: Path) -> None:
    """Checked by a reader, which changes nothing."""
    reader = open_store(path).open_reader(0)
    assert [decode_record(record).headers for record in reader.read(0, 99)][:9] == [{}] * 9
    names = [type(event).__name__ for event, _ in history(CATALOGUE, reader, 0, SCREWS, 1, 3)]
    assert names == ["Changed", "Noted", "Changed"]
    assert state_at(CATALOGUE, reader, Stock, NAILS, 6, None).pieces == 11
    assert state_at(CATALOGUE, reader, Stock, NAILS, 4, None).pieces == 12
    assert reader.holdings() == (OF_NAMES, frozenset({"Stock"})) or set(reader.holdings().events) >= set(OF_NAMES)
    reader.close()


def test_it_is_read_as_it_is_without_being_taken_over(store: Store) -> None:
    is_as_it_was(store.path)
    reader = store.open_reader(0)
    assert (reader.holdings().events, reader.secret(), reader.epoch()) == (OF_NAMES, b"", 1)
    assert reader.find_snapshot(NAILS, state_fingerprint(Stock)) is None
    reader.close()
    report = verify_store(store.path).partitions[0]
    assert report.problems == []
    assert [one.what for one in report.warnings] == [
        "1 of format 1 or 2, without a hash, are passed over; events are read instead"
    ]


def test_it_is_upgraded_when_it_is_taken_over_and_goes_on(store: Store) -> None:
    log = store.open_log(0)
    before = content(log)
    loop = loop_over(log)
    after = content(log)
    assert format_of(log) == FORMAT_VERSION
    assert len(log.secret()) == 32
    assert log.holdings() == (OF_NAMES, frozenset({"Stock"}))
    assert [after[name] for name in DATABASES[:4]] == [before[name] for name in DATABASES[:4]]
    again = sent_again()
    assert places(loop.execute(again).outcomes) == REPEATS
    other = again[2]._replace(payload=again[1].payload, content=again[1].content)
    assert places(loop.execute([other]).outcomes) == [CommandIdReused.__name__]
    new = [command._replace(command_id=bytes([7] * 15 + [number])) for number, command in enumerate(again)]
    first = loop.execute(new).outcomes
    assert places(first) == [
        (10, 7, False),
        (12, 9, False),
        (13, 10, False),
        (15, 5, False),
        (16, 11, False),
        (17, 12, False),
        (18, 6, False),
    ]
    repeated = [one._replace(repeated=True) for one in first if isinstance(one, Receipt)]
    assert loop_over(log).execute(new).outcomes == repeated
    assert {record[44] for record in log.read(0, 9)} == {OLD_BODY}
    assert {record[44] for record in log.read(9, 99)} == {OLD_BODY + 1}
    assert log.find_snapshot(NAILS, state_fingerprint(Stock)) is not None, "those that are made now are used"
    log.close()
    is_as_it_was(store.path)
    assert verify_store(store.path).problems == []


STEPS: dict[str, tuple[Any, str]] = {
    "what it holds": (upgrade, "put_holdings"),
    "its secret": (upgrade, "put_secret"),
    "its format": (upgrade, "put_format"),
    "its epoch": (writer, "put_write_ownership"),
}


@pytest.mark.parametrize("step", STEPS)
def test_an_upgrade_that_is_cut_short_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    log = store.open_log(0)
    before = content(log)

    def cut(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], cut)
        with pytest.raises(KeyboardInterrupt):
            log.activate()
    assert content(log) == before
    log.close()
    is_as_it_was(store.path)
    log = store.open_log(0)
    assert places(loop_over(log).execute(sent_again()).outcomes) == REPEATS
    log.close()


def moved(source: LmdbLog, target: LmdbLog) -> None:
    while (segment := source.segment(target.head(), source.head())) is not None:
        target.add_segment(segment)


def test_a_copy_that_began_before_the_upgrade_and_ends_after_it_repeats_all(store: Store, tmp_path: Path) -> None:
    source = store.open_log(0)
    target = create_or_open_store(tmp_path / "new", 1).open_log(0)
    moved(source, target)
    loop, new = loop_over(source), [command._replace(command_id=b"n" * 16) for command in sent_again()[:1]]
    loop.execute(new)
    moved(source, target)
    loop = loop_over(target)
    assert places(loop.execute(sent_again() + new).outcomes) == [*REPEATS, (10, 7, True)]
    assert target.secret() == source.secret()
    assert target.holdings().events.keys() == source.holdings().events.keys()
    source.close()
    target.close()
    assert verify_store(tmp_path / "new").problems == []


@pytest.mark.parametrize("upgraded", [False, True])
def test_a_backup_of_it_is_continued_and_restored(store: Store, tmp_path: Path, upgraded: bool) -> None:
    backup_store(store.path, tmp_path / "backup")
    new = [command._replace(command_id=b"n" * 16) for command in sent_again()[:1]] if upgraded else []
    if upgraded:
        log = store.open_log(0)
        loop_over(log).execute(new)
        log.close()
        backup_store(store.path, tmp_path / "backup")
    restored = open_store(restore_store(tmp_path / "backup", tmp_path / "restored").path)
    assert verify_store(restored.path).problems == []
    log = restored.open_log(0)
    loop = loop_over(log)
    assert places(loop.execute(sent_again() + new).outcomes) == [*REPEATS, *[(10, 7, True)] * len(new)]
    log.close()
    is_as_it_was(restored.path)
