"""Garbage: how often an actor's process looks for cycles.

Python's default looks after every 700 new objects, and now and then through everything that is alive: through thousands
of resident aggregates or a whole read model, for the sake of batches of tuples that hold no cycles. In the write loop
that was 10 % of all CPU (29 against 26 us per command, batches of 1,024).
"""

from __future__ import annotations

import gc
from typing import Final

__all__ = ["look_less_often"]

_YOUNG_MAX: Final = 50_000
"""New objects between two looks at the youngest: some batches. Bounds what a user's cycles may take to some MB."""


def look_less_often() -> None:
    """Leave what is loaded by now out of every look, and look at the rest less often. Cycles are still found."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_MAX, 20, 100)
