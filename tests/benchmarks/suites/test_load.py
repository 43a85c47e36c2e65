"""The load generators: what they count, what they keep, and from when a latency is counted."""

from __future__ import annotations

import asyncio
import time

from rayfold import Receipt, StreamId, Unavailable
from rayfold.benchmarks.suites.load import NullBank, ask_all, execute_all, in_loops, open_loop
from rayfold.benchmarks.suites.measuring import CpuMeter, cpu_figures, rate
from rayfold.benchmarks.workloads.bank import Balances, deposits, questions
from rayfold.benchmarks.workloads.keys import names

STALL_MS = 40


async def test_a_closed_loop_counts_the_timed_part_and_keeps_every_receipt() -> None:
    load = await execute_all(NullBank(), deposits(names(3), seed=1), 16, warm_up_s=0.02, seconds=0.05)
    assert 0 < load.counted < len(load.receipts)
    assert load.seconds == 0.05 or abs(load.seconds - 0.05) < 1e-6
    assert load.failures == []


async def test_queries_go_through_the_same_kind_of_loop() -> None:
    load = await ask_all(NullBank(), Balances, questions(names(3)), 16, warm_up_s=0.0, seconds=0.02)
    assert load.counted > 0
    assert load.receipts == []


async def test_a_loop_goes_on_after_a_failure_and_tells_of_it() -> None:
    calls = 0

    async def operation() -> Receipt:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if calls % 2:
            raise Unavailable("Account/alice", "no answer")
        return Receipt(StreamId("Account", "alice"), 0, calls, calls, bytes(16))

    load = await in_loops(operation, 4, warm_up_s=0.0, seconds=0.02)
    assert load.counted > 0
    assert load.failed > 5
    assert len(load.failures) == 5
    assert load.failures[0] == "an operation failed: Unavailable: Account/alice: no answer"


async def test_the_open_loop_sends_all_that_was_meant_to_be_sent() -> None:
    sent = 0

    async def operation() -> None:
        nonlocal sent
        sent += 1

    load = await open_loop(operation, per_second=1_000, warm_up_s=0.02, seconds=0.05)
    assert sent == 70
    assert load.sent == load.histogram.count == load.late.count == 50


async def test_operations_that_a_stall_delays_are_counted_from_when_they_were_meant_to_be_sent() -> None:
    """Coordinated omission: sent late because the system stalled, they would look fast if counted from the sending."""
    stalled = False

    async def operation() -> None:
        nonlocal stalled
        if not stalled:
            stalled = True
            end_s = time.perf_counter() + STALL_MS / 1e3
            while time.perf_counter() < end_s:  # the event loop stands still
                pass

    load = await open_loop(operation, per_second=1_000, warm_up_s=0.0, seconds=0.05)
    assert load.histogram.count == 50
    assert load.histogram.percentile_ms(50.0) >= STALL_MS / 4, "half of them were due during the stall"


def test_cpu_is_told_by_role_and_for_all_roles_together() -> None:
    figures = cpu_figures({"driver": 1.5, "partitions": 0.5}, 4_000, "commands")
    assert {name: figure.value for name, figure in figures.items()} == {
        "cpu_s_per_1000_commands": 0.5,
        "cpu_s_per_1000_commands_driver": 0.375,
        "cpu_s_per_1000_commands_partitions": 0.125,
    }
    assert figures["cpu_s_per_1000_commands"].unit == "CPU-s per 1,000 commands"
    assert cpu_figures({"driver": 1.0}, 0, "commands") == {}


def test_a_process_that_has_ended_has_used_nothing_more() -> None:
    assert CpuMeter({"nobody": [2**22 + 1]}).used_s() == {"nobody": 0.0}


def test_a_rate_over_no_time_is_none() -> None:
    assert rate(5, 0.0, "commands/s").value == 0.0
    assert rate(5, 2.0, "commands/s").value == 2.5
