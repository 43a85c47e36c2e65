"""Which partitions a courier asks again for what was delivered to them last."""

from __future__ import annotations

from rayfold.actors.courier.courier_thread import returned


def test_a_partition_that_was_away_and_one_that_has_moved_are_asked_once_they_are_there() -> None:
    names = ("a", "b", "c")
    assert returned((names, {}), (names, {})) == []
    assert returned((names, {}), (names, {1: "its node is down"})) == []
    assert returned((names, {1: "its node is down"}), (names, {})) == [1]
    assert returned((names, {}), (("a", "b", ""), {})) == []
    assert returned((("a", "b", ""), {}), (("a", "b", "d"), {})) == [2]
