"""The screen: how a run shows what it is doing, and what it came to.

Rule kept here: the bar counts cases and shows the time that is left, from how long each case took before; where
there is no terminal there is a line per round instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import TextColumn
from rich.table import Table

from .compare import Comparison, Movement
from .contract import Case
from .marks import COMPUTED, MEANING
from .numbers import counted, shown, shown_interval, shown_s
from .progress import ProgressScreen
from .results import CaseResult, GoalResult, Run
from .rounds import Plan, Record
from .summary import generator_ceilings

VIOLATIONS_SHOWN: Final = 20
"""Of one case; the JSON file has all."""


class Screen(ProgressScreen):
    """Everything `rayfold bench` prints. It is the `Spectator` of a run."""

    def __init__(self, console: Console, plan: Plan | None = None) -> None:
        super().__init__(console, None, TextColumn("{task.fields[left]}"), left="")
        self._plan = plan
        self._round = -1

    def begun(self, case: Case, round_: int, left_s: float) -> None:
        """A case begins."""
        if round_ != self._round:
            self._round = round_
            if not self.console.is_terminal:
                self.console.print(f"round {round_ + 1} of {self._rounds}: about {shown_s(left_s)} left")
        what = f"round {round_ + 1} of {self._rounds}  {case.suite}: {case.name}"
        self._progress.update(self._task, description=what[:60], left=f"about {shown_s(left_s)} left")

    def ended(self, case: Case, done: int, total: int) -> None:
        """A case has ended."""
        self._progress.update(self._task, completed=done, total=total)

    def ceilings(self, record: Record) -> None:
        """The load generator's ceiling, before anything that it limits."""
        found = generator_ceilings(self._plan, record) if self._plan else {}
        for name, value in found.items():
            what = name.removesuffix("_per_s").replace("_", " ")
            self.console.print(f"load generator against a null system: {shown(value)} {what}/s")

    def machine(self, run: Run) -> None:
        """What it was measured on."""
        card = run.machine
        packages = ", ".join(f"{name} {version}" for name, version in card["packages"].items())
        commit = f"{card['commit'][:12]}{' with changes' if card['dirty'] else ''}"
        self.console.print()
        self.console.print(
            f"[bold]{escape(str(card['cpu']))}[/], {card['cores']} cores, {card['memory_gib']} GiB,"
            f" {escape(str(card['filesystem']))}, {escape(str(card['kernel']))}"
        )
        self.console.print(f"{card['python']}, rayfold {card['rayfold']} ({commit}), {packages}", soft_wrap=True)

    def results(self, run: Run) -> None:
        """All figures, the goals, what went wrong."""
        self.machine(run)
        for suite in dict.fromkeys(case.suite for case in run.cases):
            self.console.print(_figures(suite, [case for case in run.cases if case.suite == suite]))
        if any(goal.verdict != "not measured" for goal in run.goals):
            self.console.print(_goals(run.goals))
        self._marks(run)
        self._failures(run.broken)
        if not run.complete and not run.broken:
            self.console.print("[yellow]not complete:[/] some rounds are missing; what was measured is marked `short`")

    def prediction(self, run: Run) -> None:
        """What the model was made from, how far it is off where that can be checked, and what it predicts."""
        self.machine(run)
        computed = [case for case in run.cases if case.figures and COMPUTED in _marks_of(case)]
        by_name = {name: [case for case in computed if case.name == name] for name in ("demands", "check")}
        self.console.print(_demands(by_name["demands"]))
        self.console.print(_checks(by_name["check"]))
        self.console.print(_sizes([case for case in computed if case.name not in by_name]))
        self._failures(run.broken)

    def comparison(self, comparison: Comparison, names: tuple[str, str]) -> None:
        """What moved between two runs."""
        for line in comparison.differences:
            self.console.print(f"[yellow]not the same machine:[/] {escape(line)}", soft_wrap=True)
        if not comparison.differences:
            self.console.print("both runs are of the same machine")
        moved = [one for one in comparison.movements if one.verdict != "same"]
        if moved:
            self.console.print(f"[bold]moved beyond their intervals, {escape(names[0])} -> {escape(names[1])}[/]")
        for one in moved:
            self.console.print(_movement(one), soft_wrap=True)
        counts = {
            word: sum(one.verdict == word for one in comparison.movements) for word in ("better", "worse", "moved")
        }
        held = len(comparison.movements) - len(moved)
        self.console.print(
            f"{len(comparison.movements)} figures in both: {counts['better']} better, {counts['worse']} worse,"
            f" {counts['moved']} moved, {held} within their intervals"
        )
        if comparison.chance is not None:
            often = f"by chance alone, {comparison.chance:.1%} of unchanged figures would have moved"
            self.console.print(f"{often}; with more rounds it is fewer", soft_wrap=True)
        for what, keys in (
            ("only in the first", comparison.only_first),
            ("only in the second", comparison.only_second),
        ):
            if keys:
                self.console.print(f"{what}: {escape(', '.join(keys))}", soft_wrap=True)

    def _marks(self, run: Run) -> None:
        used = {mark for case in run.cases for figure in case.figures.values() for mark in figure.marks}
        for mark in sorted(used):
            self.console.print(f"[yellow]{mark}[/]: {MEANING.get(mark, '')}", soft_wrap=True)

    def _failures(self, broken: Sequence[CaseResult]) -> None:
        for case in broken:
            for line in [*case.violations[:VIOLATIONS_SHOWN], *filter(None, [case.error])]:
                self.console.print(f"[bold red]no figure:[/] {escape(f'{case.key}: {line}')}", soft_wrap=True)

    @property
    def _rounds(self) -> int:
        return self._plan.rounds if self._plan else 0


