"""An invented run: every kind of case that the report draws, with figures that follow from simple laws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayfold.benchmarks.harness.conditions import Conditions
from rayfold.benchmarks.harness.contract import Case, Figure, Options, Sample
from rayfold.benchmarks.harness.histogram import Latencies
from rayfold.benchmarks.harness.results import Run
from rayfold.benchmarks.harness.rounds import Measured, Plan, Record
from rayfold.benchmarks.harness.summary import summarize

CALM = Conditions(load_before=1.0, load_after=1.4, ours=0.9, others=0.01, steal=0.0)
ROUNDS = 5
MACHINE: dict[str, Any] = {
    "cpu": "Invented 9000",
    "cores": 8,
    "cores_of_machine": 8,
    "governor": "performance",
    "memory_gib": 31.2,
    "filesystem": "ext4",
    "fsync": "every batch",
    "kernel": "Linux 6.1",
    "python": "CPython 3.11.7",
    "rayfold": "0.1.0",
    "packages": {"ray": "2.60.0", "lmdb": "3.0.0"},
    "commit": "0123456789abcdef",
    "dirty": False,
}


PERCENTILES = {"p50": 1.0, "p99": 8.0, "max": 40.0}
"""Of a latency, in ms."""


async def never(options: Options) -> Sample:
    raise AssertionError("an invented case is not measured")


class Invention:
    """A run in the making."""

    def __init__(self, rounds: int = ROUNDS) -> None:
        self.rounds = rounds
        self.first: list[Case] = []
        self.cases: list[Case] = []
        self.record = Record(rounds_begun=rounds)

    def add(
        self,
        suite: str,
        name: str,
        parameters: Mapping[str, Any],
        figures: Mapping[str, float],
        *,
        conditions: Conditions | None = CALM,
        throughput: bool = False,
        skip: str = "",
        violations: Mapping[int, str] | None = None,
        histogram_ms: float = 0.0,
        rounds: int | None = None,
    ) -> str:
        """Add a case whose figures vary by a percent from round to round; returns its key."""
        case = Case(suite, name, dict(parameters), never, skip=skip, throughput=throughput)
        (self.first if name == "load generator" else self.cases).append(case)
        for round_ in range(0 if skip else rounds if rounds is not None else self.rounds):
            factor = 1 + 0.01 * ((round_ * 2) % 5 - 2)
            sample = Sample({named: _figure(named, value * factor) for named, value in figures.items()})
            if violations and round_ in violations:
                sample.violations.append(violations[round_])
            if histogram_ms:
                sample.histograms["latency_us"] = _histogram(histogram_ms * factor)
            self.record.measured.setdefault(case.key, []).append(Measured(round_, 2.0, sample, conditions))
        return case.key

    def run(self, **machine: Any) -> Run:
        """Summed up."""
        return summarize(
            Plan(self.first, self.cases, self.rounds, None, 60.0),
            self.record,
            suites=list(dict.fromkeys(case.suite for case in self.cases)),
            options={"seconds": 2.5, "quick": False, "seed": 1},
            machine={**MACHINE, **machine},
            started_at="2026-01-01T00:00:00+00:00",
            finished_at="2026-01-01T00:10:00+00:00",
        )


def whole_run() -> Run:
    """Every suite."""
    made = Invention()
    made.add("ceiling", "load generator", {"load": "commands"}, {"commands_per_s": 400_000})
    made.add("ceiling", "load generator", {"load": "queries"}, {"queries_per_s": 900_000})
    _writes_and_reads(made)
    _mixed(made)
    _clusters(made)
    _times(made)
    _jobs(made)
    return made.run()


def _writes_and_reads(made: Invention) -> None:
    for partitions in (1, 2, 4, 8):
        for depth in (1, 64, 1024, 4096):
            rate = 30_000 * partitions / (1 + 0.1 * (partitions - 1)) * depth / (depth + 100)
            cpu = {"cpu_s_per_1000_commands": 0.03, "cpu_s_per_1000_commands_driver": 0.02}
            made.add(
                "write",
                "saturated writes",
                {"depth": depth, "keys": "uniform", "partitions": partitions, "placement": "shared"},
                {"commands_per_s": rate, **cpu},
                throughput=True,
            )
    for keys, placement in (("zipfian", "shared"), ("hot", "shared"), ("uniform", "own")):
        parameters = {"depth": 1024, "keys": keys, "partitions": 1, "placement": placement}
        made.add("write", "saturated writes", parameters, {"commands_per_s": 12_000}, throughput=True)
    for replicas in (1, 2, 4):
        for depth in (1, 256, 4096):
            rate = 190_000 * replicas**0.8 * depth / (depth + 200)
            parameters = {"depth": depth, "replicas": replicas}
            made.add("read", "saturated reads", parameters, {"queries_per_s": rate}, throughput=True)


def _mixed(made: Invention) -> None:
    for partitions in (1, 2):
        for replicas in (0, 1, 2):
            figures = {"commands_per_s": 28_000.0 * partitions / (1 + 0.2 * replicas)}
            figures |= {"queries_per_s": 120_000.0 * replicas} if replicas else {}
            made.add("scale", "grid", {"partitions": partitions, "replicas": replicas}, figures)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        figures = {"commands_per_s": 30_000 * share**0.7, "queries_per_s": 150_000 * (1 - share) ** 0.7}
        made.add("scale", "frontier", {"partitions": 1, "replicas": 1, "write_share": share}, figures)
    level = {"idle": 0.0, "half": 0.5, "saturated": 1.0}
    for writes, w in level.items():
        for reads, r in level.items():
            if w or r:
                figures = {"commands_per_s": 30_000 * w * (1 - 0.3 * r), "execute_ms_p99": 4 * (1 + 2 * r)} if w else {}
                figures |= {"queries_per_s": 150_000 * r * (1 - 0.2 * w), "ask_ms_p99": 3 * (1 + w)} if r else {}
                made.add("scale", "interference", {"writes": writes, "reads": reads}, figures)


def _clusters(made: Invention) -> None:
    for number in (1, 2, 4):
        sizes = {"partitions": number, "replicas": 0, "writers": number, "readers": 0}
        made.add("clients", "writes", sizes, {"commands_per_s": 20_000 * number**0.9})
        sizes = {"partitions": 1, "replicas": number, "writers": 0, "readers": number}
        made.add("clients", "reads", sizes, {"queries_per_s": 200_000 * number**0.9})
    for writers, readers in ((4, 0), (0, 2), (4, 2)):
        figures = {"commands_per_s": 80_000 - 5_000.0 * readers} if writers else {}
        figures |= {"queries_per_s": 400_000 - 20_000.0 * writers} if readers else {}
        sizes = {"partitions": 4, "replicas": 2, "writers": writers, "readers": readers}
        made.add("clients", "both", sizes, figures)
    for nodes in (0, 1, 2, 3):
        figures = {"commands_per_s": 60_000 - 4_000.0 * nodes, "visible_ms_p99": 10.0 + nodes}
        made.add("nodes", "writes and freshness", {"nodes": nodes}, figures)
    figures = {f"{kind}_ms_{p}": k * v for kind, k in (("quiet", 1), ("moving", 5)) for p, v in PERCENTILES.items()}
    made.add("nodes", "move at half load", {"nodes": 3}, figures | {"move_s": 0.8, "waited_ms": 60})
    figures = {"unavailable_s": 7.5, "back_to_writes_s": 2.5, "others_ms_max": 90}
    made.add("nodes", "node lost and back", {"nodes": 3}, figures)


def _times(made: Invention) -> None:
    for operation, base in (("execute", 1.0), ("ask", 0.7), ("execute then ask", 1.8)):
        for load in (0.1, 0.5, 0.9):
            p50 = base / (1 - load)
            figures = {f"latency_ms_{p}": p50 * k for p, k in (("p50", 1.0), ("p99", 4.0), ("p999", 9.0))}
            made.add("latency", "open loop", {"operation": operation, "load": load}, figures, histogram_ms=p50)
    for load in (0.1, 0.5, 0.9):
        figures = {f"visible_ms_{p}": k / (1 - load) for p, k in (("p50", 0.8), ("p99", 5.0), ("max", 12.0))}
        made.add("freshness", "visible", {"load": load}, figures)
    made.add("latency", "one at a time", {}, {"latency_ms_p50": 1.2})
    made.add("ceiling", "null call and synced commit", {}, {"latency_ms_p50": 1.0})
    for events in (100_000, 1_000_000, 10_000_000):
        made.add("replay", "projection rebuild", {"events": events}, {"events_per_s": 240_000})
        made.add("replay", "cold start", {"events": events}, {"start_s": 1.0 + events / 1e6})
    for length in (10, 1_000, 10_000):
        for snapshots in (False, True):
            took_ms = 1.0 + length / 100 * (0.01 if snapshots else 1.0)
            parameters = {"length": length, "snapshots": snapshots}
            made.add("replay", "activation", parameters, {"latency_ms_p50": took_ms})


def _jobs(made: Invention) -> None:
    for batch in (1, 32, 1024):
        made.add("ceiling", "synced commits", {"batch": batch}, {"events_per_s": 600_000 * batch / (batch + 200)})
        made.add("ceiling", "plain program", {"batch": batch}, {"commands_per_s": 80_000 * batch / (batch + 15)})
    made.add("peers", "rayfold", {"depth": 64}, {"commands_per_s": 21_000}, throughput=True)
    made.add("peers", "eventsourcing save", {"store": "sqlite"}, {"commands_per_s": 3_300})
    made.add("peers", "raw lmdb", {"batch": 64}, {"commands_per_s": 90_000})
    made.add("peers", "umadb", {"depth": 64}, {}, skip="not installed: umadb")
    made.add("jobs", "smallbank", {}, {"transactions_per_s": 9_000, "commands_per_s": 15_000})
    for workload in "ABCDEF":
        made.add("jobs", "ycsb", {"workload": workload}, {"operations_per_s": 30_000})


def _figure(name: str, value: float) -> Figure:
    if name.endswith("_per_s"):
        return Figure(value, name.removesuffix("_per_s") + "/s", "higher")
    unit = "CPU-s per 1,000 commands" if name.startswith("cpu") else "s" if name.endswith("_s") else "ms"
    return Figure(value, unit, "lower")


def _histogram(middle_ms: float) -> str:
    latencies = Latencies()
    for number in range(1, 1000):
        latencies.record_s(middle_ms / 1000 * (0.5 + number / 1000 + (number > 985) * (number - 985) * 0.3))
    return latencies.encoded()
