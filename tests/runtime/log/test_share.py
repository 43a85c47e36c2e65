"""A store that is spread over nodes: what each of them has of it, and what is never mistaken for what."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayfold.runtime.errors import Sealed, StoreMismatch, StoreMissing
from rayfold.runtime.log.check import verify_store
from rayfold.runtime.log.environment import open_log
from rayfold.runtime.log.sealing import continue_epochs, seal
from rayfold.runtime.log.share import Share, arriving_path, create_share, open_share, place_share, remove_log
from rayfold.runtime.log.store import create_or_open_store, open_store
from rayfold.runtime.log.store_map import MAP, StoreMap
from rayfold.runtime.log.stretch import read_stretch, write_stretch
from tests.runtime.log.appends import ALICE, amounts_of, deposits

NAMES = {"a": "node-0", "b": "node-1"}
SPREAD = StoreMap.spread("s", 3, NAMES)


def folder(tmp_path: Path, node: str) -> Path:
    return tmp_path / NAMES[node] / "bank"


def spread(tmp_path: Path) -> None:
    for node in NAMES:
        create_share(folder(tmp_path, node), node, SPREAD)
    for node in NAMES:
        place_share(folder(tmp_path, node), node, SPREAD)


def opened(tmp_path: Path, node: str) -> Share:
    share = open_share(folder(tmp_path, node), node)
    assert share is not None
    return share


# Created


def test_each_node_has_the_logs_that_are_at_home_there_and_the_map(tmp_path: Path) -> None:
    assert open_share(folder(tmp_path, "a"), "a") is None
    spread(tmp_path)
    for node, here in (("a", [0, 2]), ("b", [1])):
        share = opened(tmp_path, node)
        assert (share.store.here, share.map, share.store.store_id) == (here, SPREAD, "s")
        assert open_store(share.store.path) == share.store
        with pytest.raises(StoreMissing):
            share.store.open_log(next(iter(share.store.away)))


def test_a_share_is_verified_for_what_is_at_home_there(tmp_path: Path) -> None:
    spread(tmp_path)
    report = verify_store(folder(tmp_path, "a"))
    assert [one.partition for one in report.partitions] == [0, 2]
    assert report.ok


def test_a_share_is_not_opened_as_if_it_were_the_whole(tmp_path: Path) -> None:
    spread(tmp_path)
    with pytest.raises(StoreMismatch) as told:
        create_or_open_store(folder(tmp_path, "b"))
    assert str(told.value) == (
        f"{folder(tmp_path, 'b')}: this is one node's share of a store, and partitions 0, 2 are at home on other nodes;"
        " use it through its cluster: Runtime(..., cluster=...) or connect(...)"
    )


def test_what_an_interrupted_creation_has_left_is_made_again(tmp_path: Path) -> None:
    create_share(folder(tmp_path, "a"), "a", SPREAD)
    another = StoreMap.spread("t", 2, NAMES)
    for node in NAMES:
        create_share(folder(tmp_path, node), node, another)
        place_share(folder(tmp_path, node), node, another)
    assert opened(tmp_path, "a").store.store_id == "t"
    with pytest.raises(StoreMismatch, match="there is a share of store t already; choose another name"):
        create_share(folder(tmp_path, "a"), "a", SPREAD)


def test_a_node_that_was_away_when_a_store_was_made_gives_up_what_another_creation_had_begun(tmp_path: Path) -> None:
    create_share(folder(tmp_path, "b"), "b", SPREAD)
    placed = StoreMap.spread("t", 2, {"a": "node-0"}).with_nodes(NAMES)
    place_share(folder(tmp_path, "b"), "b", placed)
    assert (opened(tmp_path, "b").map, opened(tmp_path, "b").store.here) == (placed, [])


# What must not be mistaken


def test_the_share_of_another_node_is_refused(tmp_path: Path) -> None:
    spread(tmp_path)
    with pytest.raises(StoreMismatch) as told:
        open_share(folder(tmp_path, "a"), "b")
    assert str(told.value) == (
        f"{folder(tmp_path, 'a')}: this is the share of node node-0 (a), not of node b;"
        " shares must not change places; put each back where it was"
    )


def test_a_share_that_is_gone_is_never_made_anew(tmp_path: Path) -> None:
    spread(tmp_path)
    shutil.rmtree(folder(tmp_path, "b"))
    with pytest.raises(StoreMissing) as told:
        place_share(folder(tmp_path, "b"), "b", SPREAD.with_drained(["a"]))
    assert str(told.value) == (
        f"{folder(tmp_path, 'b')}: the share of node node-1 is gone, with partitions [1];"
        " bring it back, or restore the store from a backup"
    )
    assert not folder(tmp_path, "b").exists()


def test_a_log_of_a_share_that_is_gone_is_never_made_anew(tmp_path: Path) -> None:
    spread(tmp_path)
    shutil.rmtree(folder(tmp_path, "a") / "partition-00002")
    share = opened(tmp_path, "a")
    with pytest.raises(StoreMissing, match="the log of partition 2 is not here"):
        share.store.open_log(2)
    with pytest.raises(StoreMissing, match="the log of partition 2 of 3 is gone"):
        open_store(share.store.path)


def test_a_share_of_another_store_stands_in_the_way_loudly(tmp_path: Path) -> None:
    spread(tmp_path)
    other = StoreMap.spread("t", 2, NAMES)
    with pytest.raises(
        StoreMismatch, match="it is of store s, and the other nodes have store t; move it out of the data"
    ):
        place_share(folder(tmp_path, "a"), "a", other)
    assert opened(tmp_path, "a").map == SPREAD


def test_a_used_store_in_the_folder_is_not_replaced_by_a_new_one(tmp_path: Path) -> None:
    store = create_or_open_store(folder(tmp_path, "a"), 2)
    log = store.open_log(1)
    log.activate()
    log.close()
    with pytest.raises(
        StoreMismatch, match=f"there is a store here already .{store.store_id}., and it has been in use"
    ):
        create_share(folder(tmp_path, "a"), "a", SPREAD)
    assert open_store(folder(tmp_path, "a")) == store


def test_a_whole_store_becomes_a_share_that_is_home_to_everything(tmp_path: Path) -> None:
    store = create_or_open_store(folder(tmp_path, "a"), 2)
    share = opened(tmp_path, "a")
    assert (share.map, share.whole, share.store.away) == (None, True, frozenset())
    adopted = StoreMap.spread(store.store_id, 2, {"a": "node-0"})
    place_share(store.path, "a", adopted)
    assert opened(tmp_path, "a").store == store
    assert create_or_open_store(store.path) == store  # still whole: it may be taken out of the cluster again


# Changed


def test_a_later_map_counts_and_an_earlier_one_is_passed_over(tmp_path: Path) -> None:
    spread(tmp_path)
    later = SPREAD.with_nodes({"c": "node-2"})
    place_share(folder(tmp_path, "a"), "a", later)
    place_share(folder(tmp_path, "a"), "a", SPREAD)
    assert opened(tmp_path, "a").map == later


def test_a_node_that_joins_has_a_share_with_the_map_and_nothing_else(tmp_path: Path) -> None:
    later = SPREAD.with_nodes({"c": "node-2"})
    place_share(tmp_path / "node-2" / "bank", "c", later)
    share = open_share(tmp_path / "node-2" / "bank", "c")
    assert share is not None
    assert (share.store.here, share.map) == ([], later)


def test_a_partition_moves_from_one_share_to_another(tmp_path: Path) -> None:
    spread(tmp_path)
    leaving, arriving = opened(tmp_path, "a").store, opened(tmp_path, "b").store
    source = leaving.open_log(2)
    source.append(source.activate(), [deposits(ALICE, 5), deposits(ALICE, 6)])
    copy = open_log(arriving_path(arriving, 2), "partition 2", identity=arriving.identity(2))
    stretch = read_stretch(source, 0, 2)
    assert stretch is not None
    write_stretch(copy, stretch)
    continue_epochs(copy, seal(source, "node-1").epoch)
    source.close()
    copy.close()
    moved = SPREAD.with_home(2, "b")
    for node in ("a", "b"):
        place_share(folder(tmp_path, node), node, moved)
    log = opened(tmp_path, "b").store.open_log(2)
    assert (amounts_of(log.read(0, 9)), log.activate()) == ([5, 6], 3)
    log.close()
    with pytest.raises(Sealed):
        leaving.open_log(2).activate()


def test_the_log_of_a_partition_that_has_moved_is_removed_and_no_other(tmp_path: Path) -> None:
    spread(tmp_path)
    place_share(folder(tmp_path, "a"), "a", SPREAD.with_home(2, "b"))
    store = opened(tmp_path, "a").store
    with pytest.raises(StoreMismatch, match="its partition is at home here; move it first"):
        remove_log(store, 0)
    log = store.open_log(2)
    log.activate()
    log.close()
    with pytest.raises(StoreMismatch, match="it is not at home here, and was never handed over; keep it: look at both"):
        remove_log(store, 2)
    log = store.open_log(2)
    seal(log, "node-1")
    log.close()
    remove_log(store, 2)
    remove_log(store, 2)
    assert sorted(one.name for one in store.path.iterdir()) == [
        "map.json",
        "partition-00000",
        "store.json",
        "store.lock",
    ]


def test_a_map_without_a_manifest_or_of_another_store_is_refused(tmp_path: Path) -> None:
    spread(tmp_path)
    path = folder(tmp_path, "a")
    (path / "store.json").rename(path / "away.json")
    with pytest.raises(StoreMissing, match="there is no store here"):
        open_share(path, "a")
    (path / "away.json").unlink()
    create_or_open_store(tmp_path / "other", 3).path.joinpath("store.json").rename(path / "store.json")
    with pytest.raises(StoreMismatch, match="its manifest is that of store .*, its map that of store s"):
        open_share(path, "a")


def test_a_share_whose_map_is_gone_takes_the_one_of_the_others(tmp_path: Path) -> None:
    spread(tmp_path)
    (folder(tmp_path, "a") / MAP).unlink()
    assert opened(tmp_path, "a").map is None
    place_share(folder(tmp_path, "a"), "a", SPREAD.with_drained(["b"]))
    assert opened(tmp_path, "a").store.here == [0, 2]
