"""Exactly once, also after kill -9 between any two steps of a page or of a checkpoint: real processes, killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rayfold.runtime.store.store import create_or_open_store
from tests.runtime.read.stores.follower_process import STEPS
from tests.runtime.read.stores.tallies import TALLIES, Tally, deposit

EVENTS = 60
PROGRAM = [sys.executable, "-m", "tests.runtime.read.stores.follower_process"]
ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.slow
@pytest.mark.parametrize("tally", TALLIES, ids=lambda tally: tally.__name__)
def test_whenever_it_is_killed_it_goes_on_to_a_fold_of_the_log(tally: type, tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "store", 1)
    log = store.open_log(0)
    deposit(log, ["alice", "bob", "carol"] * (EVENTS // 3))
    log.close()
    steps = list(STEPS if tally is Tally else STEPS[:4]) * 2
    command = [*PROGRAM, str(store.path), str(tmp_path / "model"), tally.__name__, *steps]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    said = run.stdout.splitlines()
    assert said[: len(STEPS[:4])] == ["killed"] * 4, "each was killed before it had come to the end of the log"
    ended = [json.loads(line) for line in said if line != "killed"]
    assert ended
    for _, seen in ended:
        assert seen == list(range(1, EVENTS + 1))
    started_at = [began for began, _ in ended]
    assert started_at[-1] > 0, "what was committed before the kills was not used"
