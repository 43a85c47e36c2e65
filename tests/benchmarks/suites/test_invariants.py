"""What the invariants find: a sound build is sound, and each broken one is found for what is broken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rayfold import Receipt, StreamId
from rayfold.benchmarks.suites.invariants import (
    balances_in,
    difference,
    dirty_pages,
    fsync_violations,
    log_violations,
    read_model_violations,
)
from rayfold.benchmarks.workloads.plain import PlainBank
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from tests.benchmarks.suites.broken_builds import BATCH, BATCHES, Bank, DropsAnEvent, opened, without_fsync


def on_a_disk(folder: Path) -> None:
    """Skip where nothing shows whether a page is on the disk: a memory file system, or Linux before 6.5."""
    probe = folder / "probe"
    probe.write_bytes(os.urandom(1 << 16))
    if not dirty_pages(probe):
        pytest.skip("this file system has no dirty pages, or this kernel does not show them")


def test_a_sound_build_has_no_violations(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        bank = Bank(tmp_path / "log", log)
        assert len(bank.receipts) == BATCHES * BATCH
        assert bank.violations() == []


def test_an_event_that_was_dropped_before_the_append_is_missing(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        bank = Bank(tmp_path / "log", log, writes_to=DropsAnEvent(log, at_batch=BATCHES))
        [told] = bank.violations()
    assert told == "partition 0: Account/account-000009 version 10 was acknowledged and is missing"


def test_an_event_that_was_dropped_in_the_middle_is_told_too(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        bank = Bank(tmp_path / "log", log, writes_to=DropsAnEvent(log, at_batch=2))
        told = bank.violations()
    assert told
    assert any("of the receipt" in line or "acknowledged" in line for line in told)


def test_an_fsync_that_was_left_out_is_found_by_the_pages_that_are_not_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_disk(tmp_path)
    with without_fsync(monkeypatch), opened(tmp_path / "log") as log:
        told = Bank(tmp_path / "log", log).violations()
    assert len(told) == 1
    assert told[0].startswith("log: ")
    assert told[0].endswith("pages were acknowledged and are not on the disk: the fsync was left out")


def test_the_plain_program_is_held_to_the_same_fsync(tmp_path: Path) -> None:
    on_a_disk(tmp_path)
    for name, options in (("synced", {}), ("not", {"sync": False})):
        bank = PlainBank(tmp_path / name, **options)
        bank.deposit_all([("alice", 1), ("bob", 2)])
        told = fsync_violations([tmp_path / name / "data.mdb"])
        bank.close()
        assert bool(told) == (name == "not")


class AppliesTwice(ReadModel):
    """A projector that applies each event it has applied once more."""

    def catch_up(self, partition: int, up_to: int | None = None) -> None:
        once = self._kept._loop.run

        def twice(*args: Any, **kwargs: Any) -> Any:
            return once(*args, **kwargs) or once(*args, **kwargs)

        self._kept._loop.run = twice  # type: ignore[method-assign]
        super().catch_up(partition, up_to)


def test_a_projector_that_applies_twice_differs_from_the_fold_of_the_log(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        bank = Bank(tmp_path / "log", log, model=AppliesTwice)
        told = bank.violations()
        fold = balances_in([log])
    assert told[0] == (
        f"read model: account-000000 is {2 * fold['account-000000']} and the log has {fold['account-000000']}"
    )
    assert told[-1] == "… and 5 more like these"
    assert len(told) == 6


def log_of(entries: Sequence[tuple[str, bytes]]) -> MemoryLog:
    """A log with one event of 1 cent for each account and command id."""
    log = MemoryLog()
    event = NewEvent("Deposited", 1, b"\x81\xa6amount\x01")
    appends = [Append(StreamId("Account", account), -1, (event,), number, bytes(16)) for account, number in entries]
    log.append(log.activate(), appends)
    return log


def receipt(account: str, position: int, version: int, command_id: bytes) -> Receipt:
    return Receipt(StreamId("Account", account), 0, position, version, command_id)


ONE, TWO = b"1" * 16, b"2" * 16


def test_a_receipt_that_points_at_the_event_of_another_command_is_told() -> None:
    log = log_of([("alice", ONE), ("bob", TWO)])
    assert log_violations({0: log}, [receipt("alice", 2, 1, ONE)]) == [
        "partition 0: position 2 holds another event than that of the receipt of Account/alice"
    ]


def test_two_receipts_for_one_position_are_told() -> None:
    log = log_of([("alice", ONE)])
    assert log_violations({0: log}, [receipt("alice", 1, 1, ONE), receipt("bob", 1, 1, TWO)]) == [
        "partition 0: two commands have receipts for position 1"
    ]


def test_a_receipt_with_a_wrong_version_is_told() -> None:
    log = log_of([("alice", ONE)])
    told = log_violations({0: log}, [receipt("alice", 1, 2, ONE)])
    assert told == ["partition 0: position 1 holds another event than that of the receipt of Account/alice"]


class Replays:
    """A reader that gives the records of a log in another order, or some of them twice."""

    def __init__(self, records: list[bytes]) -> None:
        self._records = records

    def read(self, after: int, limit: int, bytes_max: int = 0) -> list[bytes]:
        return self._records[after : after + limit]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the invariants asked for {name}")


def test_a_gap_in_the_positions_is_told() -> None:
    records = log_of([("alice", ONE), ("bob", TWO)]).read(0, 10)
    reader: Any = Replays(records[1:])
    assert log_violations({0: reader}, []) == ["partition 0: the event at position 1 is numbered 2"]


def test_a_command_that_took_effect_twice_is_told() -> None:
    first = log_of([("alice", ONE), ("bob", TWO)]).read(0, 10)
    again = log_of([("carol", b"3" * 16), ("dora", b"4" * 16), ("alice", ONE)]).read(0, 10)
    reader: Any = Replays([*first, again[2]])
    told = log_violations({0: reader}, [])
    assert f"partition 0: command {ONE.hex()} took effect at 1 and 3" in told
    assert "partition 0: Account/alice has version 1 where 2 must be" in told


def test_what_was_there_before_the_run_is_not_looked_at_again() -> None:
    log = log_of([("alice", ONE), ("alice", TWO)])
    assert log_violations({0: log}, [receipt("alice", 2, 2, TWO)], after={0: 1}) == []


def test_a_read_model_is_compared_key_by_key() -> None:
    assert difference({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 5}) == ["b", "c", "d"]
    assert read_model_violations("money", {"a": 1}, {"b": 2}) == [
        "money: a is missing and the log has 1",
        "money: b is 2 and the log has nothing",
    ]
