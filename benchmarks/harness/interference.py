"""The interference matrix: what load on one side does to the other, cell by cell.

Rule kept here: a cell is compared with the same load while the other side is idle, never with the best of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["LEVELS", "relative", "worst"]

LEVELS: Final = ("idle", "half", "saturated")
"""Of load, in order."""

Cells = Mapping[tuple[str, str], float]
"""(own load, the other side's load) -> what was measured."""


def relative(cells: Cells) -> dict[tuple[str, str], float]:
    """Each cell as a multiple of the one with the same own load and the other side idle; without that, no cell."""
    found: dict[tuple[str, str], float] = {}
    for (own, other), value in cells.items():
        alone = cells.get((own, "idle"))
        if alone:
            found[own, other] = value / alone
    return found


def worst(multiples: Cells, *, lower_is_worse: bool) -> tuple[tuple[str, str], float] | None:
    """The cell that suffers most among those in which the other side is not idle."""
    disturbed = [(cell, value) for cell, value in multiples.items() if cell[1] != "idle"]
    if not disturbed:
        return None
    return (min if lower_is_worse else max)(disturbed, key=lambda one: one[1])
