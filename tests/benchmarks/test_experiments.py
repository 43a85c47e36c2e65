"""The experiments behind the decisions: each runs to its end. No figure is judged here."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path

import pytest

from rayfold.actors.client import routing
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.benchmarks import experiments
from rayfold.benchmarks.experiments import adr_0012_the_stream_index_lags as of_the_index
from rayfold.benchmarks.experiments import adr_0023_one_batch_at_a_time as of_one_at_a_time
from rayfold.benchmarks.experiments import saturated
from rayfold.runtime import batcher
from rayfold.runtime.log import index_buffer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in Path(experiments.__path__[0]).glob("adr_*.py"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each in a folder of its own, as small as can be, and whatever it changes is put back."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("COMMANDS", {16: 64, 1: 8}), ("QUERIES", {64: 256}), ("WARM_UP", 64), ("REPETITIONS", 1)):
        monkeypatch.setattr(saturated, name, value)
    for module, name in ((routing, "IN_FLIGHT_MAX"), (index_buffer, "BYTES_A_ROUND")):
        monkeypatch.setattr(module, name, getattr(module, name))
    for module in (routing, batcher):
        monkeypatch.setattr(module, "BatchQueue", vars(module)["BatchQueue"])


def test_an_experiment_is_named_after_a_decision_that_names_it() -> None:
    for name in NAMES:
        number, _, title = name.removeprefix("adr_").partition("_")
        decision = ROOT / "docs" / "decisions" / f"{number}-{title.replace('_', '-')}.md"
        assert f"python -m rayfold.benchmarks.experiments.{name}" in decision.read_text()


def test_the_variants_of_a_saturated_bank_are_measured() -> None:
    others: dict[str, saturated.Variant] = {}
    for name in NAMES:
        others |= getattr(import_module(f"{experiments.__name__}.{name}"), "OTHERS", {})
    assert len(others) == 6
    queues = [one.queue for one in others.values() if one.queue is not saturated.AS_IT_IS["as it is"].queue]
    changed = saturated.Variant(saturated.THROUGH_RAY, 3, queues[0])
    cluster = Cluster.start_or_join(num_cpus=None, own_actors_max=1)
    try:
        samples = asyncio.run(saturated.run({"all at once": changed}, 1))
    finally:
        cluster.stop()
    [[figures]] = samples.values()
    assert len(figures) == 3
    assert all(figure > 0 for figure in figures)
    assert list(Path.cwd().iterdir()) == []


def test_a_stream_index_that_lags_is_measured_against_one_that_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("REPETITIONS", 1), ("COMMANDS", 1_024)):
        monkeypatch.setattr(of_the_index, name, value)
    of_the_index.measure(0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == [
        f"        0 events, batches of {size:3}" for size in of_the_index.BATCHES
    ]
    assert list(Path.cwd().iterdir()) == []


def test_one_batch_at_a_time_is_measured_against_batches_that_overlap(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("REPETITIONS", 1), ("COMMANDS", {2: 40, 32: 64})):
        monkeypatch.setattr(of_one_at_a_time, name, value)
    of_one_at_a_time.measure(2)
    parts, ratio = capsys.readouterr().out.splitlines()
    assert all(part in parts for part in of_one_at_a_time.PARTS)
    assert ratio.startswith("batches of   2: one at a time ")
    assert list(Path.cwd().iterdir()) == []
