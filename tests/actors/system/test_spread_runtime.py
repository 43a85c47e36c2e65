"""A runtime over three nodes: where everything is, what every program may do with it, what is lost with a node, moves.

One cluster and one runtime for all of it, in a program of its own (`console.py`). Tests that change something put it
back.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from rayfold.runtime.store.node_store import open_share
from tests.actors.cluster.test_local_cluster import left_over
from tests.support.console import Console, Told, console

pytestmark = pytest.mark.slow

PARTITIONS: Final = 6
SLOTS: Final = 2
"""For own actors, on each node."""

ACCOUNTS: Final[list[str]] = []
"""One of each partition: account number n is in partition n. Filled once the store is there, which decides that."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNodes]:
    folder = tmp_path_factory.mktemp("cluster")
    with LocalNodes(LocalCluster(nodes=3, cpus=1), folder, own_actors_max=SLOTS) as running:
        yield running
    assert left_over(running.folder) == []


@pytest.fixture(scope="module")
def bank(nodes: LocalNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    # Patient: on a machine with more to do, an actor may be silent for so long that it is replaced.
    settings = f"Settings(own_actors_max={SLOTS}, silent_s=8, timeout_s=60)"
    options = f"partitions={PARTITIONS}, replicas=2, settings={settings}"
    with console(nodes.address, path=tmp_path_factory.mktemp("driver") / "bank", options=options) as told:
        ACCOUNTS[:] = told("of_partitions(bank)")
        for account in ACCOUNTS:
            told(f"bank.execute(Account, {account!r}, Open(owner='x')).position")
        yield told


def homes(bank: Console) -> dict[str, list[int]]:
    """Node -> its partitions."""
    return {one["name"]: one["partitions"] for one in bank("bank.status().nodes")}


def node_of(pid: int) -> str:
    """The name of the node that a process of this machine belongs to."""
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(one for one in environment if one.startswith(b"RAYFOLD_DATA=")).decode().rpartition("/")[2]


def balance_is(bank: Console, account: str) -> int:
    balance: int = bank(f"bank.ask(Balances, BalanceOf(account={account!r}), after=bank.heads())")
    return balance


# Where everything is


def test_the_partitions_are_spread_over_the_nodes_and_run_where_their_logs_are(bank: Console) -> None:
    assert homes(bank) == {"node-0": [0, 3], "node-1": [1, 4], "node-2": [2, 5]}
    for one in bank("bank.status().partitions"):
        assert (node_of(one["pid"]), one["alive"], one["epoch"]) == (one["node"], True, 1)


def test_every_node_has_the_logs_of_its_partitions_and_the_same_map(nodes: LocalNodes, bank: Console) -> None:
    maps = []
    for node in nodes.nodes:
        share = open_share(node.data / "bank", node.identity.node_id)
        assert share is not None
        assert share.store.here == homes(bank)[node.name]
        logs = sorted(path.name for path in (node.data / "bank").glob("partition-*"))
        assert logs == [share.store.partition_path(number).name for number in share.store.here]
        maps.append(share.map)
    assert maps[0] == maps[1] == maps[2]


def test_the_replicas_of_a_projection_are_on_different_nodes_and_know_every_partition(bank: Console) -> None:
    balance_is(bank, ACCOUNTS[0])
    projectors = bank("bank.status().projectors")
    assert len({one["node"] for one in projectors}) == 2
    assert [node_of(one["pid"]) for one in projectors] == [one["node"] for one in projectors]
    bank("bank.caught_up()")
    heads = bank("bank.heads()")
    assert [one["positions"] for one in bank("bank.status().projectors")] == [heads, heads]


def test_own_actors_take_a_free_slot_of_any_node(bank: Console) -> None:
    vaults = [f"v{number}" for number in range(12)]
    bank(f"[bank.execute(Vault, v, Store(thing='a')).version for v in {vaults}]")
    own: list[Any] = []
    rounds = 0
    while len(own) < 4:  # more than one node has slots; each needs a second to start
        rounds += 1
        bank(f"[bank.execute(Vault, v, Store(thing='b{rounds}')).version for v in {vaults}]")
        own = bank("bank.status().own_actors")
    counts = [node_of(one["pid"]) for one in own]
    assert max(counts.count(name) for name in counts) <= SLOTS
    assert bank(f"[len(bank.state_at(Vault, v).things) for v in {vaults}]") == [1 + rounds] * 12


# What every program may do


def test_a_second_program_connects_by_name_and_reads_its_own_writes(nodes: LocalNodes, bank: Console) -> None:
    before = balance_is(bank, ACCOUNTS[1])
    with console(nodes.address, name="bank") as visitor:
        visitor(f"(mine := bank.execute(Account, {ACCOUNTS[1]!r}, Deposit(amount=7))) and None")
        assert visitor(f"bank.ask(Balances, BalanceOf(account={ACCOUNTS[1]!r}), after=mine)") == before + 7
        assert visitor("[one.pid for one in bank.status().partitions]") == bank(
            "[one.pid for one in bank.status().partitions]"
        )
        with pytest.raises(Told, match="UnknownName: no command of Account is named 'Store'"):
            visitor("bank.execute(Account, 'a', Store(thing='x'))")
    assert balance_is(bank, ACCOUNTS[1]) == before + 7, "and the system goes on without it"


def test_histories_states_sessions_subscriptions_and_replicas_reach_every_node(bank: Console) -> None:
    for account in ACCOUNTS:
        bank(f"bank.execute(Account, {account!r}, Deposit(amount=3)).position")
        assert bank(f"[type(e).__name__ for e, _ in bank.history(Account, {account!r})]")[0] == "Opened"
        balance = balance_is(bank, account)
        assert bank(f"bank.state_at(Account, {account!r}).balance") == balance
        asked = f"bank.as_of(Balances, bank.heads(), BalanceOf(account={account!r}))"
        assert bank(asked) == balance
    bank("(session := bank.session()) and None")
    bank(f"session.execute(Account, {ACCOUNTS[4]!r}, Deposit(amount=1)).position")
    assert bank(f"session.ask(Balances, BalanceOf(account={ACCOUNTS[4]!r}))") == balance_is(bank, ACCOUNTS[4])
    total = sum(bank("bank.heads()").values())
    assert bank(f"len([next(s) for s in [iter(bank.subscribe())] for _ in range({total})])") == total
    assert bank("len([*bank.events()])") == total
    assert bank("[[*bank.events(until=bank.heads())] == [*bank.events()], bank.events().positions]")[0]
    asked = f"[*bank.events(streams=['Account/{ACCOUNTS[5]}'])] == bank.history(Account, {ACCOUNTS[5]!r})"
    assert bank(asked)
    asked = f"(lambda r: (r.ask(BalanceOf(account={ACCOUNTS[5]!r})), r.close())[0])(bank.replica(Balances))"
    assert bank(asked) == balance_is(bank, ACCOUNTS[5])


def test_no_process_has_all_of_the_store(bank: Console) -> None:
    with pytest.raises(Told, match="CallerError: the store bank is spread over 3 nodes"):
        bank("bank.store")


def test_read_models_are_scaled_and_rebuilt_while_they_serve(bank: Console) -> None:
    balance = balance_is(bank, ACCOUNTS[2])
    bank("bank.scale(Balances, replicas=3)")
    assert len({one["node"] for one in bank("bank.status().projectors")}) == 3
    bank("bank.scale(Balances, replicas=2)")
    assert bank("bank.rebuild(Balances).wait().serving")
    assert {one["build"] for one in bank("bank.status().projectors")} == {"v1.2"}
    assert balance_is(bank, ACCOUNTS[2]) == balance


def test_every_node_verifies_its_own_logs(bank: Console) -> None:
    report = "(lambda r: (r.ok, [(one.partition, one.events) for one in r.partitions]))(bank.verify())"
    ok, events = bank(report)
    assert ok
    assert {str(number): count for number, count in events} == bank("bank.heads()")


def test_a_second_runtime_of_the_name_is_refused_and_the_first_goes_on(nodes: LocalNodes, bank: Console) -> None:
    with pytest.raises(Told) as told, console(nodes.address, path=Path("/elsewhere/bank")):
        raise AssertionError("it was started")
    assert told.value.kind == "StoreInUse"
    assert "bank is in use by a system of that name on the cluster" in told.value.text
    bank("bank.heads()")


# Lost and brought back


def test_what_is_lost_with_a_node_is_unavailable_by_name_and_goes_on_when_it_is_back(
    nodes: LocalNodes, bank: Console
) -> None:
    lost = [ACCOUNTS[number] for number in homes(bank)["node-1"]]
    others = [account for account in ACCOUNTS if account not in lost]
    before = {account: balance_is(bank, account) for account in ACCOUNTS}
    bank(f"load.start({lost}, timeout_s=3)")
    bank(f"load.start({others}, timeout_s=60)")
    bank(f"load.wait_for_more({ACCOUNTS})")
    nodes.kill_node(1)
    text = ""
    while "it was not sent" not in text:  # as soon as Ray has found out
        with pytest.raises(Told, match="Unavailable") as told:
            bank(f"bank.execute(Account, {lost[0]!r}, Withdraw(amount=1), timeout_s=1)")
        text = told.value.text
    assert "partition 1: its home, node node-1 at 127.0.0.1, has been down since 20" in text
    assert "restart it with its data folder; the partition resumes" in text
    with pytest.raises(Told, match="Unavailable: partition [14] of bank: its home, node node-1"):
        bank("bank.caught_up()")
    bank(f"load.wait_for_more({others})")
    assert bank(f"bank.ask(Balances, BalanceOf(account={lost[0]!r}))") >= before[lost[0]], "of what is in memory"
    [gone] = [one for one in bank("bank.status().nodes") if not one["up"]]
    assert (gone["name"], gone["partitions"]) == ("node-1", [1, 4])
    nodes.start_node(1)
    bank(f"load.wait_for_more({lost})")
    acknowledged, unknown = bank("load.stop()"), bank("load.unknown")
    for account in ACCOUNTS:
        added = balance_is(bank, account) - before[account]
        assert acknowledged[account] <= added <= acknowledged[account] + unknown[account]
    assert all(unknown[account] == 0 for account in others)
    assert bank("bank.verify().ok")


def test_a_partition_that_is_frozen_is_replaced_and_its_wakening_changes_nothing(bank: Console) -> None:
    [frozen] = [one for one in bank("bank.status().partitions") if one["partition"] == 2]
    before = balance_is(bank, ACCOUNTS[2])
    os.kill(frozen["pid"], signal.SIGSTOP)
    try:
        bank(f"bank.execute(Account, {ACCOUNTS[2]!r}, Deposit(amount=5), timeout_s=60).position")
    finally:
        with contextlib.suppress(ProcessLookupError):  # it was ended, as a process that does not answer is
            os.kill(frozen["pid"], signal.SIGCONT)
    [replaced] = [one for one in bank("bank.status().partitions") if one["partition"] == 2]
    assert replaced["pid"] != frozen["pid"]
    assert replaced["epoch"] > frozen["epoch"]
    assert balance_is(bank, ACCOUNTS[2]) == before + 5


# Moving


def test_a_partition_that_let_go_for_a_move_with_which_nobody_goes_on_takes_commands_again(bank: Console) -> None:
    """As when its home was lost in the middle of a move: the log is sealed, and the move was given up."""
    bank("(ray := __import__('ray')) and None")
    names: list[str] = []
    while len(names) != 1:  # one that was replaced in a test before may take a moment to be gone
        names = bank("[n for n in __import__('ray.util').util.list_named_actors() if '/partition-1@' in n]")
    [name] = names
    assert bank(f"ray.get(ray.get_actor({name!r}, 'rayfold').seal.remote('a lost node')).error") is None
    balance = balance_is(bank, ACCOUNTS[1])
    bank(f"bank.execute(Account, {ACCOUNTS[1]!r}, Deposit(amount=3), timeout_s=60).position")
    assert balance_is(bank, ACCOUNTS[1]) == balance + 3


def test_partitions_move_under_load_and_nothing_is_lost_or_done_twice(bank: Console) -> None:
    before = {account: balance_is(bank, account) for account in ACCOUNTS}
    bank(f"load.__init__(bank) or load.start({ACCOUNTS})")
    for to in ("node-2", "node-1", "node-0"):
        moved = bank(f"bank.move(0, {to!r})")
        assert (moved["partition"], moved["to"]) == (0, to)
        assert 0 in homes(bank)[to]
        bank(f"load.wait_for_more({ACCOUNTS})")
    acknowledged = bank("load.stop()")
    assert bank("load.errors") == {}
    for account in ACCOUNTS:
        assert balance_is(bank, account) == before[account] + acknowledged[account]
    [here] = [one for one in bank("bank.status().partitions") if one["partition"] == 0]
    assert (node_of(here["pid"]), here["node"]) == ("node-0", "node-0")


def test_a_drained_node_is_home_to_nothing_and_is_used_again_when_it_may(nodes: LocalNodes, bank: Console) -> None:
    before = {account: balance_is(bank, account) for account in ACCOUNTS}
    moved = bank("bank.drain('node-2')")
    assert {one["source"] for one in moved} == {"node-2"}
    assert [len(homes(bank)[name]) for name in ("node-0", "node-1", "node-2")] == [3, 3, 0]
    assert "node-2" not in {one["node"] for one in bank("bank.status().projectors")}
    assert sorted((nodes.nodes[2].data / "bank").glob("partition-*")) == []
    with pytest.raises(Told, match="CallerError: node-2 is drained and takes no partitions"):
        bank("bank.move(0, 'node-2')")
    assert bank("bank.drain('node-2', drained=False)") == []
    assert len(bank("bank.rebalance()")) == 2
    assert [len(one) for one in homes(bank).values()] == [2, 2, 2]
    assert bank("bank.rebalance()") == []
    assert {account: balance_is(bank, account) for account in ACCOUNTS} == before


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("bank.move(6, 'node-0')", "UnknownName: no partition is named '6'; known: 0, 1, 2, 3, 4, 5"),
        ("bank.move(0, 'node-9')", "UnknownName: no node is named 'node-9'; known: node-0, node-1, node-2"),
        ("bank.drain('node-9')", "UnknownName: no node is named 'node-9'"),
    ],
)
def test_a_move_that_cannot_be_says_why(bank: Console, asked: str, told: str) -> None:
    with pytest.raises(Told, match=told):
        bank(asked)


def test_where_a_partition_is_already_it_need_not_move(bank: Console) -> None:
    home = next(name for name, partitions in homes(bank).items() if 3 in partitions)
    assert bank(f"bank.move(3, {home!r})")["events"] == 0
