"""From what was measured to results: figures, marks, goals, the file, the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayfold.benchmarks.harness.compare import compare
from rayfold.benchmarks.harness.conditions import Conditions
from rayfold.benchmarks.harness.goals import GOALS, Goal, bounded_by, judge
from rayfold.benchmarks.harness.numbers import counted, sentence, shown, shown_interval, shown_s
from rayfold.benchmarks.harness.results import SCHEMA, ResultsInvalid, Run, load_run, save_run
from tests.benchmarks.harness.invented import CALM, Invention, whole_run

WRITES = {"depth": 1024, "keys": "uniform", "partitions": 1, "placement": "shared"}
WRITE_1 = "write/saturated writes?depth=1024&keys=uniform&partitions=1&placement=shared"
PLAIN = "ceiling/plain program?batch=1024"
CROWDED = Conditions(load_before=5.0, load_after=5.0, ours=0.5, others=0.2, steal=0.0)
ROBBED = Conditions(load_before=1.0, load_after=1.0, ours=0.5, others=0.0, steal=0.03)


def one(rate: float = 1000.0, **how: object) -> Run:
    made = Invention()
    made.add("write", "saturated writes", WRITES, {"commands_per_s": rate}, **how)  # type: ignore[arg-type]
    return made.run()


def test_a_figure_is_the_median_of_the_rounds_with_its_interval_and_all_values() -> None:
    figure = one().cases[0].figures["commands_per_s"]
    assert (figure.value, figure.low, figure.high) == pytest.approx((1000, 980, 1020))
    assert figure.confidence == 0.9375
    assert sorted(figure.values) == [0, 1, 2, 3, 4]
    assert figure.marks == []


def test_a_case_that_broke_an_invariant_in_one_round_has_no_figure_at_all() -> None:
    run = one(violations={3: "event 12 was acknowledged and is not in the log"})
    assert run.cases[0].figures == {}
    assert run.cases[0].violations == ["round 4: event 12 was acknowledged and is not in the log"]
    assert run.broken == [run.cases[0]]


@pytest.mark.parametrize(
    ("conditions", "filesystem", "rounds", "marks"),
    [
        (CALM, "ext4", 5, []),
        (CALM, "tmpfs", 5, ["tmpfs"]),
        (CROWDED, "ext4", 5, ["busy"]),
        (ROBBED, "ext4", 5, ["busy"]),
        (None, "ext4", 5, ["unwatched"]),
        (CALM, "ext4", 2, ["short"]),
        (CALM, "ext4", 1, ["short", "single"]),
    ],
)
def test_a_figure_is_marked_for_what_touches_it(
    conditions: Conditions | None, filesystem: str, rounds: int, marks: list[str]
) -> None:
    made = Invention()
    made.add("write", "saturated writes", WRITES, {"commands_per_s": 1000}, conditions=conditions, rounds=rounds)
    run = made.run(filesystem=filesystem)
    assert run.cases[0].figures["commands_per_s"].marks == marks
    assert run.complete == (rounds == 5)


@pytest.mark.parametrize(
    ("rate", "throughput", "marks"), [(850, True, ["generator"]), (750, True, []), (850, False, [])]
)
def test_a_throughput_near_the_load_generators_ceiling_is_marked(rate: int, throughput: bool, marks: list[str]) -> None:
    made = Invention()
    made.add("ceiling", "load generator", {"load": "commands"}, {"commands_per_s": 1000})
    key = made.add("write", "saturated writes", WRITES, {"commands_per_s": rate}, throughput=throughput)
    run = made.run()
    assert run.generator == {"commands_per_s": 1000}
    assert (found := run.case(key)) is not None
    assert found.figures["commands_per_s"].marks == marks


def test_a_goal_is_a_ratio_within_rounds_against_its_bound() -> None:
    made = Invention()
    assert made.add("write", "saturated writes", WRITES, {"commands_per_s": 50_000}) == WRITE_1
    assert made.add("ceiling", "plain program", {"batch": 1024}, {"commands_per_s": 100_000}) == PLAIN
    goal = made.run().goals[0]
    assert goal.value == pytest.approx(0.5)
    assert goal.verdict == "missed"
    assert goal.certain


def test_a_goal_whose_side_is_missing_is_not_measured_and_says_which() -> None:
    told = {goal.name: goal for goal in one().goals}
    assert told[GOALS[0].name].verdict == "not measured"
    assert told[GOALS[0].name].bounded_by == f"not in this run: {PLAIN}"
    made = Invention()
    made.add("write", "saturated writes", WRITES, {"commands_per_s": 1.0})
    made.add("ceiling", "plain program", {"batch": 1024}, {}, skip="not here")
    assert made.run().goals[0].bounded_by == f"{PLAIN}: not here"


def test_a_goal_whose_interval_lies_on_both_sides_of_its_bound_is_uncertain() -> None:
    run = one(1000.0)
    goal = Goal("about a thousand", (WRITE_1, "commands_per_s"), None, 990.0, True)
    (judged,) = judge([goal], {case.key: case for case in run.cases}, 8)
    assert (judged.verdict, judged.certain) == ("met", False)


@pytest.mark.parametrize(
    ("cpu_s", "driver_s", "cores", "told"),
    [
        (1.9, 1.0, 2, "the CPU: 1.90 of 2 cores busy, most of it driver (1.00)"),
        (1.2, 0.95, 8, "driver: 0.95 of a core, with 1.20 of 8 cores busy"),
        (0.4, 0.3, 8, "waiting: 0.40 of 8 cores busy, most of it driver (0.30)"),
    ],
)
def test_what_bounds_a_throughput_follows_from_the_cpu_time_by_role(
    cpu_s: float, driver_s: float, cores: int, told: str
) -> None:
    made = Invention(rounds=1)
    cpu = {"cpu_s_per_1000_commands": cpu_s / 0.98, "cpu_s_per_1000_commands_driver": driver_s / 0.98}
    made.add("write", "saturated writes", WRITES, {"commands_per_s": 1000 / 0.98, **cpu})
    assert bounded_by(made.run().cases[0], cores) == told


def test_results_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    run = whole_run()
    save_run(run, tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == run
    assert json.loads((tmp_path / "run.json").read_text())["schema"] == SCHEMA
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "run.json is not JSON"),
        ("[]", "run.json holds no benchmark results, and this version reads rayfold-bench/1"),
        ('{"schema": "rayfold-bench/9"}', "run.json holds rayfold-bench/9, and this version reads rayfold-bench/1"),
        ('{"schema": "rayfold-bench/1"}', "run.json is not a rayfold-bench/1: suites: Field required"),
    ],
)
def test_a_file_that_holds_no_results_is_refused_with_what_is_wrong(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ResultsInvalid) as refused:
        load_run(tmp_path / "run.json")
    assert str(refused.value) == f"{tmp_path}/{told}"


def test_a_file_that_is_not_there_is_told_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ResultsInvalid, match=r"cannot read .*run\.json: No such file or directory"):
        load_run(tmp_path / "run.json")


@pytest.mark.parametrize(("rate", "verdict"), [(1000, "same"), (1030, "same"), (1100, "better"), (900, "worse")])
def test_a_figure_has_moved_when_its_intervals_do_not_touch(rate: float, verdict: str) -> None:
    comparison = compare(one(1000.0), one(rate))
    (movement,) = comparison.movements
    assert movement.name == f"{WRITE_1}: commands_per_s"
    assert movement.verdict == verdict
    assert movement.factor == pytest.approx(rate / 1000)
    assert comparison.differences == []


@pytest.mark.parametrize(("rounds", "chance"), [(2, 1 / 3), (3, 0.1), (5, 1 / 126), (9, None)])
def test_how_often_an_unchanged_figure_moves_by_chance_is_told(rounds: int, chance: float | None) -> None:
    made = Invention(rounds)
    made.add("write", "saturated writes", WRITES, {"commands_per_s": 1000})
    told = compare(made.run(), made.run()).chance
    assert told == (None if chance is None else pytest.approx(chance))


def test_a_latency_that_has_grown_is_worse() -> None:
    runs = []
    for took_ms in (1.0, 2.0):
        made = Invention()
        made.add("latency", "one at a time", {}, {"latency_ms_p50": took_ms})
        runs.append(made.run())
    assert [one.verdict for one in compare(*runs).movements] == ["worse"]


def test_a_comparison_tells_other_machines_and_what_only_one_run_has() -> None:
    made = Invention()
    made.add("read", "saturated reads", {"replicas": 1}, {"queries_per_s": 5.0})
    comparison = compare(one(), made.run(cores=2))
    assert comparison.differences == ["cores: 8 against 2"]
    assert comparison.only_first == [WRITE_1]
    assert comparison.only_second == ["read/saturated reads?replicas=1"]


def test_goals_are_compared_too() -> None:
    names = [movement.name for movement in compare(whole_run(), whole_run()).movements]
    assert "goal: 1 partition against the plain program" in names


@pytest.mark.parametrize(
    ("value", "text"),
    [(36_123, "36,100"), (12.345, "12.3"), (0.04214, "0.0421"), (0, "0"), (999.6, "1,000"), (-1234.5, "-1,230")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_an_interval_that_reads_the_same_at_both_ends_is_one_number() -> None:
    assert shown_interval(1.0001, 1.0002) == "1.00"
    assert shown_interval(1, 2) == "1.00 to 2.00"


def test_numbers_without_a_value_are_words() -> None:
    assert (shown(float("inf")), shown(float("nan"))) == ("unbounded", "unknown")


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (-1, "0 s"), (200, "3 min"), (4200, "1 h 10 min")])
def test_times_are_words(seconds: float, text: str) -> None:
    assert shown_s(seconds) == text


def test_parts_become_a_sentence() -> None:
    assert sentence(["a is 1", "b is 2"], ", at once") == "A is 1; b is 2, at once."
    assert sentence([]) == ""
    assert (counted(1, "partition"), counted(4, "partition")) == ("1 partition", "4 partitions")
