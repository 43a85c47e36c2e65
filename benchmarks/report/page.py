"""The page: a run as one HTML file that needs nothing beside it, and the raw JSON next to it.

Top down: the machine, what is wrong with the run, the goals, the plots by subject, every figure.

Rule kept here: nothing is drawn or written that is not in the results, and everything in them can be read on the page;
what comes from the results is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from ..harness.marks import MEANING
from ..harness.numbers import shown, shown_interval
from ..harness.results import CaseResult, FigureResult, GoalResult, Run, save_run
from .drawing import Plot, styled
from .plots import SECTIONS

PAGE: Final = "report.html"
RAW: Final = "results.json"
STYLE: Final = Path(__file__).with_name("page.css")
"""Light and dark by the reader's own setting, no font or picture from elsewhere."""
VIOLATIONS_SHOWN: Final = 20
"""Of one case; the JSON beside the page has all."""


def write_report(run: Run, directory: Path) -> Path:
    """Write page and JSON into the directory, which is made if it is not there. Returns the page."""
    directory.mkdir(parents=True, exist_ok=True)
    save_run(run, directory / RAW)
    page = directory / PAGE
    page.write_text(render(run), encoding="utf-8")
    return page


def render(run: Run) -> str:
    """The page as text."""
    with styled():
        sections = [(title, list(plots(run))) for title, plots in SECTIONS.items()]
    body = [
        _top(run),
        _card(run.machine, run),
        _warnings(run),
        _goals(run.goals, profiled=any(case.suite == "profile" and case.figures for case in run.cases)),
        *(_plots(title, plots) for title, plots in sections if plots),
        _figures(run),
        _foot(run),
    ]
    title = f"Rayfold benchmarks: {run.machine.get('cpu', '')}, {run.machine.get('cores', '')} cores"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{STYLE.read_text(encoding='utf-8')}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _top(run: Run) -> str:
    what = ", ".join(run.suites)
    seconds = run.options.get("seconds", "?")
    sizes = ", quick sizes" if run.options.get("quick") else ""
    return (
        f'<h1>Rayfold benchmarks</h1><p class="lead">{escape(what)} · {run.rounds} interleaved rounds, {seconds} s'
        f" a timed part{sizes} · {escape(run.started_at)}. Figures are medians over the rounds,"
        " intervals from order statistics; a hollow point or bar carries a mark.</p>"
    )


def _card(machine: Mapping[str, Any], run: Run) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine.get("packages", {}).items())
    commit = str(machine.get("commit", "unknown"))[:12] + (" with changes" if machine.get("dirty") else "")
    generator = ", ".join(f"{shown(value)} {_unit(name)}" for name, value in run.generator.items())
    rows = {
        "CPU": f"{machine.get('cpu')}, {machine.get('cores')} of {machine.get('cores_of_machine')} cores",
        "Memory": f"{machine.get('memory_gib')} GiB",
        "File system of the data": machine.get("filesystem"),
        "fsync": machine.get("fsync"),
        "System": f"{machine.get('kernel')}, governor {machine.get('governor')}",
        "Software": f"{machine.get('python')}, rayfold {machine.get('rayfold')} ({commit}), {packages}",
        "Load generator alone": generator or "not measured",
        "Machine meanwhile": _weather(run),
    }
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in rows.items())
    return f'<dl class="card">{cells}</dl>'


def _unit(figure: str) -> str:
    return figure.removesuffix("_per_s").replace("_", " ") + "/s"


def _weather(run: Run) -> str:
    """How busy the machine was, at worst and in the middle."""
    seen = [sample.conditions for case in run.cases for sample in case.samples if sample.conditions]
    if not seen:
        return "not watched"
    others, steal = (sorted(one.get(name, 0.0) for one in seen) for name in ("others", "steal"))
    half = len(seen) // 2
    return (
        f"other processes {others[half]:.0%} of the CPU (at most {others[-1]:.0%}),"
        f" steal {steal[half]:.1%} (at most {steal[-1]:.1%})"
    )


