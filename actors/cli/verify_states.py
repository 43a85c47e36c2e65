"""`rayfold verify STORE MODULE:APP`, its second half: the states, folded from the log and compared.

Rules kept here: those of `cli/main.py`. The store is only read, in use or not.
"""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...runtime.checks.states import SavedReadModel, StateReport, check_states
from ...runtime.errors import CallerError
from ...runtime.store.store import open_store
from ...runtime.store.store_lock import holder_of
from ..packaging.application import Application
from ..packaging.builds import builds_of
from .application import application_at, is_application
from .console import complaints, console

__all__ = ["classes_of", "show_states", "states_of"]

DIFFERENCES_SHOWN = 50
"""On the screen; `--json` has all that were listed."""


def classes_of(directory: Path, classes: str) -> Application:
    """The application `MODULE:NAME` whose states are compared in a store. Raises `CallerError`."""
    if is_application(directory):
        raise CallerError("states are compared in the directory of a store: give that, and not the application's name")
    return application_at(classes)


def states_of(directory: Path, application: Application) -> StateReport:
    """Fold and compare everything in a store, with a progress bar. Raises `StoreError`."""
    store = open_store(directory)
    saved = [
        SavedReadModel(projection, part, replica, folder)
        for projection in application.projections
        for build in builds_of(store.path, projection.projection_name)
        for folder in sorted(build.path.glob("*-*"))
        for part, replica in [map(int, folder.name.split("-"))]
    ]
    readers = {number: store.open_reader(number) for number in range(store.partitions)}
    try:
        columns = (TextColumn("folding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=complaints, transient=True, disable=not complaints.is_terminal) as progress:
            events = sum(reader.head() for reader in readers.values())
            task = progress.add_task("folding", total=events * (1 + len(saved)))
            return check_states(
                application.catalogue,
                readers,
                saved,
                in_use=holder_of(store.path) is not None,
                advance=lambda further: progress.update(task, advance=further),
            )
    finally:
        for reader in readers.values():
            reader.close()


def show_states(report: StateReport) -> None:
    """What was compared, and what differs."""
    console.print(
        f"folded {report.streams:,} streams ({report.events:,} events); compared {report.snapshots:,} snapshots and"
        f" {report.read_models:,} read models: "
        + ("[green]no difference[/]" if report.ok else "[bold red]they differ[/]"),
        soft_wrap=True,
    )
    for one in report.differences[:DIFFERENCES_SHOWN]:
        console.print(escape(f"{one.kind} {one.subject}: {one.what}"), soft_wrap=True)
    if (more := len(report.differences) + report.unlisted - DIFFERENCES_SHOWN) > 0:
        console.print(f"{more:,} more")
    for note in report.notes:
        console.print(escape(note), soft_wrap=True)
