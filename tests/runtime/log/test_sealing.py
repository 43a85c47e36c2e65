"""A log that is handed over: nothing comes into it any more, which only a caller that names its successor undoes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayfold.runtime.errors import Fenced, Sealed
from rayfold.runtime.log.folder import open_log, open_reader
from rayfold.runtime.log.format import CHAIN_START
from rayfold.runtime.log.sealing import Seal, WriteOwnership, break_seal, chain_at, continue_epochs, hand_over, seal
from rayfold.runtime.log.writer import LmdbLog
from tests.runtime.log.appends import ALICE, amounts_of, deposits


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LmdbLog]:
    opened = open_log(tmp_path / "log", "partition 3", identity="s/00003")
    yield opened
    opened.close()


def test_a_sealed_log_fences_its_writer_off_and_refuses_every_later_one(log: LmdbLog) -> None:
    epoch = log.activate()
    log.append(epoch, [deposits(ALICE, 5)])
    sealed = seal(log, "node-1")
    assert (sealed.epoch, sealed.head, sealed.chain) == (epoch + 1, 1, chain_at(log, 1))
    with pytest.raises(Fenced):
        log.append(epoch, [deposits(ALICE, 6)])
    with pytest.raises(Sealed) as told:
        log.activate()
    assert str(told.value) == "partition 3: sealed for a move to node-1; nothing is appended to it here"
    assert (log.head(), log.epoch(), amounts_of(log.read(0, 9))) == (1, epoch + 1, [5])


def test_a_seal_is_on_the_disk_and_every_reader_sees_it(log: LmdbLog, tmp_path: Path) -> None:
    seal(log, "node-1")
    log.close()
    reader = open_reader(tmp_path / "log", "partition 3", identity="s/00003")
    assert reader.successor() == "node-1"
    reader.close()
    again = open_log(tmp_path / "log", "partition 3", identity="s/00003", create=False)
    with pytest.raises(Sealed):
        again.activate()
    again.close()


def test_sealing_again_for_the_same_changes_nothing_and_for_another_is_refused(log: LmdbLog) -> None:
    log.activate()
    assert seal(log, "node-1") == seal(log, "node-1") == Seal(2, 0, CHAIN_START)
    with pytest.raises(Sealed, match="sealed for a move to node-1"):
        seal(log, "node-2")
    for successor, epoch in (("node-2", 2), ("node-1", 1), ("node-1", 3)):
        with pytest.raises(Sealed, match="sealed for a move to node-1"):
            break_seal(log, successor, epoch)
    assert log.successor() == "node-1"


def test_a_broken_seal_lets_the_log_go_on_under_a_later_epoch(log: LmdbLog) -> None:
    first = log.activate()
    sealed = seal(log, "node-1")
    break_seal(log, "node-1", sealed.epoch)
    break_seal(log, "node-1", sealed.epoch)
    assert log.activate() == sealed.epoch + 1
    with pytest.raises(Fenced):
        log.append(first, [deposits(ALICE, 5)])


def test_a_seal_that_was_made_final_is_never_broken_and_one_that_was_broken_is_never_made_final(log: LmdbLog) -> None:
    log.activate()
    first = seal(log, "node-1")
    break_seal(log, "node-1", first.epoch)
    with pytest.raises(Sealed, match="this move was called off, and the partition stays on this node$"):
        hand_over(log, "node-1", first.epoch, since=7)  # a message that was long on its way
    second = seal(log, "node-1")
    with pytest.raises(Sealed):
        hand_over(log, "node-1", first.epoch, since=7)
    assert hand_over(log, "node-1", second.epoch, since=8) == WriteOwnership(second.epoch, "node-1", 8)
    assert (
        hand_over(log, "node-1", second.epoch, since=9)
        == log.write_ownership()
        == WriteOwnership(second.epoch, "node-1", 8)
    )
    for late in (lambda: break_seal(log, "node-1", second.epoch), lambda: seal(log, "node-1"), log.activate):
        with pytest.raises(Sealed, match="partition 3: moved to node-1; nothing is appended to it here"):
            late()
    assert log.write_ownership() == WriteOwnership(second.epoch, "node-1", 8)


def test_a_copy_counts_its_epochs_on_and_never_back(log: LmdbLog) -> None:
    continue_epochs(log, 7)
    continue_epochs(log, 3)
    assert log.activate() == 8


def test_a_copy_that_is_shorter_or_of_another_history_is_no_copy(log: LmdbLog, tmp_path: Path) -> None:
    log.append(log.activate(), [deposits(ALICE, 5)])
    sealed = seal(log, "node-1")
    other = open_log(tmp_path / "other", "partition 3", identity="s/00003")
    assert other.head() < sealed.head
    other.append(other.activate(), [deposits(ALICE, 6)])
    assert (other.head(), chain_at(other, 1) == sealed.chain) == (sealed.head, False)
    other.close()
