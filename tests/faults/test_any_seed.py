"""Whatever the seed: moments are chosen once, each fault is come to, and every wait and every run has its end."""

from __future__ import annotations

import ast
import asyncio
import random
import threading
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from rayfold.benchmarks import torture
from rayfold.benchmarks.harness.processes import Child
from rayfold.benchmarks.torture import runner
from rayfold.benchmarks.torture.contract import Context, Findings, NotReached, Scenario, _works, perform, scenarios
from rayfold.benchmarks.torture.local.socket_faults import Faults
from rayfold.benchmarks.torture.runner import Outcome, ended_after, fitting, perform_all, shares_s
from rayfold.benchmarks.torture.storage.full import BATCHES_MAX, ROOM_BYTES
from rayfold.benchmarks.torture.storage.workload import FIRST, batches
from tests.faults.short_form import context_in, figure, short_form

pytestmark = pytest.mark.slow

SEEDS = range(1_000)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def moments_drawn_anew(source: str) -> list[int]:
    """Lines where something is compared for equality with a number that is drawn at that very moment: such a moment is
    another one with each look, and may never come."""
    return [
        compared.lineno
        for compared in ast.walk(ast.parse(source))
        if isinstance(compared, ast.Compare)
        and any(isinstance(one, ast.Eq | ast.NotEq) for one in compared.ops)
        and any(isinstance(one, ast.Call) and "rng." in ast.unparse(one.func) for one in ast.walk(compared))
    ]


def test_no_scenario_draws_a_moment_anew_each_time_it_looks_for_it() -> None:
    assert moments_drawn_anew("for n in lines:\n    if n == most - context.rng.randrange(200):\n        kill()") == [2]
    [folder] = torture.__path__
    files = sorted(Path(folder).rglob("*.py"))
    assert len(files) > 40
    assert {str(path): lines for path in files if (lines := moments_drawn_anew(path.read_text()))} == {}


def test_each_fault_of_the_road_happens_within_some_hundred_frames_under_any_seed() -> None:
    for seed in SEEDS:
        faults = Faults(random.Random(seed))
        drawn = Counter(faults.next() for _ in range(300))
        assert set(drawn) == {"", "cut_in_frame", "cut_before_answer", "late", "repeated"}, f"seed {seed}: {drawn}"
        assert drawn[""] > 250


