"""What a deployment reports that it would do."""

from __future__ import annotations

import pytest

from rayfold.actors.packaging.builds import ProjectionFacts
from rayfold.actors.rollout.preview import Seats, preview_of

SLIPS = ProjectionFacts("Slips", 2, 1)
RUNNING = Seats(4, {"Slips": (2, 1)}, {0: "one", 1: "two"}, ["two"])


def lines(facts: ProjectionFacts = SLIPS, running: Seats | None = RUNNING, replicas: int = 1) -> tuple[str, ...]:
    return preview_of(
        "shop",
        {facts.projection_name: facts},
        {facts.projection_name: replicas},
        running=running,
        store_id="1-2-3",
        nodes=["one", "two"],
        partitions=2,
    ).lines


def test_a_store_that_would_be_made_is_named_first() -> None:
    told = preview_of("shop", {}, {}, running=None, store_id="", nodes=["one", "two"], partitions=6)
    assert told.makes_store
    assert told.lines == ("a new, empty store with 6 partitions is made on one, two", "6 partitions start")
    told = preview_of("shop", {}, {}, running=None, store_id="", nodes=["one"], partitions=2, without=["two", "three"])
    assert told.lines[0] == "a new, empty store with 2 partitions is made on one, without two, three"


def test_every_partition_is_named_and_one_whose_node_is_down_comes_later() -> None:
    assert lines() == (
        "it goes on with store 1-2-3, which has 2 partitions",
        "projection Slips version 2 is built anew beside the one that serves, by one projector, from the whole log",
        "partition 0 on one is given the new code",
        "partition 1 on two is given the new code when that node is back",
    )


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (SLIPS._replace(projection_version=3), "version 3 follows version 2 and is built beside it, by one projector"),
        (SLIPS._replace(projection_version=1), "version 1 goes back before version 2 and is built beside it"),
        (SLIPS._replace(projection_name="Sums"), "projection Sums version 2 is new and built, by one projector"),
        (SLIPS._replace(parts=3), "by 6 projectors, from the whole log"),
    ],
)
def test_what_becomes_of_a_projection_is_told(facts: ProjectionFacts, told: str) -> None:
    assert told in lines(facts, replicas=2 if facts.parts > 1 else 1)[1]


def test_a_projection_that_is_not_there_any_more_is_taken_out() -> None:
    assert "projection Slips is taken out" in lines(SLIPS._replace(projection_name="Sums"))
