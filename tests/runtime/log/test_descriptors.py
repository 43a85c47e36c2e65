"""A process that may not open all partitions gets the limit and what is needed, before anything else breaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rayfold.runtime.store.store import create_or_open_store

OPENS = """
import resource, sys
from rayfold.runtime.errors import StorageFailed
from rayfold.runtime.store.store import open_store
store = open_store(sys.argv[1])
soft, hard = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
opened = []
try:
    for number in range(store.partitions):
        opened.append(store.open_reader(number))
except StorageFailed as error:
    print(len(opened), error)
    open("/dev/null").close()
else:
    print("all", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def opens(store: Path, soft: int, hard: int) -> str:
    command = [sys.executable, "-c", OPENS, str(store), str(soft), str(hard)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.mark.slow
def test_the_soft_limit_is_raised_where_the_hard_one_allows_it(tmp_path: Path) -> None:
    create_or_open_store(tmp_path / "bank", 40)
    said = opens(tmp_path / "bank", 64, 4096)
    assert said.startswith("all ")
    assert int(said.removeprefix("all ")) > 64


@pytest.mark.slow
def test_at_the_hard_limit_the_error_names_it_and_what_is_needed(tmp_path: Path) -> None:
    create_or_open_store(tmp_path / "bank", 40)
    said = opens(tmp_path / "bank", 64, 64)
    number, _, text = said.partition(" ")
    assert 0 < int(number) < 40
    assert f"partition {number} is not opened: this process has " in text
    assert "files open, and may have 64 (ulimit -Hn)" in text
    assert "needs 3 for each and 32 more: raise the limit (LimitNOFILE= of systemd, ulimit -n)" in text
