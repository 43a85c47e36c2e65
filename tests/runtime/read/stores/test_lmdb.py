"""Rows in LMDB: a mapping that keeps values as they were, sorted, bounded, checked, and for one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfold.benchmarks.torture.contract import missing
from rayfold.runtime.errors import Damaged, InvalidMessage, StorageFailed, StoreInUse
from rayfold.runtime.read.stores.lmdb import LmdbStore, Rows

ROOT = Path(__file__).parents[4]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    """An open store in a transaction; `rows_of` gives its rows."""
    store = LmdbStore()
    store.open(SimpleNamespace(), tmp_path)
    store.begin()
    yield store
    store.close()


VALUES: list[Any] = [
    None,
    True,
    10**30,
    -1.5,
    "text",
    b"bytes",
    (1, ("a",)),
    [1, [2]],
    {"a": {1, 2}, 3: frozenset({"x"})},
    date(2024, 2, 29),
    Decimal("1.10"),
    UUID(int=7),
]


def test_a_value_comes_back_equal_and_of_its_type(store: LmdbStore) -> None:
    rows = Rows(store)
    for number, value in enumerate(VALUES):
        rows[f"row/{number}"] = value
    store.commit(b"at 1")
    store.begin(reading=True)
    for number, value in enumerate(VALUES):
        assert rows[f"row/{number}"] == value
        assert type(rows[f"row/{number}"]) is type(value)


STEPS = ["set", "delete", "pop", "commit", "roll back"]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["set", "delete", "pop", "commit", "roll back"]),
            st.text(min_size=1, max_size=3),
            st.integers(),
        ),
        max_size=40,
    )
)
def test_it_behaves_as_a_dict_of_which_only_what_was_committed_stays(steps: list[tuple[str, str, int]]) -> None:
    store, committed = LmdbStore(), dict[str, int]()
    store.open(SimpleNamespace(), None)
    store.begin()
    rows, model = Rows(store), dict[str, int]()
    for step, key, value in steps:
        if step == "set":
            rows[key] = model[key] = value
        elif step == "delete" and key in model:
            del rows[key], model[key]
        elif step == "pop":
            assert rows.pop(key, None) == model.pop(key, None)
        elif step == "commit":
            store.commit(b"now")
            committed = dict(model)
            store.begin()
        else:
            store.roll_back()
            model = dict(committed)
            store.begin()
        assert (key in rows, rows.get(key), len(rows)) == (key in model, model.get(key), len(model))
    assert dict(rows) == model
    assert list(rows) == sorted(model, key=str.encode)
    store.close()


def test_rows_of_a_prefix_are_walked_in_order_also_while_they_are_changed(store: LmdbStore) -> None:
    rows = Rows(store)
    for number in range(600):
        rows[f"b/{number:04d}"] = number
    rows["a/1"] = rows["c/1"] = -1
    assert [value for _, value in rows.starting_with("b/")] == list(range(600))
    assert [key for key, _ in rows.starting_with("b/", after="b/0597")] == ["b/0598", "b/0599"]
    for key, _ in rows.starting_with("b/"):
        del rows[key]
    assert list(rows.items()) == [("a/1", -1), ("c/1", -1)]


@pytest.mark.parametrize("key", ["", "x" * 512, "ä" * 256])
def test_a_key_has_1_to_511_bytes(store: LmdbStore, key: str) -> None:
    rows = Rows(store)
    rows["x" * 511] = 1
    with pytest.raises(InvalidMessage, match="a key of rows: it has .* bytes of UTF-8; a key has 1 to 511"):
        rows[key] = 1
    with pytest.raises(InvalidMessage, match="a key of rows: it is int, not str"):
        rows[7] = 1  # type: ignore[index]
    key_of_another_type: Any = 7
    assert key_of_another_type not in rows


def test_a_value_that_cannot_be_stored_names_its_row(store: LmdbStore) -> None:
    rows = Rows(store)
    with pytest.raises(InvalidMessage, match="row 'a': its value cannot be stored: object cannot be stored"):
        rows["a"] = object()
    with pytest.raises(InvalidMessage, match=r"row 'a': its value has 16,777,22\d bytes, over 16,777,216; split it"):
        rows["a"] = b"x" * (16 << 20)


def test_a_row_under_another_key_or_with_a_flipped_bit_is_damaged(store: LmdbStore) -> None:
    rows = Rows(store)
    rows["a"] = [1, 2, 3]
    stored = store.transaction().get(b"a", db=store.rows_database)
    assert stored is not None
    for key, value in ((b"b", stored), (b"a", stored[:-1] + b"\x04"), (b"a", b"")):
        store.transaction().put(key, value, db=store.rows_database)
        with pytest.raises(Damaged, match="its checksum is wrong"):
            _ = rows[key.decode()]


def test_rows_are_there_only_while_a_handler_or_an_answer_runs(store: LmdbStore) -> None:
    rows = Rows(store)
    store.roll_back()
    with pytest.raises(StorageFailed, match="only while a handler or an answer runs; copy what is kept"):
        _ = rows["a"]
    store.begin(reading=True)
    with pytest.raises(StorageFailed, match="a query changes nothing; only @project may"):
        rows["a"] = 1


def test_the_map_grows_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfold.runtime.read.stores.lmdb._MAP_BYTES_START", 1 << 20)
    store = LmdbStore()
    store.open(SimpleNamespace(), tmp_path)
    rows = Rows(store)
    for number in range(40):
        store.begin()
        rows[f"{number}"] = bytes(100_000)
        store.commit(b"%d" % number)
    store.begin(reading=True)
    assert len(rows) == 40
    store.close()


@pytest.mark.slow
def test_a_second_process_is_told_that_the_rows_are_in_use(store: LmdbStore, tmp_path: Path) -> None:
    program = (
        "import sys, types, pathlib\n"
        "from rayfold.runtime.read.stores.lmdb import LmdbStore\n"
        "LmdbStore().open(types.SimpleNamespace(), pathlib.Path(sys.argv[1]))"
    )
    second = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert f"StoreInUse: {tmp_path} is in use by another projector" in second.stderr
    with pytest.raises(StoreInUse):
        LmdbStore().open(SimpleNamespace(), tmp_path)
    store.close()
    again = LmdbStore()
    assert again.open(SimpleNamespace(), tmp_path) is None
    again.close()


@pytest.mark.slow
@pytest.mark.parametrize("refused", range(5, 9))
def test_after_a_commit_that_failed_the_next_ones_are_stored(tmp_path: Path, refused: int) -> None:
    """Of these writes some are of its meta page, after which LMDB answers nothing but errors."""
    if missing("strace"):
        pytest.skip(missing("strace"))
    inject = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=pwrite64"]
    inject += ["-e", f"inject=pwrite64:error=EIO:when={refused}"]
    program = [sys.executable, "-m", "tests.runtime.read.stores.failing_commit", str(tmp_path)]
    told = subprocess.run([*inject, *program], capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    assert [line for line in told if line != "stored"] == [f"failed: {tmp_path}: mdb_txn_commit: Input/output error"]
    assert len(told) == 10


@pytest.mark.slow
@pytest.mark.parametrize("directory", ["Path(sys.argv[1])", "None"])
def test_a_forked_child_that_ends_takes_nothing_from_its_parent(tmp_path: Path, directory: str) -> None:
    program = f"""
import os, sys, types
from pathlib import Path
from rayfold.runtime.read.stores.lmdb import LmdbStore
store = LmdbStore()
store.open(types.SimpleNamespace(), {directory})
store.begin(reading=True)
store.roll_back()
if os.fork() == 0:
    sys.exit(0)  # which releases what was inherited, LMDB's spare transaction as well
os.wait()
store.begin(reading=True)
print(store.roll_back(), Path(store._path).is_dir())
"""
    told = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (told.stdout, told.stderr) == ("None True\n", "")
