"""The screen of `rayfold torture`: which scenario runs, what each came to, and at the end the invariants.

Rule kept here: everything that is needed to see a finding again is printed: the seed and the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import TimeElapsedColumn
from rich.table import Table

from ..harness.progress import ProgressScreen
from .contract import INVARIANTS, Scenario
from .runner import Outcome, Run, report

__all__ = ["Screen", "list_scenarios"]

_VIOLATIONS_SHOWN: Final = 10
"""Of one scenario; the JSON file has more."""

_COLOURS: Final = {
    "held": "green",
    "skipped": "yellow",
    "stopped": "yellow",
    "BROKEN": "bold red",
    "FAILED": "bold red",
}


class Screen(ProgressScreen):
    """A line for each scenario, and a bar meanwhile."""

    def __init__(self, console: Console, scenarios: Sequence[Scenario]) -> None:
        super().__init__(console, len(scenarios), TimeElapsedColumn())

    def begun(self, scenario: Scenario, seconds: float) -> None:
        """A scenario begins."""
        self._progress.update(self._task, description=f"{scenario.name} (about {seconds:.0f} s)")

    def ended(self, outcome: Outcome) -> None:
        """A scenario has ended: its verdict, its figures, and what is wrong."""
        findings, colour = outcome.findings, _COLOURS[outcome.verdict]
        self._progress.advance(self._task)
        checks = f"{sum(findings.checks.values()):,} checks, " if findings.checks else ""
        self.console.print(
            f"[{colour}]{outcome.verdict:8}[/] [bold]{outcome.scenario.name}[/]: {escape(outcome.scenario.title)}"
            f" ({checks}{outcome.seconds:.1f} s)",
            soft_wrap=True,
        )
        figures = "  ".join(f"{name} {_shown(value)}" for name, value in findings.figures.items())
        for line in filter(None, [figures, findings.skipped, outcome.error]):
            self.console.print(f"         {escape(line)}", soft_wrap=True)
        for violation in findings.violations[:_VIOLATIONS_SHOWN]:
            self.console.print(f"         [red]{violation.invariant}[/] {escape(violation.what)}", soft_wrap=True)
        more = len(findings.violations) - _VIOLATIONS_SHOWN + findings.unlisted
        if more > 0:
            self.console.print(f"         {more:,} more")

    def summary(self, run: Run) -> None:
        """The invariants over all scenarios, and how to see the same again."""
        table = Table(title="what was checked", title_justify="left")
        for column in ("", "checks", "broken", "must hold"):
            table.add_column(column, justify="right" if column in ("checks", "broken") else "left")
        told = report(run)
        for name, meaning in INVARIANTS.items():
            broken = sum(one.findings.broken.get(name, 0) for one in run.outcomes)
            checks = told["invariants"][name]["checks"]
            table.add_row(name, f"{checks:,}", f"[bold red]{broken}[/]" if broken else "0", meaning)
        self.console.print(table)
        verdicts = [one.verdict for one in run.outcomes]
        counts = ", ".join(f"{verdicts.count(name)} {name}" for name in _COLOURS if name in verdicts)
        ended = "interrupted: " if run.interrupted else ""
        self.console.print(f"{ended}{counts or 'nothing was run'}; {run.violations} violations; seed {run.seed}")
        for outcome in run.outcomes:
            if outcome.verdict in ("BROKEN", "FAILED"):
                self.console.print(f"again: rayfold torture --scenario {outcome.scenario.name} --seed {run.seed}")


def list_scenarios(console: Console, scenarios: Sequence[Scenario]) -> None:
    """What there is, and which invariants each is about."""
    table = Table()
    for column in ("scenario", "fault", "checks", "needs"):
        table.add_column(column)
    for one in scenarios:
        table.add_row(one.name, one.title, " ".join(one.invariants), ", ".join(one.needs))
    console.print(table)


def _shown(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int | float) else value
