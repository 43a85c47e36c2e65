"""The workloads: what is drawn, what the domains decide, and what the plain program leaves behind."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from rayfold import Envelope, Receipt, given, on
from rayfold.benchmarks.suites.invariants import balances_in, log_violations
from rayfold.benchmarks.workloads import smallbank, ycsb
from rayfold.benchmarks.workloads.bank import Account, Deposit, deposits
from rayfold.benchmarks.workloads.grown_log import EVENTS_EACH, account_name, grow
from rayfold.benchmarks.workloads.keys import DISTRIBUTIONS, draw, names
from rayfold.benchmarks.workloads.plain import PlainBank
from rayfold.benchmarks.workloads.smallbank import Customer, Ledger
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import pack
from rayfold.runtime.log.folder import open_log, open_reader
from rayfold.runtime.write.write_loop import WriteLoop


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_same_seed_draws_the_same_keys(distribution: str) -> None:
    assert draw(distribution, 1) == draw(distribution, 1)
    assert set(draw(distribution, 1)) <= set(names())


def test_uniform_keys_are_all_drawn_about_as_often_and_zipfian_ones_are_not() -> None:
    uniform, zipfian = Counter(draw("uniform", 3)), Counter(draw("zipfian", 3))
    assert len(uniform) == 1_000
    assert max(uniform.values()) < 3 * min(uniform.values())
    hottest = zipfian.most_common(1)[0][1]
    assert hottest / zipfian.total() == pytest.approx(0.127, abs=0.02)  # 1 / sum(1 / rank ** 0.99, 1000 ranks)
    assert zipfian.most_common(1)[0][0] != names()[0], "ranks are scattered over the keys"


def test_hot_keys_are_one_key() -> None:
    assert set(draw("hot", 5)) == {"account-000000"}


def test_deposits_go_round_the_keys_with_the_same_amounts_for_the_same_seed() -> None:
    def first(seed: int) -> list[Envelope]:
        return list(islice(deposits(["a", "b"], seed), 5))

    assert [envelope.id for envelope in first(1)] == ["a", "b", "a", "b", "a"]
    assert first(1) == first(1)
    assert first(1) != first(2)


def test_the_plain_program_leaves_a_log_that_the_runtime_goes_on_with(tmp_path: Path) -> None:
    bank = PlainBank(tmp_path)
    receipts = bank.deposit_all([("alice", 5), ("bob", 2), ("alice", 1)])
    assert [(receipt.position, receipt.version) for receipt in receipts] == [(1, 1), (2, 1), (3, 2)]
    bank.close()
    log = open_log(tmp_path, "plain", create=False)
    loop = WriteLoop(0, log, Catalogue([Account]))
    loop.activate()
    [outcome] = loop.execute([pack(Envelope(Account, "alice", Deposit(amount=10)))[0]]).outcomes
    assert isinstance(outcome, Receipt)
    assert (outcome.position, outcome.version) == (4, 3)
    assert log_violations({0: log}, [*receipts, outcome]) == []
    assert balances_in([log]) == {"alice": 16, "bob": 2}
    log.close()


def test_the_plain_program_runs_until_its_time_is_over_and_keeps_its_accounts(tmp_path: Path) -> None:
    bank = PlainBank(tmp_path)
    receipts = bank.run(iter([("alice", 1)] * 1_000_000), batch=10, seconds=0.02)
    bank.close()
    assert len(receipts) % 10 == 0
    assert bank.accounts["alice"][3] == len(receipts) > 0


def test_a_grown_log_is_a_store_with_ten_events_for_each_account(tmp_path: Path) -> None:
    store = grow(tmp_path / "store", 5_000)
    reader = open_reader(store.partition_path(0), "partition 0", identity=store.identity(0))
    assert reader.head() == 5_000
    assert balances_in([reader]) == {account_name(number): EVENTS_EACH for number in range(500)}
    assert log_violations({0: reader}, []) == []
    reader.close()


def test_smallbank_keeps_its_mix() -> None:
    drawn = smallbank.drawn(1, names(50), 20_000)
    shares = Counter(transaction.kind for transaction in drawn)
    assert sum(smallbank.MIX.values()) == 100
    for kind, percent in smallbank.MIX.items():
        assert shares[kind] / 200 == pytest.approx(percent, abs=1.5)
    assert all(transaction.customer != transaction.other for transaction in drawn)
    assert all(transaction.amount for transaction in drawn)


def test_a_customer_sends_only_what_is_in_checking() -> None:
    opened = smallbank.Opened(savings=5, checking=3)
    sent = smallbank.Sent(transfer="t", savings=0, checking=3)
    given(Customer, opened).when(smallbank.Send(transfer="t", amount=3)).then(sent)
    given(Customer, opened).when(smallbank.Send(transfer="t", amount=4)).rejected("insufficient_checking", checking=3)


def test_a_check_that_overdraws_both_accounts_has_a_penalty() -> None:
    opened = smallbank.Opened(savings=5, checking=3)
    given(Customer, opened).when(smallbank.WriteCheck(amount=8)).then(smallbank.CheckPaid(amount=8, penalty=0))
    given(Customer, opened).when(smallbank.WriteCheck(amount=9)).then(
        smallbank.CheckPaid(amount=9, penalty=1)
    ).then_state(savings=5, checking=-7)


def test_savings_never_fall_below_zero() -> None:
    opened = smallbank.Opened(savings=5, checking=3)
    given(Customer, opened).when(smallbank.ChangeSavings(amount=-6)).rejected("insufficient_savings", savings=5)


def test_all_that_a_customer_has_leaves_with_an_amalgamation() -> None:
    opened = smallbank.Opened(savings=5, checking=3)
    sent = smallbank.Sent(transfer="t", savings=5, checking=3)
    given(Customer, opened).when(smallbank.SendAll(transfer="t")).then(sent).then_state(savings=0, checking=0)


def test_money_between_two_customers_is_in_transit_until_it_has_arrived() -> None:
    opened, sent = smallbank.Opened(savings=5, checking=3), smallbank.Sent(transfer="t", savings=0, checking=2)
    on_its_way = [on("alice", opened), on("alice", sent)]
    given(Ledger, *on_its_way).ask(smallbank.Total()).answers({"accounts": 6, "transit": 2, "penalties": 0})
    arrived = on("bob", smallbank.Received(transfer="t", amount=2))
    given(Ledger, *on_its_way, arrived).ask(smallbank.Total()).answers({"accounts": 8, "transit": 0, "penalties": 0})


@pytest.mark.parametrize("workload", ycsb.WORKLOADS)
def test_ycsb_keeps_its_mixes_and_inserts_only_new_rows(workload: str) -> None:
    operations = ycsb.drawn(workload, seed=1, rows=100, count=10_000)
    shares = Counter(operation.kind for operation in operations)
    assert sum(ycsb.WORKLOADS[workload].values()) == 100
    for kind, percent in ycsb.WORKLOADS[workload].items():
        assert shares[kind] / 100 == pytest.approx(percent, abs=2)
    inserted = [operation.row for operation in operations if operation.kind == "insert"]
    assert inserted == [ycsb.row_name(100 + number) for number in range(len(inserted))]


def test_ycsb_scans_rows_in_the_order_of_their_keys() -> None:
    inserted = {row: ycsb.Inserted(values=(row,) * ycsb.FIELDS) for row in ("c", "a", "b")}
    rows = given(ycsb.Rows, *(on(row, event) for row, event in inserted.items()))
    rows.ask(ycsb.Scan(first="aa", limit=5)).answers([["b"] * ycsb.FIELDS, ["c"] * ycsb.FIELDS])
    rows.ask(ycsb.ReadRow(row="d")).answers([])
