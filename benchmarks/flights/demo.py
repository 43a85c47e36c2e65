"""The demo: the flights of a year through the whole runtime, two processes killed on the way, everything counted again.

What `rayfold demo` runs. The straight line is `_run`: read the table, replay it, verify it, show it.

Rule kept here: the demo uses only what every program can use, and it fails if anything is off by one.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape

from rayfold import RayfoldError

from .feed import Feed
from .oracle import expect
from .replay import Replay, replay
from .report import Report
from .screen import Screen
from .table import YEAR_FLIGHTS, TableMissing, carrier_names, read_flights
from .tables import as_tables, day_of, verdict
from .verification import Check, check_answers, check_figures, check_log, check_store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DEFAULT_FLIGHTS", "DemoOptions", "DemoRefused", "run_demo"]

DEFAULT_FLIGHTS: Final = 100_000
"""What fits into about a minute on two cores, the start of Ray included."""

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


def run_demo(options: DemoOptions) -> int:
    """Run it. Returns the exit code: 0 verified, 1 not verified, 2 could not run, 130 interrupted."""
    screen = Screen(Console(highlight=False))
    try:
        return _run(options, screen)
    except KeyboardInterrupt:
        screen.rest()
        again = f"; the same command goes on where this one stopped: {options.directory}" if options.directory else ""
        _complain(f"stopped{again}")
        return INTERRUPTED
    except (DemoRefused, TableMissing, RayfoldError) as error:
        screen.rest()
        _complain(f"[bold red]error:[/] {escape(str(error))}")
        return REFUSED


def _run(options: DemoOptions, screen: Screen) -> int:
    count = _checked(options)
    screen.waiting_for("reading the table of flights")
    flights = read_flights(count)
    feed = Feed(flights)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="rayfold-demo-"))
    keep = options.directory is not None
    try:
        _announce(flights, len(feed), directory, screen, keep=keep)
        run = asyncio.run(_replayed(directory, feed, options, screen, count))
        report = _verified(directory, flights, feed, run, screen)
        _show(report, screen)
        keep = keep or not report.verified
        if options.json:
            options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
        if keep:
            screen.console.print(f"kept in {escape(str(directory))}; rayfold verify {escape(str(directory))} looks again")
        return VERIFIED if report.verified else NOT_VERIFIED
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


async def _replayed(directory: Path, feed: Feed, options: DemoOptions, screen: Screen, count: int) -> Replay:
    partitions = options.partitions or (None if _is_store(directory) else PARTITIONS)
    run = await replay(
        directory,
        feed,
        screen,
        partitions=partitions,
        kill=options.kill,
        opened=lambda: _mark(directory, count),
    )
    screen.rest()
    return run
