"""The experiments behind two decisions: two batches in flight (ADR 5), and fewer looks for garbage (ADR 7).

`python -m rayfold.benchmarks.experiments` prints, for each variant, the medians of saturated writes (1 partition, 1,024
in flight) and of saturated reads (1 replica, 4,096 in flight), and of their ratios to the first variant in the same
round. Rounds are shuffled; the disk is that of the current folder, with an fsync before every acknowledgement.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from rayfold import Envelope, RayfoldError, Runtime
from rayfold.actors import router
from rayfold.actors.cluster import Cluster
from rayfold.actors.settings import Settings

from .workloads.bank import Account, BalanceOf, Balances, Deposit

__all__ = ["main"]

REPETITIONS: Final = 9
COMMANDS, QUERIES, WARM_UP, ACCOUNTS = 30_000, 60_000, 3_000, 1_000

VARIANTS: Final = {
    "as it is": (2, Settings()),
    "one batch in flight": (1, Settings()),
    "garbage collector left alone": (2, Settings(tune_garbage_collector=False)),
}


async def writes_per_s(bank: Runtime, count: int) -> float:
    """Deposits acknowledged per second, over `count` of them."""
    sent = (Envelope(Account, f"a{number % ACCOUNTS}", Deposit(amount=1)) for number in range(count))
    began_s = time.perf_counter()
    async for _, outcome in bank.execute_all(sent, in_flight=1024):
        if isinstance(outcome, RayfoldError):
            raise outcome
    return count / (time.perf_counter() - began_s)


async def reads_per_s(bank: Runtime, count: int) -> float:
    """Queries answered per second, over `count` of them."""
    asked = [BalanceOf(account=f"a{number % ACCOUNTS}") for number in range(count)]
    began_s = time.perf_counter()
    async for _, answer in bank.ask_all(Balances, asked):
        if isinstance(answer, RayfoldError):
            raise answer
    return count / (time.perf_counter() - began_s)


async def measured(folder: Path, settings: Settings) -> tuple[float, float]:
    """One repetition of one variant, over a store of its own."""
    async with Runtime(folder, aggregates=[Account], projections=[Balances], partitions=1, settings=settings) as bank:
        await writes_per_s(bank, WARM_UP)
        return await writes_per_s(bank, COMMANDS), await reads_per_s(bank, QUERIES)


async def run() -> dict[str, list[tuple[float, float]]]:
    """Every variant once per round."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    shuffled, seeded = list(VARIANTS.items()), random.Random(1)
    for _ in range(REPETITIONS):
        seeded.shuffle(shuffled)
        for name, (in_flight, settings) in shuffled:
            router.IN_FLIGHT_MAX = in_flight
            folder = Path(tempfile.mkdtemp(prefix="experiment-", dir=Path.cwd()))
            try:
                samples[name].append(await measured(folder / "store", settings))
            finally:
                shutil.rmtree(folder)
    return samples


def main() -> None:
    """Run and print."""
    cluster = Cluster.start_or_join(num_cpus=None, own_actors_max=1)
    try:
        samples = asyncio.run(run())
        first = next(iter(samples.values()))
        for name, pairs in samples.items():
            for which, what in enumerate(("commands/s", "queries/s")):
                median = statistics.median(pair[which] for pair in pairs)
                ratios = sorted(pair[which] / other[which] for pair, other in zip(pairs, first, strict=True))
                low, ratio, high = ratios[1], statistics.median(ratios), ratios[-2]
                print(f"{name:30} {median:>9,.0f} {what:10}  ratio {ratio:.2f}  (96 %: {low:.2f} to {high:.2f})")
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
