"""A store on disk: made once and whole, opened only as what it is, held by one runtime at a time."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rayfold.runtime.durable_files import checksum_of
from rayfold.runtime.errors import StorageFailed, StoreInUse, StoreMismatch, StoreMissing
from rayfold.runtime.store.store import Store, create_or_open_store, open_store
from rayfold.runtime.store.store_lock import StoreLock, holder_of
from tests.runtime.log.appends import ALICE, amounts_of, deposits, python

# --- making and opening -------------------------------------------------------------------------------------------


def test_a_new_store_has_a_manifest_and_a_log_for_each_partition(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "a" / "store", 3)
    assert (store.path, store.partitions) == (tmp_path / "a" / "store", 3)
    assert sorted(one.name for one in store.path.iterdir()) == [
        "partition-00000",
        "partition-00001",
        "partition-00002",
        "store.json",
        "store.lock",
    ]
    manifest = json.loads((store.path / "store.json").read_text())
    assert manifest.pop("checksum")
    assert manifest == {"format": 1, "store_id": store.store_id, "partitions": 3, "hash": "crc32"}


def test_read_models_and_subscriptions_inside_a_store_are_none_of_its_business(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path, 1)
    for beside in ("projections", "subscriptions"):
        (tmp_path / beside).mkdir()
        (tmp_path / beside / "anything").write_text("not read")
    assert create_or_open_store(tmp_path) == store
    (tmp_path / "store.json").unlink()
    with pytest.raises(StoreMismatch) as told:
        create_or_open_store(tmp_path, 1)
    assert str(told.value) == (
        f"{tmp_path}: projections of a store is here, but store.json is gone;"
        " restore store.json from a backup, or choose an empty directory"
    )


def test_a_store_is_made_in_an_empty_directory(tmp_path: Path) -> None:
    assert create_or_open_store(tmp_path, 1).partitions == 1


def test_an_existing_store_is_opened_with_or_without_its_number_of_partitions(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path, 2)
    assert create_or_open_store(tmp_path, 2) == store
    assert create_or_open_store(tmp_path) == store
    assert open_store(str(tmp_path)) == store


def test_what_a_partition_stored_is_there_again(tmp_path: Path) -> None:
    log = create_or_open_store(tmp_path, 2).open_log(1)
    log.append(log.activate(), [deposits(ALICE, 1, 2)])
    log.close()
    reader = open_store(tmp_path).open_reader(1)
    assert amounts_of(reader.read(0, 9)) == [1, 2]
    assert reader.name == "partition 1"
    reader.close()


def test_a_store_can_be_sent_to_another_process(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path, 2)
    assert pickle.loads(pickle.dumps(store)) == store


def test_another_number_of_partitions_is_refused_with_the_remedy(tmp_path: Path) -> None:
    create_or_open_store(tmp_path, 2)
    with pytest.raises(StoreMismatch) as caught:
        create_or_open_store(tmp_path, 4)
    assert str(caught.value) == (
        f"{tmp_path}: the store has 2 partitions, not 4; open it with 2: the number is fixed when a store is created"
    )


def test_a_new_store_needs_its_number_of_partitions(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing) as caught:
        create_or_open_store(tmp_path / "store")
    assert str(caught.value) == (
        f"{tmp_path}/store: there is no store here; give the number of partitions for a new one"
    )
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("partitions", [0, -1, 1025])
def test_an_impossible_number_of_partitions_is_refused(tmp_path: Path, partitions: int) -> None:
    with pytest.raises(StoreMismatch) as caught:
        create_or_open_store(tmp_path / "store", partitions)
    assert str(caught.value) == f"{tmp_path}/store: a store cannot have {partitions} partitions; choose 1 to 1,024"
    assert not (tmp_path / "store").exists()


def test_a_directory_without_a_store_has_none_to_open(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(StoreMissing, match="there is no store here"):
            open_store(path)


def test_a_directory_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    (tmp_path / "partition-1").mkdir()
    with pytest.raises(StoreMismatch) as caught:
        create_or_open_store(tmp_path, 2)
    assert str(caught.value) == (
        f"{tmp_path}: the directory is not empty and holds no store: partition-1, thesis.doc; choose an empty directory"
    )
    assert sorted(one.name for one in tmp_path.iterdir()) == ["partition-1", "thesis.doc"]


def test_a_directory_that_is_refused_is_not_closed_to_others_either(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    site.chmod(0o755)
    (site / "index.html").write_text("hello")
    with pytest.raises(StoreMismatch, match="the directory is not empty and holds no store: index.html"):
        create_or_open_store(site, 2)
    assert site.stat().st_mode & 0o777 == 0o755


def test_a_log_that_somebody_has_renamed_is_not_removed_with_what_a_creation_left(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank", 1)
    log = store.open_log(0)
    log.append(log.activate(), [deposits(ALICE, 1)])
    log.close()
    (store.path / "store.json").unlink()
    kept = (store.partition_path(0) / "data.mdb").rename(store.partition_path(0) / "data.mdb.kept")
    with pytest.raises(StoreMismatch, match="partition-00000 holds data.mdb.kept, which no creation of a store makes"):
        create_or_open_store(store.path, 1)
    assert kept.exists()


def test_a_path_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed, match="cannot make a store here: File exists"):
        create_or_open_store(tmp_path / "file", 1)


@pytest.mark.slow
def test_a_directory_that_may_not_be_written_is_an_error(tmp_path: Path) -> None:
    code = """
