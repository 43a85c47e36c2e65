"""What a process has in hand outlives the process, and is refused after its second death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rayfold.runtime.in_hand import _ANY, REFUSED_S, InHand, key_in_hand_at_death

ONE, TWO = b"1" * 16, b"2" * 16


def test_what_was_finished_is_not_held_against_anybody(tmp_path: Path) -> None:
    before = InHand(tmp_path / "record")
    before.begin(ONE)
    before.end()
    after = InHand(tmp_path / "record")
    assert (after.fallen, after.now()) == ({}, b"")
    assert after.incarnation != before.incarnation
    assert key_in_hand_at_death(tmp_path / "record", before.incarnation) == b""


def test_what_was_in_hand_at_one_death_is_tried_again_and_at_two_it_is_refused(tmp_path: Path) -> None:
    first = InHand(tmp_path / "record")
    first.begin(ONE)
    first.end()
    first.begin(TWO)
    second = InHand(tmp_path / "record")
    fallen = second.find(TWO)
    assert fallen is not None
    assert (fallen.deaths, fallen.stuck, fallen.refused, fallen.incarnation) == (1, False, False, first.incarnation)
    assert second.find(ONE) is None
    second.begin(TWO)
    third = InHand(tmp_path / "record")
    fallen = third.find(TWO)
    assert fallen is not None
    assert (fallen.deaths, fallen.refused, fallen.incarnation) == (2, True, second.incarnation)
    fourth = InHand(tmp_path / "record")
    assert fourth.find(TWO) == fallen
    fourth.forgive(TWO)
    assert InHand(tmp_path / "record").find(TWO) is None


def test_what_waits_for_another_process_is_not_held_against_anybody(tmp_path: Path) -> None:
    before = InHand(tmp_path / "record")
    before.begin(ONE)
    with before.waiting():
        assert before.now() == b""
        assert InHand(tmp_path / "record").fallen == {}
    before = InHand(tmp_path / "other")
    before.begin(ONE)
    with pytest.raises(TimeoutError), before.waiting():
        raise TimeoutError
    assert before.now() == ONE
    before.end()
    with before.waiting():
        assert before.now() == b""
    assert before.now() == b""


def test_what_took_too_long_is_refused_at_once(tmp_path: Path) -> None:
    before = InHand(tmp_path / "record")
    before.begin(ONE)
    before.stuck()
    fallen = InHand(tmp_path / "record").find(ONE)
    assert fallen is not None
    assert (fallen.deaths, fallen.stuck, fallen.refused) == (1, True, True)
    InHand(tmp_path / "other").begin(TWO)
    fallen = InHand(tmp_path / "other", was_stuck=True).find(TWO)
    assert fallen is not None
    assert fallen.refused


def test_after_a_while_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = InHand(tmp_path / "record")
    fallen = record.note(ONE, deaths=2)
    assert record.find(ONE) == fallen
    monkeypatch.setattr("time.time", lambda: fallen.at_s + REFUSED_S + 1)
    assert record.find(ONE) is None
    assert record.fallen == {}


def test_the_list_is_bounded_and_the_oldest_leaves_first(tmp_path: Path) -> None:
    record = InHand(tmp_path / "record")
    keys = [number.to_bytes(16) for number in range(1, 201)]
    for key in keys:
        record.note(key)
    kept = list(InHand(tmp_path / "record").fallen)
    assert kept == keys[-len(kept) :]
    assert 50 <= len(kept) < 100


def test_somebody_else_on_the_machine_learns_what_was_in_hand(tmp_path: Path) -> None:
    path = tmp_path / "record"
    assert key_in_hand_at_death(path, b"x" * 8) is None
    first = InHand(path)
    first.begin(ONE)
    first.step(7)
    assert key_in_hand_at_death(path, first.incarnation) == ONE[:-1] + b"\7"
    second = InHand(path)
    assert key_in_hand_at_death(path, first.incarnation) == ONE[:-1] + b"\7"
    assert key_in_hand_at_death(path, second.incarnation) == b""
    InHand(path)
    assert key_in_hand_at_death(path, first.incarnation) is None


@pytest.mark.slow
def test_a_killed_process_leaves_it_behind(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from rayfold.runtime.in_hand import InHand\n"
        "record = InHand(pathlib.Path(sys.argv[1])); record.begin(b'k' * 16); print('begun', flush=True); input()"
    )
    path = tmp_path / "record"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert list(InHand(path).fallen) == [b"k" * 16]


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 4096, b"rayhand1" + b"\xff" * 4088])
def test_a_record_that_is_none_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record"
    path.write_bytes(content)
    path.chmod(0o600)
    record = InHand(path)
    record.begin(ONE)
    record.end()
    record.note(TWO)
    assert TWO in InHand(path).fallen


@pytest.mark.slow
@pytest.mark.parametrize("carefully", [False, True])
def test_what_closes_all_descriptors_is_found_alone_or_once_something_has_fallen(
    tmp_path: Path, carefully: bool
) -> None:
    path = tmp_path / "record"
    program = """
import os, sys
from pathlib import Path
from rayfold.runtime.in_hand import InHand

record = InHand(Path(sys.argv[1]))
record.begin(b"1" * 16)
record.end()
record.begin(b"2" * 16)
os.closerange(0, 4096)
for key in sys.argv[2:]:
    record.begin(key.encode() * 16)
record.end()
os._exit(0)
"""
    if carefully:
        InHand(path).note(b"9" * 16)
    for others, found in (("", TWO), ("3", TWO if carefully else _ANY)):
        before = InHand(path).find(found)
        done = subprocess.run([sys.executable, "-c", program, str(path), *others], check=False, timeout=60)
        assert done.returncode == 1
        after = InHand(path).find(found)
        assert after is not None
        assert after.deaths == 1 + (before.deaths if before else 0)
        if not carefully:
            path.unlink()
