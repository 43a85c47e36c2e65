"""The logs that the tests of `runtime/log` run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayfold.runtime.log import index_buffer
from rayfold.runtime.log.contract import Log
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.log.writer import LmdbLog
from tests.runtime.log.appends import children


@pytest.fixture
def indexed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every append goes into the stream index with its own commit."""
    monkeypatch.setattr(index_buffer, "BYTES_A_ROUND", 1)


@pytest.fixture(params=["lmdb", "lmdb, indexed at once", "memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """An empty log of each kind."""
    if request.param == "lmdb, indexed at once":
        request.getfixturevalue("indexed_at_once")
    opened: Log = MemoryLog() if request.param == "memory" else open_log(tmp_path / "log", "partition 3")
    yield opened
    opened.close()


@pytest.fixture
def lmdb_log(tmp_path: Path) -> Iterator[LmdbLog]:
    """An empty log on disk, in the folder `log`."""
    opened = open_log(tmp_path / "log", "partition 3")
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def no_child_outlives_its_test() -> Iterator[None]:
    """End and reap what a test started, also when it failed."""
    yield
    while children:
        child = children.pop()
        child.kill()
        child.wait(60)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
