"""A process that takes long to start is waited for, and not replaced by another one that takes as long.

Each process of Ray's starts slowly here while a file is there: Python runs `sitecustomize` first of all.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from tests.actors.cluster.test_local_cluster import left_over
from tests.support.console import Console, console

pytestmark = pytest.mark.slow

SLOW: Final = """
import os, sys, time
here = os.path.dirname(__file__)
if os.path.exists(here + "/slow") and any("fork_server" in one for one in sys.orig_argv):
    time.sleep(12)
"""

SLOW_S: Final = 12.0

KILLS_MAX: Final = 8
"""Ray may have some processes in store, which have been started already."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where `sitecustomize` is, and the file is to be."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "sitecustomize.py").write_text(SLOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield folder


@pytest.fixture(scope="module")
def bank(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    options = "partitions=1, settings=Settings(own_actors_max=0, silent_s=6, timeout_s=90)"
    path = tmp_path_factory.mktemp("driver") / "bank"
    with (
        LocalNodes(LocalCluster(nodes=1, cpus=1), tmp_path_factory.mktemp("cluster"), own_actors_max=0) as nodes,
        console(nodes.address, path=path, options=options) as told,
    ):
        yield told
    assert left_over(nodes.folder) == []


def names(bank: Console) -> list[str]:
    """Of the partition and the projector; another name is another actor."""
    system = "bank._runtime._active._topology"
    projectors: list[str] = bank(f"[n for s in {system}.projections.values() for part in s.parts for n in part]")
    return [*bank(f"{system}.partitions"), *projectors]


def killed_until_it_starts_slowly(bank: Console, place: Path, of: str, account: str) -> None:
    """And is up again."""
    (place / "slow").touch()
    for _ in range(KILLS_MAX):
        [before] = bank(f"[one.pid for one in bank.status().{of}]")
        os.kill(before, signal.SIGKILL)
        killed_s = time.monotonic()
        bank(f"(opened := bank.execute(Account, '{account}', Deposit(amount=1), timeout_s=90)) and None")
        bank(f"bank.ask(Balances, BalanceOf(account='{account}'), after=opened, timeout_s=90)")
        if time.monotonic() - killed_s > SLOW_S:
            return
    raise AssertionError("no process was started slowly")


@pytest.mark.parametrize("of", ["projectors", "partitions"])
def test_what_starts_slowly_is_not_replaced(bank: Console, place: Path, of: str) -> None:
    account = f"of {of}"
    bank(f"bank.execute(Account, '{account}', Open(owner='x')).position")
    before = names(bank)
    killed_until_it_starts_slowly(bank, place, of, account)
    assert names(bank) == before
