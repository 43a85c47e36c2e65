"""Readers of one log in one process: as many as one likes, each closed for itself, over one environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfold.runtime.errors import StorageFailed, StoreMismatch
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.store.reader_pool import open_shared_reader
from rayfold.runtime.store.store import Store, create_or_open_store
from tests.runtime.log.appends import ALICE, amounts_of, deposits, python


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store whose first partition has three events."""
    made = create_or_open_store(tmp_path / "data", 2)
    log = made.open_log(0)
    log.append(log.activate(), [deposits(ALICE, 1, 2, 3)])
    log.close()
    return made


def test_several_readers_of_a_log_share_its_environment_and_read_the_same(store: Store) -> None:
    readers = [store.open_reader(0) for _ in range(3)]
    assert len({id(reader.environment) for reader in readers}) == 1
    assert [amounts_of(reader.read(0, 10)) for reader in readers] == [[1, 2, 3]] * 3
    other = store.open_reader(1)
    assert (other.head(), readers[0].head()) == (0, 3)
    for reader in [*readers, other]:
        reader.close()


def test_closing_one_reader_twice_takes_nothing_from_the_others(store: Store) -> None:
    one, other = store.open_reader(0), store.open_reader(0)
    one.close()
    one.close()
    assert other.head() == 3
    with pytest.raises(StorageFailed, match=r"partition 0 was closed"):
        one.head()
    assert one.name == "partition 0"
    other.close()
    with pytest.raises(StorageFailed, match=r"partition 0 was closed"):
        other.read(0, 1)


def test_with_its_last_reader_the_log_is_let_go(store: Store) -> None:
    readers = [store.open_reader(0) for _ in range(2)]
    readers.pop().close()
    with pytest.raises(StorageFailed, match=r"already open in this process"):
        store.open_log(0)
    readers.pop().close()
    log = store.open_log(0)
    log.append(log.activate(), [deposits(ALICE, 4)])
    log.close()
    again = store.open_reader(0)
    assert amounts_of(again.read(0, 10)) == [1, 2, 3, 4]
    again.close()


@pytest.mark.slow
def test_readers_that_are_open_see_what_another_process_commits(store: Store) -> None:
    readers: list[LmdbReader] = [store.open_reader(0) for _ in range(2)]
    writer = python(
        """
import sys
from rayfold.runtime.store.store import open_store
from tests.runtime.log.appends import ALICE, deposits
log = open_store(sys.argv[1]).open_log(0)
log.append(log.activate(), [deposits(ALICE, 4)])
log.close()
""",
        store.path,
    )
    assert writer.wait(60) == 0
    assert [reader.head() for reader in readers] == [4, 4]
    for reader in readers:
        reader.close()


def test_a_shared_log_is_still_asked_whose_it_is(store: Store) -> None:
    reader = store.open_reader(0)
    with pytest.raises(StoreMismatch, match=r"this is the log '.*', not 'another log'"):
        open_shared_reader(store.partition_path(0), "partition 0", identity="another log")
    assert reader.head() == 3
    reader.close()
    store.open_log(0).close()