def test_any_seed_has_enough_to_fill_a_disk() -> None:
    for seed in SEEDS:
        written = 0
        for batch in islice(batches(seed), FIRST, BATCHES_MAX // 2):
            written += sum(len(command.payload) for command in batch)
            if written > 2 * ROOM_BYTES:
                break
        assert written > 2 * ROOM_BYTES, f"seed {seed}"


@pytest.mark.parametrize("seed", [3, 936_721])
def test_a_disk_is_full_under_seeds_that_store_little(tmp_path: Path, seed: int) -> None:
    with runner.context_of(named("disk-full"), seed, "short", 90.0, tmp_path) as context:
        findings = short_form("disk-full", tmp_path, context.seed)
    assert figure(findings, "refused") >= 4


def named(name: str) -> Scenario:
    return next(one for one in scenarios() if one.name == name)


# --- how long it takes ------------------------------------------------------------------------------------------------


def test_a_run_begins_with_what_it_has_time_for_and_each_has_its_turn_under_some_seed() -> None:
    every = scenarios()
    turns: Counter[str] = Counter()
    for seed in SEEDS:
        chosen = fitting(every, 300.0, seed)
        assert 0 < sum(one.short_s for one in chosen) <= 300.0
        turns.update(one.name for one in chosen)
    assert set(turns) == {one.name for one in every}
    assert set(fitting(every, sum(one.short_s for one in every), 1)) == set(every)
    assert len(fitting(every, 0.001, 1)) == 1


def test_what_takes_little_is_not_left_out_for_what_takes_long() -> None:
    for seed in SEEDS:
        chosen = fitting(scenarios(), 600.0, seed)
        assert [one for one in chosen if one.short_s <= 30] == [one for one in scenarios() if one.short_s <= 30]


@pytest.mark.parametrize("minutes", [0.01, 1, 10, 60, 600])
def test_the_shares_of_time_fill_what_there_is_and_each_is_enough_for_a_step(minutes: float) -> None:
    for seed in SEEDS[:50]:
        left = fitting(scenarios(), minutes * 60, seed)
        shares = shares_s(left, minutes * 60)
        assert all(share >= one.short_s for one, share in zip(left, shares, strict=True))
        assert len(left) == 1 or sum(shares) == pytest.approx(minutes * 60)


@pytest.mark.parametrize(
    "name",
    ["simulation", "kill-in-commit", "power-cut", "disk-errors", "swapped-files", "interrupted-creation"],
)
def test_a_scenario_whose_time_is_over_has_looked_at_what_it_is_about_all_the_same(tmp_path: Path, name: str) -> None:
    with runner.context_of(named(name), 7, "long", -1.0, tmp_path) as context:
        findings = perform(named(name), context)
    if findings.skipped:
        pytest.skip(findings.skipped)
    assert findings.violations == []


class Spectators:
    """A screen that shows nothing."""

    def begun(self, scenario: Scenario, seconds: float) -> None:
        """Not seen."""

    def ended(self, outcome: Outcome) -> None:
        """Not seen."""


def held(context: Context) -> Findings:
    findings = Findings({"seen": 1})
    findings.check("I1", True, "unused")
    return findings


def late(context: Context) -> Findings:
    threading.Event().wait(context.left_s + 0.6)
    return held(context)


def endless(context: Context) -> Findings:
    threading.Event().wait()
    return held(context)


def blind(context: Context) -> Findings:
    findings = held(context)
    findings.reach(False, "nothing was tried")
    return findings


def scenario(name: str, run: object, short_s: float = 0.4) -> Scenario:
    return Scenario(name, "a scenario", run, invariants=("I1",), short_s=short_s, long_s=short_s)  # type: ignore[arg-type]


def test_what_there_is_no_time_left_for_is_left_out_and_said() -> None:
    both = [scenario("late", late), scenario("never", held)]
    seed = next(one for one in SEEDS if fitting(both, 1.0, one)[0] is both[0])
    run = perform_all(both, seed, 1 / 60, Spectators())
    assert [one.verdict for one in run.outcomes] == ["held", "skipped"]
    assert run.outcomes[1].findings.skipped.startswith("no time for it: it takes about 0 s. `--scenario never` runs it")
    assert not run.failed


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LATE_S", 0.3)
    monkeypatch.setattr(runner, "LATE_FACTOR", 0)


@pytest.mark.usefixtures("impatient")
def test_a_scenario_that_does_not_end_is_ended_has_failed_and_the_next_one_runs() -> None:
    run = perform_all([scenario("endless", endless), scenario("next", held)], 1, 0, Spectators())
    assert [one.verdict for one in run.outcomes] == ["FAILED", "held"]
    assert run.outcomes[0].error == "it did not come to its end within 0 s"
    assert (run.interrupted, run.failed) == (False, True)


def test_the_deadline_ends_what_waits_in_an_event_loop_and_lets_it_clean_up() -> None:
    ended, too_late = [], threading.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(3_600)
        finally:
            ended.append(True)

    with pytest.raises(KeyboardInterrupt), ended_after(0.3, too_late):
        asyncio.run(wait())
    assert (ended, too_late.is_set()) == ([True], True)


def test_a_block_that_ends_in_time_hears_nothing_of_its_deadline() -> None:
    too_late = threading.Event()
    for _ in SEEDS[:100]:
        with ended_after(60.0, too_late):
            pass
    assert not too_late.is_set()


def test_a_child_that_says_nothing_is_not_waited_for_for_ever() -> None:
    with Child(_works, command=["sleep", "3"]) as child:
        with pytest.raises(TimeoutError, match=r"contract:_works \(process \d+\) does not come to its end"):
            list(child.lines(0.2))
        child.signal()


def test_a_child_that_complains_at_length_is_not_held_up_by_it() -> None:
    with Child("nothing_of_this_name:" + "x" * 100_000) as child:
        assert list(child.lines()) == []
        assert child.wait() == 1
        assert "No module named" in child.errors()


# --- what was not come to ---------------------------------------------------------------------------------------------


def test_what_a_scenario_has_not_come_to_is_its_own_fault_and_what_it_found_is_kept(tmp_path: Path) -> None:
    with pytest.raises(NotReached, match="nothing was tried") as raised:
        perform(scenario("blind", blind), context_in(tmp_path))
    assert raised.value.findings.figures == {"seen": 1}
    run = perform_all([scenario("blind", blind)], 1, 0, Spectators())
    assert (run.outcomes[0].verdict, run.outcomes[0].error, run.failed) == ("FAILED", "nothing was tried", True)
    assert run.outcomes[0].findings.figures == {"seen": 1}
