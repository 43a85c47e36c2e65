"""`rayfold backup` and `rayfold restore` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rayfold.runtime.store.store import create_or_open_store
from tests.runtime.log.appends import ALICE, deposits

pytestmark = pytest.mark.slow


def rayfold(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rayfold.actors.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_store_is_backed_up_and_restored_from_the_command_line(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "store", 1)
    log = store.open_log(0)
    epoch = log.activate()
    for amount in range(3):
        log.append(epoch, [deposits(ALICE, amount)])
    log.close()

    done = rayfold("backup", store.path, tmp_path / "backup", "--json", tmp_path / "backup.json")
    assert (done.returncode, done.stdout[:14]) == (0, "3 events added"), done.stderr
    assert json.loads((tmp_path / "backup.json").read_text())["heads"] == {"0": 3}

    done = rayfold("restore", tmp_path / "backup", tmp_path / "restored", "--at", "0=2")
    assert done.returncode == 0, done.stderr
    assert f"2 events in {tmp_path / 'restored'}, verified; it is store " in done.stdout


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    for arguments, what in (
        (("backup", tmp_path / "nowhere", tmp_path / "backup"), "there is no store here"),
        (("restore", tmp_path / "nowhere", tmp_path / "store"), "there is no backup here"),
        (("restore", tmp_path, tmp_path / "store", "--at", "three"), "'three' is not a place in a log; write PART"),
    ):
        done = rayfold(*arguments)
        assert done.returncode == 2
        assert what in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
