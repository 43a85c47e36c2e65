"""Lists that grow with what was done, or with what was read, are bounded."""

from __future__ import annotations

from uuid import uuid4

import pytest

from rayfold import CallerError
from rayfold.actors.nodes.store import STORES_KNOWN_MAX, ClusterStore, PartitionLocator
from rayfold.actors.projection.rebuild import REBUILDS_KEPT, FleetRebuild, Rebuilds
from rayfold.runtime.store.partition_map import PartitionMap


class Finished(FleetRebuild):
    """A rebuild without anything to build."""

    def __init__(self, over: bool = True) -> None:
        self.over = over

    def done(self) -> bool:
        return self.over


def test_a_process_remembers_the_places_of_so_many_stores_and_no_more() -> None:
    for number in range(STORES_KNOWN_MAX + 5):
        store_map = PartitionMap(str(uuid4()), 1, ("one",), (1,), {"one": "node one"})
        store = ClusterStore("bank", f"store {number}", store_map)
        assert PartitionLocator.of(store) is PartitionLocator.of(store)
    assert len(PartitionLocator._known) == STORES_KNOWN_MAX


def test_a_supervisor_remembers_rebuilds_that_are_under_way_and_the_last_that_ended() -> None:
    rebuilds, under_way = Rebuilds(), Finished(over=False)
    first = rebuilds.add(under_way)
    numbers = [rebuilds.add(Finished()) for _ in range(REBUILDS_KEPT + 20)]
    assert numbers == [*range(first + 1, first + REBUILDS_KEPT + 21)], "a number is given once"
    assert rebuilds.of(first) is under_way
    assert len(list(rebuilds)) == REBUILDS_KEPT + 1
    with pytest.raises(CallerError, match="rebuild 2 is not known here: it ended long ago"):
        rebuilds.of(numbers[0])
