"""The experiment behind decision 12: a stream index that lags, against one that each append puts its entries into.

`python -m rayfold.benchmarks.experiments.adr_0012_the_stream_index_lags [--events N]` prints, for batches of 64 and 512
commands and logs of N events at first (0 and 1,000,000 unless it is given), the medians of both, the CPU of each, and
the median and interval of their ratio in the same round. It runs the write loop alone, without Ray, in this process;
the disk is that of the current folder, with an fsync for each batch. Rounds are shuffled. It also prints what reading
one stream costs a reader that has to look through the latest events.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Final

from rayfold import Envelope
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import PackedCommand, pack
from rayfold.runtime.log import index_buffer
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.store.store import Store
from rayfold.runtime.stream import StreamId
from rayfold.runtime.write.write_loop import WriteLoop

from ..harness.intervals import ratio_interval
from ..workloads.bank import Account, Deposit
from ..workloads.grown_log import account_name, grow

REPETITIONS: Final = 9
COMMANDS: Final = 40_000
"""In one repetition, after as many as fill the lag once."""
ACCOUNTS: Final = 1_000
BATCHES: Final = (64, 512)
VARIANTS: Final = {"lagging": index_buffer.BYTES_A_ROUND, "with each append": 1}
"""After how many bytes of records the next group of streams is put."""


def batches(size: int, count: int, seed: int) -> Iterator[list[PackedCommand]]:
    """Deposits to accounts at random, packed."""
    chosen = random.Random(seed)
    for _ in range(count // size):
        accounts = (account_name(chosen.randrange(ACCOUNTS)) for _ in range(size))
        yield [pack(Envelope(Account, account, Deposit(amount=1)))[0] for account in accounts]


def measured(store: Store, size: int, seed: int) -> tuple[float, float]:
    """Commands per second, and microseconds of CPU for each."""
    with closing(store.open_log(0)) as log:
        loop = WriteLoop(0, log, Catalogue([Account], []))
        loop.activate()
        for batch in batches(512, index_buffer.GROUPS * index_buffer.EVENTS_A_ROUND, seed):
            loop.execute(batch)
        ready = list(batches(size, COMMANDS, seed + 1))
        before, began_s = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for batch in ready:
            loop.execute(batch)
        seconds, after = time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_SELF)
        used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return COMMANDS / seconds, used_s / COMMANDS * 1e6


def cold_read_ms(store: Store) -> float:
    """Milliseconds for the version of a stream, the median over many, for a reader that is not the writer."""
    reader, took = store.open_reader(0), []
    assert isinstance(reader, LmdbReader)
    for number in range(200):
        began_s = time.perf_counter()
        reader.version(StreamId("Account", account_name(number)))
        took.append((time.perf_counter() - began_s) * 1e3)
    reader.close()
    return median(took)


def measure(events: int) -> None:
    """All variants over a log of so many events at first, and what came of it."""
    shuffled = [(variant, size) for variant in VARIANTS for size in BATCHES]
    samples: dict[tuple[str, int], list[tuple[float, float]]] = {one: [] for one in shuffled}
    cold_ms: list[float] = []
    with tempfile.TemporaryDirectory(prefix="experiment-", dir=Path.cwd()) as name:
        folder, seeded = Path(name), random.Random(1)
        grown = grow(folder / "grown", events)
        for number in range(REPETITIONS):
            seeded.shuffle(shuffled)
            for variant, size in shuffled:
                index_buffer.BYTES_A_ROUND = VARIANTS[variant]
                shutil.copytree(grown.path, folder / "store")
                store = Store(folder / "store", grown.store_id, 1)
                samples[variant, size].append(measured(store, size, number))
                if variant == "lagging":
                    cold_ms.append(cold_read_ms(store))
                shutil.rmtree(folder / "store")
    for size in BATCHES:
        (rates, cpu), (rates_at_once, cpu_at_once) = (zip(*samples[variant, size], strict=True) for variant in VARIANTS)
        ratio = ratio_interval(dict(enumerate(rates)), dict(enumerate(rates_at_once)))
        assert ratio is not None, "every round has both"
        print(
            f"{events:>9,} events, batches of {size:3}: "
            f"lagging {median(rates):,.0f} commands/s, {median(cpu):.1f} us of CPU; "
            f"with each append {median(rates_at_once):,.0f}, {median(cpu_at_once):.1f} us; "
            f"ratio {ratio.median:.2f} ({ratio.confidence:.0%}: {ratio.low:.2f} to {ratio.high:.2f})"
        )
    print(f"{events:>9,} events: the version of a stream, read from another process: {median(cold_ms):.2f} ms")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--events", type=int, action="append", help="of the log at first; may be given several times")
    for events in parser.parse_args().events or (0, 1_000_000):
        measure(events)


if __name__ == "__main__":
    main()
