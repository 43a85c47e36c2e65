"""`rayfold verify STORE MODULE:APP`, its second half: the states, folded from the log and compared.

Of a directory, everything that is saved in it; of an application on a cluster, whose read models are saved on its
nodes, the streams and their snapshots, which are read from the nodes.

Rules kept here: those of `cli/main.py`. The store is only read, in use or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...runtime.checks.states import SavedReadModel, StateReport, check_states
from ...runtime.errors import CallerError
from ...runtime.log.contract import Reader
from ...runtime.store.store import open_store
from ...runtime.store.store_lock import holder_of
from ..nodes.store import AnyStore, open_patient_reader
from ..packaging.application import Application
from ..packaging.builds import builds_of
from .console import complaints, console

__all__ = ["show_states", "states_of", "states_of_cluster"]

DIFFERENCES_SHOWN = 50
"""On the screen; `--json` has all that were listed."""


def states_of_cluster(name: str, store: AnyStore, application: Application) -> StateReport:
    """Fold and compare the streams of a running application, with a progress bar. Raises `StoreError`, `CallerError`
    for another application, and `Unavailable` for a partition whose home is gone."""
    if application.name != name:
        raise CallerError(f"the classes are those of {application.name!r}, and {name!r} was to be verified")
    report = _folded(store, application, (), in_use=True)
    if application.projections:
        what = "not compared, they are saved on the nodes; while the application runs, the standing check samples them"
        report.notes.append(f"read models: {what}")
    return report


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
    return _folded(store, application, saved, in_use=holder_of(store.path) is not None)


def _folded(store: AnyStore, application: Application, saved: Sequence[SavedReadModel], *, in_use: bool) -> StateReport:
    with ExitStack() as opened:
        readers: dict[int, Reader] = {}
        for number in range(store.partitions):
            readers[number] = open_patient_reader(store, number)
            opened.callback(readers[number].close)
        columns = (TextColumn("folding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=complaints, transient=True, disable=not complaints.is_terminal) as progress:
            events = sum(reader.head() for reader in readers.values())
            task = progress.add_task("folding", total=events * (1 + len(saved)))
            return check_states(
                application.catalogue,
                readers,
                saved,
                in_use=in_use,
                advance=lambda further: progress.update(task, advance=further),
            )


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
