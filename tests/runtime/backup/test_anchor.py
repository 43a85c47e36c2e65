"""An anchor shows what the hash chain alone cannot: a log that was cut, exchanged, or rewritten with all its links."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rayfold.runtime.backup.anchor import Anchor, differences, new_key, public_key_in, read_key, take_anchor
from rayfold.runtime.errors import CallerError, Damaged, NotPrivate
from rayfold.runtime.store.store import Store, create_or_open_store
from rayfold.runtime.store.verify import verify_store
from rayfold.runtime.stream import NO_STREAM, StreamId
from tests.other_user import needs_root
from tests.runtime.log.appends import ALICE, BOB, deposits


def filled(folder: Path, *amounts: int, partitions: int = 2) -> Store:
    """A store with these deposits of alice in partition 0, and one of bob in each other partition."""
    store = create_or_open_store(folder, partitions)
    add(store, 0, ALICE, *amounts)
    for partition in range(1, partitions):
        add(store, partition, BOB, 1)
    return store


def add(store: Store, partition: int, stream: StreamId, *amounts: int) -> None:
    log = store.open_log(partition)
    epoch = log.activate()
    for amount in amounts:
        log.append(epoch, [deposits(stream, amount)])
    log.close()


def test_a_log_that_only_grew_is_as_it_was_anchored(tmp_path: Path) -> None:
    store = filled(tmp_path / "bank", 1, 2, 3)
    anchor = take_anchor(store)
    assert anchor.heads == {0: 3, 1: 1}
    assert {len(link) for link in anchor.links.values()} == {64}
    add(store, 0, ALICE, 4, 5)
    assert differences(anchor, store) == {}


@pytest.mark.slow
def test_it_is_taken_beside_a_running_writer(tmp_path: Path) -> None:
    store = filled(tmp_path / "bank", 1)
    code = (
        "import sys\nfrom rayfold.runtime.backup.anchor import take_anchor\n"
        "from rayfold.runtime.store.store import open_store\n"
        "print(take_anchor(open_store(sys.argv[1])).as_json())\n"
    )
    log = store.open_log(0)
    epoch = log.activate()
    log.append(epoch, [deposits(ALICE, 2)])
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=True, timeout=60
    )
    log.append(epoch, [deposits(ALICE, 3)])
    log.close()
    anchor = Anchor.from_json(done.stdout)
    assert anchor.heads[0] == 2
    assert differences(anchor, store) == {}


def test_a_log_that_was_cut_is_named_with_both_lengths(tmp_path: Path) -> None:
    store = filled(tmp_path / "bank", 1, 2)
    shutil.copytree(store.partition_path(0), tmp_path / "older")
    add(store, 0, ALICE, 3, 4)
    anchor = take_anchor(store)
    shutil.rmtree(store.partition_path(0))
    shutil.copytree(tmp_path / "older", store.partition_path(0))
    assert verify_store(store.path).ok, "an older copy is right in itself"
    assert differences(anchor, store) == {0: "the log was cut: it has 2 events, and had 4 when it was anchored"}


def test_a_log_that_was_rewritten_with_all_its_links_is_named_and_no_other(tmp_path: Path) -> None:
    store = filled(tmp_path / "bank", 1, 2, 3)
    anchor = take_anchor(store)
    forged = Store(tmp_path / "forged", store.store_id, store.partitions)
    from rayfold.runtime.store.store import make_logs

    make_logs(forged)
    add(forged, 0, ALICE, 1, 2_000, 3)
    shutil.rmtree(store.partition_path(0))
    shutil.copytree(forged.partition_path(0), store.partition_path(0))
    assert verify_store(store.path).ok, "the chain was made anew, so that it holds"
    ((partition, what),) = differences(anchor, store).items()
    assert partition == 0
    assert what.startswith("the log was changed or exchanged: event 3 has the link ")
    assert what.endswith(f"and had {anchor.links[0]}")


def test_logs_that_were_exchanged_are_both_named(tmp_path: Path) -> None:
    store = filled(tmp_path / "bank", 1)
    anchor = take_anchor(store)
    swapped = replace(anchor, links={0: anchor.links[1], 1: anchor.links[0]})
    assert set(differences(swapped, store)) == {0, 1}


def test_another_store_and_another_number_of_partitions_are_named(tmp_path: Path) -> None:
    anchor = take_anchor(filled(tmp_path / "bank", 1))
    other = filled(tmp_path / "other", 1)
    told = f"the anchor is of store {anchor.store_id}, and this is store {other.store_id}"
    assert differences(anchor, other) == {-1: told}
    fewer = replace(take_anchor(other), heads={0: 1}, links={0: "00" * 32})
    assert differences(fewer, other) == {-1: "the anchor has 1 partitions, and the store 2"}


def test_an_empty_log_is_anchored_and_may_grow(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank", 1)
    anchor = take_anchor(store)
    assert (anchor.heads, anchor.links) == ({0: 0}, {0: ""})
    add(store, 0, ALICE, 1)
    assert differences(anchor, store) == {}
    assert NO_STREAM == 0


# Signatures and keys


def test_a_signed_anchor_comes_back_from_json_and_its_signature_holds(tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys" / "anchor.pem")
    signed = take_anchor(filled(tmp_path / "bank", 1)).signed(key)
    read = Anchor.from_json(signed.as_json())
    assert read == signed
    read.check_signature()
    read.check_signature(read_key(tmp_path / "keys" / "anchor.pem").public_key)


@pytest.mark.parametrize("what", ["store_id", "anchored_at", "position", "link", "public_key", "signature", "heads"])
def test_whatever_of_a_signed_anchor_is_changed_breaks_its_signature(tmp_path: Path, what: str) -> None:
    signed = take_anchor(filled(tmp_path / "bank", 1, 2)).signed(new_key(tmp_path / "key"))
    facts = json.loads(signed.as_json())
    if what in ("position", "link"):
        facts["heads"][0][what] = {"position": 1, "link": "ab" * 32}[what]
    elif what == "heads":
        del facts["heads"][1]
    elif what == "public_key":
        facts[what] = new_key(tmp_path / "another").public_key
    else:
        facts[what] = facts[what][:-2] + ("00" if facts[what][-2:] != "00" else "11")
    with pytest.raises(Damaged, match="its signature is not that of its content and key"):
        Anchor.from_json(json.dumps(facts)).check_signature()


def test_an_anchor_signed_with_another_key_than_the_known_one_is_refused(tmp_path: Path) -> None:
    known, other = new_key(tmp_path / "known"), new_key(tmp_path / "other")
    signed = take_anchor(filled(tmp_path / "bank", 1)).signed(other)
    with pytest.raises(Damaged, match=f"it was signed with the key {other.public_key}, not with {known.public_key}"):
        signed.check_signature(known.public_key)
    with pytest.raises(Damaged, match="it is not signed"):
        replace(signed, signature="").check_signature(known.public_key)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"kind": "rayfold anchor", "format": 2}', "[" * 100_000, "x" * (2 << 20)]
)
def test_what_is_no_anchor_is_damaged_and_nothing_else(content: str) -> None:
    with pytest.raises(Damaged, match="it is not an anchor that this version reads"):
        Anchor.from_json(content)


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("position", "1e999"),
        ("position", "-5"),
        ("position", "18446744073709551617"),
        ("position", "true"),
        ("position", "1.5"),
        ("position", '"3"'),
        ("partition", "1e999"),
        ("partition", "1024"),
        ("link", '"%s"' % ("AB" * 32)),
        ("link", '""'),
        ("link", "null"),
        ("store_id", '["a"]'),
        ("anchored_at", "null"),
        ("heads", "[]"),
        ("heads", "{}"),
    ],
)
def test_an_anchor_with_impossible_facts_is_none(tmp_path: Path, what: str, value: str) -> None:
    facts = json.loads(take_anchor(filled(tmp_path / "bank", 1, 2, 3)).as_json())
    (facts if what in facts else facts["heads"][0])[what] = "HERE"
    with pytest.raises(Damaged, match="it is not an anchor that this version reads"):
        Anchor.from_json(json.dumps(facts).replace('"HERE"', value))


def test_a_known_key_is_compared_however_it_is_written(tmp_path: Path) -> None:
    key = new_key(tmp_path / "key")
    signed = take_anchor(filled(tmp_path / "bank", 1)).signed(key)
    signed.check_signature(key.public_key.upper())
    (tmp_path / "public").write_text(" ".join(key.public_key[at : at + 4] for at in range(0, 64, 4)))
    signed.check_signature(public_key_in(tmp_path / "public"))


@pytest.mark.slow
def test_a_key_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from rayfold.runtime.backup.anchor import new_key\n"
        "from rayfold.runtime.errors import StorageFailed\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try: new_key(Path(sys.argv[1]))\n"
        "except StorageFailed as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "key"], capture_output=True, text=True, check=True)
    assert "cannot write the key: File too large" in done.stdout
    assert new_key(tmp_path / "key").public_key


def test_a_key_is_private_and_is_never_replaced(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        key = new_key(tmp_path / "keys" / "anchor.pem")
    finally:
        os.umask(before)
    path = tmp_path / "keys" / "anchor.pem"
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)] == [0o600, 0o700]
    with pytest.raises(CallerError, match="is there already; a key is never replaced"):
        new_key(path)
    path.chmod(0o644)
    assert read_key(path).public_key == key.public_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_no_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="there is no key .*missing; --new-key makes one"):
        read_key(tmp_path / "missing")
    (tmp_path / "text").write_text("no key")
    with pytest.raises(CallerError, match="holds no private key in PEM"):
        read_key(tmp_path / "text")
    with pytest.raises(CallerError, match="holds no public key"):
        public_key_in(tmp_path / "text")
    key = new_key(tmp_path / "key")
    (tmp_path / "public").write_text(key.public_key.upper() + "\n")
    assert public_key_in(tmp_path / "public") == key.public_key


@needs_root
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    os.chown(tmp_path / "key", 65534, 65534)
    with pytest.raises(NotPrivate, match="this file belongs to user nobody"):
        read_key(tmp_path / "key")
