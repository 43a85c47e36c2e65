"""Plots of whole jobs: peers side by side, SmallBank, YCSB and flights, and what the machine allows."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure as Canvas

from ..harness.numbers import shown
from ..harness.results import CaseResult, FigureResult, Run
from .drawing import Plot, Series, bars, canvas, finish, line, thousands

__all__ = ["job_plots"]

OURS = "rayfold"
JOB_FIGURES = ("transactions_per_s", "operations_per_s", "commands_per_s")


def job_plots(run: Run) -> list[Plot]:
    """All of them that the run has points for."""
    plots = [_peers(run), _jobs(run), _ceiling(run)]
    return [plot for plot in plots if plot is not None]


def _label(case: CaseResult) -> str:
    setting = ", ".join(f"{name} {value}" for name, value in sorted(case.parameters.items()))
    return f"{case.name}{f' ({setting})' if setting else ''}"


def _peers(run: Run) -> Plot | None:
    rows = [
        (_label(case), case.figures["commands_per_s"])
        for case in run.cases
        if case.suite == "peers" and "commands_per_s" in case.figures
    ]
    if len(rows) < 2 or not any(label.startswith(OURS) for label, _ in rows):
        return None
    rows.sort(key=lambda row: -row[1].value)

    def draw() -> tuple[Canvas, str]:
        drawing, (panel,) = canvas(height=1.1 + 0.42 * len(rows))
        bars(panel, rows, own=OURS, logarithmic=True)
        panel.set_xlabel("commands/s, logarithmic")
        name, best = next(row for row in rows if row[0].startswith(OURS))
        others = [(label, figure) for label, figure in rows if not label.startswith(OURS)]
        told = [f"{best.value / figure.value:.2f} times {label}" for label, figure in others]
        return drawing, f"{name} does {shown(best.value)} commands/s: {_listed(told)}."

    return finish(draw, "Peers: the same job in the same run")


def _jobs(run: Run) -> Plot | None:
    rows = []
    for case in run.cases:
        name = next((figure for figure in JOB_FIGURES if figure in case.figures), "")
        if case.suite == "jobs" and name:
            rows.append((f"{_label(case)}, {name.removesuffix('_per_s')}", case.figures[name]))
    if not rows:
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, (panel,) = canvas(height=1.1 + 0.42 * len(rows))
        bars(panel, rows, logarithmic=True)
        panel.set_xlabel("a second, logarithmic")
        told = [f"{label.rpartition(',')[0]} {shown(figure.value)}/s" for label, figure in rows]
        return drawing, f"Each with its oracle, which found nothing wrong: {_listed(told)}."

    return finish(draw, "Whole jobs")


def _ceiling(run: Run) -> Plot | None:
    lines = [
        Series.over("synced LMDB commits, events", run.cases_of("ceiling", "synced commits"), "batch", "events_per_s"),
        Series.over("plain program, commands", run.cases_of("ceiling", "plain program"), "batch", "commands_per_s"),
    ]
    drawn = [series for series in lines if series.x]
    if not any(len(series.x) > 1 for series in drawn):
        return None
    ours = _best_writes(run)

    def draw() -> tuple[Canvas, str]:
        drawing, (panel,) = canvas(height=3.6)
        for number, series in enumerate(drawn):
            line(panel, series, number)
        panel.set_xscale("log")
        panel.set_yscale("log")
        thousands(panel)
        thousands(panel, "x")
        panel.set_xlabel("in one synced commit")
        panel.set_ylabel("a second")
        panel.legend()
        sentence = "At best, " + _listed([_reach(series) for series in drawn])
        if ours is not None and drawn[-1].label.startswith("plain"):
            plain = max(figure.value for figure in drawn[-1].figures)
            sentence += (
                f"; Rayfold's best {shown(ours.value)} commands/s are {ours.value / plain:.2f} of the plain program"
            )
        return drawing, sentence + "."

    return finish(draw, "What the machine allows")


def _reach(series: Series) -> str:
    what, _, unit = series.label.partition(", ")
    best = max(series.figures, key=lambda figure: figure.value)
    return f"{what}: {shown(best.value)} {unit}/s"


def _best_writes(run: Run) -> FigureResult | None:
    found = [case.figures.get("commands_per_s") for case in run.cases_of("write", "saturated writes")]
    return max((one for one in found if one), key=lambda figure: figure.value, default=None)


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + (parts[-1] if parts else "")
