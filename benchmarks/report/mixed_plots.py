"""Plots of reads and writes together: the grid, the throughput frontier, the interference matrix."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure as Canvas

from ..harness.frontier import Point, frontier, independence
from ..harness.interference import LEVELS, relative, worst
from ..harness.numbers import counted, shown
from ..harness.results import CaseResult, Run
from .drawing import COLOURS, MUTED, PAPER, Plot, canvas, finish, heat, thousands

__all__ = ["mixed_plots"]

MEASURES = (
    ("commands_per_s", "commands/s", "writes", "reads", True),
    ("execute_ms_p99", "execute, p99", "writes", "reads", False),
    ("queries_per_s", "queries/s", "reads", "writes", True),
    ("ask_ms_p99", "ask, p99", "reads", "writes", False),
)
"""Figure, its name, whose it is, who disturbs, and whether lower is worse."""


def mixed_plots(run: Run) -> list[Plot]:
    """All of them that the run has points for."""
    plots = [
        _grid(run.cases_of("scale", "grid")),
        _frontier(run.cases_of("scale", "frontier")),
        _interference(run.cases_of("scale", "interference")),
    ]
    return [plot for plot in plots if plot is not None]


def _grid(cases: Sequence[CaseResult]) -> Plot | None:
    rows = sorted({int(case.parameters["replicas"]) for case in cases})
    columns = sorted({int(case.parameters["partitions"]) for case in cases})
    if len(cases) < 2:
        return None

    def cells(figure: str) -> dict[tuple[str, str], float]:
        return {
            (str(case.parameters["replicas"]), str(case.parameters["partitions"])): case.figures[figure].value
            for case in cases
            if figure in case.figures
        }

    def draw() -> tuple[Canvas, str]:
        drawing, panels = canvas(height=1.3 + 0.55 * len(rows), columns=2)
        for panel, figure in zip(panels, ("commands_per_s", "queries_per_s"), strict=True):
            heat(panel, cells(figure), [str(row) for row in rows], [str(column) for column in columns], "shown")
            panel.set_title(f"{figure.removesuffix('_per_s')}/s")
            panel.set_xlabel("partitions")
            panel.set_ylabel("replicas")
        writes = cells("commands_per_s")
        most = max(writes, key=lambda cell: writes[cell])
        sentence = f"Most commands with {most[1]} partitions and {most[0]} replicas: {shown(writes[most])}/s"
        if reads := cells("queries_per_s"):
            top = max(reads, key=lambda cell: reads[cell])
            sentence += f"; most queries with {top[1]} and {top[0]}: {shown(reads[top])}/s"
        return drawing, sentence + ", both sides loaded at once."

    return finish(draw, "Partitions against replicas")


def _frontier(cases: Sequence[CaseResult]) -> Plot | None:
    groups: dict[tuple[object, object], list[CaseResult]] = {}
    for case in cases:
        groups.setdefault((case.parameters.get("partitions"), case.parameters.get("replicas")), []).append(case)
    drawn = {setting: _points(group) for setting, group in groups.items() if len(group) > 1}
    if not drawn:
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, (panel,) = canvas(height=4.4)
        told = []
        for number, ((partitions, replicas), points) in enumerate(sorted(drawn.items(), key=str)):
            edge, colour = frontier(point for point, _ in points), COLOURS[number % len(COLOURS)]
            label = f"{counted(int(str(partitions)), 'partition')}, {counted(int(str(replicas)), 'replica')}"
            panel.plot([one.writes for one in edge], [one.reads for one in edge], color=colour, label=label)
            for point, marked in points:
                panel.plot(*point, "o", color=colour, markerfacecolor=PAPER if marked else colour)
            share = independence(edge)
            if share is not None:
                told.append(f"{share:.2f} with {label}")
                corners = max(one.writes for one in edge), max(one.reads for one in edge)
                panel.plot([0, corners[0]], [corners[1], 0], color=MUTED, linewidth=0.9, linestyle="--")
        panel.set_xlabel("commands/s")
        panel.set_ylabel("queries/s")
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        thousands(panel, "x")
        thousands(panel)
        panel.legend()
        sentence = (
            f"The area below the frontier as a share of its box is {', '.join(told)}: 1 would be reads and writes that"
            " do not touch one another, 0.5 (dashed) two loads that merely share the machine."
        )
        return drawing, sentence

    return finish(draw, "Throughput frontier")


def _points(cases: Sequence[CaseResult]) -> list[tuple[Point, bool]]:
    found = []
    for case in cases:
        sides = [case.figures.get(name) for name in ("commands_per_s", "queries_per_s")]
        point = Point(*(side.value if side else 0.0 for side in sides))
        found.append((point, any(side.marks for side in sides if side)))
    return found


def _interference(cases: Sequence[CaseResult]) -> Plot | None:
    multiples = {}
    for figure, title, own, other, lower_is_worse in MEASURES:
        cells = {
            (str(case.parameters[own]), str(case.parameters[other])): case.figures[figure].value
            for case in cases
            if figure in case.figures and case.figures[figure].value > 0
        }
        multiples[figure] = (relative(cells), title, own, other, lower_is_worse)
    if not any(worst(one[0], lower_is_worse=one[4]) for one in multiples.values()):
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, panels = canvas(height=4.6, columns=2, rows=2)
        told = []
        for panel, (cells, title, own, other, lower_is_worse) in zip(panels, multiples.values(), strict=True):
            heat(panel, cells, LEVELS[1:], LEVELS, "{:.2f}×")
            panel.set_title(title)
            panel.set_xlabel(f"{other} are …")
            panel.set_ylabel(own)
            if found := worst(cells, lower_is_worse=lower_is_worse):
                (load, against), times = found
                told.append(
                    f"{title} at {load} load is {times:.2f} times what it is alone when {other} are at {against}"
                )
        return drawing, "At worst, " + "; ".join(told) + "."

    return finish(draw, "Interference")
