"""The runner: rounds, their order, failures, the budget, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from rayfold.benchmarks.harness.conditions import Conditions
from rayfold.benchmarks.harness.contract import Case, Figure, Options, Sample
from rayfold.benchmarks.harness.rounds import Measured, Plan, Record, measure_all, order_of, remaining_s
from tests.benchmarks.harness.invented import CALM

Measure = Callable[[Options], Awaitable[Sample]]


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(tmp_path, seconds=0.1, quick=True, seed=7, partitions=(1,), replicas=(0,))


class Calm:
    def begin(self) -> None:
        pass

    def end(self) -> Conditions:
        return CALM


class Witness:
    """Writes down what it is called with."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.done: list[tuple[int, int]] = []

    def begun(self, case: Case, round_: int, left_s: float) -> None:
        self.told.append(case.name)

    def ended(self, case: Case, done: int, total: int) -> None:
        self.done.append((done, total))

    def ceilings(self, record: Record) -> None:
        self.told.append("ceilings")


async def good(options: Options) -> Sample:
    return Sample({"commands_per_s": Figure(100.0, "commands/s", "higher")})


async def bad(options: Options) -> Sample:
    raise RuntimeError("no server answers\nand more")


async def broken(options: Options) -> Sample:
    return Sample({"commands_per_s": Figure(9e9, "commands/s", "higher")}, violations=["event 7 is missing"])


async def endless(options: Options) -> Sample:
    await asyncio.Event().wait()
    return Sample()


def case(name: str, measure: Measure = good, skip: str = "") -> Case:
    return Case("suite", name, {}, measure, skip=skip)


def plan(*cases: Case, rounds: int = 3, budget_s: float | None = None, timeout_s: float = 20.0) -> Plan:
    return Plan([case("first")], cases, rounds, budget_s, timeout_s)


async def measured(plan: Plan, options: Options) -> tuple[Record, Witness]:
    record, witness = Record(), Witness()
    await measure_all(plan, options, record, Calm(), witness, lambda: None)
    return record, witness


async def test_every_case_is_measured_once_a_round_after_the_load_generator(options: Options) -> None:
    record, witness = await measured(plan(case("a"), case("b"), case("c")), options)
    assert {key: [one.round for one in calls] for key, calls in record.measured.items()} == {
        f"suite/{name}": [0, 1, 2] for name in ("first", "a", "b", "c")
    }
    assert witness.told[:2] == ["first", "ceilings"]
    assert Counter(witness.told) == {"first": 3, "a": 3, "b": 3, "c": 3, "ceilings": 1}
    assert witness.done[-1] == (12, 12)


def test_the_order_changes_from_round_to_round_and_is_the_same_for_the_same_seed() -> None:
    of_run = plan(*(case(f"case {number}") for number in range(12)))
    orders = [[one.name for one in order_of(of_run, round_, 7)] for round_ in range(4)]
    assert orders == [[one.name for one in order_of(of_run, round_, 7)] for round_ in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] != [one.name for one in order_of(of_run, 0, 8)]
    assert all(order[0] == "first" and sorted(order) == sorted(orders[0]) for order in orders)


async def test_a_case_that_is_skipped_is_not_called(options: Options) -> None:
    record, _ = await measured(plan(case("absent", bad, skip="not installed: x")), options)
    assert list(record.measured) == ["suite/first"]
    assert record.errors == {}


async def test_a_case_that_raises_is_told_in_one_line_and_not_tried_again(options: Options) -> None:
    record, witness = await measured(plan(case("a"), case("bad", bad)), options)
    assert record.errors == {"suite/bad": "RuntimeError: no server answers"}
    assert Counter(witness.told)["bad"] == 1
    assert len(record.measured["suite/a"]) == 3


async def test_a_case_that_breaks_an_invariant_is_measured_again(options: Options) -> None:
    record, _ = await measured(plan(case("broken", broken)), options)
    assert [one.sample.violations for one in record.measured["suite/broken"]] == [["event 7 is missing"]] * 3


async def test_a_case_that_hangs_is_given_up(options: Options) -> None:
    record, _ = await measured(plan(case("hangs", endless), timeout_s=0.05), options)
    assert record.errors == {"suite/hangs": "gave no figure within 0 s"}


async def test_a_figure_that_is_no_number_is_an_error(options: Options) -> None:
    async def nothing(options: Options) -> Sample:
        return Sample({"events_per_s": Figure(float("nan"), "events/s", "higher")})

    record, _ = await measured(plan(case("nan", nothing)), options)
    assert record.errors == {"suite/nan": "events_per_s is nan"}


async def test_a_round_that_would_end_after_the_budget_is_not_begun(options: Options) -> None:
    record, _ = await measured(plan(case("a"), budget_s=0.0, rounds=50), options)
    assert record.out_of_time
    assert record.rounds_begun < 50


def test_ctrl_c_keeps_what_was_measured(options: Options) -> None:
    async def interrupted(options: Options) -> Sample:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
        return Sample()

    record = Record()
    asyncio.run(measure_all(plan(case("stops", interrupted)), options, record, Calm(), Witness(), lambda: None))
    assert record.interrupted
    assert list(record.measured) == ["suite/first"]


def test_what_is_left_is_told_from_what_each_case_took_before() -> None:
    record = Record({"suite/a": [Measured(0, 2.0, Sample(), None), Measured(1, 4.0, Sample(), None)]})
    assert remaining_s(record, [case("a"), case("a"), case("unknown")], guess_s=99.0) == 9.0
    assert remaining_s(Record(), [case("a"), case("b")], guess_s=1.5) == 3.0
