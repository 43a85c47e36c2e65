"""The command line: `rayfold up`, `rayfold deploy`, `rayfold verify` and the others.

Commands of `benchmarks/` (`demo`, `bench`, `torture`) are found as entry points of the distribution, so that the
command line works without them.

Rules kept here: a user's mistake is one clear line and exit code 2, never a stack trace; a command that reports
figures writes them with `--json FILE` too; long work shows its progress; Ctrl-C and SIGTERM end with 130.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ...runtime.errors import CallerError, RayfoldError
from .anchor import anchor, check_anchor
from .application import application_at, connected_to, deploy, drain, is_application, move, rebalance
from .backup import backup, restore
from .check import check
from .cluster import down, node, nodes, up
from .console import CommandList, complaints, console, write_report
from .effects import effects
from .export import export
from .logs import logs
from .observe import history, status
from .options import AddressOption, JsonOption
from .processes import processes
from .run import run
from .sinks import sinks
from .subscriptions import subscriptions

if TYPE_CHECKING:
    from ...runtime.store.verify import PartitionReport, Report

__all__ = ["app", "main"]

OK, DAMAGED, REFUSED, INTERRUPTED = 0, 1, 2, 130

PROBLEMS_SHOWN: Final = 50
"""The problems of one partition that the screen shows; `--json` has all that were listed."""

app = typer.Typer(
    name="rayfold",
    cls=CommandList,
    help="Event-sourced aggregates as Ray actors over an LMDB log that every acknowledged event was fsynced to.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(anchor)
app.command()(backup)
app.command()(restore)
app.command()(export)
app.command()(status)
app.command()(history)
app.command()(processes)
app.command()(effects)
app.command()(subscriptions)
app.command()(sinks)
app.command()(logs)
app.command()(check)
app.command()(run)
app.command()(up)
app.command()(down)
app.command()(node)
app.command()(nodes)
app.command()(deploy)
app.command()(move)
app.command()(rebalance)
app.command()(drain)


def _add_installed() -> None:
    """The commands that the distribution names as entry points. None where Rayfold is not installed; one whose package
    is left out of the installation is passed over."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for entry in metadata.distribution("rayfold").entry_points.select(group="rayfold.commands"):
            try:
                command = entry.load()
            except ModuleNotFoundError as error:
                if not (error.name or "").startswith("rayfold.benchmarks"):
                    raise
            else:
                app.add_typer(command) if isinstance(command, typer.Typer) else app.command()(command)


_add_installed()


@app.command()
def verify(
    directory: Annotated[
        Path, typer.Argument(help="The directory of a store, in use or not, or a copy; or an application's name.")
    ],
    classes: Annotated[
        str | None,
        typer.Argument(metavar="[MODULE:NAME]", help="The Application: every state is then folded and compared too."),
    ] = None,
    json_file: JsonOption = None,
    address: AddressOption = "auto",
    anchor_file: Annotated[
        Path | None,
        typer.Option("--anchor", metavar="FILE", help="Also prove that nothing before this anchor was changed."),
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key that the anchor must be signed with: hex, or PEM.")
    ] = None,
) -> None:
    """Check a store: structure, every checksum, hash chain, indexes, contiguity. Exit code 1 if anything is wrong.

    With MODULE:NAME also the states: every stream and read model is folded from the log, and the snapshots, checkpoints
    and databases of read models are compared with that; of an application on a cluster the streams and snapshots.
    """
    from ...runtime.checks.agendas import verify_with_agendas
    from ...runtime.store.store import open_store
    from .verify_states import show_states, states_of, states_of_cluster

    if public_key is not None and anchor_file is None:
        raise CallerError("--public-key needs an anchor to check; add the anchor with --anchor FILE")
    folding = None if classes is None else application_at(classes)  # a typo need not wait for the rest
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=complaints, transient=True, disable=not complaints.is_terminal)
    if is_application(directory):
        with connected_to(str(directory), address) as application:
            with bar:
                bar.add_task("verifying", total=None)
                report = application.verify()
            store = application.any_store
            anchored = anchor_file is None or check_anchor(store, anchor_file, public_key)
            _show(report)
            states = None if folding is None else states_of_cluster(str(directory), store, folding)
    else:
        with bar:
            task = bar.add_task("verifying", total=None)
            report = verify_with_agendas(directory, lambda done, total: bar.update(task, completed=done, total=total))
        anchored = anchor_file is None or check_anchor(open_store(directory), anchor_file, public_key)
        _show(report)
        states = None if folding is None else states_of(directory, folding)
    if states is not None:
        show_states(states)
    write_report(json_file, report.as_dict() | ({} if states is None else {"states": states.as_dict()}))
    raise typer.Exit(OK if report.ok and anchored and (states is None or states.ok) else DAMAGED)


def main() -> None:
    """The entry point: every error that is meant for a user becomes one line. SIGTERM is Ctrl-C: what a command has
    started is ended, and what it has found so far is written."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(app(standalone_mode=False) or OK)
    except (KeyboardInterrupt, typer.Abort):
        _complain("stopped")
        sys.exit(INTERRUPTED)
    except (RayfoldError, OSError) as error:
        _complain(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(REFUSED)
    except Exception as error:
        shown = getattr(error, "format_message", None)
        if shown is None:  # a bug of Rayfold: a report of it needs the trace
            raise
        _complain(f"[bold red]error:[/] {escape(shown())}")
        sys.exit(REFUSED)


def _complain(line: str) -> None:
    complaints.print(line, soft_wrap=True)


def _version(wanted: bool) -> None:
    if wanted:
        from ... import __version__

        console.print(f"rayfold {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the whole command line."""
    if context.invoked_subcommand is None:
        console.print(escape(context.get_help()))


def _show(report: Report) -> None:
    table = Table(title=f"store {report.store_id}", title_justify="left")
    for column in ("partition", "events", "streams", "commands", "snapshots", "epoch", "verdict"):
        table.add_column(column, justify="left" if column == "verdict" else "right")
    for one in report.partitions:
        counts = (one.events, one.streams, one.commands, one.snapshots, one.epoch)
        table.add_row(str(one.partition), *(f"{count:,}" for count in counts), _verdict(one))
    console.print(table)
    for one in report.partitions:
        for problem in [*one.problems, *one.warnings][:PROBLEMS_SHOWN]:
            what = f"partition {problem.partition}, {problem.database} {problem.key}: {problem.kind}: {problem.what}"
            console.print(escape(what), soft_wrap=True)
        unseen = len(one.problems) + len(one.warnings) - PROBLEMS_SHOWN + one.unlisted
        if unseen > 0:
            console.print(f"partition {one.partition}: {unseen:,} more")


def _verdict(report: PartitionReport) -> str:
    if report.problems:
        return f"[bold red]{len(report.problems) + report.unlisted:,} wrong[/]"
    unchecked = "" if report.structure_checked else ", structure not checked: it is being written to"
    warned = f", {len(report.warnings)} warnings" if report.warnings else ""
    return f"[green]good[/]{warned}{unchecked}"
