"""Real runs of the command line, as small as they can be: one to its end, one that is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rayfold.benchmarks.harness.results import Run, load_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SMALLEST = ("read", "--quick", "--seconds", "0.05", "--replicas", "1")


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    program = "from rayfold.actors.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "bench", *SMALLEST, "--directory", str(folder), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_run_is_measured_written_and_drawn_and_leaves_nothing_behind(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    stores.mkdir()
    with started(stores, "--repeat", "2", "--json", str(tmp_path), "--report", str(tmp_path / "report")) as run:
        out, err = run.communicate(timeout=250)
    assert run.returncode == 0, err
    assert "load generator against a null system: " in out
    (file,) = tmp_path.glob("*-cores-read-quick.json")
    results = load_run(file)
    assert results.complete
    assert results.generator["queries_per_s"] > 0
    (reads,) = results.cases_of("read", "saturated reads")
    assert reads.figures["queries_per_s"].value > 0
    assert len(reads.figures["queries_per_s"].values) == 2
    assert all(sample.conditions for sample in reads.samples)
    assert load_run(tmp_path / "report" / "results.json") == results
    assert list(stores.iterdir()) == []


def test_ctrl_c_ends_a_run_and_writes_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "stopped.json"
    with started(tmp_path, "--repeat", "500", "--json", str(file)) as run:
        assert run.stdout is not None
        while "load generator against" not in run.stdout.readline():
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=250)
    assert run.returncode == 130, err
    assert err.splitlines()[-1] == "stopped; what was measured until then is above and written"
    results: Run = load_run(file)
    assert not results.complete
    assert results.generator["queries_per_s"] > 0
    assert list(tmp_path.iterdir()) == [file]
