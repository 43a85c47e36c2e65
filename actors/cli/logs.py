"""`rayfold logs`: what the actors of a system and the handlers in them logged, traces of user code included.

Rules kept here: those of `cli/main.py`. Reading changes nothing and contacts no process. What was logged comes from
outside: each line is made printable.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from ...runtime.errors import CallerError
from ...runtime.printable import printable_lines
from ...runtime.store.partition_map import PartitionMap, read_map
from ..cluster.names import partition_named, projector_named, rest_of_name, seat_in
from .application import is_application
from .console import complaints

if TYPE_CHECKING:
    from ..observe.session_logs import SessionLogs

__all__ = ["logs"]

NOTHING: Final = 2

_LOOK_S: Final = 0.3
_SESSIONS_EVERY: Final = 10
"""Polls of one session's files between two checks for a later session."""

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def logs(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="STORE", help="The directory of a store, the name of an application, or the folder of a cluster."
        ),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue with new lines, until Ctrl-C.")] = False,
    since: Annotated[
        str, typer.Option(metavar="AGE|TIME", help="Nothing older than 90s, 10m, 2h, 1d, or 2013-11-01T10:00 (UTC).")
    ] = "",
    actor: Annotated[
        str, typer.Option(metavar="PART", help="Only actors with this in their name: partition-0, Account/alice.")
    ] = "",
) -> None:
    """Show what actors and handlers logged and printed on this machine, with the traces of what handlers raised.

    The lines are those of the present session, or of the last one if nothing runs. On several machines each has the
    lines of its own nodes. Exit code 2 if this machine has no lines of it.
    """
    from ..observe.session_logs import sessions_of

    oldest = _time(since) if since else datetime.min.replace(tzinfo=UTC)
    actor_in = _named(directory)
    session = next(sessions_of(actor_in), None)
    shown_as = partial(_shown_name, _node_names(directory))
    if session is None and not follow:
        text = f"{directory}: no lines of its actors are left on this machine"
        complaints.print(escape(text), soft_wrap=True)
        raise typer.Exit(NOTHING)
    looks = 0
    with suppress(KeyboardInterrupt, BrokenPipeError):
        while True:
            if session is not None:
                session.look()
                _print(session, oldest, actor, shown_as)
            if not follow:
                return
            time.sleep(_LOOK_S)
            looks += 1
            if session is None or looks % _SESSIONS_EVERY == 0:
                newest = next(sessions_of(actor_in), None)
                if newest is not None and (session is None or newest.folder != session.folder):
                    session = newest
    with suppress(OSError):  # the reader of the pipe has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(session: SessionLogs, oldest: datetime, actor: str, shown_as: Callable[[str], str]) -> None:
    lines = session.lines()
    if session.left_out:
        complaints.print(f"{session.left_out:,} older lines are left out; they are in {escape(str(session.folder))}")
        session.left_out = 0
    for line in lines:
        name = shown_as(line.actor)
        if line.at >= oldest and (actor in name or actor in line.actor):
            print(f"{printable_lines(name)} | {printable_lines(line.text)}")
    if lines:
        sys.stdout.flush()


def _shown_name(node_names: Mapping[str, str], actor: str) -> str:
    """The name of an actor for readers: `partition-0@node-1` for `partition-0@<id of the node>#3.c33bc9.3`."""
    whole = f"_/{actor}"  # where there is one system, its name was taken away
    if (found := partition_named(actor) or partition_named(whole)) is not None:
        return f"{actor.partition('@')[0]}@{node_names.get(found.node_id, found.node_id[:8])}"
    return actor if (projector_named(actor) or projector_named(whole)) is None else seat_in(actor)


def _node_names(directory: Path) -> dict[str, str]:
    """Id of a node -> its name, as far as the maps in the data folders at `directory` have it. Empty for others."""
    return {node_id: name for _, store_map in _maps_in(directory) for node_id, name in store_map.names.items()}


def _named(directory: Path) -> Callable[[str], str]:
    """Which actors are meant, as `SessionLogs` has it: those of a store by the beginning of its id, for its folder may
    have been renamed; of an application by its name; of the folder of a cluster, whether it runs or not, by the shares
    in it, and those of several by the name of each. Raises `StoreMissing`, `StoreMismatch`."""
    from ...runtime.store.store import open_store
    from ...runtime.store.store_lock import MANIFEST
    from ..cluster.cluster_file import CLUSTER_FILE

    if (directory / MANIFEST).exists():
        system = f".*-{open_store(directory).store_id[:8]}"
    elif (there := _systems_in(directory)) or (directory / CLUSTER_FILE).exists():
        system = "|".join(map(re.escape, there)) or "(?!)"
        if len(there) > 1:
            return lambda text: text if rest_of_name(system).fullmatch(text) else ""
    elif is_application(directory):
        system = re.escape(str(directory))
    else:
        system = f".*-{open_store(directory).store_id[:8]}"
    name = rest_of_name(system)
    return lambda text: found[1] if (found := name.fullmatch(text)) is not None else ""


def _systems_in(directory: Path) -> set[str]:
    """The names of the systems of which data folders in this directory have a share."""
    return {name for name, _ in _maps_in(directory)}


def _maps_in(directory: Path) -> Iterator[tuple[str, PartitionMap]]:
    """The shares in data folders in this directory: the system, and its map as the share has it."""
    for share in directory.glob("*/*"):
        if share.is_dir() and (read := read_map(share)) is not None:
            yield share.name, read[0]


def _time(text: str) -> datetime:
    """The moment that `--since` means. Raises `CallerError`."""
    if (age := re.fullmatch(r"(\d{1,9})([smhd])", text)) is not None:
        return datetime.now(UTC) - timedelta(seconds=int(age[1]) * _UNITS[age[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        what = "is neither an age such as 10m nor a time such as 2013-11-01T10:00"
        raise CallerError(f"--since {text!r} {what}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
