"""Garbage: how often a process of Rayfold's searches for cycles. Python's default searches after every 700 new objects,
and now and then through everything that is alive: through thousands of resident aggregates, a whole read model, or Ray
and all else that a program has imported, for the sake of batches of tuples that hold no cycles. It cost a fifth of the
reads, and pauses of 104 ms in a driver (docs/decisions/0007-fewer-looks-for-garbage.md).

So what is alive when a runtime starts is left out of every look, and looks are fewer. Cycles are still found.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final

__all__ = ["tune_gc"]

_THRESHOLDS: Final = (50_000, 20, 100)
"""New objects between two collections of the youngest: some batches. Bounds what a program's cycles may take to some
MB."""


def tune_gc() -> Callable[[], None]:
    """Look less often, unless this program has chosen for itself (frozen objects, its own or no thresholds). Returns
    what puts everything back as it was."""
    thresholds = gc.get_threshold()
    if gc.get_freeze_count() or not gc.isenabled() or thresholds[1:] != (10, 10):
        return lambda: None
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)

    def put_back() -> None:
        if gc.get_threshold() == _THRESHOLDS:
            gc.set_threshold(*thresholds)
            gc.unfreeze()

    return put_back