def _warnings(run: Run) -> str:
    parts = []
    lines = [
        f"<li><b>{escape(case.key)}</b>: {escape(line)}</li>"
        for case in run.broken
        for line in [*case.violations[:VIOLATIONS_SHOWN], *filter(None, [case.error])]
    ]
    if lines:
        parts.append(f'<div class="note broken"><b>No figure for these</b><ul>{"".join(lines)}</ul></div>')
    if not run.complete:
        parts.append('<div class="note"><b>Not complete.</b> Rounds are missing; what was measured is marked.</div>')
    used = sorted({mark for case in run.cases for figure in case.figures.values() for mark in figure.marks})
    if used:
        meanings = "".join(f"<li>{_mark(mark)} {escape(MEANING.get(mark, ''))}</li>" for mark in used)
        parts.append(f'<div class="note"><b>Marks in this run</b><ul>{meanings}</ul></div>')
    return f"<h2>Read this first</h2>{'<br>'.join(parts)}" if parts else ""


def _goals(goals: Sequence[GoalResult], *, profiled: bool) -> str:
    if all(goal.verdict == "not measured" for goal in goals):
        return ""
    rows = "".join(_goal(goal) for goal in goals)
    return (
        '<h2>Goals</h2><div class="scroll"><table><tr><th>goal</th><th class="n">bound</th><th class="n">measured</th>'
        f'<th class="n">interval</th><th>verdict</th><th>what bounds it</th></tr>{rows}</table></div>'
        + ("<p>Function by function: <b>Where the CPU time goes</b>, below.</p>" if profiled else "")
    )


def _goal(goal: GoalResult) -> str:
    kind = "absent" if goal.verdict == "not measured" else goal.verdict
    unsure = "" if goal.certain or goal.value is None else ", uncertain"
    value = "" if goal.value is None else shown(goal.value)
    interval = "" if goal.low is None or goal.high is None else shown_interval(goal.low, goal.high)
    return (
        f'<tr><td>{escape(goal.name)}</td><td class="n">{"≥" if goal.at_least else "≤"} {shown(goal.bound)}</td>'
        f'<td class="n">{value}</td><td class="n">{interval}</td><td class="{kind}">{goal.verdict}{unsure}</td>'
        f"<td>{escape(goal.bounded_by)} {_marks(goal.marks)}</td></tr>"
    )


def _plots(title: str, plots: Iterable[Plot]) -> str:
    figures = "".join(
        f"<figure><figcaption><h3>{escape(plot.title)}</h3>{escape(plot.sentence)}</figcaption>{plot.svg}</figure>"
        for plot in plots
    )
    return f'<h2>{escape(title)}</h2><div class="plots">{figures}</div>'


def _figures(run: Run) -> str:
    parts = []
    for suite in dict.fromkeys(case.suite for case in run.cases):
        rows = "".join(_case(case) for case in run.cases if case.suite == suite)
        parts.append(
            f'<details><summary>{escape(suite)}</summary><div class="scroll"><table><tr><th>measured</th>'
            '<th>figure</th><th class="n">median</th><th class="n">interval</th><th class="n">confidence</th>'
            f"<th>unit</th><th></th></tr>{rows}</table></div></details>"
        )
    return f"<h2>Every figure</h2>{''.join(parts)}"


def _case(case: CaseResult) -> str:
    name = escape(case.key.partition("/")[2])
    if not case.figures:
        skipped = f"skipped: {case.skipped}" if case.skipped else ""
        why = "broke an invariant" if case.violations else skipped or case.error or "not reached"
        return f'<tr><td>{name}</td><td class="why" colspan="6">{escape(why)}</td></tr>'
    rows = [_figure(figure_name, figure) for figure_name, figure in case.figures.items()]
    return "".join(f"<tr><td>{name if not place else ''}</td>{row}</tr>" for place, row in enumerate(rows))


def _figure(name: str, figure: FigureResult) -> str:
    return (
        f'<td>{escape(name)}</td><td class="n">{shown(figure.value)}</td>'
        f'<td class="n">{shown_interval(figure.low, figure.high)}</td><td class="n">{figure.confidence:.1%}</td>'
        f"<td>{escape(figure.unit)}</td><td>{_marks(figure.marks)}</td>"
    )


def _marks(marks: Iterable[str]) -> str:
    return " ".join(_mark(mark) for mark in marks)


def _mark(mark: str) -> str:
    return f'<span class="mark" title="{escape(MEANING.get(mark, ""))}">{escape(mark)}</span>'


def _foot(run: Run) -> str:
    return (
        f'<footer>Raw results, every round and every histogram: <a href="{RAW}">{RAW}</a> ({escape(run.schema_name)}).'
        " Set two of them against one another with <code>rayfold bench compare A.json B.json</code>.</footer>"
    )
