"""On which node what is started: partitions at home, projectors dealt out evenly, names that are given once."""

from __future__ import annotations

from rayfold.actors.cluster.names import generation_in
from rayfold.actors.cluster.node import NODE_LABEL
from rayfold.actors.cluster.scheduling import ClusterScheduling, Scheduling

NODES = {"a": "node-0", "b": "node-1", "c": "node-2"}


def spread(*, detached: bool = False) -> ClusterScheduling:
    scheduling = ClusterScheduling(detached=detached, generation=3)
    scheduling.nodes = NODES
    return scheduling


def chosen(scheduling: ClusterScheduling, name: str, among: list[str]) -> str:
    node: str = scheduling.projector(name, among)["label_selector"][NODE_LABEL]
    return node


def test_on_one_machine_nothing_is_chosen_and_names_are_numbered() -> None:
    scheduling = Scheduling()
    assert (scheduling.partition("a"), scheduling.projector("x#1", [])) == ({}, {})
    assert [scheduling.unused() for _ in range(3)] == ["1", "2", "3"]


def test_a_partition_is_bound_to_its_home_and_to_nothing_else() -> None:
    assert spread().partition("b") == {"label_selector": {NODE_LABEL: "b"}}
    assert spread(detached=True).partition("b") == {"label_selector": {NODE_LABEL: "b"}, "lifetime": "detached"}


def test_projectors_are_dealt_to_the_nodes_that_have_the_fewest() -> None:
    scheduling, names = spread(), [f"bank/Balances-v1/0-{number}#x" for number in range(6)]
    dealt = [chosen(scheduling, name, names[:number]) for number, name in enumerate(names)]
    assert dealt == ["a", "b", "c", "a", "b", "c"]


def test_a_projector_may_be_started_on_any_node_that_is_used_when_its_own_is_lost() -> None:
    options = spread().projector("bank/Balances-v1/0-0#x", [])
    assert options["fallback_strategy"] == [{"label_selector": {NODE_LABEL: "in(a,b,c)"}}]


def test_whoever_takes_the_seat_of_another_comes_to_its_node_where_its_checkpoint_is() -> None:
    scheduling = spread()
    first = [f"bank/Balances-v1/0-{number}#1" for number in range(3)]
    for number, name in enumerate(first):
        chosen(scheduling, name, first[:number])
    assert chosen(scheduling, "bank/Balances-v1/0-1#2", first) == scheduling.node_of(first[1]) == "b"
    scheduling.nodes = {"a": "node-0", "c": "node-2"}
    assert chosen(scheduling, "bank/Balances-v1/0-1#3", first) in "ac"


def test_what_an_earlier_supervisor_has_dealt_counts() -> None:
    scheduling = spread()
    scheduling.sits("bank/Balances-v1/0-0#1.ab.1", "a")
    assert chosen(scheduling, "bank/Balances-v1/0-1#3.cd.1", ["bank/Balances-v1/0-0#1.ab.1"]) == "b"
    assert scheduling.node_of("bank/Other-v1/0-0#1") == ""


def test_what_is_ended_makes_room() -> None:
    scheduling = spread()
    names = [f"bank/Balances-v1/0-{number}#1" for number in range(3)]
    for number, name in enumerate(names):
        chosen(scheduling, name, names[:number])
    assert chosen(scheduling, "bank/Turnover-v1/0-0#1", names[1:]) == "a"


def test_a_name_is_never_given_twice_and_tells_the_generation_of_the_code() -> None:
    one, other = spread(), spread()
    marks = [scheduling.unused() for _ in range(3) for scheduling in (one, other)]
    assert len(set(marks)) == 6
    assert {generation_in(mark) for mark in marks} == {3}
