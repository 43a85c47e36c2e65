"""What a scenario is held to, and that the judgement over a store finds what it is there to find."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayfold import Receipt, Rejected
from rayfold.benchmarks.torture import contract
from rayfold.benchmarks.torture.contract import (
    INVARIANTS,
    VIOLATIONS_MAX,
    Context,
    Findings,
    NotReached,
    Scenario,
    perform,
)
from rayfold.benchmarks.torture.storage.workload import (
    batches,
    everything,
    expected,
    judge,
    make_store,
    open_clocked,
    write_loop,
)
from rayfold.runtime.store.store import Store
from tests.faults.short_form import SEED, context_in, figure

DONE = 6
WANTED = DONE + 3


def judged(store: Store, done: int) -> Findings:
    findings = Findings()
    judge(store.path, expected(SEED, WANTED), done, findings, "here")
    return findings


def test_a_store_with_all_that_was_acknowledged_is_right_and_goes_on(tmp_path: Path) -> None:
    findings = judged(make_store(tmp_path / "store", SEED, DONE), DONE)
    assert findings.violations == []
    assert findings.passed
    assert figure(findings, "losses") == figure(findings, "twice") == 0
    assert figure(findings, "sent_again") > 0


def test_an_acknowledged_batch_that_is_not_there_is_a_loss(tmp_path: Path) -> None:
    findings = judged(make_store(tmp_path / "store", SEED, DONE), DONE + 1)
    assert figure(findings, "losses") == 1
    assert findings.broken["I1"] == 1
    assert findings.violations[0].what.startswith(f"here: {DONE + 1} batches acknowledged, the log holds ")


def test_half_a_batch_and_a_record_that_nobody_sent_are_found(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", SEED, DONE)
    log = open_clocked(store)
    whole = next(number for number in range(DONE, WANTED) if len(expected(SEED, WANTED).batches[number]) > 1)
    loop = write_loop(log)
    for batch in expected(SEED, WANTED).batches[DONE:whole]:
        loop.execute(batch)
    loop.execute(next(iter(batches(SEED + 1))))
    log.close()
    findings = judged(store, DONE)
    assert findings.broken["I4"] == 1


def test_a_store_that_cannot_be_opened_is_a_loss(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", SEED, DONE)
    (store.partition_path(0) / "data.mdb").write_bytes(bytes(8_192))
    findings = judged(store, DONE)
    assert figure(findings, "losses") == 1
    assert "the log cannot be opened" in findings.violations[0].what


def test_some_commands_of_the_tests_are_refused_and_some_are_not() -> None:
    """Not so for every seed: with the first ones paid in, balances may never run out."""
    outcomes = [outcome for batch in expected(SEED, WANTED).outcomes for outcome in batch]
    assert {type(outcome) for outcome in outcomes} == {Receipt, Rejected}


def test_the_same_seed_makes_the_same_store_byte_for_byte(tmp_path: Path) -> None:
    logs = [open_clocked(make_store(tmp_path / name, SEED, DONE)) for name in ("one", "other")]
    one, other = (everything(log) for log in logs)
    assert one == other == expected(SEED, DONE).records
    for log in logs:
        log.close()


# --- the contract -----------------------------------------------------------------------------------------------------


def test_a_look_at_an_invariant_is_counted_whether_it_holds_or_not() -> None:
    findings = Findings()
    assert findings.check("I1", True, "unused")
    assert not findings.check("I1", False, lambda: "lost")
    assert (findings.checks, findings.broken, findings.passed) == ({"I1": 2}, {"I1": 1}, False)


def test_findings_without_a_single_look_have_not_passed() -> None:
    assert not Findings().passed


def test_violations_are_listed_up_to_a_bound_and_counted_beyond() -> None:
    findings = Findings()
    for _ in range(VIOLATIONS_MAX + 7):
        findings.violate("I2", "twice")
    assert (len(findings.violations), findings.unlisted) == (VIOLATIONS_MAX, 7)


def test_parts_of_a_scenario_add_up() -> None:
    findings, part = Findings({"losses": 1, "name": "a"}), Findings({"losses": 2, "name": "b"})
    findings.check("I1", True, "unused")
    part.check("I1", False, "lost")
    findings.include(part)
    assert (findings.figures, findings.checks) == ({"losses": 3, "name": "b"}, {"I1": 2})
    assert findings.broken == {"I1": 1}


def nothing(context: Context) -> Findings:
    return Findings()


def test_a_scenario_that_has_not_looked_at_what_it_is_about_is_a_bug_of_it(tmp_path: Path) -> None:
    with pytest.raises(NotReached, match="idle has not checked I1"):
        perform(Scenario("idle", "does nothing", nothing, invariants=("I1",)), context_in(tmp_path))


def test_a_scenario_that_cannot_run_here_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    contract.missing.cache_clear()
    findings = perform(
        Scenario("traced", "traces", nothing, needs=("strace",), invariants=("I1",)), context_in(tmp_path)
    )
    contract.missing.cache_clear()
    assert findings.skipped == "needs strace, which is not installed"
    assert not findings.passed


def test_there_are_fourteen_invariants_each_with_its_sentence() -> None:
    assert list(INVARIANTS) == [f"I{number}" for number in range(1, 15)]
    assert not [sentence for sentence in INVARIANTS.values() if sentence.endswith(".")]
