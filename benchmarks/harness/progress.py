"""The bar of a screen: what goes on now, and how much of it is done. On a terminal only."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn


class ProgressScreen:
    """A console with a bar below what is printed."""

    def __init__(self, console: Console, total: int | None, last: ProgressColumn, **fields: Any) -> None:
        """`last`: the column behind the counts."""
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), last)
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("starting", total=total, **fields)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()
