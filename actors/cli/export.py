"""`rayfold export`: the events of a store in files that other programs read.

Rules kept here: those of `cli/main.py`. The store is only read, in use or not. Ctrl-C leaves no half file, and what was
in a file's place stays until the new one is whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ...runtime.errors import CallerError, InvalidMessage
from .application import application_at, connected_to, is_application
from .backup import progress_bar
from .console import console, write_report
from .options import AddressOption, JsonOption

if TYPE_CHECKING:
    from ...runtime.domain.aggregate import Aggregate
    from ...runtime.feed.log_range import Bound
    from ...runtime.tables.export_files import Exported
    from ..nodes.store import AnyStore
    from ..packaging.application import Application

__all__ = ["export"]

_PLACE_HELP = "a time such as 2026-01-31 (UTC) or 2026-01-31T12:00+01:00, or PARTITION=POSITION, once for each"


def export(
    directory: Annotated[
        Path, typer.Argument(help="The directory of a store, in use or not; or an application's name.")
    ],
    classes: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:NAME]",
            help="The Application, for columns of their fields and upcast events; without it, fields as stored.",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="PATH", help="FILE.parquet, FILE.jsonl, or a folder: a file for each event type."),
    ] = None,
    types: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Only these types of events.")] = None,
    streams: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE[/ID]", help="Only this aggregate, or all of this type; once for each."),
    ] = None,
    since: Annotated[list[str] | None, typer.Option(metavar="PLACE", help=f"Begin after it: {_PLACE_HELP}.")] = None,
    until: Annotated[
        list[str] | None, typer.Option(metavar="PLACE", help="End with it; default: what is committed now.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    json_file: JsonOption = None,
    address: AddressOption = "auto",
) -> None:
    """Write events into Parquet or lines of JSON, while the store is in use or not."""
    from ...runtime.store.store import open_store

    if not to:
        raise CallerError("an export needs a place; add --to FILE.parquet, --to FILE.jsonl or --to FOLDER")
    application = None if classes is None else application_at(classes)
    names = [] if types is None else _listed("--types", types.split(","))
    chosen = _listed("--streams", streams or [])
    bounds = _place("--since", since or []), _place("--until", until or [])
    with ExitStack() as connection:
        store: AnyStore
        if is_application(directory):
            store = connection.enter_context(connected_to(str(directory), address)).any_store
        else:
            store = open_store(directory)
        done = _exported(store, application, names, chosen, bounds, Path(to), overwrite)
    files = f"{len(done.files):,} file{'' if len(done.files) == 1 else 's'}"
    unread = f", of which the classes cannot read {done.unreadable:,}" if done.unreadable else ""
    until_text = " ".join(f"{partition}={position}" for partition, position in done.until.items())
    console.print(
        f"{done.events:,} events{unread}, {done.size_bytes:,} bytes in {files} ({escape(str(to))}); to {until_text}",
        soft_wrap=True,
    )
    write_report(json_file, done._asdict())


def _exported(
    store: AnyStore,
    application: Application | None,
    types: list[str],
    streams: list[str],
    bounds: tuple[Bound | None, Bound | None],
    to: Path,
    overwrite: bool,
) -> Exported:
    from ...runtime.feed.event_range import EventOptions, open_events
    from ...runtime.feed.frames import to_parquet
    from ...runtime.feed.stored_range import open_stored
    from ..nodes.store import open_patient_reader

    reader = partial(open_patient_reader, store)
    with progress_bar("exporting") as advance:
        if application is None:
            with closing(open_stored(store, types, streams, *bounds, reader)) as stored:
                return stored.to_files(to, overwrite=overwrite, progress=advance)
        chosen = _streams(application, streams)
        wanted = EventOptions(types or None, chosen or None, *bounds, unreadable="yield")
        with closing(open_events(store, application.catalogue, wanted, reader)) as events:
            return to_parquet(events, to, overwrite, advance)


def _listed(option: str, given: list[str]) -> list[str]:
    """Raises `InvalidMessage` for an empty name: an option that is given never means everything."""
    names = [one.strip() for one in given]
    if not all(names):
        raise InvalidMessage(option, "has an empty name", "name what is wanted, or leave the option out for everything")
    return names


def _streams(application: Application, streams: Iterable[str]) -> list[type[Aggregate] | str]:
    return [one if "/" in one else application.catalogue.aggregate(one) for one in streams]


def _place(option: str, given: list[str]) -> Bound | None:
    """Positions by partition, or a time. Raises `InvalidMessage`."""
    if not given:
        return None
    positions: dict[int, int] = {}
    for one in given:
        partition, equals, position = one.partition("=")
        if equals and partition.isdecimal() and position.isdecimal():
            positions[int(partition)] = int(position)
    if len(positions) == len(given):
        return positions
    try:
        [one] = given
        at = datetime.fromisoformat(one)
    except ValueError:
        what = f"{' '.join(given)!r} is no place in a store"
        raise InvalidMessage(option, what, f"give {_PLACE_HELP}") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
