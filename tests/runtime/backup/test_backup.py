"""Backups: taken under writes, continued, restored whole or up to a position, and never mistaken for the original."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayfold.runtime.backup import taking
from rayfold.runtime.backup.inventory import INVENTORY
from rayfold.runtime.backup.restoring import restore_store
from rayfold.runtime.backup.taking import backup_store
from rayfold.runtime.backup.target import target_at
from rayfold.runtime.durable_files import checksum_of
from rayfold.runtime.errors import CommandIdReused, Damaged, StorageFailed, StoreInUse, StoreMismatch, StoreMissing
from rayfold.runtime.log.segment import read_log_segment
from rayfold.runtime.store.store import Store, create_or_open_store
from rayfold.runtime.store.verify import verify_store
from tests.runtime.log.appends import ALICE, BOB, command_id, deposits, python


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


@pytest.mark.slow
def test_a_backup_is_taken_while_the_store_is_written_to(store: Store, tmp_path: Path) -> None:
    log = store.open_log(0)
    epoch = log.activate()

    def write_on(done: int, total: int) -> None:
        log.append(epoch, [deposits(ALICE, done)])

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
    monkeypatch.setattr(read_log_segment, "__defaults__", (bytes_max,))
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


# --- what a restore and a backup leave alone ------------------------------------------------------------------------


def test_a_restore_removes_no_folder_that_only_has_the_name_of_an_unfinished_one(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    trial = restore_store(tmp_path / "backup", tmp_path / "bank.restoring")
    (tmp_path / "shop.restoring").mkdir()
    (tmp_path / "shop.restoring" / "notes").write_text("mine")
    (tmp_path / "till.restoring").symlink_to(tmp_path / "bank.restoring")
    for name, told in (("bank", "which no restore has left"), ("shop", "holds notes"), ("till", "and no folder")):
        with pytest.raises(StoreMismatch, match=told):
            restore_store(tmp_path / "backup", tmp_path / name)
    assert verify_store(trial.path).ok
    assert (tmp_path / "shop.restoring" / "notes").read_text() == "mine"


def test_a_place_that_cannot_be_replaced_is_refused_before_anything_is_restored(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    (tmp_path / "disk").mkdir()
    (tmp_path / "bank").symlink_to(tmp_path / "disk")
    done: list[int] = []
    with pytest.raises(StoreMismatch, match="it is a link, or where a disk is mounted"):
        restore_store(tmp_path / "backup", tmp_path / "bank", advance=lambda *_: done.append(1))
    assert not done
    assert not (tmp_path / "bank.restoring").exists()


def test_a_second_restore_into_the_same_place_leaves_the_first_one_its_work(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    refused: list[StoreInUse] = []

    def second(done: int, total: int) -> None:
        try:
            restore_store(tmp_path / "backup", tmp_path / "restored")
        except StoreInUse as error:
            refused.append(error)

    assert restore_store(tmp_path / "backup", tmp_path / "restored", advance=second).heads == {0: 6, 1: 1}
    assert len(refused) == 2
    assert verify_store(tmp_path / "restored").ok
    assert not (tmp_path / "restored.restoring").exists()


@pytest.mark.slow
def test_what_a_killed_restore_has_left_is_removed_by_the_next_one(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    code = (
        "import os, sys; from rayfold.runtime.backup.restoring import restore_store\n"
        "restore_store(*sys.argv[1:], advance=lambda done, total: os.kill(os.getpid(), 9))"
    )
    assert python(code, tmp_path / "backup", tmp_path / "restored").wait() == -9
    assert (tmp_path / "restored.restoring" / "store" / "store.json").exists()
    restored = restore_store(tmp_path / "backup", tmp_path / "restored")
    assert verify_store(restored.path).ok
    assert not (tmp_path / "restored.restoring").exists()


def test_a_backup_is_not_taken_into_a_folder_while_another_one_is(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    append(store, 1, (BOB, 8))
    told = []

    def second(done: int, total: int) -> None:
        for attempt in (
            lambda: backup_store(store.path, tmp_path / "backup"),
            lambda: restore_store(tmp_path / "backup", tmp_path / "restored"),
        ):
            with pytest.raises(StoreInUse, match="another backup or restore"):
                attempt()
            told.append(done)

    backup_store(store.path, tmp_path / "backup", advance=second)
    assert told == [1, 1]


@pytest.mark.slow
def test_of_two_backups_into_one_address_the_slower_one_changes_nothing(store: Store, tmp_path: Path) -> None:
    """The faster one may have merged, and removed, the segments that the slower one lists."""
    address = "memory://overlapping/bank"
    backup_store(store.path, address)
    append(store, 0, (ALICE, 8))
    backup_store(store.path, address)
    append(store, 1, (BOB, 8))
    code = (
        "import sys; from tests.runtime.backup.test_backup import append; from tests.runtime.log.appends import ALICE\n"
        "from rayfold.runtime.store.store import open_store\n"
        "append(open_store(sys.argv[1]), 0, *((ALICE, number) for number in range(9)))"
    )

    def second(done: int, total: int) -> None:
        if done == 1 and not again:
            again.append(1)
            assert python(code, store.path).wait() == 0
            thread = threading.Thread(target=backup_store, args=(store.path, address))
            thread.start()
            thread.join()

    again: list[int] = []
    with pytest.raises(StoreMismatch, match="another backup was taken into it meanwhile"):
        backup_store(store.path, address, advance=second)
    assert restore_store(address, tmp_path / "restored").heads == {0: 16, 1: 2}


@pytest.mark.parametrize("spoil", ["remove", "cut"])
def test_a_segment_that_is_gone_is_noticed_by_the_next_backup_and_written_again(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    backup_store(store.path, tmp_path / "backup")
    append(store, 0, (BOB, 1))
    backup_store(store.path, tmp_path / "backup")
    first = segments_of(tmp_path / "backup")[0]
    first.unlink() if spoil == "remove" else first.write_bytes(first.read_bytes()[:-1])
    assert backup_store(store.path, tmp_path / "backup").heads == {0: 7, 1: 1}
    assert "segment-000000000001-000000000006 is gone or of another size" in caplog.text
    assert records_of(restore_store(tmp_path / "backup", tmp_path / "restored").path, 0) == records_of(store, 0)
    listed = json.loads((tmp_path / "backup" / INVENTORY).read_text())["segments"]["0"]
    assert [one["name"] for one in listed] == [
        str(one.relative_to(tmp_path / "backup")) for one in segments_of(tmp_path / "backup") if "00000/" in str(one)
    ]


def spoiled(backup: Path, spoil: Callable[[dict[str, Any]], object]) -> None:
    """Change facts of the inventory, as any process that may write there can: with the right checksum."""
    facts = json.loads((backup / INVENTORY).read_text())
    del facts["checksum"]
    spoil(facts)
    (backup / INVENTORY).write_text(json.dumps(facts | {"checksum": checksum_of(facts)}))


def test_a_file_elsewhere_is_not_removed_because_the_inventory_names_it(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    (tmp_path / "precious").write_text("mine")
    spoiled(tmp_path / "backup", lambda facts: facts["segments"]["1"][0].update(name="../precious"))
    append(store, 1, (BOB, 8), (BOB, 9))
    with pytest.raises(Damaged, match="'../precious' is called so where 'partition-00001/segment-"):
        backup_store(store.path, tmp_path / "backup")
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda facts: facts.pop("format"),
        lambda facts: facts.pop("segments"),
        lambda facts: facts.update(partitions="two"),
        lambda facts: facts.update(partitions=1),
        lambda facts: facts.update(partitions=10**9),
        lambda facts: facts["segments"].update({"one": []}),
        lambda facts: facts["segments"]["0"].append(facts["segments"]["0"][0]),
        lambda facts: facts["segments"]["0"][0].update(first=2),
        lambda facts: facts["segments"]["0"][0].update(size_bytes=10**12),
        lambda facts: facts["segments"]["0"][0].update(last=True),
    ],
)
def test_whatever_an_inventory_says_it_is_one_or_it_is_refused(
    store: Store, tmp_path: Path, spoil: Callable[[dict[str, Any]], object]
) -> None:
    backup_store(store.path, tmp_path / "backup")
    spoiled(tmp_path / "backup", spoil)
    for attempt in (
        lambda: restore_store(tmp_path / "backup", tmp_path / "restored"),
        lambda: backup_store(store.path, tmp_path / "backup"),
    ):
        with pytest.raises((Damaged, StoreMismatch), match=r"backup\.json"):
            attempt()


def test_a_segment_of_other_content_with_the_right_digest_is_damaged(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    content = b"\xc1 is no msgpack"
    segments_of(tmp_path / "backup")[0].write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    spoiled(
        tmp_path / "backup",
        lambda facts: facts["segments"]["0"][0].update(sha256=digest, size_bytes=len(content)),
    )
    with pytest.raises(Damaged, match="it is not a segment"):
        restore_store(tmp_path / "backup", tmp_path / "restored")


def test_what_is_too_large_for_an_inventory_is_not_read(store: Store, tmp_path: Path) -> None:
    backup_store(store.path, tmp_path / "backup")
    os.truncate(tmp_path / "backup" / INVENTORY, 1 << 40)
    with pytest.raises(Damaged, match="it has over 268,435,456 bytes"):
        restore_store(tmp_path / "backup", tmp_path / "restored")


def test_a_backup_that_lost_its_inventory_is_not_written_over(store: Store, tmp_path: Path) -> None:
    for address in (str(tmp_path / "backup"), "memory://lost/inventory"):
        backup_store(store.path, address)
        target_at(address).remove(INVENTORY)
        other = create_or_open_store(tmp_path / "other", 2)
        for one in (other, store):
            with pytest.raises(StoreMismatch, match="it is gone, and partition-00000, partition-00001 of a backup are"):
                backup_store(one.path, address)


def test_the_first_backup_begins_with_its_inventory_so_that_an_interrupted_one_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFailed("a segment", "cannot write: No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(taking, "pack_segment", full)
        with pytest.raises(StorageFailed):
            backup_store(store.path, tmp_path / "backup")
    with pytest.raises(StoreMissing, match="there is no backup here"):
        restore_store(tmp_path / "backup", tmp_path / "restored")
    assert backup_store(store.path, tmp_path / "backup").events == 7


@pytest.mark.parametrize("place", [".", "backup", "partition-00000/backup"])
def test_a_backup_is_not_put_into_a_store(store: Store, tmp_path: Path, place: str) -> None:
    before = sorted(store.path.rglob("*"))
    with pytest.raises(StoreMismatch, match="it is in the folder of a store"):
        backup_store(store.path, store.path / place)
    assert sorted(store.path.rglob("*")) == before
