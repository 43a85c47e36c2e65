"""The service demands: what CPU each step of a command and of a query takes, from the figures of runs of benchmarks.

A batch costs something however few commands it has. Two depths separate what a command takes from what a batch takes:
of a role that takes `y` a command in batches of `b`, `y = command + batch / b`.

Rule kept here: every demand names the cases that it comes from, and one that was not measured in the run itself, but
is taken over from another one (at the ratio of the two machines' speeds), is marked so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

from rayfold.runtime.batch_queue import BATCH_ITEMS_MAX, WORTH_ITEMS

from ..harness.results import Run

QUERIES_TOGETHER_MAX: Final = 1_024
"""Queries in a batch at most (`actors/client/replica_pool.py`)."""

FSYNCS: Final = 2
"""Of a commit: LMDB syncs the data, then the page that names it."""


ANOTHER: Final = "another run"


class DemandsMissing(Exception):
    """The results have too few figures. Names the demands that are missing and the command that measures all."""


@dataclass(frozen=True, slots=True)
class Demands:
    """In microseconds: of CPU, but for those called `wait`."""

    client_command: float
    """Packing, routing and returning the outcome of a command; and the load generator's own share."""
    client_batch: float
    """Sending a batch through the socket, and being woken up by its answer."""
    partition_command: float
    """Deciding, encoding and appending a command."""
    partition_batch: float
    """Taking a batch from the socket, its transaction and commit, and the answer."""
    fsync_wait: float
    """Of one batch: two fdatasyncs, in which its partition waits."""
    broadcast_event: float
    """In the partition, for each event and replica."""
    apply_event: float
    """In a projector."""
    client_query: float
    answer_query: float
    query_batch: float
    """At each end, for a batch of queries."""
    ray_caller: float
    ray_callee: float
    """Of one call through Ray, which a batch between machines takes in place of a socket."""
    ray_wait: float
    """What such a call takes beyond both ends' CPU."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The demands of one machine, and where each is from."""

    demands: Demands
    sources: Mapping[str, str]
    """Part -> the keys of the cases, or the run that it is taken over from."""


Found = dict[str, tuple[float, str]]


def demands_of(runs: Sequence[Run]) -> Measured:
    """The demands of the first run's machine; what it lacks is taken over from the others, the earlier ones first.

    Raises `DemandsMissing`."""
    found = _found(runs[0])
    for other in runs[1:]:
        theirs = _found(other)
        speed = _slower(found, theirs)
        for name, (value, source) in theirs.items():
            kept = 1.0 if name == "fsync_wait" else speed
            found.setdefault(name, (value * kept, f"{ANOTHER}, times {kept:.2f}: {source}"))
    for side in (
        "client",
        "partition",
    ):  # at one depth alone: what was measured of a command has its batch's share in it
        batch, command = found.get(f"{side}_batch"), found.get(f"{side}_command")
        if batch and command and batch[1].startswith(ANOTHER) and not command[1].startswith(ANOTHER):
            found[f"{side}_command"] = max(0.0, command[0] - batch[0] / BATCH_ITEMS_MAX), command[1]
    _fill(found)
    names = [field.name for field in fields(Demands)]
    if missing := [name for name in names if name not in found]:
        raise DemandsMissing(
            f"no figures for {', '.join(missing)}; rayfold bench model --json FILE measures all demands"
        )
    return Measured(Demands(**{name: found[name][0] for name in names}), {name: found[name][1] for name in names})


def used_in(measured: Measured) -> set[str]:
    """The keys of the cases that demands are from: what they predict of those is no test of the model."""
    return {key for source in measured.sources.values() for key in source.split(" and ")}


def batch_of(depth: float, most: int = BATCH_ITEMS_MAX) -> float:
    """The size of batches with so much in flight to one actor: halves, if those are worth it."""
    return max(1.0, min(most, depth / 2 if depth / 2 >= WORTH_ITEMS else depth))


