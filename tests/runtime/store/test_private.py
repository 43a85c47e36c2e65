"""Folders and files that only their user may enter: made so, tightened, and refused if another user has a hand in them.

Some tests start a process of another user; they need root, as the tests have it in CI, and are skipped without.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayfold.runtime.durable_files import write_durably
from rayfold.runtime.errors import NotPrivate, StoreInUse
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.private import (
    check_owner,
    check_parents,
    make_private_folder,
    open_private,
    private_temporary_folder,
    tighten,
    write_private,
)
from rayfold.runtime.store.store import Store, create_or_open_store
from rayfold.runtime.stream import StreamId
from tests.other_user import NOBODY, as_nobody, needs_root


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder like `/tmp`, which another user can reach: those of pytest have mode 0700."""
    folder = Path(tempfile.mkdtemp(prefix="rayfold-shared-", dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    for above, folders, files in os.walk(folder, topdown=False):
        for name in files:
            Path(above, name).unlink()
        for name in folders:
            one = Path(above, name)
            one.unlink() if one.is_symlink() else one.rmdir()
    folder.rmdir()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(folder: Path) -> list[str]:
    return [str(one) for one in (folder, *folder.rglob("*")) if mode(one) & 0o077]


def store_with_a_secret(folder: Path) -> Store:
    store = create_or_open_store(folder, 1)
    log = store.open_log(0)
    event = NewEvent("Diagnosed", 1, b"\x81\xa4what\xa6secret")
    log.append(log.activate(), [Append(StreamId("Patient", "ada"), -1, (event,), os.urandom(16), bytes(16))])
    log.close()
    return store


def test_what_is_made_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    make_private_folder(tmp_path / "a" / "b" / "c")
    write_private(tmp_path / "a" / "file", b"content")
    write_durably(tmp_path / "a" / "durable", b"content")
    os.close(open_private(tmp_path / "a" / "lock", os.O_RDWR | os.O_CREAT))
    assert not open_to_others(tmp_path / "a")


def test_all_that_a_store_consists_of_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    store = store_with_a_secret(tmp_path / "bank")
    with store.hold("a test"):
        assert not open_to_others(tmp_path / "bank")


def test_an_existing_folder_and_file_are_tightened_when_they_are_opened(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir(mode=0o755)
    file.touch(mode=0o644)
    make_private_folder(folder)
    os.close(open_private(file, os.O_RDONLY))
    assert (mode(folder), mode(file)) == (0o700, 0o600)


def test_a_store_that_was_open_to_others_is_tightened_when_it_is_held_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_with_a_secret(tmp_path / "bank")
    (tmp_path / "bank" / "subscriptions" / "mails").mkdir(parents=True)
    for one in (store.path, *store.path.rglob("*")):
        one.chmod(0o755 if one.is_dir() else 0o644)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            store.hold("a test").release()
            store.open_log(0).close()
    assert not open_to_others(store.path)
    told = [record.getMessage() for record in caplog.records]
    number = len([store.path, *store.path.rglob("*")])
    assert told == [f"{store.path} was open to other users: the modes of {number} folders and files were made private"]


def test_the_log_of_a_partition_is_tightened_when_its_writer_opens_it(tmp_path: Path) -> None:
    store = store_with_a_secret(tmp_path / "bank")
    path = store.partition_path(0)
    path.chmod(0o755)
    (path / "data.mdb").chmod(0o666)
    store.open_reader(0).close()
    store.open_log(0).close()
    assert not open_to_others(path)


def test_a_link_of_ones_own_to_a_store_elsewhere_is_followed(tmp_path: Path) -> None:
    store_with_a_secret(tmp_path / "disk" / "bank")
    (tmp_path / "bank").symlink_to(tmp_path / "disk" / "bank")
    with create_or_open_store(tmp_path / "bank").hold("a test"):
        pass


def test_what_a_link_in_a_store_leads_to_stays_as_it_is(tmp_path: Path) -> None:
    store = store_with_a_secret(tmp_path / "store")
    (tmp_path / "site").mkdir()
    (tmp_path / "site").chmod(0o755)
    (store.path / "site").symlink_to(tmp_path / "site")
    store.path.chmod(0o755)
    store.hold("a test").release()
    assert (mode(store.path), mode(tmp_path / "site")) == (0o700, 0o755)


def test_only_the_rights_of_others_are_taken_away(tmp_path: Path) -> None:
    store = store_with_a_secret(tmp_path / "store")
    (store.path / "nightly.sh").write_text("#!/bin/sh")
    (store.path / "nightly.sh").chmod(0o755)
    store.hold("a test").release()
    assert mode(store.path / "nightly.sh") == 0o700


def test_a_link_in_place_of_a_file_is_refused_and_what_it_leads_to_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "store.json.new").symlink_to(tmp_path / "precious")
    with pytest.raises(NotPrivate, match=r"store.json.new: it is a link, where a file of this user belongs; remove it"):
        write_durably(tmp_path / "store.json", b"content")
    assert (tmp_path / "precious").read_text() == "precious"


@needs_root
def test_a_file_of_another_user_is_refused_before_it_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    with pytest.raises(NotPrivate, match="belongs to user nobody"):
        write_private(tmp_path / "theirs", b"mine")
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_file_of_two_names_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    os.link(tmp_path / "mine", tmp_path / "facts.json.new")
    with pytest.raises(NotPrivate, match="the same file as one of another name"):
        write_durably(tmp_path / "facts.json", b"{}")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_pipe_in_place_of_a_file_is_refused_and_nothing_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(NotPrivate, match="it is not a regular file"):
        open_private(tmp_path / "lock", os.O_RDWR | os.O_CREAT)


@pytest.mark.slow
@needs_root
def test_another_user_neither_reads_the_events_of_a_store_nor_takes_its_lock(shared: Path) -> None:
    folder = shared / "bank"
    store = store_with_a_secret(folder)
    tried = """
for name in ("partition-00000/data.mdb", "store.json", "store.lock", "."):
    try:
        os.open(os.path.join(sys.argv[1], name), os.O_RDONLY)
    except PermissionError:
        continue
    print("opened", name)
"""
    with store.hold("a test"):
        assert as_nobody(tried, folder) == ""
    assert as_nobody(tried, folder) == ""


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("what", ["folder", "link"])
def test_a_store_is_not_made_in_a_folder_or_behind_a_link_of_another_user(shared: Path, what: str) -> None:
    if what == "folder":
        as_nobody("os.mkdir(sys.argv[1])", shared / "bank")
    else:
        (shared / "elsewhere").mkdir(mode=0o700)
        as_nobody("os.symlink(*sys.argv[1:])", shared / "elsewhere", shared / "bank")
    refused = rf"{shared}/bank: this {what} belongs to user nobody \({NOBODY}\), not to user root"
    with pytest.raises(NotPrivate, match=refused):
        create_or_open_store(shared / "bank", 1)
    assert not any((shared / "bank").iterdir())


@pytest.mark.slow
@needs_root
def test_what_another_user_has_put_into_a_store_that_was_open_is_refused_by_name(shared: Path) -> None:
    store = store_with_a_secret(shared / "bank")
    store.path.chmod(0o777)
    as_nobody("open(sys.argv[1], 'w').close()", store.path / "map.json")
    with pytest.raises(NotPrivate, match=rf"map.json: this file belongs to user nobody \({NOBODY}\)"):
        store.hold("a test")


@pytest.mark.slow
@needs_root
def test_another_user_who_had_the_lock_of_an_open_store_cannot_take_it_again(shared: Path) -> None:
    store = store_with_a_secret(shared / "bank")
    (store.path / "store.lock").chmod(0o644)
    store.path.chmod(0o755)
    with store.hold("a test"), pytest.raises(StoreInUse):
        store.hold("another")
    took = "try: os.open(sys.argv[1], os.O_RDONLY)\nexcept PermissionError: print('refused')"
    assert as_nobody(took, store.path / "store.lock") == "refused"


@pytest.mark.slow
@needs_root
def test_the_temporary_folder_of_this_user_that_another_one_made_first_is_refused(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    as_nobody("os.mkdir(sys.argv[1], 0o777)", shared / "rayfold-0")
    with pytest.raises(NotPrivate, match=r"rayfold-0: it is not a folder of mode 0700 that belongs to user root"):
        private_temporary_folder()


def test_the_temporary_folder_is_made_and_found_again_and_tightened(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    folder = private_temporary_folder()
    folder.chmod(0o755)
    assert private_temporary_folder() == folder
    assert mode(folder) == 0o700


def test_a_folder_below_one_that_all_may_write_to_without_a_sticky_bit_is_refused(shared: Path) -> None:
    folder = shared / "open" / "code"
    make_private_folder(folder)
    check_parents(folder)
    (shared / "open").chmod(0o777)
    with pytest.raises(NotPrivate, match=r"open: other users may rename what is in it: it is a folder of mode 0777"):
        check_parents(folder)
    (shared / "open").chmod(0o1777)
    check_parents(folder)


@pytest.mark.slow
@needs_root
def test_a_folder_below_a_group_of_other_users_or_behind_a_link_of_theirs_is_refused(shared: Path) -> None:
    folder = shared / "team" / "code"
    make_private_folder(folder)
    os.chown(shared / "team", 0, NOBODY)  # a group that user nobody is in
    (shared / "team").chmod(0o775)
    with pytest.raises(NotPrivate, match="other users may rename what is in it"):
        check_parents(folder)
    os.chown(shared / "team", 0, 0)
    check_parents(folder)
    as_nobody("os.symlink(*sys.argv[1:])", shared / "team", shared / "way")
    with pytest.raises(NotPrivate, match=r"way: this link belongs to user nobody"):
        check_parents(shared / "way" / "code")


def test_links_that_lead_in_circles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(NotPrivate, match="it is behind too many links"):
        check_parents(tmp_path / "a" / "code")


def test_what_is_missing_has_no_owner_and_what_is_private_needs_no_tightening(tmp_path: Path) -> None:
    check_owner(tmp_path / "missing")
    make_private_folder(tmp_path / "folder")
    assert tighten(tmp_path / "folder") == 0
