"""Which partition is at home on which node: spread, balanced, kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from rayfold.runtime.durable_files import checksum_of
from rayfold.runtime.errors import StoreMismatch
from rayfold.runtime.store.partition_map import MAP, PartitionMap, merged, moves_to_balance, read_map, write_map

NAMES = {"a": "node-0", "b": "node-1", "c": "node-2"}


def test_the_partitions_of_a_new_store_are_spread_over_its_nodes_in_turn() -> None:
    spread = PartitionMap.spread("s", 4, NAMES)
    assert (spread.version, spread.owners) == (1, ("a", "b", "c", "a"))
    assert spread.at_home_on("a") == [0, 3]
    assert (spread.name_of("b"), spread.name_of("x")) == ("node-1", "x")


def test_every_change_is_a_later_version_and_no_change_is_none() -> None:
    spread = PartitionMap.spread("s", 2, NAMES)
    moved = spread.with_home(0, "b")
    assert (moved.version, moved.owners, spread.owners) == (2, ("b", "b"), ("a", "b"))
    assert moved.with_nodes({"d": "node-3"}).version == 3
    assert moved.with_nodes({"a": "node-0"}) is moved
    assert moved.with_drained(["a"]).drained == {"a"}
    assert moved.with_drained([]) is moved


@given(some.lists(some.sampled_from("abcde"), min_size=1, max_size=40), some.sets(some.sampled_from("abcdef")))
def test_what_is_balanced_is_even_and_was_moved_as_little_as_can_be(homes: list[str], nodes: set[str]) -> None:
    present, order = PartitionMap("s", 1, tuple(homes), (1,) * len(homes), {}), sorted(nodes)
    moves = moves_to_balance(present, order)
    after = present
    for move in moves:
        after = after.with_home(*move)
    if not order:
        assert moves == []
        return
    counts = Counter(after.owners)
    assert set(counts) <= nodes
    assert max(counts[node] for node in order) - min(counts[node] for node in order) <= 1
    least, over = divmod(len(homes), len(order))
    keepable = sorted((Counter(homes)[node] for node in order), reverse=True)
    stayed = sum(min(count, least + (number < over)) for number, count in enumerate(keepable))
    assert len(moves) == len(homes) - stayed
    assert len({move.partition for move in moves}) == len(moves)


def test_the_newest_of_several_maps_counts() -> None:
    first = PartitionMap.spread("s", 3, NAMES)
    second = first.with_home(0, "b")
    third = second.with_drained(["a"])
    assert merged([first]) is first
    assert merged([second, first, third, second]) == third


def test_of_two_maps_that_contradict_one_another_each_partition_is_where_it_came_last() -> None:
    base = PartitionMap.spread("s", 3, NAMES).with_nodes({"d": "node-3"})
    here, there = base.with_home(0, "b"), base.with_home(1, "c").with_nodes({"e": "node-4"})
    for maps in ([here, there, base], [there, here]):
        both = merged(maps)
        assert (both.owners, both.version) == (("b", "c", "c"), max(here.version, there.version) + 1)
        assert both.names == {**NAMES, "d": "node-3", "e": "node-4"}
        assert merged([both, *maps]) == both


def test_two_maps_of_one_version_become_a_later_one_that_all_can_be_given() -> None:
    base = PartitionMap.spread("s", 1, NAMES)
    one, other = base.with_drained(["a"]), base.with_drained(["b"])
    assert merged([one, other]).version == 3


def test_a_map_is_read_as_it_was_written_with_the_node_it_was_written_for(tmp_path: Path) -> None:
    assert read_map(tmp_path) is None
    written = PartitionMap.spread("s", 3, NAMES).with_drained(["c"])
    write_map(tmp_path, written, "b")
    assert read_map(tmp_path) == (written, "b")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"format": 1}', b"\xff"])
def test_a_map_that_is_not_what_was_written_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MAP).write_bytes(content)
    with pytest.raises(StoreMismatch) as told:
        read_map(tmp_path)
    assert str(told.value) == (
        f"{tmp_path / MAP}: the map is damaged: it is not what was written; move map.json away while nothing runs:"
        " the other nodes have copies, and the newest of them counts"
    )


def test_a_map_with_a_changed_home_or_of_a_later_format_is_refused(tmp_path: Path) -> None:
    write_map(tmp_path, PartitionMap.spread("s", 3, NAMES), "a")
    facts = json.loads((tmp_path / MAP).read_text())
    (tmp_path / MAP).write_text(json.dumps({**facts, "homes": ["a", "a", "a"]}))
    with pytest.raises(StoreMismatch, match="the map is damaged: its checksum is wrong"):
        read_map(tmp_path)
    del facts["checksum"]
    facts["format"] = 2
    (tmp_path / MAP).write_text(json.dumps({**facts, "checksum": checksum_of(facts)}))
    with pytest.raises(StoreMismatch, match="the map has format 2; this version of Rayfold reads format 1"):
        read_map(tmp_path)
