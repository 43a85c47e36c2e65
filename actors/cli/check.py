"""`rayfold check`: whether an application's code fits a store, before it is started or deployed there.

Rules kept here: those of `cli/main.py`. A dry run: the logs are read, in use or not, and nothing is started or changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ...runtime.errors import CallerError
from .application import application_at, connected_to, is_application
from .console import complaints, console, write_report
from .options import AddressOption

if TYPE_CHECKING:
    from ...runtime.checks.dry_run import DryRun
    from ...runtime.log.contract import Reader
    from ..packaging.application import Application

__all__ = ["check"]

FITS: Final = 0
DIFFERS: Final = 1

_NOT_SEEN: Final = "its folders, on the nodes, were not read"
"""In place of why a read model is built, where it may be kept."""

SHOWN: Final = 10
"""Streams on the screen; `--json` has all that were listed."""


class _Model(NamedTuple):
    """A read model: whether it has to be built, and how long that takes."""

    name: str
    version: int
    built: str
    """What becomes of it: `kept`, or why it is built."""
    events: int
    seconds: float | None
    """Measured on a sample, for one part on this machine; none where it is kept, or could not be measured."""


def check(
    store: Annotated[
        Path, typer.Argument(help="The directory of a store, in use or not, or a copy; or an application's name.")
    ],
    classes: Annotated[str, typer.Argument(metavar="MODULE:NAME", help="Module and name of the Application.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Decode every record and fold every stream, instead of a sample.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="The Application as it runs now: its states are compared too."),
    ] = None,
    against_folder: Annotated[
        Path | None, typer.Option("--against-in", metavar="FOLDER", help="The folder of the modules of --against.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the findings to this file, as JSON.")
    ] = None,
    address: AddressOption = "auto",
) -> None:
    """Compare an application's code with what a store holds: a dry run, which changes nothing.

    What is unknown, changed, renamed or gone; a sample of the stored events decoded and upcast; streams folded, and
    with --against compared with what the older code makes of them; which read models will be built, and for how long.
    Exit code 1 if anything does not fit or differs.
    """
    from ...runtime.checks.dry_run import dry_run
    from ...runtime.store.store import AGENDAS

    if against_folder is not None and against is None:
        raise CallerError("--against-in is the folder of the modules of --against MODULE:NAME, which is missing")
    application = application_at(classes)
    older = None if against is None else _older(against, against_folder)
    with _readers(store, address) as (readers, folder):
        columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=complaints, transient=True, disable=not complaints.is_terminal) as progress:
            task = progress.add_task("checking", total=None)
            run = dry_run(
                application.catalogue,
                readers,
                everything=everything,
                against=None if older is None else older.catalogue,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
                agendas=None if folder is None else folder / AGENDAS,
            )
        models = list(_models(application, readers, folder, measured=not run.misfits and not run.unreadable))
    _show(run, models)
    write_report(json_file, run.as_dict() | {"read_models": [one._asdict() for one in models]})
    raise typer.Exit(FITS if run.ok else DIFFERS)


@contextmanager
def _readers(store: Path, address: str) -> Iterator[tuple[dict[int, Reader], Path | None]]:
    """The logs, and the folder of the store if it is on this machine alone."""
    from ...runtime.store.store import open_store
    from ..nodes.store import open_patient_reader

    with ExitStack() as opened:
        if is_application(store):
            spread = opened.enter_context(connected_to(str(store), address)).any_store
            found: Any = {number: open_patient_reader(spread, number) for number in range(spread.partitions)}
            folder = None
        else:
            local = open_store(store)
            found = {number: local.open_reader(number) for number in range(local.partitions)}
            folder = local.path
        for reader in found.values():
            opened.callback(reader.close)
        yield found, folder


def _older(named: str, folder: Path | None) -> Application:
    """The application that `--against` names; its modules may have the names of those of the newer one."""
    if folder is None:
        return application_at(named)
    top = named.partition(":")[0].partition(".")[0]
    present = {name: sys.modules.pop(name) for name in list(sys.modules) if name == top or name.startswith(f"{top}.")}
    sys.path.insert(0, str(folder.resolve()))
    try:
        return application_at(named)
    finally:
        sys.path.remove(str(folder.resolve()))
        sys.modules.update(present)


def _models(
    application: Application, readers: dict[int, Reader], folder: Path | None, *, measured: bool
) -> Iterator[_Model]:
    from ...runtime.checks.dry_run import projected_per_s
    from ...runtime.errors import RayfoldError

    events = sum(reader.head() for reader in readers.values())
    for projection in application.projections:
        name, version = projection.projection_name, projection.projection_version
        built, seconds = _why_built(application, projection, folder), None
        if built != "kept" and measured and events:
            try:
                rate = projected_per_s(projection, application.catalogue, readers)
                seconds = events / rate if rate else None
            except RayfoldError as error:
                built = f"{built}; not measured: {error}"
        yield _Model(name, version, built, events, seconds)


def _why_built(application: Application, projection: Any, folder: Path | None) -> str:
    """`kept` if the read model that is on the disk goes on, else why it is built."""
    from ..packaging.builds import builds_of

    if folder is None:
        return _NOT_SEEN
    builds = builds_of(folder, projection.projection_name)
    of_version = [build for build in builds if build.version == projection.projection_version]
    if not of_version:
        return f"version {projection.projection_version} is new" if builds else "it is new"
    mine = application.catalogue.fingerprint(projection).hex()
    if any(next(build.path.glob(f"*/{mine}"), None) is not None for build in of_version):
        return "kept"
    return "its code has changed"


def _show(run: DryRun, models: list[_Model]) -> None:
    for number, misfit in enumerate(run.misfits, 1):
        console.print(f"[bold red]{number}.[/] {escape(misfit.where)}: {escape(misfit.what)}", soft_wrap=True)
        console.print(f"   [bold]remedy:[/] {escape(misfit.remedy)}", soft_wrap=True)
    table = Table(title="events", title_justify="left")
    for column in ("event", "version", "tried", "unreadable"):
        table.add_column(column, justify="left" if column == "event" else "right")
    for kind in run.kinds:
        bad = f"[bold red]{kind.unreadable:,}[/]" if kind.unreadable else "0"
        table.add_row(escape(kind.name), str(kind.schema_version), f"{kind.tried:,}", bad)
    console.print(table)
    for kind in run.unreadable:
        console.print(f"{escape(kind.name)} version {kind.schema_version}: {escape(kind.why)}", soft_wrap=True)
    compared = f", {run.compared:,} compared" if run.compared else ""
    console.print(f"{run.streams:,} streams folded{compared}")
    failed: dict[str, list[str]] = {}
    for stream, why in run.failed:
        failed.setdefault(why, []).append(stream)
    for why, streams in list(failed.items())[:SHOWN]:
        further = f" and {len(streams) - 1:,} more" if len(streams) > 1 else ""
        console.print(
            f"[bold red]{escape(streams[0])}[/]{escape(further)} cannot be folded: {escape(why)}", soft_wrap=True
        )
    for one in run.differing[:SHOWN]:
        console.print(escape(f"{one.stream}: {one.field} was {one.old}, and is {one.new}"), soft_wrap=True)
    unlisted = sum(len(streams) for streams in list(failed.values())[SHOWN:])
    unseen = unlisted + len(run.differing[SHOWN:]) + run.unlisted
    if unseen:
        console.print(f"{unseen:,} more")
    for model in models:
        console.print(escape(f"read model {model.name} version {model.version}: {_becomes(model)}"), soft_wrap=True)
    if run.ok:
        console.print("[green]the code fits the store[/]")
    elif run.misfits or run.unreadable or run.failed:
        console.print("[bold red]the code does not fit the store[/]")
    else:
        console.print("[bold red]the code fits the store, and makes other states of its events[/]")


def _becomes(model: _Model) -> str:
    if model.built == "kept":
        return "it is kept"
    took = "" if model.seconds is None else f", about {max(model.seconds, 0.1):,.1f} s on this machine"
    becomes = "if it is built, it is" if model.built == _NOT_SEEN else "it is built"
    return f"{becomes} from {model.events:,} events{took}: {model.built}"
