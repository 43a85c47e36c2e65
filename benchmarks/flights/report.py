"""The report: what a run of the demo came to, as tables for people and as JSON."""

from __future__ import annotations

import os
import platform
from calendar import month_name
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

from rich import box
from rich.columns import Columns
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .compensation import PAYMENTS_MAX, ClaimFigures
from .figures import WORST, AircraftFigures, CarrierFigures, DelayFigures, HourFigures, RouteFigures
from .outage import Outage
from .progress_watchdog import Loss
from .run import Replay
from .verification import Check, LogFacts

_FSYNC: Final = "LMDB sync=True metasync=True writemap=False: every batch is fsynced before it is acknowledged"


@dataclass(frozen=True, slots=True)
class Report:
    """One run, and what its verification has found."""

    flights: int
    partitions: int
    run: Replay
    facts: LogFacts
    checks: list[Check]
    verify_s: float
    size_bytes: int | None
    """Of the logs on disk, if that is this machine's."""
    filesystem: str
    """The kind of file system that holds them."""

    @property
    def verified(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def commands_per_s(self) -> float:
        """Answers a second, the outages included."""
        return self.run.ledger.told / self.run.seconds if self.run.seconds else 0.0

    @property
    def recovered_s(self) -> float | None:
        """The longest outage; none if nothing was killed."""
        times = [outage.recovered_s for outage in self.run.killer.outages if outage.recovered_s is not None]
        return max(times, default=None)

    def as_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        run, ledger = self.run, self.run.ledger
        return {
            "flights": self.flights,
            "commands": ledger.told,
            "accepted": ledger.accepted,
            "repeated": ledger.repeated,
            "rejected": len(ledger.rejected),
            "rejected_by_reason": ledger.rejected_by_reason,
            "events": self.facts.events,
            "events_before": self.facts.before,
            "duplicates": self.facts.duplicates,
            "streams": self.facts.streams,
            "signatures": self.facts.signatures,
            "claims": self.facts.claims,
            "claims_paid": sum(row.paid for row in run.rows["Claims"]),
            "claims_owed": sum(row.owed for row in run.rows["Claims"]),
            "settled_s": round(run.settled_s, 3),
            "log_bytes": self.size_bytes,
            "start_s": round(run.start_s, 3),
            "seconds": round(run.seconds, 3),
            "visible_s": round(run.visible_s, 3),
            "verify_s": round(self.verify_s, 3),
            "commands_per_s": round(self.commands_per_s, 1),
            "killed": [_killed(outage) for outage in run.killer.outages],
            "recovered_s": _rounded(self.recovered_s),
            "lost": [_lost(loss) for loss in run.losses],
            "verified": self.verified,
            "checks": [{"name": one.name, "passed": one.passed, "problems": one.problems} for one in self.checks],
            "partitions": self.partitions,
            "nodes": run.nodes,
            "machine": _machine(self.filesystem),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _killed(outage: Outage) -> dict[str, Any]:
    return {
        "what": outage.what,
        "name": outage.name,
        "pid": outage.pid,
        "after_commands": outage.after_commands,
        "recovered_s": _rounded(outage.recovered_s),
    }


def _lost(loss: Loss) -> dict[str, Any]:
    return {"node": loss.node, "partitions": loss.partitions, "back_after_s": _rounded(loss.back_after_s)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _machine(filesystem: str) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "ray": version("ray"),
        "lmdb": version("lmdb"),
        "filesystem": filesystem,
        "fsync": _FSYNC,
    }


_TOP: Final = 8
"""Rows of the tables that could have thousands."""

_EARTH_MILES: Final = 24_901
"""Around the equator."""

_MEANING: Final = {
    "still_in_the_air": "took off again, without a record that it landed",
    "not_back_yet": "landed far away, cannot be back so soon",
    "did_not_take_off": "landed from a flight it never took off with",
    "left_too_early": "left over 20 minutes early, without its passengers",
    "faster_than_airliners": "was faster than 640 mph",
    "time_ran_backwards": "refused before, asked again when more was known",
}

_HEAT: Final = ((4, "on #1b5e20"), (9, "on #33691e"), (14, "on #827717"), (20, "on #e65100"))
"""Up to how many minutes late, on average, an hour has which colour."""
_HOTTEST: Final = "on #b71c1c"


def as_tables(report: Report, carriers: Mapping[str, str]) -> Iterator[RenderableType]:
    """Everything there is to see, from top to bottom. `carriers` are their full names."""
    yield _punctuality(report.run.rows["Punctuality"], carriers)
    yield _hours(report.run.rows["AirportHours"])
    yield Columns([_routes(report.run.rows["Routes"]), _aircraft(report.run.rows["Distances"])], padding=(0, 3))
    yield _worst(report.run.rows[WORST], carriers)
    yield _claims(report.run.rows["Claims"], carriers)
    yield _refusals(report.run.ledger.rejected_by_reason, report.run.ledger.told)
    yield _run(report)
    yield _checks(report)


def verdict(report: Report) -> str:
    """The last line."""
    if report.verified:
        return "[bold green]verified[/]: every figure is that of the table, nothing is lost, nothing is there twice"
    wrong = sum(not check.passed for check in report.checks)
    return f"[bold red]not verified[/]: {wrong} of {len(report.checks)} checks failed"


def day_in_words(month: int, day: int) -> str:
    """As in `1 January`."""
    return f"{day} {month_name[month]}"


def _table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are figures."""
    table = Table(
        title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left", title_style="bold"
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _punctuality(rows: Sequence[CarrierFigures], carriers: Mapping[str, str]) -> Table:
    title = "Punctuality by carrier, delays in minutes (15 and more is late)"
    table = _table(title, "carrier", "left", "cancelled", "left late", "delay", "on time", "delay")
    for row in sorted(rows, key=lambda row: _share(row.landed_late, row.landed)):
        table.add_row(
            escape(carriers.get(row.carrier, row.carrier)),
            f"{row.departed:,}",
            f"{_share(row.cancelled, row.departed + row.cancelled):.1%}",
            f"{_share(row.departed_late, row.departed):.0%}",
            f"{_share(row.departure_late_min, row.departed):+.1f}",
            _bar(1 - _share(row.landed_late, row.landed)),
            f"{_share(row.arrival_late_min, row.landed):+.1f}",
        )
    return table


def _bar(share: float) -> Text:
    """A share as a bar of ten."""
    full = round(share * 10)
    style = "green" if share >= 0.8 else "yellow" if share >= 0.7 else "red"
    return Text.assemble(f"{share:.0%} ", ("━" * full, style), ("━" * (10 - full), "grey23"))


def _hours(rows: Sequence[HourFigures]) -> Table:
    """Each airport as a strip of hours, coloured by how late they leave."""
    hours = sorted({row.hour for row in rows if row.departed})
    title = "Minutes late at departure, by airport and hour of the schedule"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=0)
    table.add_column("")
    for hour in hours:
        table.add_column(f"{hour:>3} ", justify="right")
    by_place = {(row.airport, row.hour): row for row in rows}
    for airport in sorted({row.airport for row in rows}):
        cells = (_heat(by_place.get((airport, hour))) for hour in hours)
        table.add_row(f"{airport} ", *cells)
    return table


def _heat(row: HourFigures | None) -> Text:
    if row is None or not row.departed:
        return Text("   ·", style="grey42")
    late_min = row.departure_late_min / row.departed
    style = next((style for limit, style in _HEAT if late_min <= limit), _HOTTEST)
    return Text(f"{late_min:>3.0f} ", style=f"white {style}")


def _worst(rows: Sequence[DelayFigures], carriers: Mapping[str, str]) -> Table:
    """The worst delays, by SQL over all departures."""
    title = "Better not booked: most often over an hour late (SQL, in DuckDB)"
    table = _table(title, "flights of", "from", "at", "left", "over an hour late", "mean delay")
    for row in rows:
        table.add_row(
            escape(carriers.get(row.carrier, row.carrier)),
            row.airport,
            f"{row.hour}:00",
            f"{row.departed:,}",
            f"{_share(row.long, row.departed):.0%}",
            f"{_share(row.late_min, row.departed):+.0f} min",
        )
    return table


def _claims(rows: Sequence[ClaimFigures], carriers: Mapping[str, str]) -> Table:
    """What three hours late leads to, each claim by a process of its own."""
    title = f"Claims for landing three hours late; a fund pays {PAYMENTS_MAX} of them"
    table = _table(title, "against", "claims", "paid", "owed", "mean delay")
    for row in sorted(rows, key=lambda row: (-row.opened, row.carrier))[:_TOP]:
        name, mean = escape(carriers.get(row.carrier, row.carrier)), f"{_share(row.late_min, row.opened):+.0f} min"
        table.add_row(name, f"{row.opened:,}", f"{row.paid:,}", f"{row.owed:,}", mean)
    return table


def _routes(rows: Sequence[RouteFigures]) -> Table:
    table = _table("Busiest routes", "route", "landed", "mean", "fastest", "mph")
    for row in sorted(rows, key=lambda row: -row.landed)[:_TOP]:
        mph = _share(row.distance_miles * row.landed * 60, row.airborne_min)
        times = (f"{_share(row.airborne_min, row.landed):.0f} min", f"{row.fastest_min} min")
        table.add_row(f"{row.origin} - {row.destination}", f"{row.landed:,}", *times, f"{mph:.0f}")
    return table


def _aircraft(rows: Sequence[AircraftFigures]) -> Table:
    table = _table("Farthest travelled, out of New York", "aircraft", "flights", "miles", "around the earth")
    for row in sorted(rows, key=lambda row: (-row.distance_miles, row.aircraft))[:_TOP]:
        around = f"{row.distance_miles / _EARTH_MILES:.1f} times"
        table.add_row(escape(row.aircraft), f"{row.flights:,}", f"{row.distance_miles:,}", around)
    return table


def _refusals(by_reason: Mapping[str, int], commands: int) -> Table:
    table = _table(f"Refused: {sum(by_reason.values()):,} of {commands:,} commands", "reason", "times")
    table.add_column("the aircraft or flight")
    for reason, times in by_reason.items():
        table.add_row(reason, f"{times:,}", _MEANING.get(reason, ""))
    return table


def _run(report: Report) -> Table:
    ledger = report.run.ledger
    table = Table.grid(padding=(0, 2))
    table.title, table.title_style, table.title_justify = "The run", "bold", "left"
    accepted = f"{ledger.accepted:,} stored as {report.facts.events:,} events in {report.facts.streams:,} streams"
    table.add_row("accepted", accepted)
    if ledger.repeated:
        why = "by an earlier run" if report.facts.before else "when a killed process took the first answer with it"
        table.add_row("repeats", f"{ledger.repeated:,} of them were stored already, {why}")
    if report.facts.signatures:
        entries = "entry" if report.facts.signatures == 1 else "entries"
        table.add_row("visitors", f"besides, {report.facts.signatures:,} {entries} in the guest books")
    size = "" if report.size_bytes is None else f"{report.size_bytes / 1e6:,.0f} MB in "
    over = f" on {report.run.nodes} nodes" if report.run.nodes else ""
    table.add_row("log", f"{size}{report.partitions} partitions{over}, every batch fsynced")
    speed = f"[bold]{report.commands_per_s:,.0f} a second[/], outages included"
    table.add_row("commands", f"{ledger.told:,} in {report.run.seconds:.1f} s = {speed}")
    if report.facts.claims:
        settled = f"settled by as many processes, the last one {report.run.settled_s:.1f} s after the last answer"
        table.add_row("claims", f"{report.facts.claims:,} of passengers, {settled}")
    rest = f"read models up to date {report.run.visible_s:.1f} s later, verified in {report.verify_s:.1f} s"
    table.add_row("besides", f"start {report.run.start_s:.1f} s, {rest}")
    for outage in report.run.killer.outages:
        back = "not back before the end" if outage.recovered_s is None else f"back after {outage.recovered_s:.2f} s"
        table.add_row("killed", f"{outage.name}, process {outage.pid}: {back}")
    for loss in report.run.losses:
        back = "not back before the end" if loss.back_after_s is None else f"back after {loss.back_after_s:.1f} s"
        table.add_row("gone", f"node {loss.node}, home of {loss.home_of}: {back}")
    return table


def _checks(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    for check in report.checks:
        table.add_row("[green]✓[/]" if check.passed else "[bold red]✗[/]", check.name, f"[dim]{check.compared}[/]")
        for problem in check.problems:
            table.add_row("", "", f"[red]{escape(problem)}[/]")
        if (unseen := check.found - len(check.problems)) > 0:
            table.add_row("", "", f"[red]and {unseen:,} more[/]")
    return table


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
