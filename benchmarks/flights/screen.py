"""The screen: how the demo tells what it is doing. What it came to is in `tables`."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

from .outage import Outage

__all__ = ["Screen"]

_STRIDE: Final = 256
"""Steps between two updates of the bar, each of which costs as much as packing a command."""


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f}/s", style="cyan")


class Screen:
    """Everything the demo prints while it runs. It is the `Watcher` of a replay."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._moving: Status | Progress | None = None
        self._task: TaskID | None = None
        self._shown = 0

    def waiting_for(self, what: str) -> None:
        """Something without a measure has begun."""
        self.rest()
        self._moving = self.console.status(what)
        self._begin(what)

    def measuring(self, what: str, total: int) -> None:
        """Something of a known size has begun."""
        self.rest()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=32))
        counts = (TextColumn("{task.completed:,.0f} of {task.total:,.0f}"), _Rate(), TimeRemainingColumn())
        progress = Progress(
            *columns,
            *counts,
            console=self.console,
            transient=True,
            speed_estimate_period=10,
            disable=not self.console.is_terminal,
        )
        self._task, self._shown = progress.add_task(what, total=total), 0
        self._moving = progress
        self._begin(what)

    def done(self, completed: int, total: int | None = None) -> None:
        """So much of it is done; and, if that was not known before, of so much."""
        if completed < self._shown + _STRIDE and completed != total:
            return
        self._shown = completed
        if isinstance(self._moving, Progress) and self._task is not None:
            self._moving.update(self._task, completed=completed, total=total)

    def rest(self) -> None:
        """Nothing moves any more."""
        moving, self._moving = self._moving, None
        if moving is not None:
            moving.stop()

    def sending(self, commands: int) -> None:
        """The commands are being sent now."""
        self.measuring("sending commands", commands)

    def answered(self, commands: int) -> None:
        """So many commands have their answer."""
        self.done(commands)

    def killed(self, outage: Outage) -> None:
        """A process was killed."""
        where = f"{outage.name} (process {outage.pid}) after {outage.after_commands:,} commands"
        self.console.print(f"[bold red]kill -9[/]    {where}")

    def recovered(self, outage: Outage) -> None:
        """Its work was acknowledged again."""
        seconds = f"{outage.recovered_s:.2f} s"
        self.console.print(f"[bold green]recovered[/]  {outage.name}: a new command acknowledged after {seconds}")

    def _begin(self, what: str) -> None:
        """Move on a terminal; in a file say once what is going on."""
        if not self.console.is_terminal:
            self.console.print(what)
        elif self._moving is not None:
            self._moving.start()
