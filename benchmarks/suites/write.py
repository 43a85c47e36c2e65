"""Write: saturated durable commands against partitions, depth, placement and keys.

Rule kept here: there is no projection, as the plain program has none; every receipt is looked up in the log afterwards.
"""

from __future__ import annotations

import asyncio
from typing import Final

from ..harness.contract import Case, Figure, Options, Parameter, Sample, hold, of_each
from ..workloads.bank import Account, Deposit, OwnAccount, deposits
from ..workloads.keys import ACCOUNTS, draw, names
from .load import Load, execute_all
from .measuring import cpu_figures, rate
from .running import Running, running_bank

OWN_ACCOUNTS: Final = 4
"""Each starts a process: half a CPU-second, 45 MiB. A quick run has half of them."""

OWN_START_TIMEOUT_S: Final = 60.0
WARM_UP_SHARE: Final = 0.4
"""Of the timed part: the first batches load accounts and grow the file."""


def cases(options: Options) -> list[Case]:
    """Over partitions and depths with uniform keys in shared placement; then one thing changed at a time."""
    depths = (1_024, 4_096) if options.quick else (1, 16, 64, 256, 1_024, 4_096)
    settings = [(depth, "uniform", number, "shared") for number in options.partitions for depth in depths]
    if options.quick:  # the depth that each number of partitions needs, and no other
        settings = [(4_096 if number > 1 else 1_024, "uniform", number, "shared") for number in options.partitions]
    first = options.partitions[0]
    settings += [(1_024, keys, first, "shared") for keys in ("zipfian", "hot")]
    settings += [(64, "uniform", first, placement) for placement in ("shared", "own")]
    names = ("depth", "keys", "partitions", "placement")
    found: list[dict[str, Parameter]] = [dict(zip(names, setting, strict=True)) for setting in settings]
    return of_each("write", "saturated writes", _measure, found, throughput=True)


async def _measure(options: Options, depth: int, keys: str, partitions: int, placement: str) -> Sample:
    async with running_bank(options, partitions=partitions) as running:
        accounts = OWN_ACCOUNTS // (1 + options.quick) if placement == "own" else ACCOUNTS
        if placement == "own":
            await _start_own_actors(running, accounts)
        load = await saturate(running, depth, keys, options, placement, accounts)
        hold(load.failures, await running.violations(load.receipts))
        return Sample(command_figures(load), notes=running.notes | {"receipts": len(load.receipts)})


async def saturate(
    running: Running,
    depth: int,
    keys: str,
    options: Options,
    placement: str = "shared",
    accounts: int = ACCOUNTS,
) -> Load:
    """Keep `depth` deposits in flight for the time that the options set."""
    aggregate = OwnAccount if placement == "own" else Account
    envelopes = deposits(draw(keys, options.seed, accounts), options.seed, aggregate)
    return await execute_all(
        running.bank, envelopes, depth, options.seconds * WARM_UP_SHARE, options.seconds, running.cpu()
    )


def command_figures(load: Load) -> dict[str, Figure]:
    """Commands per second, and what CPU 1,000 of them take in each role."""
    figures = {"commands_per_s": rate(load.counted, load.seconds, "commands/s")}
    return figures | cpu_figures(load.cpu_s, load.counted, "commands")


async def _start_own_actors(running: Running, accounts: int) -> None:
    """Wake the accounts until each has its actor. A partition starts two at a time, and the others when they are
    asked again; until then they are its guests."""
    async with asyncio.timeout(OWN_START_TIMEOUT_S):
        while len(running.pids["own_actors"]) < accounts:
            for account in names(accounts):
                await running.bank.execute(OwnAccount, account, Deposit(amount=1))
            await asyncio.sleep(0.2)
            await running.learn_processes()
    running.started_at = await running.bank.heads()
