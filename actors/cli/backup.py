"""`rayfold backup` and `rayfold restore`.

Rules kept here: those of `cli/main.py`: a user's mistake is one clear line, long work shows its progress, `--json FILE`
has the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...runtime.errors import InvalidMessage
from .application import connected_to, is_application
from .console import complaints, console, write_report
from .options import AddressOption, JsonOption

if TYPE_CHECKING:
    from ...runtime.store.readable_store import ReadableStore

__all__ = ["backup", "progress_bar", "restore"]


def backup(
    directory: Annotated[
        Path, typer.Argument(help="The directory of a store, in use or not; or an application's name.")
    ],
    target: Annotated[str, typer.Argument(help="A folder, or an address that fsspec knows: s3://bucket/name.")],
    json_file: JsonOption = None,
    address: AddressOption = "auto",
) -> None:
    """Back up a store while it is in use. A target that has a backup of it gets what is new."""
    from ...runtime.backup.taking import backup_store

    with ExitStack() as connection, progress_bar("backing up") as advance:
        source: Path | ReadableStore = directory
        if is_application(directory):
            source = connection.enter_context(connected_to(str(directory), address)).any_store
        done = backup_store(source, target, advance=advance)
    heads = ", ".join(f"{partition}: {head:,}" for partition, head in done.heads.items())
    console.print(f"{done.events:,} events added, {done.size_bytes:,} bytes; the backup has {heads}", soft_wrap=True)
    write_report(json_file, done._asdict())


def restore(
    target: Annotated[str, typer.Argument(help="The folder or address of a backup.")],
    directory: Annotated[Path, typer.Argument(help="Where the new store goes: missing or empty.")],
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PARTITION=POSITION",
            help="Restore only up to this position; once for each partition. Default: all.",
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Make a new store of a backup, whole or up to a position, and verify it. It gets an id of its own."""
    from ...runtime.backup.restoring import restore_store
    from ...runtime.store.verify import verify_store

    with progress_bar("restoring") as advance:
        done = restore_store(target, directory, positions=_positions(at or []), advance=advance)
    with progress_bar("verifying") as advance:
        report = verify_store(done.path, advance)
    verdict = "verified" if report.ok else f"[bold red]{len(report.problems):,} problems[/]: see rayfold verify"
    console.print(
        f"{sum(done.heads.values()):,} events in {escape(str(done.path))}, {verdict}; it is store"
        f" {escape(done.store_id)}, made of {escape(done.restored_from)}",
        soft_wrap=True,
    )
    write_report(json_file, done._asdict() | {"path": str(done.path), "verified": report.ok})
    raise typer.Exit(0 if report.ok else 1)


def _positions(at: list[str]) -> dict[int, int]:
    positions = {}
    for one in at:
        partition, _, position = one.partition("=")
        if not (partition.isdecimal() and position.isdecimal()):
            what = f"{one!r} is not a place in a log"
            raise InvalidMessage("--at", what, "write PARTITION=POSITION, as in --at 0=1200")
        positions[int(partition)] = int(position)
    return positions


class progress_bar:  # noqa: N801 - used like a function
    """A bar with the remaining time; `with progress_bar("doing") as advance:` gives the function that reports it."""

    def __init__(self, doing: str) -> None:
        columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=complaints, transient=True, disable=not complaints.is_terminal)
        self._task = self._bar.add_task(doing, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return lambda done, total: self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
