"""Projectors come to nodes that have joined: which one goes where, and one after the other on a real cluster."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from rayfold.actors.control.projector_moves import PlacedProjector, next_move
from tests.actors.cluster.test_local_cluster import left_over
from tests.support.console import Console, console

NODES = {node: f"node-{node}" for node in "abcd"}


def placed(**nodes: str) -> list[PlacedProjector]:
    """`totals="aab"`: three replicas of one projection, on these nodes."""
    return [
        PlacedProjector(f"{projection}/{replica}", (projection, 0), node)
        for projection, where in nodes.items()
        for replica, node in enumerate(where)
    ]


def test_the_node_with_the_fewest_gets_one_of_the_node_with_the_most() -> None:
    found = next_move(placed(totals="a", balances="a", names="b"), {"a": "one", "b": "two", "c": "three"})
    assert found == ("totals/0", "c")


def test_a_replica_that_has_another_one_beside_it_goes_first() -> None:
    assert next_move(placed(totals="a", balances="aa"), {"a": "one", "b": "two"}) == ("balances/1", "b")


def test_nobody_moves_where_it_would_be_no_more_even() -> None:
    assert next_move(placed(totals="a", balances="b"), {"a": "one", "b": "two", "c": "three"}) is None
    assert next_move(placed(totals="a"), {"a": "one", "b": "two"}) is None


def test_a_replica_never_comes_to_the_node_of_another_one() -> None:
    assert next_move(placed(totals="ab", balances="ab", names="ab"), {"a": "one", "b": "two"}) is None
    assert next_move(placed(totals="aab"), {"a": "one", "b": "two"}) is None


@given(st.dictionaries(st.sampled_from("uvwxyz"), st.text("abcd", min_size=1, max_size=4), max_size=6))
def test_moves_end_soon_make_it_even_and_bring_no_replicas_together(where: dict[str, str]) -> None:
    present = placed(**where)
    for _ in range(len(present) + 1):
        chosen = next_move(present, NODES)
        if chosen is None:
            break
        name, target = chosen
        (going,) = [one for one in present if one.name == name]
        assert going.group not in {one.group for one in present if one.node_id == target}
        present = [one._replace(node_id=target) if one is going else one for one in present]
    else:
        pytest.fail("they move without end")
    counts = Counter(dict.fromkeys(NODES, 0))
    counts.update(one.node_id for one in present)
    fullest, emptiest = max(counts.values()), min(counts.values())
    there = {one.group for one in present if counts[one.node_id] == emptiest}
    assert fullest - emptiest < 2 or there, "only replicas that stand in one another's way keep it uneven"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_is_added_gets_projectors_one_at_a_time_while_queries_are_answered(tmp_path: Path) -> None:
    with LocalNodes(LocalCluster(nodes=1, cpus=1), tmp_path / "nodes", own_actors_max=0) as first:
        nodes = LocalNodes(LocalCluster(nodes=2, cpus=1), tmp_path / "nodes", own_actors_max=0, known=first.nodes)
        nodes.address = first.address
        options = "partitions=2, replicas=2, settings=Settings(own_actors_max=0, silent_s=30, timeout_s=120)"
        with console(first.address, path=tmp_path / "bank", options=options) as bank:
            bank("bank.execute(Account, 'a', Open(owner='x')).position")
            assert serving(bank) == ["node-0", "node-0"]
            before = bank("[one.pid for one in bank.status().projectors]")
            nodes.start_node(1)
            deposited, deadline_s = 0, time.monotonic() + 400.0
            while serving(bank) != ["node-0", "node-1"]:
                assert time.monotonic() < deadline_s, serving(bank)
                deposited += 1
                deposit = "bank.execute(Account, 'a', Deposit(amount=1))"
                assert bank(f"bank.ask(Balances, BalanceOf(account='a'), after={deposit})") == deposited
                assert len(serving(bank)) >= 2, "no fewer serve than were asked for"
                LOOKING.wait(0.05)
            after = bank("[one.pid for one in bank.status().projectors]")
            assert len(set(after) & set(before)) == 1, "one has moved, and the other stayed"
        nodes.stop()
    assert left_over(tmp_path / "nodes") == []


LOOKING = threading.Event()
"""Waited for between two looks, which take a core from the node that starts."""


def serving(bank: Console) -> list[str]:
    """The nodes of the projectors that answer and have caught up."""
    found: list[dict[str, Any]] = bank("bank.status().projectors")
    return sorted(one["node"] for one in found if one["alive"] and not one["replaying"])
