"""`rayfold anchor` and `rayfold verify --anchor` as a user meets them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rayfold.runtime.backup.anchor import Anchor
from rayfold.runtime.store.store import Store, create_or_open_store
from tests.runtime.log.appends import ALICE, deposits

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "rayfold.actors.cli"]


def rayfold(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def add(store: Store, *amounts: int) -> None:
    log = store.open_log(0)
    epoch = log.activate()
    for amount in amounts:
        log.append(epoch, [deposits(ALICE, amount)])
    log.close()


def test_a_store_is_anchored_and_verified_and_a_cut_one_is_found(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank", 1)
    add(store, 1, 2)
    older = (store.partition_path(0) / "data.mdb").read_bytes()
    add(store, 3)

    done = rayfold("anchor", store.path, "--key", tmp_path / "key", "--new-key")
    assert done.returncode == 0, done.stderr
    anchor = Anchor.from_json(done.stdout)
    assert anchor.heads == {0: 3}
    assert done.stderr == f"public key {anchor.public_key}\n"
    (tmp_path / "anchor.json").write_text(done.stdout)
    (tmp_path / "public").write_text(anchor.public_key)

    add(store, 4)
    arguments = ("verify", store.path, "--anchor", tmp_path / "anchor.json", "--public-key", tmp_path / "public")
    done = rayfold(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"as anchored at {anchor.anchored_at}: 3 events up to there" in done.stdout

    (store.partition_path(0) / "data.mdb").write_bytes(older)
    done = rayfold(*arguments)
    assert done.returncode == 1
    told = "not as anchored: partition 0: the log was cut: it has 2 events, and had 3 when it was anchored"
    assert told in done.stdout
    assert "good" in done.stdout, "of what there is, nothing is wrong"


def test_without_a_known_key_the_command_says_which_key_it_was(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank", 1)
    add(store, 1)
    done = rayfold("anchor", store.path, "--key", tmp_path / "key", "--new-key")
    (tmp_path / "anchor.json").write_text(done.stdout)
    key = json.loads(done.stdout)["public_key"]
    done = rayfold("verify", store.path, "--anchor", tmp_path / "anchor.json")
    assert done.returncode == 0
    told = f"the anchor is signed with the key {key}; --public-key FILE compares with the one you know\n"
    assert told in done.stderr, "in one line, however narrow the screen is"


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_on_a_schedule_anchors_gather_at_an_address_and_a_changed_store_is_an_alarm(
    tmp_path: Path, ending: signal.Signals
) -> None:
    store = create_or_open_store(tmp_path / "bank", 1)
    add(store, 1)
    older = (store.partition_path(0) / "data.mdb").read_bytes()
    add(store, 2)
    kept = tmp_path / "kept"
    schedule = ("anchor", store.path, "--key", tmp_path / "key", "--every", "1s", "--to", f"file://{kept}")
    with subprocess.Popen([*COMMAND, *map(str, schedule), "--new-key"], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        ends = 0
        while ends < 2 and (line := running.stdout.readline()):
            ends += line == "}\n"
        running.send_signal(ending)
        assert running.wait(30) == 130
    latest = Anchor.from_json((kept / "anchor-latest.json").read_text())
    latest.check_signature()
    assert latest.heads == {0: 2}

    (store.partition_path(0) / "data.mdb").write_bytes(older)
    done = rayfold(*schedule)
    assert done.returncode == 1
    assert "alarm:" in done.stderr
    assert "partition 0: the log was cut: it has 1 events, and had 2 when it was anchored" in done.stderr
    assert Anchor.from_json((kept / "anchor-latest.json").read_text()) == latest, "nothing covers it up"


def test_nothing_is_anchored_where_the_latest_anchor_is_gone_or_the_log_is_another_one(tmp_path: Path) -> None:
    store, other = (create_or_open_store(tmp_path / name, 1) for name in ("bank", "other"))
    add(store, 1)
    add(other, 1)
    command = ("anchor", store.path, "--key", tmp_path / "key", "--to", tmp_path / "kept")
    assert rayfold(*command, "--new-key").returncode == 0
    latest = (tmp_path / "kept" / "anchor-latest.json").rename(tmp_path / "latest")
    before = sorted((tmp_path / "kept").iterdir())
    done = rayfold(*command)
    assert (done.returncode, sorted((tmp_path / "kept").iterdir())) == (1, before)
    assert "anchor-latest.json is damaged: it is gone, and anchor-20" in done.stderr

    latest.rename(tmp_path / "kept" / "anchor-latest.json")
    assert rayfold(*command).returncode == 0
    shutil.rmtree(store.partition_path(0))
    shutil.copytree(other.partition_path(0), store.partition_path(0))
    done = rayfold(*command)
    assert done.returncode == 1
    assert "alarm: the store, compared with" in done.stderr


def test_a_store_is_not_anchored_in_its_own_folder(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank", 1)
    add(store, 1)
    done = rayfold("anchor", store.path, "--key", tmp_path / "key", "--new-key", "--to", store.path / "anchors")
    assert done.returncode == 2
    assert "it is in the folder of a store" in done.stderr


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    create_or_open_store(tmp_path / "bank", 1)
    for arguments, what in (
        (("anchor", tmp_path / "nowhere", "--key", tmp_path / "key", "--new-key"), "there is no store here"),
        (("anchor", tmp_path / "bank", "--key", tmp_path / "none"), "there is no key"),
        (("anchor", tmp_path / "bank", "--key", tmp_path / "key", "--every", "1h"), "--every needs --to ADDRESS"),
        (("anchor", tmp_path / "bank", "--key", tmp_path / "key", "--every", "often"), "'often' is not a time"),
        (("verify", tmp_path / "bank", "--anchor", tmp_path / "none"), "cannot be read: No such file"),
        (("verify", tmp_path / "bank", "--public-key", tmp_path / "none"), "add the anchor with --anchor FILE"),
    ):
        done = rayfold(*arguments)
        assert done.returncode == 2, (arguments, done.stdout)
        assert what in done.stderr
