"""Backups: taken under writes, continued, restored whole or up to a position, and never mistaken for the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayfold.runtime.backup import taking
from rayfold.runtime.backup.inventory import INVENTORY
from rayfold.runtime.backup.restoring import restore_store
from rayfold.runtime.backup.taking import backup_store
from rayfold.runtime.errors import CommandIdReused, Damaged, StorageFailed, StoreMismatch, StoreMissing
from rayfold.runtime.log import stretch
from rayfold.runtime.log.check import verify_store
from rayfold.runtime.log.durable import checksum_of
from rayfold.runtime.log.store import Store, create_or_open_store
from tests.runtime.log.appends import ALICE, BOB, command_id, deposits


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two partitions: commands of three events, of one and of two in the first, one of one in the second."""
    made = create_or_open_store(tmp_path / "store", 2)
    append(made, 0, (ALICE, 1, 2, 3), (BOB, 4), (ALICE, 5, 6))
    append(made, 1, (BOB, 7))
    return made


def append(store: Store, partition: int, *commands: tuple[object, ...]) -> None:
    log = store.open_log(partition)
    epoch = log.activate()
    for stream, *amounts in commands:
        log.append(epoch, [deposits(stream, *amounts)])  # type: ignore[arg-type]
    log.close()


def records_of(store: Store | Path, partition: int) -> list[bytes]:
    opened = store if isinstance(store, Store) else create_or_open_store(store)
    reader = opened.open_reader(partition)
    try:
        return reader.read(0, 1_000_000)
    finally:
        reader.close()


def test_a_restored_store_has_the_same_bytes_verifies_and_is_another_store(store: Store, tmp_path: Path) -> None:
    taken = backup_store(store.path, tmp_path / "backup")
    restored = restore_store(tmp_path / "backup", tmp_path / "restored")
    assert (taken.events, taken.heads, restored.heads) == (7, {0: 6, 1: 1}, {0: 6, 1: 1})
    assert [records_of(restored.path, number) for number in (0, 1)] == [records_of(store, number) for number in (0, 1)]
    assert verify_store(restored.path).ok
    assert restored.store_id != store.store_id == restored.restored_from
    assert json.loads((restored.path / "restored.json").read_text())["restored_from"] == store.store_id


def test_a_restored_store_is_written_on_and_remembers_the_commands_of_the_original(
    store: Store, tmp_path: Path
) -> None:
    log = store.open_log(0)
    known = command_id()
    log.append(log.activate(), [deposits(ALICE, 9, by=known)])
    log.close()
    backup_store(store.path, tmp_path / "backup")
    restored = restore_store(tmp_path / "backup", tmp_path / "restored")
    log = create_or_open_store(restored.path).open_log(0)
    epoch = log.activate()
    again, fresh = log.append(epoch, [deposits(ALICE, 9, by=known), deposits(ALICE, 10)])
    assert (again.repeated, again.position, fresh.position, fresh.version) == (True, 7, 8, 7)
    with pytest.raises(CommandIdReused):
        log.append(epoch, [deposits(ALICE, 9, by=known, digest=b"another 16 bytes")])
    log.close()
    assert verify_store(restored.path).ok