import os, sys, tempfile
from rayfold.runtime.errors import StorageFailed
from rayfold.runtime.store.store import create_or_open_store
folder = tempfile.mkdtemp()
os.chmod(folder, 0o555)
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    create_or_open_store(folder, 1)
except StorageFailed as error:
    print(str(error).replace(folder, "FOLDER"))
if os.getuid() == 0:
    os.seteuid(0)
print(os.listdir(folder))
os.rmdir(folder)
"""
    said = python(code).communicate(timeout=60)[0].splitlines()
    assert said == ["FOLDER/store.lock: cannot open the lock: Permission denied", "[]"]


# --- what is missing or wrong is an error -------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["folder", "file", "emptied"])
def test_a_partition_that_is_gone_is_missed_and_not_made_anew(tmp_path: Path, lost: str) -> None:
    store = create_or_open_store(tmp_path, 2)
    folder = store.partition_path(1)
    if lost == "folder":
        shutil.rmtree(folder)
    elif lost == "file":
        (folder / "data.mdb").unlink()
    else:
        os.truncate(folder / "data.mdb", 0)
    with pytest.raises(StoreMissing):
        store.open_log(1)
    if lost != "emptied":
        for opening in (open_store, create_or_open_store):
            with pytest.raises(StoreMissing) as caught:
                opening(tmp_path)
            assert str(caught.value) == (f"{folder}: the log of partition 1 of 2 is gone; restore it from a backup")
        assert not (folder / "data.mdb").exists()


def test_a_partition_of_another_store_is_refused(tmp_path: Path) -> None:
    store, other = create_or_open_store(tmp_path / "a", 2), create_or_open_store(tmp_path / "b", 2)
    shutil.rmtree(store.partition_path(1))
    shutil.copytree(other.partition_path(1), store.partition_path(1))
    with pytest.raises(StoreMismatch, match=f"this is the log '{other.store_id}/00001', not '{store.store_id}/00001'"):
        store.open_log(1)


def test_partitions_that_changed_places_are_refused(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path, 2)
    store.partition_path(0).rename(tmp_path / "aside")
    store.partition_path(1).rename(store.partition_path(0))
    with pytest.raises(StoreMismatch, match="/00001', not '.*/00000'"):
        store.open_log(0)


def test_every_flipped_byte_of_the_manifest_is_noticed(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path, 2)
    path = tmp_path / "store.json"
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(StoreMismatch, match="the manifest is damaged: .*; restore store.json from a backup"):
            pytest.fail(f"byte {at}: opened {open_store(tmp_path)}")
    path.write_bytes(good)
    assert open_store(tmp_path) == store


@pytest.mark.parametrize("content", [b"", b"[]", b"17", b"{}", b'{"checksum": null}', b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    create_or_open_store(tmp_path, 1)
    (tmp_path / "store.json").write_bytes(content)
    with pytest.raises(StoreMismatch, match="the manifest is damaged"):
        create_or_open_store(tmp_path, 1)


def test_a_store_of_a_later_format_is_refused_by_its_number(tmp_path: Path) -> None:
    create_or_open_store(tmp_path, 1)
    facts = {"format": 2, "store_id": "x", "partitions": 1, "hash": "crc32"}
    facts["checksum"] = checksum_of(facts)
    (tmp_path / "store.json").write_text(json.dumps(facts))
    with pytest.raises(StoreMismatch) as caught:
        open_store(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: the store has format 2 with hash crc32;"
        " this version of Rayfold reads format 1 with hash crc32 or blake2b-groups"
    )


# --- a creation that is interrupted -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_creation_killed_at_any_step_leaves_no_store_and_can_be_done_again(tmp_path: Path) -> None:
    code = """
