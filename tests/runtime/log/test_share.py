"""A store that is spread over nodes: what each of them has of it, and what is never mistaken for what."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayfold.runtime.errors import Sealed, StoreMismatch, StoreMissing
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.sealing import WriteOwnership, hand_over, seal
from rayfold.runtime.log.segment import read_log_segment
from rayfold.runtime.store.node_share import Share
from rayfold.runtime.store.node_store import node_share, open_share
from rayfold.runtime.store.partition_map import MAP, PartitionMap
from rayfold.runtime.store.store import create_or_open_store, open_store
from rayfold.runtime.store.verify import verify_store
from tests.runtime.log.appends import ALICE, amounts_of, deposits

NAMES = {"a": "node-0", "b": "node-1"}
SPREAD = PartitionMap.spread("s", 3, NAMES)


def folder(tmp_path: Path, node: str) -> Path:
    return tmp_path / NAMES[node] / "bank"


def spread(tmp_path: Path) -> None:
    for node in NAMES:
        create_share(folder(tmp_path, node), node, SPREAD)
    for node in NAMES:
        place_share(folder(tmp_path, node), node, SPREAD)


def create_share(path: Path, node: str, store_map: PartitionMap) -> None:
    node_share(path, node).create(store_map)


def place_share(path: Path, node: str, store_map: PartitionMap) -> PartitionMap:
    return node_share(path, node).place(store_map)


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
    another = PartitionMap.spread("t", 2, NAMES)
    for node in NAMES:
        create_share(folder(tmp_path, node), node, another)
        place_share(folder(tmp_path, node), node, another)
    assert opened(tmp_path, "a").store.store_id == "t"
    with pytest.raises(StoreMismatch, match="there is a share of store t already; choose another name"):
        create_share(folder(tmp_path, "a"), "a", SPREAD)


def test_a_node_that_was_away_when_a_store_was_made_gives_up_what_another_creation_had_begun(tmp_path: Path) -> None:
    create_share(folder(tmp_path, "b"), "b", SPREAD)
    placed = PartitionMap.spread("t", 2, {"a": "node-0"}).with_nodes(NAMES)
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
    other = PartitionMap.spread("t", 2, NAMES)
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


@pytest.mark.parametrize("beside", ["projections", "partition-00001.retired-1", "partition-00001/notes", "letters"])
def test_a_manifest_stays_where_anything_but_unused_logs_is_beside_it(tmp_path: Path, beside: str) -> None:
    store = create_or_open_store(folder(tmp_path, "a"), 2)
    (store.path / beside).mkdir()
    before = sorted(store.path.rglob("*"))
    with pytest.raises(StoreMismatch):
        create_share(folder(tmp_path, "a"), "a", SPREAD)
    assert sorted(store.path.rglob("*")) == before
    assert open_store(store.path) == store


def test_no_first_map_is_put_into_a_folder_of_other_things(tmp_path: Path) -> None:
    path = folder(tmp_path, "a")
    path.mkdir(parents=True)
    path.chmod(0o755)
    (path / "letters").mkdir()
    with pytest.raises(StoreMismatch, match="the directory is not empty and holds no store: letters"):
        node_share(path, "a").propose(SPREAD)
    assert (path.stat().st_mode & 0o777, [one.name for one in path.iterdir()]) == (0o755, ["letters"])


def test_a_whole_store_becomes_a_share_that_is_home_to_everything(tmp_path: Path) -> None:
    store = create_or_open_store(folder(tmp_path, "a"), 2)
    share = opened(tmp_path, "a")
    assert (share.map, share.whole, share.store.away) == (None, True, frozenset())
    adopted = PartitionMap.spread(store.store_id, 2, {"a": "node-0"})
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


def fill(tmp_path: Path, node: str, partition: int, *amounts: int) -> None:
    log = opened(tmp_path, node).store.open_log(partition)
    log.append(log.activate(), [deposits(ALICE, amount) for amount in amounts])
    log.close()


def copy(tmp_path: Path, source: str, to: str, partition: int) -> None:
    """Steps 1 to 4 of a move: the log at its home is sealed, and the copy is complete."""
    log = opened(tmp_path, source).store.open_log(partition)
    sealed = seal(log, to)
    share = node_share(folder(tmp_path, to), to)
    assert share.pull(partition, sealed.head, lambda after, up_to: read_log_segment(log, after, up_to)) == sealed.head
    share.finish(partition, sealed)
    log.close()


def hand(tmp_path: Path, source: str, to: str, partition: int, since: int) -> None:
    """Step 5."""
    log = opened(tmp_path, source).store.open_log(partition)
    hand_over(log, to, log.epoch(), since)
    log.close()


def test_a_partition_moves_from_one_share_to_another(tmp_path: Path) -> None:
    spread(tmp_path)
    fill(tmp_path, "a", 2, 5, 6)
    leaving = opened(tmp_path, "a").store
    copy(tmp_path, "a", "b", 2)
    hand(tmp_path, "a", "b", 2, since=2)
    moved = SPREAD.with_home(2, "b", since=2, epoch=2)
    assert place_share(folder(tmp_path, "a"), "a", SPREAD) == moved  # the log has it, whatever map comes
    assert place_share(folder(tmp_path, "b"), "b", moved) == moved
    log = opened(tmp_path, "b").store.open_log(2)
    assert (amounts_of(log.read(0, 9)), log.activate()) == ([5, 6], 3)
    log.close()
    with pytest.raises(Sealed):
        leaving.open_log(2).activate()


def test_a_copy_that_was_not_completed_for_the_move_never_becomes_the_log(tmp_path: Path) -> None:
    spread(tmp_path)
    fill(tmp_path, "a", 2, 5, 6)
    copy(tmp_path, "a", "b", 2)
    later = SPREAD.with_home(2, "b", since=2, epoch=9)
    assert place_share(folder(tmp_path, "b"), "b", later) == later
    with pytest.raises(StoreMissing):
        opened(tmp_path, "b").store.open_log(2)
    assert [one.name for one in node_share(folder(tmp_path, "b"), "b").copies(2)] == ["partition-00002.arriving"]


def test_an_old_log_is_renamed_when_the_partition_comes_back_and_never_overwritten(tmp_path: Path) -> None:
    spread(tmp_path)
    fill(tmp_path, "a", 2, 5)
    copy(tmp_path, "a", "b", 2)
    hand(tmp_path, "a", "b", 2, since=2)
    there = SPREAD.with_home(2, "b", since=2, epoch=2)
    for node in NAMES:
        place_share(folder(tmp_path, node), node, there)
    fill(tmp_path, "b", 2, 6)
    copy(tmp_path, "b", "a", 2)
    hand(tmp_path, "b", "a", 2, since=3)
    place_share(folder(tmp_path, "a"), "a", there.with_home(2, "a", since=3, epoch=4))
    copies = node_share(folder(tmp_path, "a"), "a").copies(2)
    assert [(one.name, one.head, one.write_ownership) for one in copies] == [
        ("partition-00002", 2, WriteOwnership(4)),
        ("partition-00002.retired-2", 1, WriteOwnership(2, "b", 2)),
    ]
    assert opened(tmp_path, "a").store.open_log(2).activate() == 5


def moved(tmp_path: Path) -> str:
    """Partition 2 has moved from a to b, where it was opened. The old log on a."""
    spread(tmp_path)
    fill(tmp_path, "a", 2, 5, 6)
    copy(tmp_path, "a", "b", 2)
    hand(tmp_path, "a", "b", 2, since=2)
    for node in ("a", "b"):
        place_share(folder(tmp_path, node), node, SPREAD.with_home(2, "b", since=2, epoch=2))
    (left,) = node_share(folder(tmp_path, "a"), "a").leftovers()
    return left.name


def test_an_old_log_is_removed_once_its_home_states_that_it_has_gone_on_with_all_of_it(tmp_path: Path) -> None:
    name = moved(tmp_path)
    old, new = (node_share(folder(tmp_path, node), node) for node in NAMES)
    why = "the log of its home has epoch 2, which is not later than 2"
    assert old.discard(name, new.home_statement(2, [2])) == why  # it was not opened there yet
    fill(tmp_path, "b", 2, 7)
    statement = new.home_statement(2, [2])
    assert old.discard("partition-00000", statement) == "it is the log of a partition that is at home here"
    withheld = {
        "the statement is about partition 1": statement._replace(partition=1),
        "the log of its home is sealed: it is about to move": statement._replace(
            write_ownership=WriteOwnership(3, "a")
        ),
        "the log of its home does not hold its 2 events: it ends at 3, or differs": statement._replace(chains={}),
        "the log of its home does not hold its 2 events: it ends at 1, or differs": statement._replace(
            head=1, chains={1: b"another"}
        ),
    }
    for why, weaker in withheld.items():
        assert old.discard(name, weaker) == why
    assert [one.name for one in old.leftovers()] == [name]
    assert old.discard(name, statement) == old.discard(name, statement) == ""
    assert sorted(one.name for one in folder(tmp_path, "a").iterdir()) == [
        "map.json",
        "partition-00000",
        "store.json",
        "store.lock",
    ]


def test_what_was_decided_to_be_removed_is_removed_in_the_end(tmp_path: Path) -> None:
    name = moved(tmp_path)
    (folder(tmp_path, "a") / name).rename(folder(tmp_path, "a") / "partition-00002.removing")
    assert node_share(folder(tmp_path, "a"), "a").leftovers() == []
    assert not (folder(tmp_path, "a") / "partition-00002.removing").exists()


def test_a_copy_of_another_history_is_kept_under_another_name(tmp_path: Path) -> None:
    spread(tmp_path)
    fill(tmp_path, "a", 2, 5, 6)
    other = open_log(folder(tmp_path, "b") / "partition-00002.arriving", "partition 2", identity="s/00002")
    other.append(other.activate(), [deposits(ALICE, 7)])
    other.close()
    share, log = node_share(folder(tmp_path, "b"), "b"), opened(tmp_path, "a").store.open_log(2)
    assert share.pull(2, 2, lambda after, up_to: read_log_segment(log, after, up_to)) == 0
    assert share.pull(2, 2, lambda after, up_to: read_log_segment(log, after, up_to)) == 2
    assert [(one.name, one.head) for one in share.leftovers()] == [
        ("partition-00002.arriving", 2),
        ("partition-00002.retired-1", 1),
    ]
    log.append(log.activate(), [deposits(ALICE, 8)])
    log.close()
    statement = node_share(folder(tmp_path, "a"), "a").home_statement(2, [1])
    assert share.discard("partition-00002.retired-1", statement).startswith(
        "the log of its home does not hold its 1 ev"
    )
    log.close()


def test_only_the_home_of_a_partition_states_anything_about_it(tmp_path: Path) -> None:
    moved(tmp_path)
    with pytest.raises(StoreMismatch, match="partition 2 is not at home here; ask its home"):
        node_share(folder(tmp_path, "a"), "a").home_statement(2)
    (folder(tmp_path, "b") / "partition-00002").rename(folder(tmp_path, "b") / "elsewhere")
    with pytest.raises(StoreMismatch, match="the log of partition 2, which is at home here, is not"):
        node_share(folder(tmp_path, "b"), "b").home_statement(2)


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
