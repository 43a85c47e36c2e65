"""Subscriptions of a name on a cluster: from every kind of program, open once, through moves, kills, losses, backups.

One cluster of two nodes and one runtime for all of it, in a program of its own (`console.py`). The tests run in their
order, each with a name of its own.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from rayfold import subscribe
from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from rayfold.runtime.backup.restoring import restore_store
from rayfold.runtime.feed.group_coordinator import coordinator_of
from tests.actors.cluster.test_local_cluster import left_over
from tests.actors.rollout.test_deploy import rayfold
from tests.bank import Account
from tests.support.console import Console, Told, console

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PARTITIONS: Final = 4
ACCOUNTS: Final[list[str]] = []
"""One of each partition: account number n is in partition n."""

LOOKING: Final = threading.Event()
"""Waited for between two polls, and never set."""

TAKE: Final = "[(e.amount, r.partition) for e, r in (next(s) for _ in range({count}))]"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNodes]:
    with LocalNodes(LocalCluster(nodes=2, cpus=1), tmp_path_factory.mktemp("cluster")) as running:
        yield running
    assert left_over(running.folder) == []


@pytest.fixture(scope="module")
def bank(nodes: LocalNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    options = f"partitions={PARTITIONS}, settings=Settings(silent_s=8, timeout_s=60)"
    with console(nodes.address, path=tmp_path_factory.mktemp("driver") / "bank", options=options) as told:
        ACCOUNTS[:] = told("of_partitions(bank)")
        for account in ACCOUNTS:
            told(f"bank.execute(Account, {account!r}, Open(owner='x')).position")
        deposit(told, 1, 2, 3)
        yield told


def deposit(bank: Console, *amounts: int) -> None:
    """Into every account."""
    for amount in amounts:
        for account in ACCOUNTS:
            bank(f"bank.execute(Account, {account!r}, Deposit(amount={amount})).position")


def opened(program: Console, name: str, *, by_hand: bool = False, **options: Any) -> None:
    """Have a program open a subscription to deposits, as `s`."""
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    given += ", acknowledge='by hand'" if by_hand else ""
    program(f"(s := bank.subscribe({name!r}, types=[Deposited]{given})) and None")


def free(program: Console, name: str) -> bool:
    """Whether a program could open it, as `s`."""
    try:
        opened(program, name, by_hand=True)
    except Told as error:
        if error.kind == "SubscriptionInUse":
            return False
        raise
    return True


def acknowledged(program: Console) -> bool:
    """Whether all partitions are up to take what a program acknowledges."""
    try:
        program("s.acknowledge()")
    except Told as error:
        if error.kind == "Unavailable":
            return False
        raise
    return True


def in_partition(events: list[list[int]], partition: int) -> list[int]:
    return [amount for amount, where in events if where == partition]


def test_a_name_goes_on_from_one_kind_of_program_to_the_next(nodes: LocalNodes, bank: Console) -> None:
    opened(bank, "mailer", by_hand=True)
    seen = bank(TAKE.format(count=4))
    bank("s.acknowledge() or s.close()")
    with console(nodes.address, name="bank") as client:
        assert not client("'ray' in __import__('sys').modules")
        opened(client, "mailer", by_hand=True)
        seen += client(TAKE.format(count=4))
        client("s.acknowledge()")
        client(TAKE.format(count=1))
    with console(nodes.address, name="bank", driver=True) as driver:
        opened(driver, "mailer", by_hand=True)
        seen += driver(TAKE.format(count=4))
        driver("s.acknowledge() or s.close()")
    assert [in_partition(seen, partition) for partition in range(PARTITIONS)] == [[1, 2, 3]] * PARTITIONS
    [mailer] = bank("bank.subscriptions()")
    assert (mailer["name"], mailer["behind"], mailer["holders"]) == ("mailer", 0, {})
    assert bank("bank.forget_subscription('mailer')")
    assert bank("bank.subscriptions()") == []


def test_a_name_is_open_once_on_the_whole_cluster_and_free_when_its_holder_is_killed(
    nodes: LocalNodes, bank: Console
) -> None:
    with console(nodes.address, name="bank") as holder:
        opened(holder, "once")
        with pytest.raises(
            Told, match=f"SubscriptionInUse: .*'once': member 0 of 1 .* process {holder.process.pid} on"
        ):
            opened(bank, "once")
        [one] = bank("bank.subscriptions()")
        assert list(one["holders"]) == ["0"]
        holder.process.kill()
        holder.process.wait()
        opened(bank, "once")
        bank("s.close()")


def test_a_holder_that_stood_still_for_longer_than_its_lease_finds_its_name_taken(
    nodes: LocalNodes, bank: Console
) -> None:
    with console(nodes.address, name="bank") as late:
        opened(late, "lease", by_hand=True)
        late(TAKE.format(count=3))
        os.kill(late.process.pid, signal.SIGSTOP)
        try:
            while not free(bank, "lease"):
                LOOKING.wait(0.5)
        finally:
            os.kill(late.process.pid, signal.SIGCONT)
        with pytest.raises(Told, match="SubscriptionInUse"):
            late("s.acknowledge()")
        assert len(bank(TAKE.format(count=12))) == 12, "nothing of the other one has counted"
        bank("s.acknowledge() or s.close()")


def test_members_read_partitions_of_their_own(nodes: LocalNodes, bank: Console) -> None:
    with console(nodes.address, name="bank") as other:
        opened(bank, "group", by_hand=True, member=0, of=2)
        opened(other, "group", by_hand=True, member=1, of=2)
        assert {where for _, where in bank(TAKE.format(count=6))} == {0, 1}
        assert {where for _, where in other(TAKE.format(count=6))} == {2, 3}
        assert (list(bank("s.positions")), list(other("s.positions"))) == (["0", "1"], ["2", "3"])
        with pytest.raises(Told, match="SubscriptionInUse: .* member [01] of 2 is in use"):
            bank("bank.subscribe('group')")
        bank("s.acknowledge() or s.close()")
        other("s.acknowledge() or s.close()")
    opened(bank, "group")
    deposit(bank, 4)
    assert sorted(bank(TAKE.format(count=4))) == [[4, 0], [4, 1], [4, 2], [4, 3]]
    bank("s.close()")


def test_a_partition_that_moves_takes_its_places_along_while_it_is_read(bank: Console) -> None:
    opened(bank, "moving", by_hand=True)
    seen = bank(TAKE.format(count=8))
    bank("s.acknowledge()")
    for partition in range(PARTITIONS):
        home = next(one["name"] for one in bank("bank.status().nodes") if partition in one["partitions"])
        to = "node-1" if home == "node-0" else "node-0"
        assert bank(f"bank.move({partition}, {to!r})")["to"] == to
        seen += bank(TAKE.format(count=2))
        bank("s.acknowledge()")
    bank("s.close()")
    assert [in_partition(seen, partition) for partition in range(PARTITIONS)] == [[1, 2, 3, 4]] * PARTITIONS
    deposit(bank, 5)
    opened(bank, "moving")
    assert sorted(bank(TAKE.format(count=4))) == [[5, 0], [5, 1], [5, 2], [5, 3]], "it went on in all of them"
    bank("s.close()")


def test_a_partition_that_is_killed_knows_who_has_a_name_open(nodes: LocalNodes, bank: Console) -> None:
    opened(bank, "killed", by_hand=True)
    bank(TAKE.format(count=5))
    number = coordinator_of("killed", PARTITIONS)
    [coordinator] = [one for one in bank("bank.status().partitions") if one["partition"] == number]
    os.kill(coordinator["pid"], signal.SIGKILL)
    bank("s.acknowledge()")
    with console(nodes.address, name="bank") as other:
        with pytest.raises(Told, match="SubscriptionInUse"):
            opened(other, "killed")
        bank("s.close()")
        opened(other, "killed")
        assert len(other(TAKE.format(count=15))) == 15


def test_what_is_lost_with_a_node_holds_up_nothing_else_and_goes_on_when_it_is_back(
    nodes: LocalNodes, bank: Console
) -> None:
    homes = {one["name"]: one["partitions"] for one in bank("bank.status().nodes")}
    [gone, *_], [here, *_] = homes["node-1"], homes["node-0"]
    opened(bank, "lost", by_hand=True)
    bank(TAKE.format(count=20))
    nodes.kill_node(1)
    try:
        with pytest.raises(Told, match="Unavailable: partition"):
            bank("s.acknowledge()")
        bank(f"bank.execute(Account, {ACCOUNTS[here]!r}, Deposit(amount=6), timeout_s=60).position")
        assert bank(TAKE.format(count=1)) == [[6, here]]
    finally:
        nodes.start_node(1)
    while not acknowledged(bank):
        LOOKING.wait(0.2)
    bank(f"bank.execute(Account, {ACCOUNTS[gone]!r}, Deposit(amount=7), timeout_s=60).position")
    assert bank(TAKE.format(count=1)) == [[7, gone]]
    bank("s.acknowledge() or s.close()")
    lost = next(one for one in bank("bank.subscriptions()") if one["name"] == "lost")
    assert lost["behind"] == 0


def test_a_restored_store_goes_on_with_the_places_of_its_backup(
    nodes: LocalNodes, bank: Console, tmp_path: Path
) -> None:
    opened(bank, "kept", by_hand=True, member=0, of=2)
    before = bank(TAKE.format(count=3))
    bank("s.acknowledge()")
    bank("(taking := __import__('rayfold.runtime.backup.taking', fromlist=['x'])) and None")
    bank(f"taking.backup_store(bank._runtime._store, {str(tmp_path / 'backup')!r}).events")
    bank(TAKE.format(count=2))
    bank("s.acknowledge() or s.close()")
    restored = restore_store(tmp_path / "backup", tmp_path / "bank").path
    chosen = {"aggregates": [Account], "types": ["Deposited"]}
    with closing(subscribe(restored, "kept", **chosen)) as events:  # type: ignore[call-overload]
        after = [(event.amount, place.partition) for event, place in (next(events) for _ in range(7))]
    for partition in {where for _, where in before}:
        amounts = in_partition([*before, *map(list, after)], partition)
        assert amounts[:4] == [1, 2, 3, 4][: len(amounts)], "nothing left out, and nothing twice"


def test_the_command_line_shows_and_forgets_them(nodes: LocalNodes, bank: Console, tmp_path: Path) -> None:
    opened(bank, "shown")
    report = tmp_path / "report.json"
    shown = rayfold(nodes, tmp_path, "subscriptions", "bank", "--json", str(report))
    assert "shown" in shown
    [one] = [one for one in json.loads(report.read_text())["subscriptions"] if one["name"] == "shown"]
    assert (one["members"], list(one["holders"])) == (1, ["0"])
    bank("s.close()")
    assert "shown: forgotten" in rayfold(nodes, tmp_path, "subscriptions", "bank", "--forget", "shown")