import os, sys
import rayfold.runtime.durable_files as durable
import rayfold.runtime.store.store as store
left = int(sys.argv[2])
def dying(home, name):
    real = getattr(home, name)
    def step(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return real(*arguments, **named)
    setattr(home, name, step)
for name in ("open_log", "fsync_folder", "write_manifest"):
    dying(store, name)
dying(durable, "fsync_folder")
store.create_or_open_store(sys.argv[1], 2)
print("done")
"""
    outcomes = []
    for steps in range(20):
        path = tmp_path / str(steps)
        said = python(code, path, steps).communicate(timeout=60)[0]
        outcomes.append(said)
        if said == "done\n":
            break
        if not (path / "store.json").exists():
            with pytest.raises(StoreMissing, match="there is no store here"):
                open_store(path)
        store = create_or_open_store(path, 2)
        for partition in range(2):
            store.open_log(partition).close()
    assert outcomes[-1] == "done\n"
    assert len(outcomes) > 5


def test_a_manifest_that_was_half_written_when_the_power_went_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "store.json.new").write_text('{"format": 1, "store')
    assert create_or_open_store(tmp_path, 1).partitions == 1
    assert not (tmp_path / "store.json.new").exists()


def test_a_store_that_somebody_else_is_creating_is_in_use(tmp_path: Path) -> None:
    with StoreLock(tmp_path, "a runtime that is creating this store"):
        with pytest.raises(StoreInUse, match="in use by a runtime that is creating this store"):
            create_or_open_store(tmp_path, 1)
        assert [one.name for one in tmp_path.iterdir()] == ["store.lock"]
    create_or_open_store(tmp_path, 1)


def test_a_store_whose_manifest_was_lost_is_not_made_anew_over_its_events(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path, 2)
    log = store.open_log(1)
    log.activate()
    log.close()
    (tmp_path / "store.json").unlink()
    with pytest.raises(StoreMismatch) as caught:
        create_or_open_store(tmp_path, 2)
    assert str(caught.value) == (
        f"{tmp_path}: partition-00001 has been in use, but store.json is gone;"
        " restore store.json from a backup, or choose an empty directory"
    )
    assert store.partition_path(0).exists()


# --- holding ------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from rayfold.runtime.store.store import open_store
hold = open_store(sys.argv[1]).hold("runtime bank-data")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_or_open_store(tmp_path / "store", 1)


@pytest.mark.slow
def test_a_second_process_is_refused_with_the_name_of_the_first(store: Store) -> None:
    first = python(HOLDER, store.path)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(StoreInUse) as caught:
        store.hold("me")
    said = str(caught.value)
    first.communicate(timeout=60)
    assert said.startswith(
        f"{store.path} is in use by runtime bank-data (process {first.pid} on {socket.gethostname()}, since 20"
    )
    assert said.endswith("; wait for its end, or stop it first")


@pytest.mark.slow
def test_the_hold_ends_with_its_process_however_it_dies(store: Store) -> None:
    first = python(HOLDER, store.path)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    first.kill()
    first.communicate(timeout=60)
    store.hold("the next").release()


def test_a_second_hold_in_the_same_process_is_refused_until_the_first_is_released(store: Store) -> None:
    with store.hold("first"):
        with pytest.raises(StoreInUse, match=rf"in use by first \(process {os.getpid()} on "):
            store.hold("second")
        facts = json.loads((store.path / "store.lock").read_text())
        assert (facts["holder"], facts["pid"]) == ("first", os.getpid())
    named = f"the runtime of process {os.getpid()}"
    with store.hold(named), pytest.raises(StoreInUse, match=rf"in use by {named} \(on .*, since 20"):
        store.hold("third")
    with store.hold("second") as hold:
        hold.release()
        hold.release()
    assert (store.path / "store.lock").read_text() == ""


def test_a_store_whose_lock_was_removed_is_held_all_the_same(store: Store) -> None:
    with store.hold("the first"):
        (store.path / "store.lock").unlink()
        with pytest.raises(StoreInUse, match="that has not written its name yet, or whose lock was removed"):
            store.hold("the second")
    store.hold("the second").release()


@pytest.mark.slow
def test_children_do_not_inherit_the_hold(store: Store) -> None:
    code = """
import os, sys, subprocess
from rayfold.runtime.store.store import open_store
hold = open_store(sys.argv[1]).hold("parent")
if os.fork() == 0:
    sys.stdout.write("forked\\n"); sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)
