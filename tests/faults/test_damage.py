"""Damage in a copy of a store: every answer is the truth or an error, and `verify` names the place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from rayfold.benchmarks.torture.storage.damage import make_two, questions, verdict
from rayfold.runtime.errors import Damaged
from rayfold.runtime.log import index_buffer
from rayfold.runtime.log.folder import open_log, open_reader
from rayfold.runtime.log.format import COMMANDS, EVENTS, STREAMS
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.store.store import Store
from rayfold.runtime.stream import StreamId
from tests.faults.short_form import SEED, figure, short_form
from tests.runtime.log.appends import deposits, versions_of

pytestmark = pytest.mark.slow


def test_flipped_bits_and_cut_files_never_give_a_wrong_answer(tmp_path: Path) -> None:
    findings = short_form("bit-flips", tmp_path)
    assert figure(findings, "damages") > 200
    assert figure(findings, "error") > 50
    assert figure(findings, "wrong") == figure(findings, "denied") == 0


def test_swapped_files_are_refused_by_name(tmp_path: Path) -> None:
    findings = short_form("swapped-files", tmp_path)
    assert figure(findings, "refused") > 20
    assert figure(findings, "wrong") == figure(findings, "ended") == 0


def test_an_answer_that_is_not_the_truth_is_told_apart() -> None:
    head, version, stream, *_ = questions(SEED)
    assert [verdict(head, answer, 7, []) for answer in (7, 6, 8)] == ["right", "denied", "wrong"]
    told = [verdict(stream, answer, [b"a", b"b"], []) for answer in ([b"a"], [], [b"b"])]
    assert told == ["denied", "denied", "wrong"]
    snapshot = next(one for one in questions(SEED) if one.hint)
    told = [verdict(snapshot, answer, "s2", ["s1", "s2"]) for answer in (None, "s1", "s3")]
    assert told == ["right", "right", "wrong"]


# --- keys that decayed: LMDB finds a key by comparing keys, so what is looked for is not where it was ----------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_two(tmp_path / "store", SEED)


def decayed(
    store: Store, database: bytes, choose: Callable[[list[bytes]], bytes], new: Callable[[bytes], bytes]
) -> tuple[LmdbReader, bytes]:
    """A reader of partition 0 after a key there has become another, as a flipped bit makes it; and what it was."""
    folder = store.partition_path(0)
    with lmdb.open(str(folder), max_dbs=16, lib_version=0) as environment:
        handle = environment.open_db(database, create=False)
        with environment.begin(db=handle) as transaction:
            old = choose([one for one, _ in transaction.cursor()])
    data = (folder / "data.mdb").read_bytes()
    assert old in data
    (folder / "data.mdb").write_bytes(data.replace(old, new(old)))
    return open_reader(folder, "partition 0"), old


def flipped(key: bytes) -> bytes:
    return key[:-1] + bytes([key[-1] ^ 2])


def test_a_command_whose_key_decayed_is_damaged_and_not_new(store: Store) -> None:
    reader, command_id = decayed(store, COMMANDS, lambda keys: keys[40], flipped)
    with pytest.raises(Damaged, match="its checksum is wrong"):
        reader.find_command(command_id)
    assert isinstance(reader.find_commands([command_id])[command_id], Damaged)
    reader.close()


def test_the_last_command_whose_key_decayed_is_damaged_too(store: Store) -> None:
    reader, command_id = decayed(store, COMMANDS, lambda keys: keys[-1], lambda key: b"\0" + key[1:])
    with pytest.raises(Damaged):
        reader.find_command(command_id)
    assert isinstance(reader.find_commands([command_id])[command_id], Damaged)
    reader.close()


def test_a_stream_whose_last_key_decayed_is_damaged_and_not_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_buffer, "BYTES_A_ROUND", 1)  # all of it is in the stream index
    store, stream = make_two(tmp_path / "store", SEED), StreamId("Till", "till-2")
    reader, _ = decayed(store, STREAMS, lambda keys: [one for one in keys if one.startswith(stream.key)][-1], flipped)
    with pytest.raises(Damaged):
        reader.version(stream)
    with pytest.raises(Damaged):
        reader.read_stream(stream)
    reader.close()


def test_a_key_that_decayed_above_the_leaves_of_the_stream_index_gives_no_other_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB then comes to a page before or after the one where the version is."""
    monkeypatch.setattr(index_buffer, "BYTES_A_ROUND", 1)
    stream, number = StreamId("Account", "alice"), 400
    log = open_log(tmp_path / "log", "partition 0")
    epoch = log.activate()
    for amount in range(number):
        log.append(epoch, [deposits(stream, amount)])
    log.close()
    path = tmp_path / "log" / "data.mdb"
    whole, damaged = path.read_bytes(), 0
    branches = [at for at in range(0, len(whole), 4096) if whole[at + 10 : at + 12] == b"\x01\0"]
    keys = [at + found.start() for at in branches for found in re.finditer(stream.key, whole[at : at + 4096])]
    for last in (key + len(stream.key) + 7 for key in keys):  # bytes of a version
        path.write_bytes(whole[:last] + bytes([whole[last] ^ 0x40]) + whole[last + 1 :])
        reader = open_reader(tmp_path / "log", "partition 0")
        for first in range(1, number, 33):
            try:
                assert versions_of(reader.read_stream(stream, first)) == list(range(first, number + 1))
            except Damaged:
                damaged += 1
        reader.close()
    assert damaged > 0


def test_a_log_whose_last_position_decayed_has_no_head(store: Store) -> None:
    reader, _ = decayed(store, EVENTS, lambda keys: keys[-1], lambda key: key[:-3] + b"\1" + key[-2:])
    with pytest.raises(Damaged, match="it seems to be the last of the"):
        reader.head()
    with pytest.raises(Damaged):
        reader.read(0, 10_000)
    reader.close()
