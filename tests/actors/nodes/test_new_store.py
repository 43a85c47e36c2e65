"""Which nodes a new store may be made without, and how the others learn of it."""

from __future__ import annotations

import pytest

from rayfold.actors.cluster.ray_cluster import NodeFacts
from rayfold.actors.nodes.new_store import check_all_answered, given_up
from rayfold.runtime.errors import CallerError, Unavailable

ONE = NodeFacts("id-1", "one", "", "10.0.0.1", alive=True)
TWO = NodeFacts("id-2", "two", "", "10.0.0.2", alive=False)
TWO_BEFORE = NodeFacts("id-3", "two", "", "10.0.0.2", alive=False)
ONE_BEFORE = NodeFacts("id-4", "one", "", "10.0.0.1", alive=False)


def test_a_node_is_given_up_by_its_name_or_its_id_if_it_is_down() -> None:
    assert given_up([], [ONE, TWO]) == ()
    assert given_up(["two", "id-2"], [ONE, TWO]) == (TWO,)
    assert given_up(["one"], [ONE, ONE_BEFORE]) == (ONE_BEFORE,), "the one that is up is asked all the same"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("one", r"one is up, and is asked; only a node that is down can be left out: two \(id-2\), two \(id-3\)"),
        ("three", "the cluster knows no node 'three'; only a node that is down"),
        ("two", r"2 nodes that are down are named 'two': two \(id-2\), two \(id-3\); give the id"),
    ],
)
def test_what_names_no_single_node_that_is_down_is_refused(told: str, why: str) -> None:
    with pytest.raises(CallerError, match=why):
        given_up([told], [ONE, TWO, TWO_BEFORE])


def test_nodes_that_have_not_answered_are_named_with_what_to_say() -> None:
    check_all_answered("shop", [ONE, TWO], {"id-1", "id-2"})
    with pytest.raises(Unavailable, match=r"these may: two \(down\); start them; or, .* `--without two` of `rayfold"):
        check_all_answered("shop", [ONE, TWO], {"id-1"})
    with pytest.raises(Unavailable, match="`--without id-2,id-3` of"):
        check_all_answered("shop", [TWO, TWO_BEFORE], ())
    with pytest.raises(Unavailable, match=r"these may: one \(silent\); start them$"):
        check_all_answered("shop", [ONE], ())
