"""The rows that subscriptions keep in a log: changed whole, fenced, beside appends, and along with a copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from rayfold.runtime.errors import Damaged, Fenced, InvalidMessage, StorageFailed
from rayfold.runtime.log.contract import Log
from rayfold.runtime.log.format import META
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.log.subscription_rows import ROW_BYTES_MAX, SubscriptionRows, change_rows
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.store.node_store import node_share
from rayfold.runtime.store.store import create_or_open_store
from rayfold.runtime.store.verify import verify_store
from tests.runtime.log.appends import ALICE, amounts_of, deposits
from tests.runtime.log.test_share import NAMES, SPREAD, copy, fill, folder, hand, opened, place_share, spread

RowsLog = LmdbLog | MemoryLog


@pytest.fixture
def rows(log: Log) -> RowsLog:
    return cast(RowsLog, log)


def putting(key: str, content: bytes) -> Callable[[SubscriptionRows], None]:
    return lambda rows: rows.put(key, content)


def test_rows_are_found_by_what_their_keys_begin_with(rows: RowsLog) -> None:
    epoch = rows.activate()
    for key in ("mailer/from", "mailer/place/00000", "mail/from"):
        rows.change_rows(epoch, putting(key, key.encode()))
    assert list(rows.subscription_rows("mailer/")) == ["mailer/from", "mailer/place/00000"]
    assert rows.subscription_rows() == {key: key.encode() for key in ("mail/from", "mailer/from", "mailer/place/00000")}

    def change(found: SubscriptionRows) -> bytes | None:
        for key in found.beginning("mailer/"):
            found.remove(key)
        return found.find("mail/from")

    assert rows.change_rows(epoch, change) == b"mail/from"
    assert list(rows.subscription_rows()) == ["mail/from"]


def test_a_change_that_fails_changes_nothing_and_so_does_one_of_an_earlier_activation(rows: RowsLog) -> None:
    epoch = rows.activate()

    def fails(found: SubscriptionRows) -> None:
        found.put("mailer/from", b"1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rows.change_rows(epoch, fails)
    with pytest.raises(StorageFailed, match=f"has {ROW_BYTES_MAX + 1:,} bytes, over {ROW_BYTES_MAX:,}"):
        rows.change_rows(epoch, lambda found: found.put("mailer/from", bytes(ROW_BYTES_MAX + 1)))
    rows.activate()
    with pytest.raises(Fenced):
        rows.change_rows(epoch, lambda found: found.put("mailer/from", b"1"))
    assert rows.subscription_rows() == {}


def test_events_are_appended_between_changes_and_what_the_log_is_found_by_stays_right(rows: RowsLog) -> None:
    epoch = rows.activate()
    for number in range(1, 6):
        rows.append(epoch, [deposits(ALICE, number)])
        rows.change_rows(epoch, putting("mailer/from", b"%d" % number))
        rows.change_rows(epoch, lambda found: found.find("mailer/from"))
    assert amounts_of(rows.read(0, 9)) == [1, 2, 3, 4, 5]
    assert rows.version(ALICE) == 5
    assert rows.holdings().aggregates == {"Account"}, "rows are no part of what it holds"


def test_a_key_that_is_too_long_is_refused_and_the_log_goes_on(lmdb_log: LmdbLog) -> None:
    epoch = lmdb_log.activate()
    for change in (putting("x" * 600, b"1"), lambda rows: rows.find("x" * 600), lambda rows: rows.remove("x" * 600)):
        with pytest.raises(InvalidMessage, match="a key of 613 bytes is over 256"):
            lmdb_log.change_rows(epoch, change)
    lmdb_log.append(epoch, [deposits(ALICE, 1)])


def test_a_program_without_the_writer_changes_them_beside_its_reads(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank", 1)
    reader = store.open_reader(0)
    other = store.open_reader(0)
    change_rows(reader.environment, lambda found: found.put("mailer/from", b"1"))
    assert other.subscription_rows() == {"mailer/from": b"1"}
    reader.close()
    other.close()
    log = store.open_log(0)
    log.append(log.activate(), [deposits(ALICE, 1)])
    assert log.subscription_rows() == {"mailer/from": b"1"}
    log.close()


def test_a_row_that_decayed_is_damaged_and_found_by_a_verification(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank", 1)
    log = store.open_log(0)
    log.change_rows(log.activate(), lambda found: found.put("mailer/from", b"1"))
    meta, key = log.environment.database(META), b"subscription/mailer/from"
    log.environment.write(lambda transaction: transaction.put(key, b"\0\0\0\0" + b"1", db=meta))
    with pytest.raises(Damaged, match="meta 'subscription/mailer/from' is damaged"):
        log.subscription_rows()
    log.close()
    [problem] = verify_store(store.path).partitions[0].problems
    assert (problem.database, problem.kind) == ("meta", "checksum")


def test_a_log_that_moves_takes_them_along(tmp_path: Path) -> None:
    spread(tmp_path)
    fill(tmp_path, "a", 2, 5, 6)
    log = opened(tmp_path, "a").store.open_log(2)
    log.change_rows(log.epoch(), lambda found: found.put("mailer/from", b"2"))
    log.close()
    reader: LmdbReader = opened(tmp_path, "a").store.open_reader(2)
    kept = reader.subscription_rows()
    reader.close()
    copy(tmp_path, "a", "b", 2)
    share = node_share(folder(tmp_path, "b"), "b")
    share.keep_rows(2, {"other/from": b"1"})
    share.keep_rows(2, kept)
    hand(tmp_path, "a", "b", 2, since=2)
    moved = SPREAD.with_home(2, "b", since=2, epoch=2)
    for node in NAMES:
        place_share(folder(tmp_path, node), node, moved)
    log = opened(tmp_path, "b").store.open_log(2)
    assert (log.subscription_rows(), amounts_of(log.read(0, 9))) == ({"mailer/from": b"2"}, [5, 6])
    log.close()
