"""The experiment behind decision 25: workers that are forked and agents that wait, against Ray's own way of starting.

`python -m rayfold.benchmarks.experiments.adr_0025_workers_are_forked` starts a runtime and eight actors of aggregates,
five times each way in turn, and prints medians: seconds until the first answer, CPU seconds of the program and of all
processes below it by then, seconds until each of the eight has answered, and memory of an actor's process that no other
process shares. Not counted: what processes used that had ended, 0.02 s of CPU for each forked worker.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from rayfold.actors.api.blocking import BlockingRuntime
from rayfold.actors.cluster import ray_node
from rayfold.runtime.encoding.envelope import Envelope

from ..harness.processes import Child, cpu_s, processes_below
from ..workloads.bank import Account, Balances, Deposit, OwnAccount

ROUNDS: Final = 5
ACTORS: Final = 8
WAYS: Final = ("forked", "started")
FIGURES: Final = (
    "s to the first answer",
    "CPU s to the first answer",
    f"s for {ACTORS} own actors",
    "MB of an own actor",
)


def main() -> None:
    """Both ways in turn, each time in a new process."""
    measured: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for number in range(ROUNDS * len(WAYS)):
        way = WAYS[number % len(WAYS)]
        with Child(f"{__spec__.name}:measure", way=way) as child:
            printed = child.next_line(300)
        measured[way].append([float(word) for word in printed.split()])
        print(way, printed.strip(), flush=True)
    for index, figure in enumerate(FIGURES):
        forked, started = (statistics.median(row[index] for row in measured[way]) for way in WAYS)
        print(f"{figure:<26} {forked:8.2f} forked {started:8.2f} started  ratio {forked / started:.2f}")


def measure(way: str) -> None:
    """One round of one way; prints its figures."""
    if way == "started":
        forking = ray_node.node_class

        def starting() -> type:
            made: type = forking()
            del made.start_raylet  # type: ignore[attr-defined]  # and so Ray's own is used
            return made

        ray_node.node_class = starting
    began_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        BlockingRuntime(folder, aggregates=[Account, OwnAccount], projections=[Balances]) as runtime,
    ):
        runtime.execute(Account, "first", Deposit(amount=1))
        answered_s, used_s = time.monotonic() - began_s, sum(map(cpu_s, processes_below(os.getpid())))
        before, began_s = processes_below(os.getpid()), time.monotonic()
        for outcome in runtime.execute_all(
            [Envelope(OwnAccount, str(number), Deposit(amount=1)) for number in range(ACTORS)]
        ):
            if isinstance(outcome, Exception):
                raise outcome
        actors_s = time.monotonic() - began_s
        unshared = [_unshared_mb(pid) for pid in processes_below(os.getpid()) - before]
        print(answered_s, used_s, actors_s, statistics.median(unshared))


def _unshared_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


if __name__ == "__main__":
    main()
