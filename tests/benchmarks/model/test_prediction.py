"""The model of a system: demands from figures, sizes, checks against what was measured, faults that have to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayfold.benchmarks.bench.commands import bench
from rayfold.benchmarks.harness.contract import Options
from rayfold.benchmarks.harness.registry import cases_of
from rayfold.benchmarks.harness.results import Run, load_run
from rayfold.benchmarks.model.demands import Demands, DemandsMissing, batch_of, demands_of, line_through, used_in
from rayfold.benchmarks.model.prediction import (
    CLIENTS_DEPTH,
    LOOPS,
    NODES_PARTITIONS,
    RATES,
    errors_of,
    predicted,
    size_of,
    summary_of,
)
from rayfold.benchmarks.model.system import Size, predict

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
QUICK, NODES, SIXTEEN = (
    RESULTS / name / "results.json"
    for name in ("intel-xeon-2-cores-quick", "intel-xeon-2-cores-nodes", "intel-xeon-16-cores-clients")
)
FREE = Demands(**{field.name: 0.0 for field in fields(Demands)})
PLAIN = replace(FREE, client_command=10.0, partition_command=15.0, partition_batch=400.0, fsync_wait=250.0)


@pytest.fixture(scope="module")
def quick() -> Run:
    return load_run(QUICK)


def test_a_command_and_a_batch_are_told_apart_by_two_depths() -> None:
    assert line_through([(32, 15.0 + 400 / 32), (512, 15.0 + 400 / 512)]) == pytest.approx((15.0, 400.0))
    assert line_through([(512, 16.0)]) == (16.0, 0.0)
    assert line_through([(32, 10.0), (512, 16.0)]) == (16.0, 0.0), "noise makes no batch that gives time back"
    assert [batch_of(depth) for depth in (1, 40, 64, 1_024, 4_096)] == [1, 40, 32, 512, 512]


def test_the_committed_results_have_all_demands_and_name_their_cases(quick: Run) -> None:
    measured = demands_of([quick])
    assert all(getattr(measured.demands, field.name) > 0 for field in fields(Demands))
    assert {key for key in used_in(measured) if quick.case(key)} >= {"ceiling/fdatasync"}


def test_demands_of_another_machine_are_taken_over_at_the_ratio_of_the_speeds(quick: Run) -> None:
    alone, other = demands_of([quick]).demands, demands_of([load_run(SIXTEEN), quick])
    assert other.demands.partition_batch / alone.partition_batch == pytest.approx(2.9, abs=0.1)
    assert other.demands.fsync_wait == alone.fsync_wait
    assert other.sources["partition_batch"].startswith("another run, times 2.9")
    with pytest.raises(
        DemandsMissing, match="no figures for client_batch, .*; rayfold bench model --json FILE measures"
    ):
        demands_of([load_run(SIXTEEN)])


def test_a_single_command_takes_the_sum_of_its_way() -> None:
    alone = predict(PLAIN, Size(2, writers=1, write_depth=1))
    assert alone.commands_per_s == pytest.approx(1e6 / (10 + 15 + 400 + 250), rel=0.01)
    assert (alone.batch, alone.bottleneck) == (1, "partitions")


def test_what_is_busiest_is_the_bound_and_is_named() -> None:
    demands = replace(PLAIN, partition_batch=0.0, fsync_wait=0.0)
    slow = predict(demands, Size(4, writers=1))
    assert slow.bottleneck == "partitions"
    assert slow.commands_per_s == pytest.approx(1e6 / 15, rel=0.02)
    disk = predict(replace(PLAIN, fsync_wait=50_000.0), Size(4, writers=1))
    assert disk.bottleneck == "partitions, for the disk"
    client = predict(demands, Size(8, partitions=4, writers=1))
    assert client.bottleneck == "clients"
    assert client.commands_per_s == pytest.approx(1e6 / 10, rel=0.02)
    cores = predict(demands, Size(1, writers=1))
    assert cores.bottleneck == "cores"
    assert cores.commands_per_s == pytest.approx(1e6 / 25, rel=0.02)
    readers = predict(replace(FREE, client_query=5.0, answer_query=2.0), Size(4, replicas=1, readers=1))
    assert readers.bottleneck == "clients"
    assert readers.queries_per_s == pytest.approx(2e5, rel=0.02)


def test_projectors_that_cannot_keep_up_are_reported() -> None:
    size = Size(8, partitions=2, replicas=1, writers=2)
    assert not predict(replace(PLAIN, apply_event=2.0), size).behind
    assert predict(replace(PLAIN, apply_event=40.0), size).behind


def test_one_seed_gives_one_prediction_and_another_seed_nearly_the_same() -> None:
    size = Size(8, partitions=4, writers=4)
    first = predict(PLAIN, size, seed=1)
    assert predict(PLAIN, size, seed=1) == first
    other = predict(PLAIN, size, seed=2)
    assert other != first
    assert other.commands_per_s == pytest.approx(first.commands_per_s, rel=0.05)


def test_a_part_of_a_node_stands_for_the_whole_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(16, nodes=4, partitions=8, writers=8)
    demands = replace(PLAIN, ray_caller=170.0, ray_callee=170.0, ray_wait=400.0)
    part = predict(demands, size)
    monkeypatch.setattr("rayfold.benchmarks.model.system.SLICE_CORES", 64)
    assert part.commands_per_s == pytest.approx(predict(demands, size).commands_per_s, rel=0.05)


def test_more_of_what_is_short_helps_and_ways_between_machines_cost() -> None:
    demands = replace(PLAIN, ray_caller=170.0, ray_callee=170.0, ray_wait=400.0)
    one, two = (predict(demands, Size(16, partitions=number, writers=number)).commands_per_s for number in (2, 4))
    apart = predict(demands, Size(16, nodes=2, partitions=2, writers=2)).commands_per_s
    assert one < apart < two


@pytest.mark.parametrize(
    "planted",
    [
        lambda demands: replace(demands, partition_command=demands.partition_command * 2),
        lambda demands: replace(demands, client_command=demands.client_command * 3),
        lambda demands: replace(demands, fsync_wait=demands.fsync_wait * 40),
        lambda demands: replace(demands, partition_batch=demands.partition_batch * 10),
    ],
    ids=["dear partition", "dear client", "slow disk", "dear batch"],
)
def test_demands_that_are_wrong_show_in_the_checks(
    quick: Run, planted: Callable[[Demands], Demands], monkeypatch: pytest.MonkeyPatch
) -> None:
    def worst() -> float:
        return max(map(abs, errors_of(predicted([quick], (), (), 1), RATES[0], went_in=True)[:3]))

    right = worst()
    measured = demands_of([quick])
    wrong = replace(measured, demands=planted(measured.demands))
    monkeypatch.setattr("rayfold.benchmarks.model.prediction.demands_of", lambda runs: wrong)
    assert worst() > max(0.3, 1.5 * right)


def test_halves_and_the_bound_of_batches_are_those_of_the_runtime() -> None:
    assert predict(PLAIN, Size(2, writers=1, write_depth=64)).batch == pytest.approx(32, abs=1)
    assert predict(PLAIN, Size(2, writers=1, write_depth=4_096)).batch == pytest.approx(512, abs=1)


def test_the_documented_errors_are_those_of_the_committed_results() -> None:
    page = (RESULTS.parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for sources in ((QUICK, NODES), (SIXTEEN, QUICK)):
        cases = predicted([load_run(source) for source in sources], (), (), 1)
        assert summary_of(cases) in " ".join(page.split())
        for case in cases[1:]:
            assert f"{case.figures['error_share'].value:+.0%}" in page, case.key


def test_each_case_of_a_measuring_run_gives_demands_or_can_be_checked(tmp_path: Path, quick: Run) -> None:
    options = Options(tmp_path, 1.0, True, 1, (1, 2), (1,))
    cases = cases_of(["model"], options)
    assert len(cases) == 9
    of_the_machine = {"fdatasync", "null call"}
    like = quick.cases[0]
    made = [like.model_copy(update={"suite": c.suite, "name": c.name, "parameters": dict(c.parameters)}) for c in cases]
    assert {case.name for case in made if size_of(case, 2) is None} == of_the_machine


def test_the_loads_are_those_of_the_suites() -> None:
    from rayfold.benchmarks.suites import clients, nodes, scale

    assert (CLIENTS_DEPTH, LOOPS, NODES_PARTITIONS) == (clients.DEPTH, scale.CLIENTS, nodes.PARTITIONS)


def test_the_command_predicts_from_a_file_and_writes_results_and_page(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        bench,
        ["model", "--from", str(QUICK), "--cores", "1,4", "--nodes", "1,2"]
        + ["--json", str(tmp_path / "out.json"), "--report", str(tmp_path)],
    )
    assert done.exit_code == 0, done.output
    assert "off by" in done.output
    run = load_run(tmp_path / "out.json")
    assert [case.name for case in run.cases].count("both") == 4
    assert all(figure.marks == ["model"] for case in run.cases for figure in case.figures.values())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "How far the model is off" in page
    assert "Predicted: both" in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--from", str(SIXTEEN)), "no figures for client_batch"),
        (("--from", "nowhere.json"), "cannot read nowhere.json"),
        (("--cores", "65"), "at most 64 cores and 100 nodes"),
        (("--nodes", "0"), "at least 1"),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_one_line(arguments: tuple[str, ...], told: str) -> None:
    done = CliRunner().invoke(bench, ["model", *arguments])
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())


def test_what_was_measured_is_written_also_if_it_is_too_little_for_a_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = load_run(SIXTEEN)
    monkeypatch.setattr("rayfold.benchmarks.bench.run._measured", lambda request, options: (measured, False))
    done = CliRunner().invoke(bench, ["model", "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 1
    assert "no figures for client_batch" in " ".join(done.output.split())
    assert [case.key for case in load_run(tmp_path / "out.json").cases] == [case.key for case in measured.cases]
