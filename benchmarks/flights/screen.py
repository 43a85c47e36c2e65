"""The screen: how the demo shows what it is doing. What it came to is in `tables`."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

from .outage import Outage
from .progress_watchdog import Loss
from .run import Watcher

_WHOSE: Final = {"airport": "an airport", "partition": "a partition"}

_STRIDE: Final = 256
"""Steps between two updates of the bar, each of which costs as much as packing a command."""


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f}/s", style="cyan")


class Screen(Watcher):
    """Everything the demo prints while it runs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._moving: Status | Progress | None = None
        self._task: TaskID | None = None
        self._shown = 0
        self._what = ""

    def waiting_for(self, what: str) -> None:
        self.rest()
        self._moving = self.console.status(what)
        self._begin(what)

    def measuring(self, what: str, total: int) -> None:
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
        self.measuring("sending commands", commands)

    def answered(self, commands: int) -> None:
        self.done(commands)

    def killed(self, outage: Outage) -> None:
        where = f"{outage.name} (process {outage.pid}) after {outage.after_commands:,} commands"
        self.console.print(f"[bold red]kill -9[/]    {where}")

    def recovered(self, outage: Outage) -> None:
        seconds = f"{outage.recovered_s:.2f} s"
        self.console.print(f"[bold green]recovered[/]  {outage.name}: a new command acknowledged after {seconds}")

    def spared(self, what: str) -> None:
        self.console.print(f"[bold]not killed[/] the process of {_WHOSE[what]}: it is on another machine, or may be")

    def lost(self, loss: Loss) -> None:
        since = f"{datetime.now():%H:%M:%S}"
        verb = "is" if len(loss.partitions) == 1 else "are"
        what = f"node {loss.node} at {loss.address}, since {since}: {loss.home_of} {verb} unavailable, the others go on"
        self.console.print(f"[bold red]gone[/]       {what}", soft_wrap=True)
        self.console.print("           the flights wait for it, in their order: start it again", soft_wrap=True)
        self._describe(f"waiting for node {loss.node} since {since}")

    def back(self, loss: Loss) -> None:
        when = f"{loss.back_after_s or 0:.1f} s after it was missed"
        self.console.print(f"[bold green]back[/]       node {loss.node}, {when}")
        self._describe(self._what)

    def _describe(self, what: str) -> None:
        """What the thing that moves is called."""
        if isinstance(self._moving, Progress) and self._task is not None:
            self._moving.update(self._task, description=what)
        elif isinstance(self._moving, Status):
            self._moving.update(what)

    def _begin(self, what: str) -> None:
        """Move on a terminal; in a file print once what is going on."""
        self._what = what
        if not self.console.is_terminal:
            self.console.print(what)
        elif self._moving is not None:
            self._moving.start()
