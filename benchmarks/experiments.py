"""The experiments behind three decisions: two batches in flight (ADR 5), fewer looks for garbage (ADR 7), and a socket
beside Ray (ADR 8).

`python -m rayfold.benchmarks.experiments` prints, for each variant, the medians of writes (1 partition; 1,024, 64 and 1
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
COMMANDS: Final = {1024: 30_000, 64: 6_000, 1: 300}
"""By how many are in flight."""
QUERIES, WARM_UP, ACCOUNTS = 60_000, 3_000, 1_000

VARIANTS: Final = {
    "as it is": (2, Settings()),
    "one batch in flight": (1, Settings()),
    "garbage collector left alone": (2, Settings(tune_garbage_collector=False)),
    "through Ray alone": (2, Settings(local_sockets=False)),
}


async def writes_per_s(bank: Runtime, count: int, in_flight: int) -> float:
    """Deposits acknowledged per second, over `count` of them."""
    sent = (Envelope(Account, f"a{number % ACCOUNTS}", Deposit(amount=1)) for number in range(count))
    began_s = time.perf_counter()
    async for _, outcome in bank.execute_all(sent, in_flight=in_flight):
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


async def measured(folder: Path, settings: Settings) -> list[float]:
    """One repetition of one variant, over a store of its own."""
    async with Runtime(folder, aggregates=[Account], projections=[Balances], partitions=1, settings=settings) as bank:
        await writes_per_s(bank, WARM_UP, 1024)
        writes = [await writes_per_s(bank, count, in_flight) for in_flight, count in COMMANDS.items()]
        return [*writes, await reads_per_s(bank, QUERIES)]


async def run() -> dict[str, list[list[float]]]:
    """Every variant once per round."""
    samples: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
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
        figures = [*(f"commands/s at {in_flight:,}" for in_flight in COMMANDS), "queries/s"]
        for name, rounds in samples.items():
            for which, what in enumerate(figures):
                median = statistics.median(figure[which] for figure in rounds)
                ratios = sorted(figure[which] / other[which] for figure, other in zip(rounds, first, strict=True))
                low, ratio, high = ratios[1], statistics.median(ratios), ratios[-2]
                print(f"{name:30} {median:>9,.0f} {what:19}  ratio {ratio:.2f}  (96 %: {low:.2f} to {high:.2f})")
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
