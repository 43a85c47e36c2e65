"""The screen: how the demo shows what it is doing. What it came to is in `report.py`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from .outage import Outage
from .progress_watchdog import Loss

_WHOSE: Final = {"airport": "an airport", "partition": "a partition"}

_STRIDE: Final = 256
"""Steps between two updates of the bar, each of which costs as much as packing a command."""


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f}/s", style="cyan")


class Screen:
    """Everything the demo prints while it runs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._moving: Progress | None = None
        self._shown = 0
        self._what = ""

    def waiting_for(self, what: str) -> None:
        """Something without a measure has begun."""
        self._begin(what, None, SpinnerColumn(), TextColumn("{task.description}"))

    def measuring(self, what: str, total: int) -> None:
        """Something of a known size has begun."""
        counts = (TextColumn("{task.completed:,.0f} of {task.total:,.0f}"), _Rate(), TimeRemainingColumn())
        self._begin(what, total, TextColumn("{task.description}"), BarColumn(bar_width=32), *counts)

    def done(self, completed: int, total: int | None = None) -> None:
        """So much of it is done; and, if that was not known before, of so much."""
        if completed < self._shown + _STRIDE and completed != total:
            return
        self._shown = completed
        self._update(completed=completed, total=total)

    def rest(self) -> None:
        """Nothing moves any more."""
        moving, self._moving = self._moving, None
        if moving is not None:
            moving.stop()

    def sending(self, commands: int) -> None:
        """The commands are being sent now."""
        self.measuring("sending commands", commands)

    def answered(self, commands: int) -> None:
        """So many have their answer."""
        self.done(commands)

    def killed(self, outage: Outage) -> None:
        """A process was killed."""
        where = f"{outage.name} (process {outage.pid}) after {outage.after_commands:,} commands"
        self.console.print(f"[bold red]kill -9[/]    {where}")

    def recovered(self, outage: Outage) -> None:
        """Its work was acknowledged again."""
        seconds = f"{outage.recovered_s:.2f} s"
        self.console.print(f"[bold green]recovered[/]  {outage.name}: a new command acknowledged after {seconds}")

    def spared(self, what: str) -> None:
        """A process was not killed, because it is on another machine."""
        self.console.print(f"[bold]not killed[/] the process of {_WHOSE[what]}: it is on another machine, or may be")

    def lost(self, loss: Loss) -> None:
        """A node is gone, and something waits for it."""
        since = f"{datetime.now():%H:%M:%S}"
        verb = "is" if len(loss.partitions) == 1 else "are"
        what = f"node {loss.node} at {loss.address}, since {since}: {loss.home_of} {verb} unavailable, the others go on"
        self.console.print(f"[bold red]gone[/]       {what}", soft_wrap=True)
        self.console.print("           the flights wait for it, in their order: start it again", soft_wrap=True)
        self._update(description=f"waiting for node {loss.node} since {since}")

    def back(self, loss: Loss) -> None:
        """It is there again."""
        when = f"{loss.back_after_s or 0:.1f} s after it was missed"
        self.console.print(f"[bold green]back[/]       node {loss.node}, {when}")
        self._update(description=self._what)

    def _update(self, **changes: Any) -> None:
        if self._moving is not None:
            self._moving.update(self._moving.task_ids[0], **changes)

    def _begin(self, what: str, total: int | None, *columns: ProgressColumn) -> None:
        """Move on a terminal; in a file print once what is going on."""
        self.rest()
        self._what, self._shown = what, 0
        if not self.console.is_terminal:
            self.console.print(what)
            return
        self._moving = Progress(*columns, console=self.console, transient=True, speed_estimate_period=10)
        self._moving.add_task(what, total=total)
        self._moving.start()
