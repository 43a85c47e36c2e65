"""The demo: the flights of a year through the whole runtime, two processes killed on the way, everything counted again.

What `rayfold demo` runs. The straight line is `_run`: read the table, replay it, verify it, show it. `_run_on` is the
same over the nodes of a cluster, which may be lost on the way as well.

Rule kept here: the demo uses only what every program can use, and it fails if anything is off by one.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.markup import escape

from rayfold import RayfoldError, Rejected
from rayfold.actors.cli.console import PrintableConsole
from rayfold.runtime.store.store import create_or_open_store
from rayfold.runtime.store.verify import verify_store

from ..harness.machine import filesystem_of
from .feed import Feed
from .oracle import expect
from .replay import APPLICATION, OnCluster, replay
from .report import Report, as_tables, day_in_words, verdict
from .run import Replay
from .screen import Screen
from .table import YEAR_FLIGHTS, TableMissing, carrier_names, read_flights
from .verification import check_answers, check_figures, check_log, check_store

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_FLIGHTS: Final = 100_000
"""What fits into about a minute on two cores, the start of Ray included."""

REPLICAS_MAX: Final = 4
"""Of the demo: with five read models that is twenty processes."""

PARTITIONS: Final = 2
"""Of a new store."""

MARK: Final = "demo.json"
"""In the store's directory: which flights were sent into it."""

VERIFIED, NOT_VERIFIED, REFUSED, INTERRUPTED = 0, 1, 2, 130


class DemoRefused(Exception):
    """The demo cannot run as it was asked to. Nothing was started."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What can be chosen. `run_demo` checks it."""

    directory: Path | None = None
    """The store, which is kept. None: a temporary one, removed at the end unless the verification failed."""
    flights: int | None = None
    """How many, from the first of January on."""
    all: bool = False
    """The whole year."""
    json: Path | None = None
    """Where to write the figures."""
    partitions: int | None = None
    """Of a new store; 2 if not chosen."""
    kill: bool = True
    """Whether to kill the process of an airport and that of a partition on the way."""
    replicas: int = 1
    """Of each read model that is about flights."""
    cluster: str | None = None
    """Where to run it, `auto` or `HOST:PORT`: the store is in the nodes' data folders then. None: on this machine."""


def run_demo(options: DemoOptions) -> int:
    """Run it. Returns the exit code: 0 verified, 1 not verified, 2 could not run, 130 interrupted."""
    screen = Screen(PrintableConsole(highlight=False))
    try:
        return _run(options, screen)
    except KeyboardInterrupt:
        screen.rest()
        where = options.directory or options.cluster and "its data is in the data folders of the nodes"
        _complain(f"stopped; the same command goes on where this one stopped: {where}" if where else "stopped")
        return INTERRUPTED
    except (DemoRefused, TableMissing, RayfoldError, OSError) as error:
        screen.rest()
        _complain(f"[bold red]error:[/] {escape(str(error))}")
        return REFUSED


def _run(options: DemoOptions, screen: Screen) -> int:
    count = _checked(options)
    screen.waiting_for("reading the table of flights")
    flights = read_flights(count)
    feed = Feed(flights)
    if options.cluster is not None:
        return _run_on(options.cluster, options, flights, feed, screen)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="rayfold-demo-"))
    keep = options.directory is not None
    try:
        _prepare(directory, count, options.partitions)
        _announce(flights, len(feed), f"stored in {directory} ({filesystem_of(directory)})", screen)
        run = asyncio.run(replay(directory, feed, screen, kill=options.kill, replicas=options.replicas))
        report = _verified(directory, flights, feed, run, screen)
        _show(report, options, screen)
        if keep := keep or not report.verified:
            screen.console.print(f"The store is kept; look again with: rayfold verify {escape(str(directory))}")
        return VERIFIED if report.verified else NOT_VERIFIED
    finally:
        screen.rest()
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def _run_on(address: str, options: DemoOptions, flights: pd.DataFrame, feed: Feed, screen: Screen) -> int:
    """Run it over the nodes of a cluster."""
    where = f"stored on the cluster {address}, as {APPLICATION} in the data folders of its nodes"
    _announce(flights, len(feed), where, screen)
    cluster = OnCluster(address, len(flights), options.partitions)
    path = Path(APPLICATION)
    try:
        run = asyncio.run(replay(path, feed, screen, kill=options.kill, replicas=options.replicas, cluster=cluster))
    except Rejected as refused:
        raise DemoRefused(_holds_more(f"the store {APPLICATION}", refused.facts["flights"], len(flights))) from None
    report = _verified(None, flights, feed, run, screen)
    _show(report, options, screen)
    screen.console.print("The store is kept in the data folders; the same command again adds nothing to it")
    return VERIFIED if report.verified else NOT_VERIFIED


