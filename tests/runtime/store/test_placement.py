"""Where a new store places its streams: by a keyed hash, those of one `{group}` together, and so wherever it goes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rayfold.runtime.backup.restoring import restore_store
from rayfold.runtime.backup.taking import backup_store
from rayfold.runtime.durable_files import encode_facts
from rayfold.runtime.errors import StoreMismatch
from rayfold.runtime.store import store as stores
from rayfold.runtime.store.node_store import node_share, open_share
from rayfold.runtime.store.partition_map import PartitionMap, merged, read_map, write_map
from rayfold.runtime.store.store import create_or_open_store, open_store, write_manifest
from rayfold.runtime.store.verify import verify_store
from rayfold.runtime.stream import OLD_PLACEMENT, StreamId, is_placement, new_placement, partition_of
from tests.runtime.log.appends import deposits

RULE = "blake2b-groups:" + "07" * 16
NAMES = {"a": "node-0", "b": "node-1"}


@pytest.fixture(autouse=True)
def _as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests make their stores without a key."""
    monkeypatch.setattr(stores, "new_placement", new_placement)


def at(ident: str, kind: str = "Account", rule: str = RULE, partitions: int = 1 << 30) -> int:
    """Of so many partitions that no two are one by chance."""
    return partition_of(StreamId(kind, ident), partitions, rule)


def test_a_rule_is_the_same_permanently_and_another_one_under_each_key() -> None:
    assert [at(ident, partitions=8) for ident in ("alice", "bob", "x{g}y", "{g}")] == [4, 7, 2, 2]
    assert at("alice") == at("alice") != at("alice", rule="blake2b-groups:" + "08" * 16)
    assert len({new_placement() for _ in range(9)}) == 9


@pytest.mark.parametrize(
    "ident", ["{g}", "a{g}", "{g}b", "a{g}b", "{g}{h}", "a{g}b{h}c", "{g}}", "é{g}\0", "}{g}", "}}a{g}"]
)
def test_ids_of_one_group_are_in_one_partition_whatever_their_types(ident: str) -> None:
    assert at(ident) == at("{g}") == at(ident, "Order")


@pytest.mark.parametrize(
    "ident", ["g", "{}", "{}g", "{}{g}", "{g", "g}", "}g{", "{{g}", "{G}", "{g }", "{h}{g}", "{ g}"]
)
def test_other_ids_are_not_of_that_group(ident: str) -> None:
    assert at(ident) != at("{g}")


@pytest.mark.parametrize("ident", ["g", "{}", "{}{g}", "{g", "}g{"])
def test_an_id_without_a_group_is_placed_by_all_of_it_and_by_its_type(ident: str) -> None:
    assert len({at(ident), at(ident, "Order"), at(f"{ident}x"), at("", ident)}) == 4


def test_streams_are_spread_evenly() -> None:
    counts = Counter(at(f"account-{number}", partitions=8) for number in range(8_000))
    assert all(850 < count < 1_150 for count in counts.values())


@pytest.mark.parametrize(
    "rule", ["", "crc32:00", "crc32 ", "md5", "blake2b-groups", "blake2b-groups:", RULE[:-1], RULE + "0", RULE.upper()]
)
def test_what_is_no_rule_is_none(rule: str) -> None:
    assert not is_placement(rule)


def test_a_new_store_has_a_rule_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    store, other = (create_or_open_store(tmp_path / name, 4) for name in ("one", "other"))
    assert is_placement(store.placement)
    assert OLD_PLACEMENT != store.placement != other.placement
    assert open_store(store.path) == create_or_open_store(store.path) == store
    assert store.partition_of(StreamId("Account", "{x}1")) == store.partition_of(StreamId("Order", "{x}2"))
    facts = json.loads((store.path / "store.json").read_text())
    assert (facts["hash"], len(facts["hash_key"])) == ("blake2b-groups", 32)


