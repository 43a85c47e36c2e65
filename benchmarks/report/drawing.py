"""Drawing: plots as inline SVG that follow the page into light and dark.

Colours are drawn as fixed stand-ins and then replaced by CSS variables of the page, so that one plot serves both. Text
stays text, in the page's font.

Rule kept here: a figure that carries a mark is drawn hollow, everywhere.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from ..harness.numbers import shown
from ..harness.results import CaseResult, FigureResult

INK: Final = "#010203"
MUTED: Final = "#010204"
GRID: Final = "#010205"
PAPER: Final = "#010206"
COLOURS: Final = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")

VARIABLES: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{colour: f"var(--c{number + 1})" for number, colour in enumerate(COLOURS)},
}

STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rayfold",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.5,
}


def styled() -> AbstractContextManager[None]:
    """The block in which everything is drawn."""
    return mpl.rc_context(STYLE)


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot as it goes into the page."""

    title: str
    sentence: str
    """What it shows, computed from the data."""
    svg: str


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one line, each a figure with its interval."""

    label: str
    x: list[float]
    figures: list[FigureResult]

    @classmethod
    def over(cls, label: str, cases: Sequence[CaseResult], parameter: str, figure: str) -> Series:
        """A figure of cases against one of their parameters, in order; cases without the figure are left out."""
        found = [
            (float(case.parameters[parameter]), case.figures[figure])
            for case in cases
            if figure in case.figures and isinstance(case.parameters.get(parameter), int | float)
        ]
        found.sort(key=lambda point: point[0])
        return cls(label, [x for x, _ in found], [one for _, one in found])


def canvas(width: float = 7.4, height: float = 3.9, columns: int = 1, rows: int = 1) -> tuple[Canvas, list[Axes]]:
    """An empty drawing, and its panels row by row."""
    drawing = Canvas(figsize=(width, height), layout="constrained")
    panels = drawing.subplots(rows, columns, squeeze=False)
    return drawing, [panel for row in panels for panel in row]


def plot(drawing: Canvas, title: str, sentence: str) -> Plot:
    """What was drawn, as SVG."""
    drawing.patch.set_alpha(0.0)
    for panel in drawing.axes:
        panel.patch.set_alpha(0.0)
    text = io.StringIO()
    drawing.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for size in ("height", "width"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return Plot(title, sentence, svg)


def line(panel: Axes, series: Series, number: int) -> None:
    """A line with intervals; marked points hollow."""
    colour, values = COLOURS[number % len(COLOURS)], [figure.value for figure in series.figures]
    below, above = zip(*map(_spread, series.figures), strict=True) if values else ((), ())
    panel.errorbar(
        series.x,
        values,
        yerr=[below, above],
        color=colour,
        linestyle="-",
        label=series.label,
        capsize=3,
        elinewidth=1.3,
    )
    for x, figure in zip(series.x, series.figures, strict=True):
        panel.plot([x], [figure.value], "o", color=colour, markerfacecolor=PAPER if figure.marks else colour)


def _spread(figure: FigureResult) -> tuple[float, float]:
    """How far its interval reaches below and above the median."""
    return max(figure.value - figure.low, 0.0), max(figure.high - figure.value, 0.0)


def bars(panel: Axes, rows: Sequence[tuple[str, FigureResult]], *, own: str = "", logarithmic: bool = False) -> None:
    """Horizontal bars from the top down, each with its value; ours (labels that begin with `own`) in our colour.

    On a logarithmic axis they are points: a bar would begin at an arbitrary place and its length would mean nothing.
    """
    for place, (label, figure) in enumerate(rows):
        colour = COLOURS[0] if not own or label.startswith(own) else COLOURS[3]
        fill = PAPER if figure.marks else colour
        if logarithmic:
            panel.plot([figure.value], [place], "o", markersize=10, color=colour, markerfacecolor=fill)
        else:
            panel.barh([place], [figure.value], height=0.62, color=fill, edgecolor=colour, linewidth=1.4)
        below, above = _spread(figure)
        panel.errorbar(
            [figure.value], [place], xerr=[[below], [above]], color=INK, capsize=3, elinewidth=1.2, linestyle=""
        )
        text, beside = shown(figure.value), (figure.high, place)
        panel.annotate(text, beside, xytext=(9, 0), textcoords="offset points", va="center", color=INK)
    panel.set_yticks(range(len(rows)), [label for label, _ in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.grid(visible=logarithmic, axis="y")
    if logarithmic:
        panel.set_xscale("log")
    panel.margins(x=0.2)
    thousands(panel, "x")


def heat(
    panel: Axes, cells: dict[tuple[str, str], float], rows: Sequence[str], columns: Sequence[str], form: str
) -> None:
    """A table of cells, the higher the stronger its colour; `form` formats a value (`{:.2f}×`)."""
    top = max(cells.values(), default=1.0) or 1.0
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            value = cells.get((row, column))
            if value is None:
                panel.text(x, y, "–", ha="center", va="center", color=MUTED)
                continue
            strength = 0.08 + 0.62 * value / top
            panel.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=COLOURS[0], alpha=strength, lw=0))
            panel.text(x, y, form.format(value) if "{" in form else shown(value), ha="center", va="center", color=INK)
    panel.set_xlim(-0.5, len(columns) - 0.5)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(rows)), rows)
    panel.grid(visible=False)
    panel.tick_params(length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)


def axes(panel: Axes, x: str = "", y: str = "", *, legend: bool = True, log: str = "", base: float = 10) -> None:
    """What stands at the axes; with a legend, numbers on the y-axis are in full. `log`: `x`, `y` or both are
    logarithmic, the x-axis to this base."""
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    if "x" in log:
        panel.set_xscale("log", base=base)
        thousands(panel, "x")
    if "y" in log:
        panel.set_yscale("log")
    if legend:
        thousands(panel)
        panel.legend()


def magnitudes(panel: Axes) -> None:
    """Numbers on the x-axis in short, where they grow over decades: `100k`, `10M`."""

    def short(value: float, _: int | None) -> str:
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:g}{letter}"
        return f"{value:g}"

    panel.xaxis.set_major_formatter(FuncFormatter(short))
    panel.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def thousands(panel: Axes, axis: str = "y") -> None:
    """Numbers on an axis as people read them."""
    which = panel.xaxis if axis == "x" else panel.yaxis
    which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if value >= 0 else ""))
    which.set_minor_formatter(FuncFormatter(lambda *_: ""))