def _checked(options: DemoOptions) -> int:
    """How many flights to take. Raises `DemoRefused` for what cannot be."""
    if options.all and options.flights is not None:
        raise DemoRefused("--all and --flights exclude each other")
    if options.flights is not None and not 1 <= options.flights <= YEAR_FLIGHTS:
        raise DemoRefused(f"--flights {options.flights}: the table has 1 to {YEAR_FLIGHTS:,} flights")
    if options.partitions is not None and options.partitions < 1:
        raise DemoRefused(f"--partitions {options.partitions}: at least one is needed")
    if not 1 <= options.replicas <= REPLICAS_MAX:
        raise DemoRefused(f"--replicas {options.replicas}: 1 to {REPLICAS_MAX} of each read model")
    if options.cluster is not None and options.directory is not None:
        what = "on a cluster the store is in the data folders of its nodes"
        raise DemoRefused(f"--cluster and --directory exclude each other: {what}")
    if options.json is not None and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        raise DemoRefused(f"--json {options.json}: cannot write a file there")
    return YEAR_FLIGHTS if options.all else options.flights or DEFAULT_FLIGHTS


def _prepare(directory: Path, count: int, partitions: int | None) -> None:
    """Make the store, or see that it is one of the demo's and holds no other flights than this run is about."""
    mark = directory / MARK
    exists = (directory / "store.json").exists()
    if exists:
        before = _flights_in(mark)
        if before > count:
            raise DemoRefused(f"{_holds_more(str(directory), before, count)}, or choose another directory")
    create_or_open_store(directory, partitions or (None if exists else PARTITIONS))
    fresh = mark.with_suffix(".new")
    fresh.write_text(json.dumps({"flights": count}) + "\n")
    fresh.rename(mark)


def _holds_more(store: str, before: int, count: int) -> str:
    return f"{store} holds the first {before:,} flights, more than the {count:,} asked for; use --flights {before}"


def _flights_in(mark: Path) -> int:
    try:
        return int(json.loads(mark.read_text())["flights"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DemoRefused(f"{mark.parent} holds a store that is not of this demo; choose another directory") from None


def _announce(flights: pd.DataFrame, commands: int, where: str, screen: Screen) -> None:
    first, last = (day_in_words(*flights.loc[row, ["month", "day"]]) for row in (0, len(flights) - 1))
    screen.rest()
    screen.console.print(
        f"[bold]{len(flights):,} flights[/] left New York from {first} to {last} 2013:"
        f" {commands:,} commands to 3 airports and {flights['tailnum'].nunique():,} aircraft,"
        f" {escape(where)}"
    )


def _verified(directory: Path | None, flights: pd.DataFrame, feed: Feed, run: Replay, screen: Screen) -> Report:
    """Hold everything against the table and the log, and sum up. `directory`: the store's, if it is on this machine."""
    begun_s = time.monotonic()
    screen.waiting_for("counting again from the table")
    expected = expect(flights)
    checks = [check_figures(name, table, run.rows[name]) for name, table in expected.tables.items()]
    if directory is not None:
        screen.measuring("reading every event back", expected.accepted)
        run.walk = check_log(directory, feed, run.ledger, screen.done, run.heads_before)
        screen.measuring("verifying the store", run.walk.walked)
        run.integrity = verify_store(directory, screen.done)
    assert run.walk is not None
    assert run.integrity is not None
    checks += check_answers(expected, feed, run.ledger, asked_again=run.asked_again)
    checks += [*run.walk.checks, check_store(run.integrity)]
    screen.rest()
    return Report(
        flights=len(flights),
        partitions=len(run.integrity.partitions),
        run=run,
        facts=run.walk.facts,
        checks=checks,
        verify_s=run.read_back_s + time.monotonic() - begun_s,
        size_bytes=_size_bytes(directory) if directory else None,
        filesystem=filesystem_of(directory) if directory else "that of each node",
    )


def _size_bytes(directory: Path) -> int:
    return sum(one.stat().st_blocks * 512 for one in directory.rglob("data.mdb"))


def _show(report: Report, options: DemoOptions, screen: Screen) -> None:
    for table in as_tables(report, carrier_names()):
        screen.console.print()
        screen.console.print(table)
    screen.console.print()
    screen.console.print(verdict(report))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")


def _complain(line: str) -> None:
    PrintableConsole(stderr=True, highlight=False, soft_wrap=True).print(line)