def test_the_second_backup_adds_what_is_new_and_nothing_else(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    assert backup_store(store.path, tmp_path / "backup").events == 0
    append(store, 1, (BOB, 8), (BOB, 9))
    assert backup_store(store.path, tmp_path / "backup").events == 2
    restored = restore_store(tmp_path / "backup", tmp_path / "restored")
    assert records_of(restored.path, 1) == records_of(store, 1)


def test_a_backup_is_taken_while_the_store_is_written_to(store: Store, tmp_path: Path) -> None:
    log = store.open_log(0)
    epoch = log.activate()

    def write_on(done: int, total: int) -> None:
        log.append(epoch, [deposits(ALICE, done)])

    from tests.runtime.log.appends import python

    child = python(
        "import sys; from rayfold.runtime.backup.taking import backup_store\n"
        "print('ready', flush=True); sys.stdin.readline(); print(backup_store(*sys.argv[1:]).events, flush=True)",
        store.path,
        tmp_path / "backup",
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == "ready\n"
    child.stdin.write("go\n")
    child.stdin.flush()
    while child.poll() is None:
        write_on(1, 1)
    added = int(child.stdout.readline())
    log.close()
    restored = restore_store(tmp_path / "backup", tmp_path / "restored")
    assert verify_store(restored.path).ok
    assert sum(restored.heads.values()) == added >= 7
    assert records_of(restored.path, 0) == records_of(store, 0)[: restored.heads[0]]


@pytest.mark.parametrize("bytes_max", [1, 400, 1 << 20])
def test_segments_hold_whole_commands_however_small_they_are(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_max: int
) -> None:
    monkeypatch.setattr(stretch.read_stretch, "__defaults__", (bytes_max,))
    monkeypatch.setattr(taking, "LISTED_EVERY", 1)
    backup_store(store.path, tmp_path / "backup")
    inventory = json.loads((tmp_path / "backup" / INVENTORY).read_text())
    ends = [segment["last"] for segment in inventory["segments"]["0"]]
    assert set(ends) <= {3, 4, 6}
    assert ends[-1] == 6
    restored = restore_store(tmp_path / "backup", tmp_path / "restored")
    assert records_of(restored.path, 0) == records_of(store, 0)


@pytest.mark.parametrize("position", [0, 3, 4, 6])
def test_a_store_is_restored_to_the_end_of_any_command(store: Store, tmp_path: Path, position: int) -> None:
    backup_store(store.path, tmp_path / "backup")
    restored = restore_store(tmp_path / "backup", tmp_path / "restored", positions={0: position})
    assert records_of(restored.path, 0) == records_of(store, 0)[:position]
    assert restored.heads == {0: position, 1: 1}
    assert verify_store(restored.path).ok


def test_a_position_within_a_command_is_refused_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    with pytest.raises(StoreMismatch, match=r"position 5 .* lies within a command, 5 to 6; choose 4 or 6"):
        restore_store(tmp_path / "backup", tmp_path / "restored", positions={0: 5})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "store"]


@pytest.mark.parametrize(
    ("positions", "what"), [({0: 7}, "up to 6 of"), ({2: 1}, "none with number 2"), ({0: -1}, "-1")]
)
def test_a_position_that_the_backup_has_not_got_is_refused(
    store: Store, tmp_path: Path, positions: dict[int, int], what: str
) -> None:
    backup_store(store.path, tmp_path / "backup")
    with pytest.raises(StoreMismatch, match=what):
        restore_store(tmp_path / "backup", tmp_path / "restored", positions=positions)


def test_the_backup_of_the_original_is_not_continued_from_a_restored_store(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    restored = restore_store(tmp_path / "backup", tmp_path / "restored")
    with pytest.raises(StoreMismatch, match=f"it holds store {store.store_id}, and .* is store {restored.store_id}"):
        backup_store(restored.path, tmp_path / "backup")


def test_a_partition_of_a_restored_store_does_not_fit_into_the_original(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    restored = restore_store(tmp_path / "backup", tmp_path / "restored")
    (store.path / "partition-00000").rename(tmp_path / "aside")
    (restored.path / "partition-00000").rename(store.path / "partition-00000")
    with pytest.raises(StoreMismatch, match="partition folders must not be moved between stores"):
        store.open_reader(0)


def test_a_store_that_lost_events_is_not_backed_up_over_its_backup(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    facts = json.loads((store.path / "store.json").read_text())
    shorter = restore_store(tmp_path / "backup", tmp_path / "shorter", positions={0: 4})
    forged = tmp_path / "forged.json"
    inventory = json.loads((tmp_path / "backup" / INVENTORY).read_text())
    inventory["store_id"] = shorter.store_id
    del inventory["checksum"]
    inventory["checksum"] = checksum_of(inventory)
    forged.write_text(json.dumps(inventory))
    forged.rename(tmp_path / "backup" / INVENTORY)
    with pytest.raises(StoreMismatch, match="it has 6 events of partition 0, and the store only 4"):
        backup_store(shorter.path, tmp_path / "backup")
    append(create_or_open_store(shorter.path), 0, (BOB, 1), (BOB, 2))
    with pytest.raises(StoreMismatch, match="event 6 of partition 0 follows from other events there"):
        backup_store(shorter.path, tmp_path / "backup")
    assert facts["store_id"] == store.store_id


def segments_of(backup: Path) -> list[Path]:
    return sorted(backup.glob("partition-*/segment-*"))


@pytest.mark.parametrize("spoil", ["flip", "cut", "remove", "swap"])
def test_damage_in_a_segment_is_named_and_leaves_no_store(store: Store, tmp_path: Path, spoil: str) -> None:
    backup_store(store.path, tmp_path / "backup")
    append(store, 0, (BOB, 1))
    backup_store(store.path, tmp_path / "backup")
    first, second, *_ = segments_of(tmp_path / "backup")
    content = first.read_bytes()
    if spoil == "flip":
        first.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif spoil == "cut":
        first.write_bytes(content[:-1])
    elif spoil == "remove":
        first.unlink()
    else:
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    with pytest.raises(Damaged, match="segment-000000000001-000000000006"):
        restore_store(tmp_path / "backup", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    assert not (tmp_path / "restored.restoring").exists()


def test_damage_in_the_inventory_is_named(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    inventory = tmp_path / "backup" / INVENTORY
    inventory.write_text(inventory.read_text().replace('"last": 6', '"last": 4'))
    with pytest.raises(Damaged, match="backup.json is damaged: its checksum is wrong"):
        restore_store(tmp_path / "backup", tmp_path / "restored")
    inventory.write_text("{")
    with pytest.raises(Damaged, match="it is not what was written"):
        backup_store(store.path, tmp_path / "backup")


def test_a_backup_that_fails_halfway_is_the_one_before_and_goes_on_later(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup_store(store.path, tmp_path / "backup")
    append(store, 1, (ALICE, 1))

    def full(*_: object) -> None:
        raise StorageFailed("backup.json", "cannot write: No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(taking, "write_inventory", full)
        with pytest.raises(StorageFailed):
            backup_store(store.path, tmp_path / "backup")
    assert restore_store(tmp_path / "backup", tmp_path / "before").heads == {0: 6, 1: 1}
    assert backup_store(store.path, tmp_path / "backup").events == 1
    assert restore_store(tmp_path / "backup", tmp_path / "after").heads == {0: 6, 1: 2}


def test_a_directory_that_is_taken_and_a_backup_that_is_not_there_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="there is no backup here"):
        restore_store(tmp_path / "nowhere", tmp_path / "restored")
    backup_store(store.path, tmp_path / "backup")
    with pytest.raises(
        StoreMismatch, match="there is something here already; restore into an empty or a new directory"
    ):
        restore_store(tmp_path / "backup", store.path)


def test_a_backup_goes_to_any_address_that_fsspec_knows(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, "memory://backups/bank")
    append(store, 0, (BOB, 1))
    assert backup_store(store.path, "memory://backups/bank").events == 1
    restored = restore_store("memory://backups/bank", tmp_path / "restored")
    assert records_of(restored.path, 0) == records_of(store, 0)
    with pytest.raises(StorageFailed, match="nosuch"):
        backup_store(store.path, "nosuch://backups/bank")


def test_frequent_backups_gather_few_segments_and_an_old_one_is_removed_once_it_is_not_listed(
    store: Store, tmp_path: Path
) -> None:
    for number in range(40):
        append(store, 0, (ALICE, number))
        backup_store(store.path, tmp_path / "backup")
        segments = list((tmp_path / "backup" / "partition-00000").iterdir())
        listed = json.loads((tmp_path / "backup" / INVENTORY).read_text())["segments"]["0"]
        assert sorted(one["name"].partition("/")[2] for one in listed) == sorted(one.name for one in segments)
        assert len(segments) <= 6, "the logarithm of what there is"
    restored = restore_store(tmp_path / "backup", tmp_path / "restored")
    assert records_of(restored.path, 0) == records_of(store, 0)


def test_segments_that_are_large_enough_stay_as_they_are(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "MERGED_BYTES_MAX", 10)
    for number in range(5):
        append(store, 0, (ALICE, number))
        assert backup_store(store.path, tmp_path / "backup").events == (8 if not number else 1)
    assert len(list((tmp_path / "backup" / "partition-00000").iterdir())) == 5


def test_a_backup_that_merges_counts_only_what_is_new(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    append(store, 0, *((ALICE, number) for number in range(10)))
    assert backup_store(store.path, tmp_path / "backup").events == 10
    assert len(list((tmp_path / "backup" / "partition-00000").iterdir())) == 1
