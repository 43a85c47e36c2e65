"""Plots of the profile: microseconds of CPU by function, for each role that takes part."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure as Canvas

from ..harness.numbers import shown
from ..harness.results import CaseResult, FigureResult, Run
from .drawing import Plot, bars, canvas, finish

__all__ = ["profile_plots"]

SHOWN_MAX = 10
"""Functions of one role."""


def profile_plots(run: Run) -> list[Plot]:
    """One for each role of each case."""
    plots = []
    for case in run.cases:
        if case.suite == "profile":
            plots += [_role(case, role, rows) for role, rows in _roles(case).items()]
    return plots


def _roles(case: CaseResult) -> dict[str, list[tuple[str, FigureResult]]]:
    """By role, its functions and what they took, the most first."""
    roles: dict[str, list[tuple[str, FigureResult]]] = {}
    for name, figure in case.figures.items():
        role, _, place = name.partition(": ")
        roles.setdefault(role, []).append((place, figure))
    return {role: sorted(rows, key=lambda row: -row[1].value) for role, rows in roles.items()}


def _role(case: CaseResult, role: str, rows: Sequence[tuple[str, FigureResult]]) -> Plot:
    unit = rows[0][1].unit
    each = unit.rpartition(" ")[2]
    whole = sum(figure.value for _, figure in rows)
    drawn = [row for row in rows if row[0] != "others"][:SHOWN_MAX]

    def draw() -> tuple[Canvas, str]:
        drawing, (panel,) = canvas(height=1.1 + 0.36 * len(drawn))
        bars(panel, drawn)
        panel.set_xlabel(f"microseconds of CPU a {each}")
        first, figure = drawn[0]
        sentence = (
            f"The {role} took {shown(whole)} µs of CPU a {each}, most of it in {first}: {shown(figure.value)} µs."
            " C extensions count for the function that called them."
        )
        return drawing, sentence

    setting = ", ".join(f"{name} {value}" for name, value in case.parameters.items())
    return finish(draw, f"{case.name.capitalize()}{f' at {setting}' if setting else ''}: {role}")