def line_through(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """What one item and what one batch take, from (items in a batch, time an item) of the largest and the smallest
    batch. Neither is below 0: where noise would have it so, the batch is taken to cost nothing."""
    (few, each_few), (many, each_many) = min(points), max(points)
    if few == many:
        return each_many, 0.0
    batch = max(0.0, (each_few - each_many) / (1 / few - 1 / many))
    return max(0.0, each_many - batch / many), batch


def _found(run: Run) -> Found:
    found: Found = {}
    for name, value, keys in (*_of_commands(run), *_of_replicas(run, found), *_of_queries(run), *_of_machine(run)):
        found.setdefault(name, (value, " and ".join(keys)))
    return found


def cpu_us(run: Run, key: str, what: str, *roles: str) -> float | None:
    """CPU of these roles for each of `what`, in microseconds; None if the run lacks it."""
    case = run.case(key)
    figures = case.figures if case else {}
    values = [figures[name].value for role in roles if (name := f"cpu_s_per_1000_{what}_{role}") in figures]
    return sum(values) * 1e3 if values else None


def _of_commands(run: Run) -> Iterator[tuple[str, float, list[str]]]:
    """What commands take without a projection: by depth, or (clients on a larger machine) at one depth alone."""
    write = "write/saturated writes?depth={}&keys=uniform&partitions=1&placement=shared"
    depths = {write.format(depth): depth for depth in (64, 1_024)}
    depths["clients/writes?partitions=1&readers=0&replicas=0&writers=1"] = 2_048
    for side, roles in (("client", ("driver", "clients")), ("partition", ("partitions",))):
        points = {key: (batch_of(depth), cpu_us(run, key, "commands", *roles)) for key, depth in depths.items()}
        known = {key: (batch, each) for key, (batch, each) in points.items() if each is not None}
        if known:
            command, batch = line_through(list(known.values()))
            yield f"{side}_command", command, list(known)
            if len(known) > 1:
                yield f"{side}_batch", batch, list(known)


def _of_replicas(run: Run, found: Found) -> Iterator[tuple[str, float, list[str]]]:
    """What an event takes more where there are projectors: against the same number of partitions without."""
    model, alone = (
        "model/writes beside a replica?depth=1024&partitions=1&replicas=1",
        "write/saturated writes?depth=1024",
    )
    pairs = (
        (model, f"{alone}&keys=uniform&partitions=1&placement=shared", 1),
        (
            "clients/both?partitions=4&readers=0&replicas=2&writers=4",
            "clients/writes?partitions=4&readers=0&replicas=0&writers=4",
            2,
        ),
        ("nodes/writes and freshness?nodes=0", "", 1),
    )
    for key, without, replicas in pairs:
        partitions, projectors = cpu_us(run, key, "commands", "partitions"), cpu_us(run, key, "commands", "projectors")
        if partitions is None or projectors is None:
            continue
        yield "apply_event", projectors / replicas, [key]
        if (before := cpu_us(run, without, "commands", "partitions")) is not None:
            yield "broadcast_event", max(0.0, partitions - before) / replicas, [key, without]
    yield from _of_the_grid(run)


def _of_the_grid(run: Run) -> Iterator[tuple[str, float, list[str]]]:
    """The same from a run that has writes beside a replica only with queries at the same time."""
    key, without = "scale/grid?partitions=1&replicas=1", "scale/grid?partitions=1&replicas=0"
    case, before = run.case(key), cpu_us(run, without, "commands", "partitions")
    partitions, projectors = (cpu_us(run, key, "operations", role) for role in ("partitions", "projectors"))
    answer = cpu_us(run, "read/saturated reads?depth=4096&replicas=1", "queries", "projectors")
    if case is None or partitions is None or projectors is None or before is None or answer is None:
        return
    commands, queries = case.figures["commands_per_s"].value, case.figures["queries_per_s"].value
    of_all = (commands + queries) / commands
    yield "broadcast_event", max(0.0, partitions * of_all - before), [key, without]
    yield "apply_event", max(0.0, projectors * of_all - answer * queries / commands), [key]


def _of_queries(run: Run) -> Iterator[tuple[str, float, list[str]]]:
    keys = {
        "read/saturated reads?depth=4096&replicas=1": QUERIES_TOGETHER_MAX,
        "clients/reads?partitions=1&readers=1&replicas=1&writers=0": QUERIES_TOGETHER_MAX,
        "model/reads in small batches?depth=64&replicas=1": batch_of(64),
    }
    batches: list[float] = []
    used: list[str] = []
    for name, roles in (("client_query", ("driver", "clients")), ("answer_query", ("projectors",))):
        points = {key: (float(batch), cpu_us(run, key, "queries", *roles)) for key, batch in keys.items()}
        known = {key: (batch, each) for key, (batch, each) in points.items() if each is not None}
        if known:
            query, batch = line_through(list(known.values()))
            yield name, query, list(known)
            if len(known) > 1:
                batches.append(batch)
                used = list(known)
    if batches:
        yield "query_batch", sum(batches) / len(batches), used


def _of_machine(run: Run) -> Iterator[tuple[str, float, list[str]]]:
    """The disk and Ray. Where the CPU of a call was not measured, either end is taken to be the limit of calls/s."""
    if (fsync := _value(run, "ceiling/fdatasync", "latency_ms_p50")) is not None:
        yield "fsync_wait", fsync * 1e3 * FSYNCS, ["ceiling/fdatasync"]
    key = "ceiling/null call?actor=sync&size_bytes=100"
    alone_ms, calls_per_s = _value(run, key, "latency_ms_p50"), _value(run, key, "calls_per_s")
    if alone_ms is not None and calls_per_s:
        ends = [cpu_us(run, key, "calls", role) or 1e6 / calls_per_s for role in ("driver", "actor")]
        yield "ray_caller", ends[0], [key]
        yield "ray_callee", ends[1], [key]
        yield "ray_wait", max(0.0, alone_ms * 1e3 - sum(ends)), [key]


def _value(run: Run, key: str, figure: str) -> float | None:
    case = run.case(key)
    return case.figures[figure].value if case and figure in case.figures else None


def _slower(found: Found, theirs: Found) -> float:
    """How much longer a command takes here than in the other run: client and partition together."""
    names = ("client_command", "partition_command")
    if not all(name in found and name in theirs for name in names):
        return 1.0
    return sum(found[name][0] for name in names) / sum(theirs[name][0] for name in names)


def _fill(found: Found) -> None:
    """What older runs did not measure: then, queries went through Ray."""
    if "ray_caller" in found and "query_batch" not in found:
        each = (found["ray_caller"][0] + found["ray_callee"][0]) / 2
        found["query_batch"] = each, "as a call through Ray: " + found["ray_caller"][1]
