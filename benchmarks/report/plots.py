"""The plots by subject. Each is drawn if the run has the figures for it, and a sentence describes what it shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..harness.contract import LEVELS
from ..harness.curves import Point, fit_scaling, frontier, independence, relative, worst
from ..harness.histogram import Latencies, merged
from ..harness.numbers import counted, sentence, shown
from ..harness.results import CaseResult, FigureResult, Run
from ..model.prediction import ASSUMPTIONS, KINDS, summary_of
from .drawing import COLOURS, MUTED, PAPER, Plot, Series, axes, bars, canvas, heat, line, magnitudes, plot, thousands

Cases = Sequence[CaseResult]
Plots = Iterator[Plot]
Rows = Sequence[tuple[str, FigureResult]]

COMMANDS: Final = "commands_per_s"
QUERIES: Final = "queries_per_s"
RATES: Final = {"partitions": COMMANDS, "replicas": QUERIES}
"""What more of them are for."""


def scaling(run: Run) -> Plots:
    """Throughput against partitions and replicas, with the fit; against depth; by keys and placement."""
    writes, reads = run.cases_of("write", "saturated writes"), run.cases_of("read", "saturated reads")
    plain = [case for case in writes if _are(case, keys="uniform", placement="shared")]
    yield from _workers(plain, "partitions", "Writes against partitions")
    yield from _depth(plain, "partitions", "Writes against commands in flight")
    yield from _mixes(writes)
    yield from _workers(reads, "replicas", "Reads against replicas")
    yield from _depth(reads, "replicas", "Reads against queries in flight")
    clients = run.cases_of("clients", "writes")
    yield from _workers(clients, "partitions", "Writes against partitions, a client for each")
    clients = run.cases_of("clients", "reads")
    yield from _workers(clients, "replicas", "Reads against replicas, a client for each")


def mixed(run: Run) -> Plots:
    """Reads and writes together: the grid, the frontier, the interference matrix."""
    yield from _grid(run.cases_of("scale", "grid"))
    yield from _frontier(run.cases_of("scale", "frontier"))
    yield from _interference(run.cases_of("scale", "interference"))


def clusters(run: Run) -> Plots:
    """Clients and nodes: both sides at once and alone, the cost of several nodes, moves under load, a lost node."""
    both = run.cases_of("clients", "both")
    for partitions, replicas in dict.fromkeys((c.parameters["partitions"], c.parameters["replicas"]) for c in both):
        yield from _both([case for case in both if _are(case, partitions=partitions, replicas=replicas)])
    yield from _nodes(run.cases_of("nodes", "writes and freshness"))
    yield from _moves(run.cases_of("nodes", "move at half load"))
    yield from _loss(run.cases_of("nodes", "node lost and back"))


def times(run: Run) -> Plots:
    """Percentile curves, latency against load, freshness, and growth with the size of the log."""
    loops: dict[str, list[CaseResult]] = defaultdict(list)
    for case in run.cases_of("latency", "open loop"):
        loops[str(case.parameters.get("operation"))].append(case)
    yield from _percentiles(loops)
    yield from _against_load({operation: cases for operation, cases in loops.items() if len(cases) > 1})
    yield from _freshness(run.cases_of("freshness", "visible"))
    yield from _growth(run)


def jobs(run: Run) -> Plots:
    """Peers side by side, SmallBank, YCSB and flights, and what the machine allows."""
    peers = [(_label(case), case.figures[COMMANDS]) for case in _of(run, "peers") if COMMANDS in case.figures]
    yield from _peers(sorted(peers, key=lambda row: -row[1].value))
    yield from _jobs(run)
    yield from _ceiling(run)


def profile(run: Run) -> Plots:
    """Microseconds of CPU by function, for each role of each case."""
    for case in _of(run, "profile"):
        roles: dict[str, list[tuple[str, FigureResult]]] = defaultdict(list)
        for name, figure in case.figures.items():
            role, _, place = name.partition(": ")
            roles[role].append((place, figure))
        for role, rows in roles.items():
            yield _role(case, role, sorted(rows, key=lambda row: -row[1].value))


def modelled(run: Run) -> Plots:
    """The model: how far it is off where that can be checked, and what it predicts for other sizes."""
    checks = run.cases_of("model", "check")
    if checks:
        drawing, (panel,) = canvas(width=10.0, height=1.0 + 0.3 * len(checks))
        bars(panel, [_ratio(case) for case in checks])
        panel.axvline(1.0, color=MUTED, linewidth=1.2)
        axes(panel, "model / measured", legend=False)
        yield plot(drawing, "How far the model is off", f"{summary_of(checks)} It assumes: {'; '.join(ASSUMPTIONS)}.")
    for kind in KINDS:
        yield from _sizes(kind, run.cases_of("model", kind))


def _ratio(check: CaseResult) -> tuple[str, FigureResult]:
    """Of what the model computes to what was measured, with the setting in short."""
    name, _, setting = str(check.parameters["of"]).partition("/")[2].partition("?")
    numbers = [part.replace("=", " ") for part in setting.split("&") if part.rpartition("=")[2].isdigit()]
    unit = str(check.parameters["figure"]).removesuffix("_per_s")
    error = check.figures["error_share"]
    ratio = error.model_copy(update=dict.fromkeys(("value", "low", "high"), 1.0 + error.value))
    return ", ".join([f"{unit}: {name}", *(number for number in numbers if not number.endswith(" 0"))]), ratio


def _sizes(kind: str, cases: Cases) -> Plots:
    if not cases:
        return
    names = [name for name in (COMMANDS, QUERIES) if name in cases[0].figures]
    drawing, panels = canvas(columns=len(names))
    for name, panel in zip(names, panels, strict=True):
        for number, nodes in enumerate(dict.fromkeys(case.parameters["nodes"] for case in cases)):
            of_nodes = [case for case in cases if case.parameters["nodes"] == nodes]
            line(panel, Series.over(counted(float(nodes), "node"), of_nodes, "cores", name), number)
        axes(panel, "cores of each node", name.replace("_per_s", "/s"), log="xy", base=2)
        panel.set_xticks(
            cores := sorted({float(case.parameters["cores"]) for case in cases}), [f"{n:g}" for n in cores]
        )
    largest = cases[-1]
    text = f"Computed, not measured. With {largest.parameters['nodes']} nodes of {largest.parameters['cores']} cores:"
    told = [f"{shown(largest.figures[name].value)} {name.replace('_per_s', '/s')}" for name in names]
    text += f" {' and '.join(told)}, limited by: {largest.samples[0].notes['bottleneck']}."
    if any(case.samples[0].notes["behind"] for case in cases):
        first = next(case for case in cases if case.samples[0].notes["behind"])
        size = f"{counted(float(first.parameters['nodes']), 'node')} of {first.parameters['cores']} cores"
        text += f" Projectors fall behind from {size} on: read models get older for as long as so much is written."
    yield plot(drawing, f"Predicted: {kind}", text)


SECTIONS: Final = {
    "Scaling": scaling,
    "Reads and writes together": mixed,
    "Clients and nodes": clusters,
    "Time": times,
    "Whole jobs and peers": jobs,
    "Where the CPU time goes": profile,
    "The model": modelled,
}


# What several plots need


def _of(run: Run, suite: str) -> list[CaseResult]:
    return [case for case in run.cases if case.suite == suite]


def _are(case: CaseResult, **wanted: Any) -> bool:
    return all(case.parameters.get(name) == value for name, value in wanted.items())


def _label(case: CaseResult) -> str:
    setting = ", ".join(f"{name} {value}" for name, value in sorted(case.parameters.items()))
    return f"{case.name}{f' ({setting})' if setting else ''}"


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + (parts[-1] if parts else "")


def _a_second(figure: str) -> str:
    return f"{figure.removesuffix('_per_s')}/s"


def _in_bars(title: str, rows: Rows, x: str, what: str, *, own: str = "", logarithmic: bool = False) -> Plot:
    """One panel of bars."""
    drawing, (panel,) = canvas(height=_height(rows))
    bars(panel, rows, own=own, logarithmic=logarithmic)
    panel.set_xlabel(x)
    return plot(drawing, title, what)


def _height(rows: Rows) -> float:
    """Of a panel of bars."""
    return 1.1 + 0.42 * len(rows)


def _in_two(title: str, sides: Mapping[str, Rows], what: str) -> Plot:
    """Two panels of bars, each with its title."""
    drawing, panels = canvas(height=max(map(_height, sides.values())), columns=2)
    for panel, (name, rows) in zip(panels, sides.items(), strict=True):
        bars(panel, rows)
        panel.set_title(name)
    return plot(drawing, title, what)


# Scaling


def _best(cases: Cases, workers: str, figure: str) -> list[CaseResult]:
    """For each number of workers the setting with the highest throughput."""
    rated = [case for case in cases if figure in case.figures and case.parameters.get(workers)]
    rated.sort(key=lambda case: case.figures[figure].value)
    return list({case.parameters[workers]: case for case in rated}.values())


def _workers(cases: Cases, workers: str, title: str) -> Plots:
    figure = RATES[workers]
    series = Series.over("measured, best depth", _best(cases, workers, figure), workers, figure)
    if len(series.x) < 2:
        return
    every = [(x, value) for x, one in zip(series.x, series.figures, strict=True) for value in one.values.values()]
    fit = fit_scaling([x for x, _ in every], [value for _, value in every])
    drawing, (panel,) = canvas()
    line(panel, series, 0)
    if fit is not None:
        most = fit.measured_max
        for begin, end, style, label in ((1.0, most, "-", "USL fit"), (most, 2 * most, ":", "extrapolated")):
            xs = np.linspace(begin, end, 60)
            ys = [fit.at(x) for x in xs]
            panel.plot(xs, ys, color=COLOURS[1], linewidth=1.4, linestyle=style, label=label)
    (fewest, most), (first, last) = (series.x[0], series.x[-1]), (series.figures[0].value, series.figures[-1].value)
    panel.plot([0, most], [0, first / fewest * most], color=MUTED, linewidth=1, linestyle="--", label="linear")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes(panel, workers, _a_second(figure))
    panel.set_ylim(bottom=0)
    what = (
        f"{workers.capitalize()} from {fewest:g} to {most:g} change the throughput {last / first:.2f} times,"
        f" from {shown(first)} to {shown(last)} {_a_second(figure)}. "
    )
    few = f"Too few numbers of {workers} for a fit of the Universal Scalability Law, which needs three"
    yield plot(drawing, title, f"{what}{fit.sentence(round(2 * most)) if fit else few}.")


def _depth(cases: Cases, workers: str, title: str) -> Plots:
    figure = RATES[workers]
    numbers = sorted({int(case.parameters[workers]) for case in cases if case.parameters.get(workers)})
    of_each = [
        Series.over(counted(n, workers[:-1]), [c for c in cases if _are(c, **{workers: n})], "depth", figure)
        for n in numbers
    ]
    drawn = [series for series in of_each if len(series.x) > 1]
    if not drawn:
        return
    drawing, (panel,) = canvas()
    for number, series in enumerate(drawn):
        line(panel, series, number)
    axes(panel, "in flight", _a_second(figure), log="xy", base=2)
    one, low = drawn[0], drawn[0].figures[0].value
    depth, high = max(zip(one.x, [point.value for point in one.figures], strict=True), key=lambda pair: pair[1])
    what = f"With {one.label}, {shown(low)}/s at {one.x[0]:g} in flight become {shown(high)}/s at {depth:g}:"
    yield plot(drawing, title, f"{what} {high / low:.1f} times as many.")


def _mixes(cases: Cases) -> Plots:
    """Keys and placement, at the partitions and depth where most kinds of them were measured."""
    settings: dict[tuple[object, object], list[CaseResult]] = defaultdict(list)
    for case in cases:
        settings[case.parameters.get("partitions"), case.parameters.get("depth")].append(case)
    if not settings:
        return
    (partitions, depth), same = max(settings.items(), key=lambda one: len(one[1]))
    rows = [
        (f"{case.parameters.get('keys')} keys, {case.parameters.get('placement')}", case.figures[COMMANDS])
        for case in same
        if COMMANDS in case.figures
    ]
    if len(rows) < 2:
        return
    rows.sort(key=lambda row: -row[1].value)
    (fast, most), (slow, least) = rows[0], rows[-1]
    what = (
        f"At {counted(int(str(partitions)), 'partition')} and {depth} in flight: {fast} reach"
        f" {shown(most.value)} commands/s, {slow} {shown(least.value)}, {least.value / most.value:.2f} of that."
    )
    yield _in_bars("Writes by keys and placement", rows, "commands/s", what)


# Reads and writes together


def _cells(cases: Cases, row: str, column: str, figure: str) -> dict[tuple[str, str], float]:
    return {
        (str(case.parameters[row]), str(case.parameters[column])): case.figures[figure].value
        for case in cases
        if figure in case.figures
    }


def _grid(cases: Cases) -> Plots:
    if len(cases) < 2:
        return
    rows, columns = ([str(n) for n in sorted({int(c.parameters[of]) for c in cases})] for of in reversed(RATES))
    drawing, panels = canvas(height=1.3 + 0.55 * len(rows), columns=2)
    told: list[str] = []
    for panel, figure in zip(panels, RATES.values(), strict=True):
        cells = _cells(cases, "replicas", "partitions", figure)
        heat(panel, cells, rows, columns, "shown")
        panel.set_title(_a_second(figure))
        axes(panel, "partitions", "replicas", legend=False)
        if cells:
            (replicas, partitions), value = max(cells.items(), key=lambda one: one[1])
            of = ("" if told else " partitions"), ("" if told else " replicas")
            what = figure.removesuffix("_per_s")
            told.append(f"most {what} with {partitions}{of[0]} and {replicas}{of[1]}: {shown(value)}/s")
    yield plot(drawing, "Partitions against replicas", sentence(told, ", both sides loaded at once"))


def _frontier(cases: Cases) -> Plots:
    groups: dict[tuple[Any, Any], list[tuple[Point, bool]]] = defaultdict(list)
    for case in cases:
        sides = [case.figures.get(name) for name in RATES.values()]
        point = Point(*(side.value if side else 0.0 for side in sides))
        groups[case.parameters.get("partitions"), case.parameters.get("replicas")].append(
            (point, any(side.marks for side in sides if side))
        )
    drawn = sorted(((setting, points) for setting, points in groups.items() if len(points) > 1), key=str)
    if not drawn:
        return
    drawing, (panel,) = canvas(height=4.4)
    told = []
    for number, ((partitions, replicas), points) in enumerate(drawn):
        edge, colour = frontier(point for point, _ in points), COLOURS[number % len(COLOURS)]
        label = f"{counted(int(str(partitions)), 'partition')}, {counted(int(str(replicas)), 'replica')}"
        panel.plot([one.writes for one in edge], [one.reads for one in edge], color=colour, label=label)
        for point, marked in points:
            panel.plot(*point, "o", color=colour, markerfacecolor=PAPER if marked else colour)
        if (share := independence(edge)) is not None:
            told.append(f"{share:.2f} with {label}")
            corners = max(one.writes for one in edge), max(one.reads for one in edge)
            panel.plot([0, corners[0]], [corners[1], 0], color=MUTED, linewidth=0.9, linestyle="--")
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    thousands(panel, "x")
    axes(panel, "commands/s", "queries/s")
    what = (
        f"The area below the frontier as a share of its box is {', '.join(told)}: 1 would be reads and writes that"
        " do not touch one another, 0.5 (dashed) two loads that merely share the machine."
    )
    yield plot(drawing, "Throughput frontier", what)


MEASURES: Final = (
    (COMMANDS, "commands/s", "writes", "reads", True),
    ("execute_ms_p99", "execute, p99", "writes", "reads", False),
    (QUERIES, "queries/s", "reads", "writes", True),
    ("ask_ms_p99", "ask, p99", "reads", "writes", False),
)
"""Figure, its name, whose it is, who disturbs, and whether lower is worse."""


def _interference(cases: Cases) -> Plots:
    multiples = [
        relative({cell: value for cell, value in _cells(cases, own, other, figure).items() if value > 0})
        for figure, _, own, other, _ in MEASURES
    ]
    if not any(worst(cells, lower_is_worse=True) for cells in multiples):
        return
    drawing, panels = canvas(height=4.6, columns=2, rows=2)
    told = []
    for panel, cells, (_, title, own, other, lower_is_worse) in zip(panels, multiples, MEASURES, strict=True):
        heat(panel, cells, LEVELS[1:], LEVELS, "{:.2f}×")
        panel.set_title(title)
        axes(panel, f"{other} are …", own, legend=False)
        if found := worst(cells, lower_is_worse=lower_is_worse):
            (load, against), factor = found
            told.append(f"{title} at {load} load is {factor:.2f} times what it is alone when {other} are at {against}")
    yield plot(drawing, "Interference", f"At worst, {'; '.join(told)}.")


# Clients and nodes


def _both(cases: Cases) -> Plots:
    """What each side does alone, and beside the other, at one size of the system."""
    sides: dict[str, list[tuple[str, FigureResult]]] = {_a_second(figure): [] for figure in RATES.values()}
    for case in cases:
        beside = "beside the other" if case.parameters["writers"] and case.parameters["readers"] else "alone"
        for figure in RATES.values():
            if figure in case.figures:
                sides[_a_second(figure)].append((beside, case.figures[figure]))
    if any(len(rows) != 2 for rows in sides.values()):
        return
    for rows in sides.values():
        rows.sort(key=lambda row: row[0] != "alone")
    told = [
        f"{what[:-2]} go from {shown(alone.value)}/s alone to {shown(beside.value)}/s beside the other side"
        for what, ((_, alone), (_, beside)) in sides.items()
    ]
    size = "{partitions} partitions and {replicas} replicas".format(**cases[0].parameters)
    what = sentence(told, f", {size}, each with a client process")
    yield _in_two(f"Writes and reads at once, {size}", sides, what)


def _nodes(cases: Cases) -> Plots:
    """The same partitions on more and more nodes of one machine."""
    names = {0: "no cluster", 1: "1 node"}
    ordered = sorted(cases, key=lambda case: int(case.parameters["nodes"]))
    sides = {
        title: [
            (names.get(number := int(case.parameters["nodes"]), f"{number} nodes"), case.figures[figure])
            for case in ordered
            if figure in case.figures
        ]
        for title, figure in (("commands/s", COMMANDS), ("ms to visible, p99", "visible_ms_p99"))
    }
    if any(len(rows) < 2 for rows in sides.values()):
        return
    writes, visible = sides.values()
    (first, plain), (last, most) = writes[0], writes[-1]
    told = [
        f"{last} of this machine take {most.value / plain.value:.2f} of the commands that it takes with {first}",
        f"99 of 100 writes at half of saturation are visible within {shown(visible[-1][1].value)} ms there, and"
        f" within {shown(visible[0][1].value)} ms with {visible[0][0]}",
    ]
    yield _in_two("The same bank on several nodes of one machine", sides, sentence(told))


def _moves(cases: Cases) -> Plots:
    """Latencies at half load, in peace and while a partition moves."""
    kinds = {"quiet": "in peace", "moving": "while it moves"}
    rows = {
        f"{suffix}, {label}": case.figures[f"{kind}_ms_{suffix}"]
        for case in cases
        for suffix in ("p50", "p99", "max")
        for kind, label in kinds.items()
        if f"{kind}_ms_{suffix}" in case.figures
    }
    if len(rows) != 6:
        return
    figures = cases[0].figures
    what = (
        "While one partition of three goes from node to node without a rest, at half of saturation, 99 of 100"
        f" commands take at most {shown(rows['p99, while it moves'].value)} ms instead of"
        f" {shown(rows['p99, in peace'].value)};"
        f" a move takes {shown(figures['move_s'].value)} s, and no command is taken for"
        f" {shown(figures['waited_ms'].value)} ms of it."
    )
    x = "ms, from the intended send time"
    yield _in_bars("Moves under load", list(rows.items()), x, what, logarithmic=True)


def _loss(cases: Cases) -> Plots:
    """How long the partition of a killed node takes nothing, and what others feel of it."""
    figures = cases[0].figures if cases else {}
    if not {"unavailable_s", "back_to_writes_s"} <= figures.keys():
        return
    rows = [
        ("its partition, no writes", figures["unavailable_s"]),
        ("of that, since the node is up", figures["back_to_writes_s"]),
    ]
    what = (
        f"A node whose processes are all killed, and that is started again at once, takes no writes for"
        f" {shown(figures['unavailable_s'].value)} s, {shown(figures['back_to_writes_s'].value)} of them after it"
        f" is up; the longest wait of a command to the other partitions is"
        f" {shown(figures['others_ms_max'].value)} ms."
    )
    yield _in_bars("A node lost and back", rows, "s", what)


# Time

CURVE: Final = (0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)
TICKS: Final = (50, 90, 99, 99.9, 99.99)


def _percentiles(loops: Mapping[str, Cases]) -> Plots:
    curves: dict[str, list[tuple[float, Latencies]]] = defaultdict(list)
    for operation, cases in loops.items():
        for case in cases:
            if texts := [text for sample in case.samples for text in sample.histograms.values()]:
                curves[operation].append((float(case.parameters.get("load", 0)), merged(texts)))
    if not curves:
        return
    drawing, panels = canvas(width=7.4, height=3.6, columns=len(curves))
    told = []
    for panel, (operation, found) in zip(panels, curves.items(), strict=True):
        for number, (load, latencies) in enumerate(sorted(found, key=lambda one: one[0])):
            xs = [1 / (1 - percentile / 100) for percentile in CURVE]
            ys = [latencies.percentile_ms(percentile) for percentile in CURVE]
            panel.plot(xs, ys, color=COLOURS[number % len(COLOURS)], label=f"{load:.0%} load", linewidth=1.7)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks([1 / (1 - tick / 100) for tick in TICKS], [f"{tick:g}" for tick in TICKS])
        panel.minorticks_off()
        _small(panel, operation, "percentile")
        load, latencies = min(found, key=lambda one: abs(one[0] - 0.5))
        p50, p999 = latencies.percentile_ms(50), latencies.percentile_ms(99.9)
        told.append(f"{operation} takes {shown(p50)} ms at the median and {shown(p999)} ms at p99.9 ({load:.0%} load)")
    panels[0].set_ylabel("ms, from the intended send time")
    yield plot(drawing, "Latency by percentile", sentence(told, ", all rounds put together"))


def _small(panel: Axes, title: str, x: str) -> None:
    """One of several panels beside each other."""
    panel.set_title(title)
    axes(panel, x, legend=False)
    thousands(panel)
    panel.legend(fontsize=8.5)


def _against_load(loops: Mapping[str, Cases]) -> Plots:
    if not loops:
        return
    drawing, panels = canvas(height=3.4, columns=len(loops))
    told = []
    for panel, (operation, cases) in zip(panels, loops.items(), strict=True):
        for number, suffix in enumerate(("p50", "p99", "p999")):
            line(panel, Series.over(suffix.replace("p999", "p99.9"), cases, "load", f"latency_ms_{suffix}"), number)
        panel.set_yscale("log")
        _small(panel, operation, "share of saturation")
        tail = Series.over("", cases, "load", "latency_ms_p99")
        if len(tail.x) > 1:
            ends = " to ".join(f"{shown(tail.figures[end].value)} ms at {tail.x[end]:.0%}" for end in (0, -1))
            told.append(f"{operation}, p99: {ends} of saturation")
    panels[0].set_ylabel("ms, from the intended send time")
    yield plot(drawing, "Latency against load", sentence(told))


def _freshness(cases: Cases) -> Plots:
    if not cases:
        return
    drawing, (panel,) = canvas(height=3.4)
    for number, suffix in enumerate(("p50", "p99", "max")):
        line(panel, Series.over(suffix, cases, "load", f"visible_ms_{suffix}"), number)
    axes(panel, "share of write saturation", "ms from acknowledged to visible", log="y")
    tail = Series.over("", cases, "load", "visible_ms_p99")
    told = ", ".join(f"{shown(one.value)} ms at {load:.0%}" for load, one in zip(tail.x, tail.figures, strict=True))
    what = f"99 of 100 acknowledged writes are visible to queries within {told} of saturation."
    yield plot(drawing, "Freshness", what)


GROWTH: Final = (
    ("projection rebuild", "events", "events_per_s", "rebuild, events/s"),
    ("cold start", "events", "start_s", "cold start, s"),
    ("activation", "length", "latency_ms_p50", "activation, ms"),
)
"""Case, what grows, figure, title."""

SNAPSHOTS: Final = {False: "without snapshots", True: "with snapshots"}


def _growth(run: Run) -> Plots:
    drawn = [(run.cases_of("replay", name), by, figure, title) for name, by, figure, title in GROWTH]
    drawn = [one for one in drawn if len(Series.over("", *one[:3]).x) > 1]
    if not drawn:
        return
    drawing, panels = canvas(height=3.4, columns=len(drawn))
    told = []
    for panel, (cases, by, figure, title) in zip(panels, drawn, strict=True):
        grown = {"length": "stream"}.get(by, "log")
        groups = {label: [case for case in cases if _are(case, snapshots=kind)] for kind, label in SNAPSHOTS.items()}
        for number, (label, group) in enumerate({k: v for k, v in groups.items() if v}.items() or [("", cases)]):
            series = Series.over(label, group, by, figure)
            line(panel, series, number)
            if len(series.x) > 1:
                first, last = series.figures[0].value, series.figures[-1].value
                what = f"{title.partition(',')[0]}{f' {label}' if label else ''}"
                longer = f"{series.x[-1] / series.x[0]:,.0f} times as long"
                told.append(f"{what} is {last / first if first else 0:.2f} times as much for a {grown} {longer}")
            if label:
                panel.legend(fontsize=8.5)
        panel.set_title(title)
        panel.set_xscale("log")
        panel.set_xticks(sorted({float(case.parameters[by]) for case in cases}))
        panel.set_ylim(bottom=0)
        axes(panel, f"events in the {grown}", legend=False)
        thousands(panel)
        magnitudes(panel)
    yield plot(drawing, "Growth with the log", sentence(told))


# Whole jobs and peers

OURS: Final = "rayfold"
JOB_FIGURES: Final = ("transactions_per_s", "operations_per_s", COMMANDS)


def _peers(rows: Rows) -> Plots:
    ours = next((row for row in rows if row[0].startswith(OURS)), None)
    if len(rows) < 2 or ours is None:
        return
    best = ours[1].value
    others = [f"{best / figure.value:.2f} times {label}" for label, figure in rows if not label.startswith(OURS)]
    title, what = "Peers: the same job in the same run", f"{ours[0]} does {shown(best)} commands/s: {_listed(others)}."
    yield _in_bars(title, rows, "commands/s, logarithmic", what, own=OURS, logarithmic=True)


def _jobs(run: Run) -> Plots:
    rows, told = [], []
    for case in _of(run, "jobs"):
        if name := next((figure for figure in JOB_FIGURES if figure in case.figures), ""):
            rows.append((f"{_label(case)}, {name.removesuffix('_per_s')}", case.figures[name]))
            told.append(f"{_label(case)} {shown(case.figures[name].value)}/s")
    if rows:
        what = f"Each with its oracle, which found nothing wrong: {_listed(told)}."
        yield _in_bars("Whole jobs", rows, "a second, logarithmic", what, logarithmic=True)


def _ceiling(run: Run) -> Plots:
    lines = [
        Series.over("synced LMDB commits, events", run.cases_of("ceiling", "synced commits"), "batch", "events_per_s"),
        Series.over("plain program, commands", run.cases_of("ceiling", "plain program"), "batch", COMMANDS),
    ]
    drawn = [series for series in lines if series.x]
    if not any(len(series.x) > 1 for series in drawn):
        return
    drawing, (panel,) = canvas(height=3.6)
    told, best = [], 0.0
    for number, series in enumerate(drawn):
        line(panel, series, number)
        what, _, unit = series.label.partition(", ")
        best = max(figure.value for figure in series.figures)
        told.append(f"{what}: {shown(best)} {unit}/s")
    axes(panel, "in one synced commit", "a second", log="xy")
    what = f"At best, {_listed(told)}"
    writes = [
        case.figures[COMMANDS].value for case in run.cases_of("write", "saturated writes") if COMMANDS in case.figures
    ]
    if writes and drawn[-1] is lines[-1]:
        ours = max(writes)
        what += f"; Rayfold's best {shown(ours)} commands/s are {ours / best:.2f} of the plain program"
    yield plot(drawing, "What the machine allows", f"{what}.")


# Where the CPU time goes

FUNCTIONS_MAX: Final = 10
"""Shown of one role."""


def _role(case: CaseResult, role: str, rows: Rows) -> Plot:
    each = rows[0][1].unit.rpartition(" ")[2]
    whole = sum(figure.value for _, figure in rows)
    drawn = [row for row in rows if row[0] != "others"][:FUNCTIONS_MAX]
    first, most = drawn[0]
    what = (
        f"The {role} took {shown(whole)} µs of CPU a {each}, most of it in {first}: {shown(most.value)} µs."
        " C extensions count for the function that called them."
    )
    setting = ", ".join(f"{name} {value}" for name, value in case.parameters.items())
    title = f"{case.name.capitalize()}{f' at {setting}' if setting else ''}: {role}"
    return _in_bars(title, drawn, f"microseconds of CPU a {each}", what)
