"""What the tests of the runtime's loops run on: a log of each kind, which fails when a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.write.write_loop import WriteLoop
from tests.support.arrivals import activated
from tests.support.faulty_log import FaultyLog


@pytest.fixture(params=["memory", "lmdb"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultyLog]:
    """A new log; set `behind` to what a reopened one is."""
    faulty = FaultyLog(MemoryLog() if request.param == "memory" else open_log(tmp_path / "log", "partition 7"))
    yield faulty
    faulty.close()


@pytest.fixture
def reopen(log: FaultyLog, tmp_path: Path) -> Callable[[], WriteLoop]:
    """What a restart does: a new loop over the log, read anew from disk where it is on disk."""

    def reopened() -> WriteLoop:
        if not isinstance(log.behind, MemoryLog):
            log.close()
            log.behind = open_log(tmp_path / "log", "partition 7")
        return activated(log)

    return reopened


@pytest.fixture
def loop(log: FaultyLog) -> WriteLoop:
    return activated(log)
