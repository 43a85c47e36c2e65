"""Plots of scaling: throughput against partitions and replicas with the fit, against depth, by keys and placement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from ..harness.numbers import counted, shown
from ..harness.results import CaseResult, Run
from ..harness.scaling import ScalingFit, fit_scaling
from .drawing import COLOURS, MUTED, Plot, Series, bars, canvas, finish, line, thousands

__all__ = ["scaling_plots"]

WRITE_FIGURE = "commands_per_s"
READ_FIGURE = "queries_per_s"


def scaling_plots(run: Run) -> list[Plot]:
    """All of them that the run has points for."""
    writes = run.cases_of("write", "saturated writes")
    plain = [case for case in writes if _is(case, keys="uniform", placement="shared")]
    reads = run.cases_of("read", "saturated reads")
    plots = [
        _workers(plain, "partitions", WRITE_FIGURE, "Writes against partitions"),
        _depth(plain, "partitions", WRITE_FIGURE, "Writes against commands in flight"),
        _mixes(writes),
        _workers(reads, "replicas", READ_FIGURE, "Reads against replicas"),
        _depth(reads, "replicas", READ_FIGURE, "Reads against queries in flight"),
        _workers(
            run.cases_of("clients", "writes"),
            "partitions",
            WRITE_FIGURE,
            "Writes against partitions, a client for each",
        ),
        _workers(
            run.cases_of("clients", "reads"), "replicas", READ_FIGURE, "Reads against replicas, a client for each"
        ),
    ]
    return [plot for plot in plots if plot is not None]


def _is(case: CaseResult, **wanted: str) -> bool:
    return all(case.parameters.get(name) == value for name, value in wanted.items())


def _best(cases: Sequence[CaseResult], workers: str, figure: str) -> list[CaseResult]:
    """For each number of workers the setting with the highest throughput."""
    best: dict[object, CaseResult] = {}
    for case in cases:
        if figure in case.figures and case.parameters.get(workers, 0):
            number = case.parameters[workers]
            if number not in best or case.figures[figure].value > best[number].figures[figure].value:
                best[number] = case
    return list(best.values())


def _workers(cases: Sequence[CaseResult], workers: str, figure: str, title: str) -> Plot | None:
    series = Series.over("measured, best depth", _best(cases, workers, figure), workers, figure)
    if len(series.x) < 2:
        return None
    every = [(x, value) for x, one in zip(series.x, series.figures, strict=True) for value in one.values.values()]
    fit = fit_scaling([x for x, _ in every], [value for _, value in every])

    def draw() -> tuple[Canvas, str]:
        drawing, (panel,) = canvas()
        line(panel, series, 0)
        if fit is not None:
            _draw_fit(panel, fit)
        _ideal(panel, series)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        _axes(panel, workers, f"{figure.removesuffix('_per_s')}/s")
        panel.set_ylim(bottom=0)
        first, last = series.figures[0], series.figures[-1]
        times = last.value / first.value
        sentence = (
            f"{workers.capitalize()} from {series.x[0]:g} to {series.x[-1]:g} change the throughput {times:.2f} times,"
            f" from {shown(first.value)} to {shown(last.value)} {figure.removesuffix('_per_s')}/s. "
        )
        return drawing, sentence + (fit.sentence(round(2 * series.x[-1])) if fit else _too_few(workers)) + "."

    return finish(draw, title)


def _too_few(workers: str) -> str:
    return f"Too few numbers of {workers} for a fit of the Universal Scalability Law, which needs three"


def _draw_fit(panel: Axes, fit: ScalingFit) -> None:
    within = np.linspace(1, fit.measured_max, 60)
    beyond = np.linspace(fit.measured_max, 2 * fit.measured_max, 60)
    panel.plot(within, [fit.at(x) for x in within], color=COLOURS[1], linewidth=1.4, label="USL fit")
    panel.plot(
        beyond, [fit.at(x) for x in beyond], color=COLOURS[1], linewidth=1.4, linestyle=":", label="extrapolated"
    )


def _ideal(panel: Axes, series: Series) -> None:
    slope = series.figures[0].value / series.x[0]
    panel.plot([0, series.x[-1]], [0, slope * series.x[-1]], color=MUTED, linewidth=1, linestyle="--", label="linear")


def _depth(cases: Sequence[CaseResult], workers: str, figure: str, title: str) -> Plot | None:
    numbers = sorted({int(case.parameters[workers]) for case in cases if case.parameters.get(workers)})
    of_each = [
        Series.over(
            counted(number, workers[:-1]),
            [case for case in cases if case.parameters.get(workers) == number],
            "depth",
            figure,
        )
        for number in numbers
    ]
    drawn = [series for series in of_each if len(series.x) > 1]
    if not drawn:
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, (panel,) = canvas()
        for number, series in enumerate(drawn):
            line(panel, series, number)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        thousands(panel, "x")
        _axes(panel, "in flight", f"{figure.removesuffix('_per_s')}/s")
        one = drawn[0]
        low, high = one.figures[0].value, max(one.figures, key=lambda point: point.value).value
        depth = one.x[[point.value for point in one.figures].index(high)]
        sentence = (
            f"With {one.label}, {shown(low)}/s at {one.x[0]:g} in flight become {shown(high)}/s at {depth:g}:"
            f" {high / low:.1f} times as many."
        )
        return drawing, sentence

    return finish(draw, title)


def _mixes(cases: Sequence[CaseResult]) -> Plot | None:
    """Keys and placement, at the partitions and depth where most kinds of them were measured."""
    settings: dict[tuple[object, object], list[CaseResult]] = {}
    for case in cases:
        settings.setdefault((case.parameters.get("partitions"), case.parameters.get("depth")), []).append(case)
    if not settings:
        return None
    (partitions, depth), same = max(settings.items(), key=lambda one: len(one[1]))
    rows = [
        (f"{case.parameters.get('keys')} keys, {case.parameters.get('placement')}", case.figures[WRITE_FIGURE])
        for case in same
        if WRITE_FIGURE in case.figures
    ]
    if len(rows) < 2:
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, (panel,) = canvas(height=0.9 + 0.5 * len(rows))
        ordered = sorted(rows, key=lambda row: -row[1].value)
        bars(panel, ordered)
        panel.set_xlabel("commands/s")
        (fast, most), (slow, least) = ordered[0], ordered[-1]
        sentence = (
            f"At {counted(int(str(partitions)), 'partition')} and {depth} in flight: {fast} reach"
            f" {shown(most.value)} commands/s, {slow} {shown(least.value)}, {least.value / most.value:.2f} of that."
        )
        return drawing, sentence

    return finish(draw, "Writes by keys and placement")


def _axes(panel: Axes, x: str, y: str) -> None:
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    thousands(panel)
    panel.legend()
