"""Plots of time: percentile curves, latency against load, freshness, and growth with the size of the log."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ..harness.histogram import Latencies, merged
from ..harness.numbers import sentence, shown
from ..harness.results import CaseResult, Run
from .drawing import COLOURS, Plot, Series, canvas, finish, line, magnitudes, thousands

__all__ = ["time_plots"]

CURVE = (0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)
TICKS = (50, 90, 99, 99.9, 99.99)


def time_plots(run: Run) -> list[Plot]:
    """All of them that the run has points for."""
    loops = run.cases_of("latency", "open loop")
    plots = [
        _percentiles(loops),
        _against_load(loops),
        _freshness(run.cases_of("freshness", "visible")),
        _growth(run),
    ]
    return [plot for plot in plots if plot is not None]


def _operations(cases: Sequence[CaseResult]) -> list[str]:
    return list(dict.fromkeys(str(case.parameters.get("operation")) for case in cases))


def _percentiles(cases: Sequence[CaseResult]) -> Plot | None:
    curves: dict[str, list[tuple[float, Latencies]]] = {}
    for case in cases:
        texts = [text for sample in case.samples for text in sample.histograms.values()]
        if texts:
            found = curves.setdefault(str(case.parameters.get("operation")), [])
            found.append((float(case.parameters.get("load", 0)), merged(texts)))
    if not curves:
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, panels = canvas(width=7.4, height=3.6, columns=len(curves))
        told = []
        for panel, (operation, found) in zip(panels, curves.items(), strict=True):
            for number, (load, latencies) in enumerate(sorted(found, key=lambda one: one[0])):
                xs = [1 / (1 - percentile / 100) for percentile in CURVE]
                ys = [latencies.percentile_ms(percentile) for percentile in CURVE]
                panel.plot(xs, ys, color=COLOURS[number % len(COLOURS)], label=f"{load:.0%} load", linewidth=1.7)
            _percentile_axis(panel)
            panel.set_title(operation)
            panel.legend(fontsize=8.5)
            load, latencies = min(found, key=lambda one: abs(one[0] - 0.5))
            p50, p999 = latencies.percentile_ms(50), latencies.percentile_ms(99.9)
            told.append(
                f"{operation} takes {shown(p50)} ms at the median and {shown(p999)} ms at p99.9 ({load:.0%} load)"
            )
        panels[0].set_ylabel("ms, from the intended send time")
        return drawing, sentence(told, ", all rounds put together")

    return finish(draw, "Latency by percentile")


def _percentile_axis(panel: Axes) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks([1 / (1 - tick / 100) for tick in TICKS], [f"{tick:g}" for tick in TICKS])
    panel.minorticks_off()
    panel.set_xlabel("percentile")
    thousands(panel)


def _against_load(cases: Sequence[CaseResult]) -> Plot | None:
    operations = _operations(cases)
    of_each = {name: [case for case in cases if case.parameters.get("operation") == name] for name in operations}
    drawn = {name: group for name, group in of_each.items() if len(group) > 1}
    if not drawn:
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, panels = canvas(height=3.4, columns=len(drawn))
        told = []
        for panel, (operation, group) in zip(panels, drawn.items(), strict=True):
            for number, suffix in enumerate(("p50", "p99", "p999")):
                label = suffix.replace("p999", "p99.9")
                line(panel, Series.over(label, group, "load", f"latency_ms_{suffix}"), number)
            panel.set_yscale("log")
            panel.set_title(operation)
            panel.set_xlabel("share of saturation")
            thousands(panel)
            panel.legend(fontsize=8.5)
            tail = Series.over("", group, "load", "latency_ms_p99")
            if len(tail.x) > 1:
                (low, first), (high, last) = (tail.x[0], tail.figures[0]), (tail.x[-1], tail.figures[-1])
                ends = f"{shown(first.value)} ms at {low:.0%} to {shown(last.value)} ms at {high:.0%}"
                told.append(f"{operation}, p99: {ends} of saturation")
        panels[0].set_ylabel("ms, from the intended send time")
        return drawing, sentence(told)

    return finish(draw, "Latency against load")


def _freshness(cases: Sequence[CaseResult]) -> Plot | None:
    if not cases:
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, (panel,) = canvas(height=3.4)
        for number, suffix in enumerate(("p50", "p99", "max")):
            line(panel, Series.over(suffix, cases, "load", f"visible_ms_{suffix}"), number)
        panel.set_yscale("log")
        panel.set_xlabel("share of write saturation")
        panel.set_ylabel("ms from acknowledged to visible")
        thousands(panel)
        panel.legend()
        series = Series.over("", cases, "load", "visible_ms_p99")
        told = [f"{shown(one.value)} ms at {load:.0%}" for load, one in zip(series.x, series.figures, strict=True)]
        return drawing, f"99 of 100 acknowledged writes are visible to queries within {', '.join(told)} of saturation."

    return finish(draw, "Freshness")


GROWTH = (
    ("projection rebuild", "events", "events_per_s", "rebuild, events/s"),
    ("cold start", "events", "start_s", "cold start, s"),
    ("activation", "length", "latency_ms_p50", "activation, ms"),
)
"""Case, what grows, figure, title."""


def _growth(run: Run) -> Plot | None:
    drawn = [(run.cases_of("replay", name), by, figure, title) for name, by, figure, title in GROWTH]
    drawn = [one for one in drawn if len(Series.over("", *one[:3]).x) > 1]
    if not drawn:
        return None

    def draw() -> tuple[Canvas, str]:
        drawing, panels = canvas(height=3.4, columns=len(drawn))
        told = []
        for panel, (cases, by, figure, title) in zip(panels, drawn, strict=True):
            for number, (label, group) in enumerate(_by_snapshots(cases)):
                series = Series.over(label, group, by, figure)
                line(panel, series, number)
                if len(series.x) > 1:
                    told.append(_change(f"{title.partition(',')[0]}{f' {label}' if label else ''}", series, by))
                if label:
                    panel.legend(fontsize=8.5)
            panel.set_title(title)
            panel.set_xscale("log")
            panel.set_xticks(sorted({float(case.parameters[by]) for case in cases}))
            panel.set_ylim(bottom=0)
            panel.set_xlabel("events in the stream" if by == "length" else "events in the log")
            thousands(panel)
            magnitudes(panel)
        return drawing, sentence(told)

    return finish(draw, "Growth with the log")


def _by_snapshots(cases: Sequence[CaseResult]) -> list[tuple[str, list[CaseResult]]]:
    kinds = {False: "without snapshots", True: "with snapshots"}
    groups = [(label, [c for c in cases if c.parameters.get("snapshots") is kind]) for kind, label in kinds.items()]
    return [group for group in groups if group[1]] or [("", list(cases))]


def _change(what: str, series: Series, by: str) -> str:
    times = series.figures[-1].value / series.figures[0].value if series.figures[0].value else 0.0
    grown = "stream" if by == "length" else "log"
    return f"{what} is {times:.2f} times as much for a {grown} {series.x[-1] / series.x[0]:,.0f} times as long"
