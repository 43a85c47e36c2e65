"""The experiment behind decision 23: one batch at a time, against a next batch that is decided while one is synced.

`python -m rayfold.benchmarks.experiments.adr_0023_one_batch_at_a_time [--real-time]` prints, for batches of 1, 32, 64
and 512 commands, where the time of a batch goes, part by part, elapsed and of CPU; then the medians of both ways and of
their ratio in the same round. It runs the write loop alone, without Ray and without a client, in this process; the disk
is that of the current folder, with an fsync for each batch. `--real-time` gives this process the cores before all
others, for a machine that has other work; it needs the right to.

The other way is the pipeline at its simplest, without what makes it correct: two threads take turns; each hands the
turn on as its commit begins, with the states that it will leave already in place. A failed commit would leave states
that are in no log. What is measured is thus the most that a correct one may gain.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

from rayfold import Envelope
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import pack, unpack_batch
from rayfold.runtime.encoding.outcome import encode_answer
from rayfold.runtime.log.environment import Environment
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.write.write_loop import WriteLoop

from ..harness.intervals import ratio_interval
from ..workloads.bank import Account, Deposit
from ..workloads.grown_log import account_name

REPETITIONS: Final = 9
COMMANDS: Final = {1: 300, 32: 6_000, 64: 9_000, 512: 20_000}
"""In one repetition, by the size of a batch."""
ACCOUNTS: Final = 1_000
PARTS: Final = ("unpack", "look up ids", "decide", "plan and put", "commit", "receipts", "encode answer")

Parts = dict[str, list[tuple[float, float]]]
"""By the name of a part: microseconds, elapsed and of CPU, of each batch."""


class Loop:
    """A write loop over a new log, which hands the turn on as each commit begins."""

    def __init__(self, folder: Path) -> None:
        self.log = open_log(folder / "log", "partition 0")
        self._loop = WriteLoop(0, self.log, Catalogue([Account], []))
        self._loop.activate()
        self.parts: Parts = defaultdict(list)
        self._turn, self._committing = threading.Lock(), threading.Lock()
        self._hand_on: Callable[[], None] = lambda: None
        write = self.log.environment.write

        def wrapped(use: Any) -> Any:
            begun = self._now()

            def put(transaction: Any) -> Any:
                result = use(transaction)
                self._note("plan and put", begun)
                committed.append(self._now())
                self._hand_on()
                return result

            committed: list[tuple[float, float]] = []
            result = write(put)
            self._note("commit", committed[-1])
            return result

        environment: Environment = self.log.environment
        vars(environment)["write"] = wrapped

    def alone(self, blobs: Iterator[bytes]) -> None:
        """One batch after the other."""
        self._hand_on = lambda: None
        for blob in blobs:
            self._answer(blob, lambda: None)

    def overlapping(self, blobs: Iterator[bytes]) -> None:
        """The next batch is decided while one commits."""
        self._hand_on = self._turn.release
        threads = [threading.Thread(target=self._take_turns, args=(blobs,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _take_turns(self, blobs: Iterator[bytes]) -> None:
        while True:
            self._turn.acquire()
            blob = next(blobs, None)
            if blob is None:
                self._turn.release()
                return
            self._answer(blob, self._committing.acquire)
            self._committing.release()

    def _answer(self, blob: bytes, before_the_append: Callable[[], object]) -> bytes:
        """What a partition does with a batch."""
        loop = self._loop
        with self._noted("unpack"):
            commands = list(unpack_batch(blob))
        with self._noted("look up ids"):
            stored = loop._find_stored(commands)
        with self._noted("decide"):
            decided = loop._decide_all(commands, stored)
        for stream, aggregate in decided.working.items():
            loop.residents.put_back(aggregate, stream)
        decided.working.clear()
        before_the_append()
        appended = self.log.append(loop.epoch, decided.appends)
        with self._noted("receipts"):
            batch = loop._adopt(commands, decided, appended)
        with self._noted("encode answer"):
            return encode_answer(batch.outcomes, 0.0)

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.thread_time()

    def _note(self, part: str, begun: tuple[float, float]) -> None:
        elapsed_s, cpu_s = (now - then for now, then in zip(self._now(), begun, strict=True))
        self.parts[part].append((elapsed_s * 1e6, cpu_s * 1e6))

    @contextmanager
    def _noted(self, part: str) -> Iterator[None]:
        begun = self._now()
        yield
        self._note(part, begun)


WAYS: Final = {"alone": Loop.alone, "overlapping": Loop.overlapping}


def batches(size: int, seed: int) -> list[bytes]:
    """Deposits to accounts at random, packed and joined."""
    chosen = random.Random(seed)

    def blob() -> bytes:
        accounts = [account_name(chosen.randrange(ACCOUNTS)) for _ in range(size)]
        return b"".join(pack(Envelope(Account, account, Deposit(amount=1)))[1] for account in accounts)

    return [blob() for _ in range(COMMANDS[size] // size)]


def measured(folder: Path, way: str, size: int, seed: int, real_time: bool) -> tuple[float, Parts]:
    """Commands per second of one way over a new log, and where the time went."""
    loop, began_s = Loop(folder), time.perf_counter()
    try:
        loop.alone(iter(batches(max(COMMANDS), seed)))
        ready = batches(size, seed + 1)
        loop.parts.clear()
        began_s, cpu_s = time.perf_counter(), time.process_time()
        if real_time:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        WAYS[way](loop, iter(ready))
        seconds, used_s = time.perf_counter() - began_s, time.process_time() - cpu_s
        loop.parts["all CPU, a command"].append((used_s / COMMANDS[size] * 1e6, used_s / COMMANDS[size] * 1e6))
        return COMMANDS[size] / seconds, loop.parts
    finally:
        if real_time:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            time.sleep(time.perf_counter() - began_s)  # as long for the others
        loop.log.close()


def measure(size: int, *, real_time: bool = False) -> None:
    """Both ways with batches of this size, in rounds, and what came of it."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    parts: dict[str, list[Parts]] = {way: [] for way in WAYS}
    seeded = random.Random(1)
    for number in range(REPETITIONS):
        for way in seeded.sample(sorted(WAYS), 2):
            with tempfile.TemporaryDirectory(prefix="experiment-", dir=Path.cwd()) as folder:
                rate, where = measured(Path(folder), way, size, number, real_time)
            rates[way].append(rate)
            parts[way].append(where)
    alone = parts["alone"]
    lines = [f"{part} {_median(alone, part, 0):,.0f} ({_median(alone, part, 1):,.0f})" for part in PARTS]
    print(f"batches of {size:3}, us (of CPU): {', '.join(lines)}")
    ratio = ratio_interval(dict(enumerate(rates["overlapping"])), dict(enumerate(rates["alone"])))
    assert ratio is not None, "every round has both"
    cpu = [_median(parts[way], "all CPU, a command", 1) for way in rates]
    print(
        f"batches of {size:3}: one at a time {median(rates['alone']):,.0f} commands/s, {cpu[0]:.1f} us of CPU; "
        f"overlapping {median(rates['overlapping']):,.0f}, {cpu[1]:.1f} us; "
        f"ratio {ratio.median:.2f} ({ratio.confidence:.0%}: {ratio.low:.2f} to {ratio.high:.2f})"
    )


def _median(rounds: list[Parts], part: str, which: int) -> float:
    return median(of_batch[which] for parts in rounds for of_batch in parts[part])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--real-time", action="store_true", help="before all other processes of the machine")
    real_time: bool = parser.parse_args().real_time
    for size in COMMANDS:
        measure(size, real_time=real_time)


if __name__ == "__main__":
    main()
