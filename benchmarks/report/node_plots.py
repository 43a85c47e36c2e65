"""Plots of clients and nodes: both sides at once and alone, the cost of spreading, moves under load, a lost node."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure as Canvas

from ..harness.numbers import sentence, shown
from ..harness.results import CaseResult, FigureResult, Run
from .drawing import Plot, bars, canvas, finish

__all__ = ["node_plots"]

Rows = list[tuple[str, FigureResult]]


def node_plots(run: Run) -> list[Plot]:
    """All of them that the run has figures for."""
    both = run.cases_of("clients", "both")
    sizes = dict.fromkeys((case.parameters["partitions"], case.parameters["replicas"]) for case in both)
    plots = [
        *(_both(both, int(partitions), int(replicas)) for partitions, replicas in sizes),
        _spread(run.cases_of("nodes", "writes and freshness")),
        _moves(run.cases_of("nodes", "move at half load")),
        _loss(run.cases_of("nodes", "node lost and back")),
    ]
    return [plot for plot in plots if plot is not None]


def _both(cases: Sequence[CaseResult], partitions: int, replicas: int) -> Plot | None:
    """What each side does alone, and beside the other."""
    rows: dict[str, Rows] = {"commands": [], "queries": []}
    for case in cases:
        if (case.parameters["partitions"], case.parameters["replicas"]) == (partitions, replicas):
            beside = "beside the other" if case.parameters["writers"] and case.parameters["readers"] else "alone"
            for what, found in rows.items():
                if f"{what}_per_s" in case.figures:
                    found.append((beside, case.figures[f"{what}_per_s"]))
    if any(len(found) != 2 for found in rows.values()):
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, panels = canvas(height=2.0, columns=2)
        told = []
        for panel, (what, found) in zip(panels, rows.items(), strict=True):
            found.sort(key=lambda row: row[0] != "alone")
            bars(panel, found)
            panel.set_title(f"{what}/s")
            (_, alone), (_, beside) = found
            told.append(f"{what} go from {shown(alone.value)}/s alone to {shown(beside.value)}/s beside the other side")
        return drawing, sentence(told, f", {partitions} partitions and {replicas} replicas, each with a client process")

    return finish(draw, f"Writes and reads at once, {partitions} partitions and {replicas} replicas")


def _named(cases: Sequence[CaseResult], figure: str) -> Rows:
    names = {0: "no cluster", 1: "1 node"}
    found = [(int(case.parameters["nodes"]), case.figures[figure]) for case in cases if figure in case.figures]
    return [(names.get(number, f"{number} nodes"), one) for number, one in sorted(found, key=lambda pair: pair[0])]


def _spread(cases: Sequence[CaseResult]) -> Plot | None:
    """The same partitions on more and more nodes of one machine."""
    writes, visible = _named(cases, "commands_per_s"), _named(cases, "visible_ms_p99")
    if len(writes) < 2 or len(visible) < 2:
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, panels = canvas(height=2.6, columns=2)
        for panel, rows, title in zip(panels, (writes, visible), ("commands/s", "ms to visible, p99"), strict=True):
            bars(panel, rows)
            panel.set_title(title)
        (first, plain), (last, most) = writes[0], writes[-1]
        told = [
            f"{last} of this machine take {most.value / plain.value:.2f} of the commands that it takes with {first}",
            f"99 of 100 writes at half of saturation are visible within {shown(visible[-1][1].value)} ms there, and"
            f" within {shown(visible[0][1].value)} ms with {visible[0][0]}",
        ]
        return drawing, sentence(told)

    return finish(draw, "The same bank on several nodes of one machine")


def _moves(cases: Sequence[CaseResult]) -> Plot | None:
    """Latencies at half load, in peace and while a partition moves."""
    kinds = {"quiet": "in peace", "moving": "while it moves"}
    rows = [
        (f"{suffix}, {label}", case.figures[f"{kind}_ms_{suffix}"])
        for case in cases
        for suffix in ("p50", "p99", "max")
        for kind, label in kinds.items()
        if f"{kind}_ms_{suffix}" in case.figures
    ]
    if len(rows) != 6:
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, (panel,) = canvas(height=3.2)
        bars(panel, rows, logarithmic=True)
        panel.set_xlabel("ms, from the intended send time")
        found, figures = dict(rows), cases[0].figures
        return drawing, (
            "While one partition of three goes from node to node without a rest, at half of saturation, 99 of 100"
            f" commands take at most {shown(found['p99, while it moves'].value)} ms instead of"
            f" {shown(found['p99, in peace'].value)};"
            f" a move takes {shown(figures['move_s'].value)} s, and no command is taken for"
            f" {shown(figures['waited_ms'].value)} ms of it."
        )

    return finish(draw, "Moves under load")


def _loss(cases: Sequence[CaseResult]) -> Plot | None:
    """How long the partition of a killed node takes nothing, and what others feel of it."""
    figures = cases[0].figures if cases else {}
    names = {
        "unavailable_s": "its partition, no writes",
        "back_to_writes_s": "of that, since the node is up",
    }
    rows = [(label, figures[name]) for name, label in names.items() if name in figures]
    if len(rows) != len(names):
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, (panel,) = canvas(height=1.8)
        bars(panel, rows)
        panel.set_xlabel("s")
        return drawing, (
            f"A node whose processes are all killed, and that is started again at once, takes no writes for"
            f" {shown(figures['unavailable_s'].value)} s, {shown(figures['back_to_writes_s'].value)} of them after it"
            f" is up; the longest wait of a command to the other partitions is"
            f" {shown(figures['others_ms_max'].value)} ms."
        )

    return finish(draw, "A node lost and back")
