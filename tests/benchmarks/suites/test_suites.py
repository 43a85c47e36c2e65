"""Every suite once from end to end, at tiny sizes: real Ray, real logs, real peers. No figure is judged here."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import pytest

from rayfold.benchmarks.bench.run import Request, run_bench
from rayfold.benchmarks.harness.contract import Case, Options, Sample
from rayfold.benchmarks.harness.goals import GOALS
from rayfold.benchmarks.harness.histogram import decoded
from rayfold.benchmarks.suites import peers, replay, umadb_peer
from rayfold.benchmarks.suites.running import running_bank
from rayfold.benchmarks.workloads.bank import Account, Deposit
from tests.benchmarks.suites.broken_builds import BalancesTwice

SUITES = ("ceiling", "write", "read", "scale", "latency", "freshness", "replay", "jobs", "peers", "profile")
MakeOptions = Callable[..., Options]


def cases_of(suite: str, options: Options) -> list[Case]:
    cases: list[Case] = import_module(f"rayfold.benchmarks.suites.{suite}").cases(options)
    return cases


def all_cases(options: Options) -> list[Case]:
    return [case for suite in SUITES for case in cases_of(suite, options)]


@pytest.fixture(params=[True, False], ids=["quick", "full"])
def of_a_run(request: pytest.FixtureRequest, options: MakeOptions) -> Options:
    """As the command line makes them."""
    quick: bool = request.param
    return options(
        quick=quick, partitions=(1, 2) if quick else (1, 2, 4), replicas=(0, 1) if quick else (0, 1, 2), seconds=1.0
    )


def test_every_goal_is_a_figure_of_a_case_that_there_is(of_a_run: Options) -> None:
    keys = {case.key for case in all_cases(of_a_run)}
    wanted = {key for goal in GOALS for key, _ in (goal.numerator, *filter(None, [goal.denominator]))}
    assert wanted <= keys


@pytest.mark.slow
def test_no_suite_imports_ray_before_it_is_set_up() -> None:
    """Ray takes the address of this machine from its environment as it is imported: it would join no local cluster."""
    program = (
        "import sys; from importlib import import_module; from rayfold.benchmarks.harness.registry import SUITES;"
        "[import_module('rayfold.benchmarks.suites.' + suite) for suite in SUITES];"
        "print('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_every_case_has_a_key_of_its_own_and_names_its_suite(of_a_run: Options) -> None:
    cases = all_cases(of_a_run)
    assert len({case.key for case in cases}) == len(cases)
    assert {case.suite for case in cases} == set(SUITES)


def test_a_quick_run_is_small_enough_for_its_ten_minutes(options: MakeOptions) -> None:
    run = options(partitions=(1, 2), replicas=(0, 1), seconds=1.0)
    assert len(all_cases(run)) <= 80, "three rounds of cases of about 2.5 s each have to fit into 10 minutes"


def one_of_each_name(cases: list[Case]) -> list[Case]:
    """The last setting of each name that is not skipped: the one with the most parts at work."""
    return list({case.name: case for case in cases if not case.skip}.values())


def sound(case: Case, sample: Sample) -> None:
    assert sample.violations == [], case.key
    assert sample.figures, case.key
    for name, figure in sample.figures.items():
        assert math.isfinite(figure.value), f"{case.key} {name}"
        assert figure.value >= 0, f"{case.key} {name}"


@pytest.mark.slow
@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite != "replay"])
async def test_a_suite_measures_and_its_invariants_hold(suite: str, options: MakeOptions, ray_of_the_run: None) -> None:
    run = options()
    for case in one_of_each_name(cases_of(suite, run)):
        sound(case, await case.measure(run))
    assert not list(run.directory.glob("case-*")), "a case has left its folder behind"


@pytest.mark.slow
async def test_what_the_model_measures_beside_other_suites_gives_its_demands(
    options: MakeOptions, ray_of_the_run: None
) -> None:
    run = options()
    own = [case for case in cases_of("model", run) if case.suite == "model" or case.name == "null call"]
    measured = {case.name: await case.measure(run) for case in own}
    assert len(measured) == 3
    for case in own:
        sound(case, measured[case.name])
    assert {f"cpu_s_per_1000_calls_{end}" for end in ("driver", "actor")} <= measured["null call"].figures.keys()
    assert "cpu_s_per_1000_commands_projectors" in measured["writes beside a replica"].figures
    assert "cpu_s_per_1000_queries_projectors" in measured["reads in small batches"].figures


@pytest.mark.slow
async def test_the_replay_suite_measures_over_logs_of_growing_size(
    options: MakeOptions, ray_of_the_run: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "sizes_of", lambda _: (500, 2_000))  # 100,000 and more take too long for a test
    run = options()
    measured = {case.key: await case.measure(run) for case in one_of_each_name(replay.cases(run))}
    for case in one_of_each_name(replay.cases(run)):
        sound(case, measured[case.key])
    assert measured["replay/commands after?size=largest"].notes["events_before"] == 2_000
    assert measured["replay/projection rebuild?events=2000"].notes["log_bytes"]


@pytest.mark.slow
async def test_both_placements_and_all_distributions_of_keys_are_written(
    options: MakeOptions, ray_of_the_run: None
) -> None:
    run = options()
    cases = [case for case in cases_of("write", run) if case.parameters["keys"] != "uniform"]
    own = [case for case in cases_of("write", run) if case.parameters["placement"] == "own"]
    assert {case.parameters["keys"] for case in cases} == {"zipfian", "hot"}
    assert len(own) == 1
    for case in cases:
        sound(case, await case.measure(run))


def test_the_open_loop_covers_every_operation(options: MakeOptions) -> None:
    loops = [case.parameters for case in cases_of("latency", options()) if case.name == "open loop"]
    assert {each["operation"] for each in loops} == {"execute", "ask", "execute then ask"}


@pytest.mark.slow
async def test_the_open_loop_keeps_its_whole_histogram_and_what_saturation_it_went_by(
    options: MakeOptions, ray_of_the_run: None
) -> None:
    run = options()
    case = next(case for case in cases_of("latency", run) if case.parameters.get("operation") == "execute")
    sample = await case.measure(run)
    sound(case, sample)
    assert decoded(sample.histograms["latency_us"]).count > 0
    assert sample.notes["saturation_per_s"]


@pytest.mark.slow
async def test_a_side_that_is_idle_has_no_figures(options: MakeOptions, ray_of_the_run: None) -> None:
    run = options()
    [case] = [
        case
        for case in cases_of("scale", run)
        if case.name == "interference" and dict(case.parameters) == {"writes": "saturated", "reads": "idle"}
    ]
    figures = (await case.measure(run)).figures
    assert "commands_per_s" in figures
    assert "queries_per_s" not in figures


@pytest.mark.slow
async def test_a_run_with_a_violation_has_no_figures(
    options: MakeOptions, ray_of_the_run: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> list[str]:
        return ["partition 0: something is wrong"]

    monkeypatch.setattr("rayfold.benchmarks.suites.running.Running.violations", broken)
    run = options()
    for suite in ("write", "freshness"):
        case = cases_of(suite, run)[0]
        sample = await case.measure(run)
        assert (sample.figures, sample.violations) == ({}, ["partition 0: something is wrong"]), case.key


@pytest.mark.slow
async def test_a_read_model_that_counts_twice_in_a_process_of_its_own_is_told(
    options: MakeOptions, ray_of_the_run: None
) -> None:
    async with running_bank(options(), replicas=1, projections=[BalancesTwice]) as running:
        receipt = await running.bank.execute(Account, "alice", Deposit(amount=5))
        assert await running.violations([receipt]) == ["read model: alice is 10 and the log has 5"]


@pytest.mark.slow
def test_a_run_that_is_refused_leaves_the_ray_that_its_process_had(ray_of_the_run: None) -> None:
    ray = import_module("ray")
    present = ray.get_runtime_context().gcs_address
    assert run_bench(Request("write", address="localhost")) == 2
    assert ray.get_runtime_context().gcs_address == present


def test_a_peer_that_is_not_installed_is_skipped_with_its_reason(
    options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(umadb_peer, "installed", lambda: False)
    skipped = {case.key: case.skip for case in peers.cases(options()) if case.skip}
    assert skipped["peers/umadb?depth=64"] == "not installed: umadb"
    assert "peers/eventsourcing save?store=sqlite" not in skipped


def test_the_options_decide_how_large_the_logs_get(options: MakeOptions) -> None:
    assert replay.sizes_of(options())[-1] == 300_000
    assert replay.sizes_of(replace(options(), quick=False))[-1] == 10_000_000
