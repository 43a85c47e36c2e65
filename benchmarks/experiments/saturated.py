"""What four of the experiments measure: a saturated bank, under settings and constants of which one is changed.

Prints, for each variant, the medians of writes (1,024, 256, 64 and 1 in flight) and of reads (4,096 and 1,024 in
flight), and of their ratios to the first variant in the same round. Rounds are shuffled; there is one replica, and one
partition unless `--partitions N` sets more; the disk is that of the current folder, with an fsync before every
acknowledgement.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from rayfold import Envelope, RayfoldError, Runtime
from rayfold.actors.client import routing
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.settings import Settings
from rayfold.runtime import batcher
from rayfold.runtime.batch_queue import BatchQueue

from ..workloads.bank import Account, BalanceOf, Balances, Deposit

REPETITIONS: Final = 9
COMMANDS: Final = {1024: 30_000, 256: 15_000, 64: 6_000, 1: 300}
"""By how many are in flight."""
QUERIES: Final = {4096: 60_000, 1024: 40_000}
"""By how many are in flight."""
WARM_UP, ACCOUNTS = 3_000, 1_000


class Variant(NamedTuple):
    """What differs."""

    settings: Settings = Settings()
    batches_in_flight_max: int = 2
    queue: type[BatchQueue[Any]] = BatchQueue


AS_IT_IS: Final = {"as it is": Variant()}
THROUGH_RAY: Final = Settings(local_sockets=False)


async def writes_per_s(bank: Runtime, count: int, in_flight: int) -> float:
    """Deposits acknowledged per second, over `count` of them."""
    sent = (Envelope(Account, f"a{number % ACCOUNTS}", Deposit(amount=1)) for number in range(count))
    began_s = time.perf_counter()
    async for _, outcome in bank.execute_all(sent, in_flight=in_flight):
        if isinstance(outcome, RayfoldError):
            raise outcome
    return count / (time.perf_counter() - began_s)


async def reads_per_s(bank: Runtime, count: int, in_flight: int) -> float:
    """Queries answered per second, over `count` of them."""
    asked = [BalanceOf(account=f"a{number % ACCOUNTS}") for number in range(count)]
    began_s = time.perf_counter()
    async for _, answer in bank.ask_all(Balances, asked, in_flight=in_flight):
        if isinstance(answer, RayfoldError):
            raise answer
    return count / (time.perf_counter() - began_s)


async def measured(folder: Path, settings: Settings, partitions: int) -> list[float]:
    """One repetition of one variant, over a store of its own."""
    classes: dict[str, Any] = {"aggregates": [Account], "projections": [Balances]}
    async with Runtime(folder, **classes, partitions=partitions, settings=settings) as bank:
        await writes_per_s(bank, WARM_UP, 1024)
        writes = [await writes_per_s(bank, count, in_flight) for in_flight, count in COMMANDS.items()]
        return [*writes, *[await reads_per_s(bank, count, in_flight) for in_flight, count in QUERIES.items()]]


async def run(variants: Mapping[str, Variant], partitions: int) -> dict[str, list[list[float]]]:
    """Every variant once per round."""
    samples: dict[str, list[list[float]]] = {name: [] for name in variants}
    shuffled, seeded = list(variants.items()), random.Random(1)
    for _ in range(REPETITIONS):
        seeded.shuffle(shuffled)
        for name, (settings, batches_in_flight_max, queue) in shuffled:
            routing.IN_FLIGHT_MAX = batches_in_flight_max
            vars(routing)["BatchQueue"] = vars(batcher)["BatchQueue"] = queue
            with tempfile.TemporaryDirectory(prefix="experiment-", dir=Path.cwd()) as folder:
                samples[name].append(await measured(Path(folder) / "store", settings, partitions))
    return samples


def compare(others: Mapping[str, Variant]) -> None:
    """Run them beside what was chosen, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--partitions", type=int, default=1)
    partitions: int = parser.parse_args().partitions
    cluster = Cluster.start_or_join(num_cpus=None, own_actors_max=1)
    try:
        samples = asyncio.run(run({**AS_IT_IS, **others}, partitions))
    finally:
        cluster.stop()
    figures = [f"commands/s at {one:,}" for one in COMMANDS] + [f"queries/s at {one:,}" for one in QUERIES]
    first = next(iter(samples.values()))
    for name, rounds in samples.items():
        for which, what in enumerate(figures):
            median = statistics.median(figure[which] for figure in rounds)
            ratios = sorted(figure[which] / other[which] for figure, other in zip(rounds, first, strict=True))
            low, ratio, high = ratios[1], statistics.median(ratios), ratios[-2]
            print(f"{name:34} {median:>9,.0f} {what:19}  ratio {ratio:.2f}  (96 %: {low:.2f} to {high:.2f})")