def test_a_store_from_before_keeps_the_rule_it_has(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "store", 4)
    facts = {"format": 1, "store_id": store.store_id, "partitions": 4, "hash": "crc32"}
    (store.path / "store.json").write_bytes(encode_facts(facts))
    old = open_store(store.path)
    assert old.placement == OLD_PLACEMENT
    streams = [StreamId("Account", name) for name in ("alice", "{x}1", "{x}2", "bob")]
    assert [old.partition_of(stream) for stream in streams] == [partition_of(stream, 4) for stream in streams]
    write_manifest(old)
    written = json.loads((store.path / "store.json").read_text())
    del written["checksum"]
    assert written == facts


@pytest.mark.parametrize(
    "changes",
    [{"hash": "xxh3"}, {"hash": "blake2b-groups"}, {"hash": "crc32", "hash_key": "07"}, {"hash_key": "zz" * 16}],
)
def test_a_store_whose_rule_is_not_known_is_refused(tmp_path: Path, changes: dict[str, str]) -> None:
    store = create_or_open_store(tmp_path / "store", 4)
    facts = {"format": 1, "store_id": store.store_id, "partitions": 4, "hash": "blake2b-groups"} | changes
    (store.path / "store.json").write_bytes(encode_facts(facts))
    with pytest.raises(StoreMismatch, match="this version of Rayfold reads format 1 with hash crc32 or blake2b-groups"):
        open_store(store.path)


def test_what_a_later_version_adds_to_the_manifest_is_kept_and_ignored(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "store", 2)
    facts = json.loads((store.path / "store.json").read_text())
    del facts["checksum"]
    added = facts | {"region": "eu", "tenants": {"a": [1, 2]}, "since": None}
    (store.path / "store.json").write_bytes(encode_facts(added))
    later = open_store(store.path)
    assert later == store
    write_manifest(later)
    written = json.loads((store.path / "store.json").read_text())
    del written["checksum"]
    assert written == added


def test_a_restored_store_places_its_streams_as_they_are_placed_in_its_logs(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "store", 3)
    streams = [StreamId("Account", f"{number}") for number in range(20)]
    for partition in range(3):
        log = store.open_log(partition)
        log.append(log.activate(), [deposits(one, 1) for one in streams if store.partition_of(one) == partition])
        log.close()
    assert [report.warnings for report in verify_store(store.path).partitions] == [[], [], []]
    backup_store(store.path, tmp_path / "backup")
    restored = open_store(restore_store(tmp_path / "backup", tmp_path / "restored").path)
    assert (restored.placement, restored.store_id == store.store_id) == (store.placement, False)
    assert [report.warnings for report in verify_store(restored.path).partitions] == [[], [], []]


def test_a_backup_from_before_is_restored_with_the_old_rule(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "store", 2, placement=OLD_PLACEMENT)
    backup_store(store.path, tmp_path / "backup")
    path = tmp_path / "backup" / "backup.json"
    facts = json.loads(path.read_text())
    del facts["checksum"], facts["placement"]
    path.write_bytes(encode_facts(facts))
    assert open_store(restore_store(tmp_path / "backup", tmp_path / "restored").path).placement == OLD_PLACEMENT


def test_the_shares_of_a_spread_store_and_its_maps_have_its_rule(tmp_path: Path) -> None:
    first = PartitionMap.spread("5f1d8f0c-6d0e-4a55-9f5e-1b7f0f3a1c11", 2, NAMES, RULE)
    for node in NAMES:
        node_share(tmp_path / node, node).create(first)
        node_share(tmp_path / node, node).place(first)
        share = open_share(tmp_path / node, node)
        assert share is not None
        assert share.map is not None
        assert share.store.placement == share.map.placement == RULE
    moved = merged([first, first.with_home(0, "b").with_drained(["a"]), first.with_nodes({"c": "node-2"})])
    assert moved.placement == RULE


def test_a_map_from_before_has_the_old_rule(tmp_path: Path) -> None:
    write_map(tmp_path, PartitionMap.spread("s", 2, NAMES, RULE), "a")
    path = tmp_path / "map.json"
    facts = json.loads(path.read_text())
    del facts["checksum"], facts["placement"]
    path.write_bytes(encode_facts(facts))
    found = read_map(tmp_path)
    assert found is not None
    assert found[0].placement == OLD_PLACEMENT
