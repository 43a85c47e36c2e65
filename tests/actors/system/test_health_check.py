"""`health()`: what serves a program, what does not, and why; on one machine. On a cluster: `test_reconnecting.py`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rayfold import BlockingRuntime
from tests.actors.conftest import Bank
from tests.bank import Account, Balances

pytestmark = pytest.mark.slow


async def test_a_frozen_partition_is_named_and_everything_else_serves(bank: Bank) -> None:
    async with bank(projections=[Balances], replicas=2) as running:
        assert await running.health() == (
            True,
            True,
            dict.fromkeys(range(running.store.partitions), ""),
            {"Balances": ""},
            "",
        )
        status = await running.status()
        os.kill(frozen := status.partitions[1].pid, signal.SIGSTOP)
        try:
            health = await running.health(timeout_s=0.3)
        finally:
            os.kill(frozen, signal.SIGCONT)
        assert (health.ok, health.connected, health.why) == (False, True, "partition 1: no answer within 0.3 s")
        assert [number for number, why in health.partitions.items() if why] == [1]
        os.kill(frozen := status.projectors[0].pid, signal.SIGSTOP)
        try:
            assert (await running.health(timeout_s=1)).projections == {"Balances": ""}, "its other replica answers"
        finally:
            os.kill(frozen, signal.SIGCONT)
    stopped = await running.health()
    assert (stopped.ok, stopped.connected) == (False, False)
    assert stopped.why.startswith(f"the runtime on {running._path} is not running")


def test_without_await_and_before_the_start_it_does_not_raise(tmp_path: Path) -> None:
    running = BlockingRuntime(tmp_path / "bank-data", aggregates=[Account])
    assert running.health().why.startswith("the runtime on ")