subprocess.Popen([sys.executable, "-c", "import sys; print('started', flush=True); sys.stdin.read()"])
os._exit(0)
"""
    parent = python(code, store.path)
    assert parent.stdout is not None
    assert {parent.stdout.readline(), parent.stdout.readline()} == {"forked\n", "started\n"}
    parent.wait(60)
    store.hold("the next").release()
    parent.communicate(timeout=60)


def test_a_store_that_is_held_can_still_be_read_and_opened(store: Store) -> None:
    with store.hold("a runtime"):
        assert create_or_open_store(store.path, 1) == store
        store.open_log(0).close()


def test_a_directory_that_is_gone_cannot_be_held(store: Store) -> None:
    shutil.rmtree(store.path)
    with pytest.raises(StoreMissing, match="there is no store here"):
        store.hold("me")


def test_the_holder_of_a_store_is_told_with_how_it_is_reached(store: Store) -> None:
    assert holder_of(store.path) is None
    with store.hold("a runtime") as hold:
        found = holder_of(store.path)
        assert found is not None
        assert (found.holder, found.pid, found.host, found.connection) == (
            *("a runtime", os.getpid(), socket.gethostname(), {}),
        )
        hold.publish({"name": "x" * 300})
        hold.publish({"name": "bank"})
        assert holder_of(store.path) == found._replace(connection={"name": "bank"})
        with pytest.raises(StoreInUse, match=rf"in use by a runtime \(process {os.getpid()} on "):
            store.hold("second")
    assert holder_of(store.path) is None


@pytest.mark.slow
def test_a_holder_that_was_killed_holds_nothing_and_asking_takes_nothing(store: Store) -> None:
    code = """
import os, signal, sys
from rayfold.runtime.store.store import open_store
hold = open_store(sys.argv[1]).hold("the killed")
print("held", flush=True)
sys.stdin.read()
"""
    holder = python(code, store.path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    found = holder_of(store.path)
    assert found is not None
    assert found.pid == holder.pid
    holder.kill()
    holder.wait(60)
    assert json.loads((store.path / "store.lock").read_text())["pid"] == holder.pid
    assert holder_of(store.path) is None
    # The line of a dead process whose id another one has been given since.
    facts = {"holder": "x", "pid": os.getpid(), "host": socket.gethostname(), "since": "now"}
    (store.path / "store.lock").write_text(json.dumps(facts))
    assert holder_of(store.path) is None
    store.hold("the next").release()


def test_a_lock_that_says_nothing_readable_has_no_holder_and_no_store_no_lock(store: Store, tmp_path: Path) -> None:
    for line in ("", "no json", "[]", '{"holder": "x"}'):
        (store.path / "store.lock").write_text(line)
        assert holder_of(store.path) is None
    with pytest.raises(StoreMissing, match="there is no store here"):
        holder_of(tmp_path / "nothing")


@pytest.mark.slow
def test_a_holder_in_another_namespace_of_process_ids_is_told_though_its_number_means_nothing_here(
    store: Store,
) -> None:
    """As in two containers that share a folder: there its number is 1, or one that no process has here."""
    program = f"""
import sys, time
from pathlib import Path
from rayfold.runtime.store.store_lock import Hold
hold = Hold(Path({str(store.path)!r}), "a runtime in a container")
print("held", flush=True)
sys.stdin.read()
"""
    inside = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", program]
    with subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline() != "held\n":
            pytest.skip("this machine gives no namespace of process ids")
        try:
            found = holder_of(store.path)
            assert found is not None
            assert found.holder == "a runtime in a container"
        finally:
            child.stdin.close()
            child.wait()
    assert holder_of(store.path) is None


@pytest.mark.slow
def test_readers_in_two_namespaces_of_process_ids_do_not_take_each_others_place_in_the_log(store: Store) -> None:
    """Both have the same id where they are. LMDB knows readers by that: it refuses the second one, and takes nothing
    from the first one. The error has the remedy."""
    program = f"""
import os, sys
from rayfold.runtime.errors import StorageFailed
from rayfold.runtime.store.store import open_store
try:
    reader = open_store({str(store.path)!r}).open_reader(0)
    print(os.getpid(), reader.head(), flush=True)
except StorageFailed as error:
    print(os.getpid(), str(error), flush=True)
sys.stdin.read()
"""
    log = store.open_log(0)
    log.append(log.activate(), [deposits(ALICE, 5)])
    inside = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", program]
    told = []
    with contextlib.ExitStack() as children:
        for _ in range(2):
            child = children.enter_context(
                subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert child.stdin is not None
            assert child.stdout is not None
            children.callback(child.stdin.close)
            told.append(child.stdout.readline().split(" ", 1))
    log.close()
    if not all(told):
        pytest.skip("this machine gives no namespace of process ids")
    (first, head), (second, answer) = told
    assert (first, head) == (second, "1\n")
    assert "have containers that share a data folder share their process ids (--pid)" in answer