def _marks_of(case: CaseResult) -> set[str]:
    return {mark for figure in case.figures.values() for mark in figure.marks}


def _demands(cases: Iterable[CaseResult]) -> Table:
    table = Table("demand", "us", "from", title="demands", title_justify="left", title_style="bold")
    for case in cases:
        for name, figure in case.figures.items():
            demand = name.removesuffix("_us")
            table.add_row(demand.replace("_", " "), shown(figure.value), escape(str(case.samples[0].notes[demand])))
    return table


def _checks(cases: Iterable[CaseResult]) -> Table:
    table = Table("measured", title="checks", title_justify="left", title_style="bold")
    for column in ("model", "measured", "off by", "went in"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("bottleneck")
    table.add_column("marks")
    for case in cases:
        of, figure, went_in = (case.parameters[name] for name in ("of", "figure", "went in"))
        model, measured, error = (one.value for one in case.figures.values())
        values = (shown(model), shown(measured), f"{error:+.0%}", "yes" if went_in else "")
        notes = case.samples[0].notes
        table.add_row(escape(f"{of} {figure}"), *values, str(notes["bottleneck"]), str(notes["marks"]))
    return table


def _sizes(cases: Iterable[CaseResult]) -> Table:
    """A row for each kind and number of cores, a column for each number of nodes."""
    table = Table(
        "", "cores of each", title="computed, of all nodes together", title_justify="left", title_style="bold"
    )
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for case in cases:
        notes, nodes = case.samples[0].notes, counted(float(case.parameters["nodes"]), "node")
        rates = [f"{shown(one.value)} {one.unit}" for name, one in case.figures.items() if name.endswith("_per_s")]
        limit = f"[dim]{notes['bottleneck']}{', projectors fall behind' if notes['behind'] else ''}[/]"
        rows.setdefault((case.name, str(case.parameters["cores"])), {})[nodes] = "\n".join([*rates, limit])
    for nodes in dict.fromkeys(nodes for row in rows.values() for nodes in row):
        table.add_column(nodes, justify="right")
    for (kind, cores), row in rows.items():
        table.add_row(kind, cores, *row.values())
    return table


def _figures(suite: str, cases: Sequence[CaseResult]) -> Table:
    table = Table(title=suite, title_justify="left", title_style="bold")
    table.add_column("measured", overflow="fold")
    for column in ("median", "interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("marks")
    for case in cases:
        setting = ", ".join(f"{name} {value}" for name, value in case.parameters.items())
        table.add_row(f"[bold]{escape(case.name)}[/] {escape(setting)}")
        if not case.figures:
            table.add_row(f"  [dim]{escape(_absence(case))}[/]")
        for name, figure in case.figures.items():
            row = (shown(figure.value), shown_interval(figure.low, figure.high), " ".join(figure.marks))
            table.add_row(f"  {escape(name)}", *row)
    return table


def _absence(case: CaseResult) -> str:
    if case.violations:
        return f"no figure: {len(case.violations)} invariants broken"
    return f"skipped: {case.skipped}" if case.skipped else "no figure: failed" if case.error else "not reached"


def _goals(goals: Iterable[GoalResult]) -> Table:
    table = Table(title="goals", title_justify="left", title_style="bold")
    table.add_column("goal, and what bounds it", overflow="fold")
    for column in ("bound", "measured", "interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict")
    colours = {"met": "green", "missed": "red", "not measured": "dim"}
    for goal in goals:
        bound = f"{'≥' if goal.at_least else '≤'} {shown(goal.bound)}"
        value = "" if goal.value is None else shown(goal.value)
        interval = "" if goal.low is None or goal.high is None else shown_interval(goal.low, goal.high)
        unsure = "" if goal.certain or goal.value is None else ", uncertain"
        verdict = f"[{colours[goal.verdict]}]{goal.verdict}{unsure}[/]"
        bounded_by = f"\n  [dim]{escape(goal.bounded_by)}[/]" if goal.bounded_by else ""
        table.add_row(goal.name + bounded_by, bound, value, interval, verdict)
    return table


def _movement(one: Movement) -> str:
    """Two lines: which way and what; from where to where."""
    colour = {"better": "green", "worse": "red", "moved": "yellow"}[one.verdict]
    before, after = (f"{shown(side.value)} ({shown_interval(side.low, side.high)})" for side in (one.first, one.second))
    times = "" if one.factor is None else f", {shown(one.factor)} times"
    marks = f"  [yellow]{' '.join(one.marks)}[/]" if one.marks else ""
    return f"[{colour}]{one.verdict:>6}[/] {escape(one.name)}\n       {before} -> {after}{times}{marks}"
