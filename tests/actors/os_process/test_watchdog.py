"""The record of what is in hand: kept as long as its process runs, and removed when it is old and without a process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rayfold.actors.os_process.watchdog import being_tried, in_hand_of, record_path
from rayfold.runtime.in_hand import InHand

pytestmark = pytest.mark.slow

EIGHT_DAYS_S = 8 * 24 * 3600.0


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfold.actors.os_process.watchdog.private_temporary_folder", lambda: tmp_path)


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - EIGHT_DAYS_S,) * 2)


def an_hour_later(path: Path) -> None:
    """In which no process has looked for old records."""
    os.utime(path.parent / "looked", (time.time() - 3601,) * 2)


def test_the_record_of_a_living_process_is_kept_however_long_it_had_no_work() -> None:
    working, path = in_hand_of("a partition"), record_path("a partition")
    working.begin(b"k" * 16)
    make_old(path)
    an_hour_later(path)
    in_hand_of("another partition")
    assert list(InHand(path).fallen) == [b"k" * 16]


def test_an_old_record_of_no_process_is_removed_by_who_looks_once_an_hour() -> None:
    """Each process that starts has a record, and none waits for long while it reads those of a month."""
    path = record_path("a partition")
    in_hand_of("a partition")  # and the map is closed
    make_old(path)
    in_hand_of("another partition")
    assert path.exists()
    an_hour_later(path)
    in_hand_of("a third partition")
    assert not path.exists()
    make_old(path.parent / record_path("another partition").name)
    in_hand_of("a fourth partition")
    assert record_path("another partition").exists()


def test_what_is_tried_counts_the_processes_that_ended_in_it() -> None:
    path, found = record_path("an import"), []
    for _ in range(2):
        child = os.fork()
        if not child:
            with being_tried("an import"):
                os._exit(3)
        os.waitpid(child, 0)
    with being_tried("an import") as deaths:
        found.append(deaths)
    assert found == [2]
    assert not path.exists()
    with being_tried("an import") as deaths:
        assert deaths == 0
