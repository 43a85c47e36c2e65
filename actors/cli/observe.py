"""`rayfold status` and `rayfold history`: a store seen from a second terminal, while it is in use or not.

Rules kept here: those of `cli/main.py`. Looking changes nothing: `history` reads the log alone and needs no classes;
`status` asks the actors, and shows the heads of the logs where nothing runs.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from contextlib import ExitStack, closing, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn
from uuid import UUID

import typer
from rich.live import Live
from rich.markup import escape

from ...runtime.errors import InvalidId, NotInHistory, Unavailable, UnknownName
from ...runtime.printable import printable_json
from .application import connected_to, is_application
from .console import complaints, console, write_report
from .options import AddressOption, JsonOption, SystemArgument

if TYPE_CHECKING:
    from ...runtime.log.contract import StoredEvent
    from ...runtime.store.store import Store
    from ...runtime.stream import StreamId
    from ..nodes.store import AnyStore
    from ..observe.attach import RunningSystem
    from ..observe.status import Status

__all__ = ["history", "status"]

NOT_RUNNING: Final = 2

_LOOK_S: Final = 1.0
"""Seconds between two readings, from which rates are computed. The observer takes a thousandth of that."""


def status(
    directory: SystemArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second, until Ctrl-C.")] = False,
    json_file: JsonOption = None,
    address: AddressOption = "auto",
) -> None:
    """Show what runs on a store and how it does. Exit code 2 if nothing runs; then with the heads of the logs."""
    from ...runtime.store.store import open_store
    from ...runtime.store.store_lock import holder_of
    from ..observe.attach import RunningSystem

    if is_application(directory):
        return _of_application(str(directory), address, watch, json_file)
    store = open_store(directory)
    try:
        system = RunningSystem(store)
    except Unavailable as error:
        _show_heads(store, str(error), json_file)
        raise typer.Exit(NOT_RUNNING) from None
    try:
        asyncio.run(_look(system, watch, json_file))
    except KeyboardInterrupt:
        if not watch:
            raise
    except Unavailable as error:
        stopped = holder_of(store.path) != system.holder
        _end_at_once(f"{store.path}: the runtime has stopped" if stopped else str(error))
    if holder_of(store.path) != system.holder:
        _end_at_once(f"{store.path}: the runtime has stopped")
    system.close()
    return None


def _of_application(name: str, address: str, watch: bool, json_file: Path | None) -> None:
    """The same for an application on a cluster."""
    from ..observe.screen import as_values, drawn

    with connected_to(name, address) as application:
        where = f"on the cluster {application.address}"
        seen = application.status()
        with Live(console=console, auto_refresh=False) if watch else nullcontext() as live, suppress(KeyboardInterrupt):
            while live is not None:
                write_report(json_file, as_values(seen, application.any_store, None))
                live.update(drawn(seen, application.any_store, where), refresh=True)
                time.sleep(_LOOK_S)
                seen = application.status()
        if not watch:
            console.print(drawn(seen, application.any_store, where))
        write_report(json_file, as_values(seen, application.any_store, None))


def history(
    directory: Annotated[
        Path, typer.Argument(help="The directory of a store, in use or not; or an application's name.")
    ],
    aggregate: Annotated[str, typer.Argument(metavar="TYPE/ID", help="The aggregate, such as Account/alice.")],
    from_version: Annotated[int, typer.Option("--from", help="The first version.")] = 1,
    to_version: Annotated[int | None, typer.Option("--to", help="The last version; default: all.")] = None,
    address: AddressOption = "auto",
) -> None:
    """Print the events of one aggregate as they are stored, one line of JSON each."""
    from ...runtime.log.format import stream_id
    from ...runtime.read.time_travel import stored_history
    from ...runtime.store.store import open_store

    name, slash, ident = aggregate.partition("/")
    if not slash:
        raise InvalidId("aggregate", aggregate, "has no slash; write its type and its id, such as Account/alice")
    stream = stream_id(name, ident)
    with ExitStack() as connection:
        store: AnyStore
        if is_application(directory):
            store = connection.enter_context(connected_to(str(directory), address)).any_store
        else:
            store = open_store(directory)
        try:
            for partition in _partitions_with(store, stream):
                with closing(store.open_reader(partition)) as reader:
                    for stored in stored_history(reader, stream, from_version, to_version):
                        print(printable_json(_as_values(stored, partition)))
            sys.stdout.flush()
        except NotInHistory as unknown:
            _check_type(store, stream, unknown)
            raise
        except BrokenPipeError:  # the reader of the pipe has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_type(store: AnyStore, stream: StreamId, unknown: NotInHistory) -> None:
    """Raises `UnknownName` if no log that can be read has an aggregate of this type: it is a misspelt type, then, and
    not a version or an id that is not there."""
    from ...runtime.stream import is_reserved

    known: set[str] = set()
    for partition in range(store.partitions):
        with suppress(Unavailable), closing(store.open_reader(partition)) as reader:
            known |= reader.holdings().aggregates
    if stream.type not in known and not is_reserved(stream.type):
        raise UnknownName("aggregate of this store", stream.type, sorted(known)) from unknown


def _partitions_with(store: AnyStore, stream: StreamId) -> list[int]:
    """The one that has the stream; of what Rayfold itself stores all, for such a stream may be in each log."""
    from ...runtime.stream import is_reserved

    found = []
    for partition in range(store.partitions) if is_reserved(stream.type) else ():
        with closing(store.open_reader(partition)) as reader:
            if reader.version(stream):
                found.append(partition)
    return found or [store.partition_of(stream)]


def _end_at_once(text: str) -> NoReturn:
    """The Ray that was joined is gone, and what is left of it in this process would wait for it for a minute."""
    complaints.print(escape(text), soft_wrap=True)
    sys.stdout.flush()
    os._exit(NOT_RUNNING)


async def _look(system: RunningSystem, watch: bool, json_file: Path | None) -> None:
    """Look twice, for the rates; or again and again, until the system stops."""
    from ...runtime.store.store_lock import holder_of
    from ..observe.screen import as_values, drawn

    def screen(seen: Status) -> Any:
        return drawn(seen, system.store, system.holder)

    def keep(seen: Status) -> None:
        write_report(json_file, as_values(seen, system.store, system.holder))

    seen = await system.status()
    if all(
        [*(one.alive for one in seen.partitions), *(one.alive for one in seen.projectors)]
    ):  # else it took five seconds already
        await asyncio.sleep(_LOOK_S)
        seen = await system.status()
    if not watch:
        console.print(screen(seen))
        return keep(seen)
    with Live(screen(seen), console=console, auto_refresh=False) as live:
        while holder_of(system.store.path) == system.holder:
            keep(seen)
            live.update(screen(seen), refresh=True)
            await asyncio.sleep(_LOOK_S)
            seen = await system.status()
    return None


def _show_heads(store: Store, why: str, json_file: Path | None) -> None:
    """Nothing runs, or it cannot be reached: show the heads of the logs."""
    from ...runtime.store.store_lock import holder_of
    from ..observe.screen import as_values
    from ..observe.status import PartitionStatus, Status

    complaints.print(escape(why), soft_wrap=True)
    partitions = []
    for number in range(store.partitions):
        reader = store.open_reader(number)
        try:
            partitions.append(PartitionStatus(number, 0, reader.epoch(), reader.head(), False, None))
        finally:
            reader.close()
    positions = ", ".join(f"{one.partition}: {one.head:,}" for one in partitions)
    console.print(f"the log has events up to, by partition, {positions}", soft_wrap=True)
    write_report(json_file, as_values(Status(partitions, [], []), store, holder_of(store.path)))


def _as_values(stored: StoredEvent, partition: int) -> dict[str, Any]:
    from ...runtime.encoding.codec import decode_payload
    from ...runtime.processes.progress import STEPPED
    from ...runtime.processes.step_text import step_text

    payload = decode_payload(stored.payload, stored.name)
    if stored.name == STEPPED:
        payload = step_text(payload["body"])
    recorded_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=stored.recorded_at_us)
    return {
        "version": stored.version,
        "event": stored.name,
        "schema_version": stored.schema_version,
        "payload": _plain(payload),
        "recorded_at": recorded_at.isoformat(timespec="microseconds"),
        "partition": partition,
        "position": stored.position,
        "command_id": str(UUID(bytes=stored.command_id)),
        "correlation_id": _id(stored.correlation_id),
        "causation_id": _id(stored.causation_id),
    }


def _id(stored: bytes) -> str | None:
    return str(UUID(bytes=stored)) if stored else None


def _plain(value: Any) -> Any:
    """A stored value in a form that JSON has: bytes in hexadecimal, keys as text."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | set | frozenset | deque):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return value.hex() if isinstance(value, bytes | bytearray) else str(value)
