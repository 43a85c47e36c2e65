"""A file system without room, as LMDB meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rayfold.benchmarks.torture.contract import OWN_MOUNTS, missing

ROOT = Path(__file__).parents[3]

PROGRAM = """
import sys
from rayfold.runtime.errors import StorageFailed
from rayfold.runtime.store.store import create_or_open_store
from tests.runtime.log.appends import ALICE, deposits
log = create_or_open_store(sys.argv[1] + "/bank", 1).open_log(0)
epoch = log.activate()
try:
    for amount in range(1, 5000):
        log.append(epoch, [deposits(ALICE, amount)])
except StorageFailed as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(missing("mount")), reason=missing("mount"))
def test_a_disk_without_room_is_called_full_and_not_broken(tmp_path: Path) -> None:
    """A write that is cut short for want of room is an input/output error to LMDB, which sounds like a broken disk."""
    mounted = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    inside = [*OWN_MOUNTS, "sh", "-c", mounted, str(tmp_path), sys.executable, "-c", PROGRAM, str(tmp_path)]
    told = subprocess.run(inside, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "its file system is full, with " in told or "No space left on device" in told, told
