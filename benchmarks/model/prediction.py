"""The prediction: what the model makes of the demands, beside what was measured, as cases of a run like any other.

Three kinds of cases. `check`: a size at which a figure was measured, and how far the model is from it. `writes`,
`reads` and `both`: sizes of 1 to 64 cores and 1 to 100 nodes. `demands`: what went in.

Rule kept here: every check that can be made is made and kept, however it comes out, and one whose figure went into the
demands is marked so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Final

from ..harness.machine import IDENTITY
from ..harness.marks import COMPUTED
from ..harness.results import CaseResult, FigureResult, Parameter, Run, SampleResult
from .demands import Measured, demands_of, used_in
from .system import Prediction, Size, predict

SUITE: Final = "model"
RATES: Final = ("commands_per_s", "queries_per_s")
KINDS: Final = ("writes", "reads", "both")

CLIENTS_DEPTH: Final = 2_048
LOOPS: Final = 512
NODES_PARTITIONS: Final = 3
"""How the suites `clients`, `scale` and `nodes` load a system (`DEPTH`, `CLIENTS` and `PARTITIONS` there)."""

ASSUMPTIONS: Final = (
    "each step takes the CPU time that it took where it was measured, however many cores there are (no shared caches,"
    " memory bandwidth or hyperthreads)",
    "cores are shared evenly, and a process uses one at a time",
    "a batch costs what it costs plus so much for each item, and is never larger than the runtime makes it",
    "an fsync takes its median time, whatever else writes to the disk",
    "keys are uniform, commands and queries those of the bank (one event each), and nothing fails",
    "nodes are alike and their network is never full; a batch between them costs a null call through Ray at either end",
    "every projector takes in every event of all nodes",
)
"""What has to be so for the predictions to be right."""


def predicted(runs: Sequence[Run], cores: Sequence[int], nodes: Sequence[int], seed: int) -> list[CaseResult]:
    """All cases of the model, with the demands of the first run. Raises `DemandsMissing`."""
    measured = demands_of(runs)
    return [_demands_case(measured), *_checks(runs, measured, seed), *_sizes(measured, cores, nodes, seed)]


def size_of(case: CaseResult, cores: int) -> Size | None:
    """The size of system that a case was measured at; None if the model has none for it."""
    setting = case.parameters
    number = {name: int(value) for name, value in setting.items() if not isinstance(value, str)}
    partitions, replicas, depth = number.get("partitions", 1), number.get("replicas", 0), number.get("depth", 1)
    match case.suite, case.name:
        case ("write", "saturated writes") if setting["placement"] == "shared" and setting["keys"] == "uniform":
            return Size(cores, partitions=partitions, writers=1, write_depth=depth)
        case ("model", "writes beside a replica"):
            return Size(cores, partitions=partitions, replicas=replicas, writers=1, write_depth=depth)
        case ("read", "saturated reads") | ("model", "reads in small batches"):
            return Size(cores, replicas=replicas, readers=1, read_depth=depth)
        case ("latency", "one at a time"):
            return Size(cores, writers=1, write_depth=1)
        case ("scale", "grid"):
            return Size(
                cores,
                partitions=partitions,
                replicas=replicas,
                writers=1,
                readers=min(1, replicas),
                write_depth=1_024 * partitions,
                read_depth=LOOPS * replicas,
                one_client=True,
            )
        case ("nodes", "writes and freshness"):
            return Size(
                cores,
                nodes=max(1, number["nodes"]),
                one_machine=True,
                partitions=NODES_PARTITIONS,
                replicas=1,
                writers=1,
                write_depth=1_024 * NODES_PARTITIONS,
            )
        case ("clients", _):
            return Size(
                cores,
                partitions=partitions,
                replicas=replicas,
                writers=number["writers"],
                readers=number["readers"],
                read_depth=CLIENTS_DEPTH,
                write_depth=CLIENTS_DEPTH,
            )
    return None


def sizes(cores: Sequence[int], nodes: Sequence[int]) -> Iterator[tuple[str, Size]]:
    """Half of each node's cores for the clients' processes, half for the others; with both sides, one replica and one
    reader on each node, and a quarter of the cores for partitions."""
    each = [(of_each, number) for of_each in cores for number in nodes]
    for of_each, number in each:
        half = max(1, of_each // 2)
        yield "writes", Size(of_each, number, partitions=half, writers=half)
        yield "reads", Size(of_each, number, replicas=half, readers=half)
        quarter = max(1, of_each // 4)
        yield "both", Size(of_each, number, partitions=quarter, writers=quarter, replicas=1, readers=1)


def errors_of(cases: Sequence[CaseResult], figure: str, *, went_in: bool = False) -> list[float]:
    """How far the checks of a figure are off, as shares of what was measured. Those whose cases demands were computed
    from are left out, unless asked for."""
    checks = [case for case in cases if case.name == "check" and case.parameters["figure"] == figure]
    return [case.figures["error_share"].value for case in checks if went_in or not case.parameters["went in"]]


def summary_of(cases: Sequence[CaseResult]) -> str:
    """How wrong the model is where that can be checked, in a sentence."""
    told = []
    for figure in RATES:
        if errors := errors_of(cases, figure):
            middle, worst = median(map(abs, errors)), max(errors, key=abs)
            off = f"off by {middle:.0%} at the median, {worst:+.0%} at worst"
            told.append(f"{figure.replace('_per_s', '/s')}: {len(errors)}, {off}")
    return f"Measured figures that it was not made from: {'; '.join(told) or 'none'}."


def _checks(runs: Sequence[Run], measured: Measured, seed: int) -> Iterator[CaseResult]:
    machine, used, done = runs[0].machine, used_in(measured), set[str]()
    for run in runs:
        if any(run.machine.get(name) != machine.get(name) for name in IDENTITY):
            continue
        for case in run.cases:
            size = size_of(case, int(machine["cores"])) if case.figures and case.key not in done else None
            if size is None:
                continue
            done.add(case.key)
            prediction = predict(measured.demands, size, seed)
            for name, value, marks in _measured_rates(case):
                yield _check(case.key, name, value, prediction, marks, went_in=case.key in used)


def _measured_rates(case: CaseResult) -> Iterator[tuple[str, float, list[str]]]:
    if case.name == "one at a time":
        latency = case.figures["latency_ms_p50"]
        yield "commands_per_s", 1e3 / latency.value, latency.marks
    for name in RATES:
        if name in case.figures:
            yield name, case.figures[name].value, case.figures[name].marks


def _check(
    key: str, name: str, value: float, prediction: Prediction, marks: Sequence[str], *, went_in: bool
) -> CaseResult:
    """The marks are those of what was measured: a figure from a busy machine shows little of the model."""
    model = getattr(prediction, name)
    figures = {
        f"model_{name}": _figure(model, name.replace("_per_s", "/s")),
        f"measured_{name}": _figure(value, name.replace("_per_s", "/s")),
        "error_share": _figure(model / value - 1, "of what was measured"),
    }
    notes = _notes(prediction) | {"marks": " ".join(marks)}
    return _case("check", {"of": key, "figure": name, "went in": went_in}, figures, notes)


def _sizes(measured: Measured, cores: Sequence[int], nodes: Sequence[int], seed: int) -> Iterator[CaseResult]:
    for kind, size in sizes(cores, nodes):
        prediction = predict(measured.demands, size, seed)
        counts = ("cores", "nodes", "partitions", "replicas", "writers", "readers")
        figures = {f"{role}_busy_share": _figure(share, "of the time") for role, share in prediction.busy.items()}
        if size.writers:
            figures["commands_per_s"] = _figure(prediction.commands_per_s, "commands/s")
        if size.readers:
            figures["queries_per_s"] = _figure(prediction.queries_per_s, "queries/s")
        yield _case(kind, {name: getattr(size, name) for name in counts}, figures, _notes(prediction))


def _demands_case(measured: Measured) -> CaseResult:
    figures = {f"{name}_us": _figure(value, "us") for name, value in asdict(measured.demands).items()}
    return _case("demands", {}, figures, measured.sources)


def _notes(prediction: Prediction) -> dict[str, Parameter]:
    return {"bottleneck": prediction.bottleneck, "behind": prediction.behind, "batch": round(prediction.batch, 1)}


def _figure(value: float, unit: str) -> FigureResult:
    return FigureResult(
        value=value, low=value, high=value, confidence=0, unit=unit, better="neither", values={}, marks=[COMPUTED]
    )


def _case(
    name: str, parameters: dict[str, Parameter], figures: dict[str, FigureResult], notes: Mapping[str, Parameter]
) -> CaseResult:
    setting = "&".join(f"{each}={value}" for each, value in sorted(parameters.items()))
    sample = SampleResult(round=0, seconds=0, conditions=None, histograms={}, violations=[], notes=dict(notes))
    return CaseResult(
        key=f"{SUITE}/{name}" + (f"?{setting}" if setting else ""),
        suite=SUITE,
        name=name,
        parameters=parameters,
        throughput=False,
        skipped="",
        error="",
        violations=[],
        figures=figures,
        samples=[sample],
    )
