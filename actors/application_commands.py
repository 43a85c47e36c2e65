"""`rayfold deploy`, `move`, `rebalance` and `drain`: an application on a cluster, left running, renewed, spread.

Rules kept here: those of `cli.py`. What takes long shows how far it is; Ctrl-C leaves the cluster as the last step that
was done has made it, and says so.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ..runtime.errors import CallerError, InvalidId, StoreMissing, Unavailable, UnknownName
from ..runtime.log.hold import MANIFEST
from .console import complaints, console

if TYPE_CHECKING:
    from .application import Application
    from .cluster import Cluster
    from .connecting import BlockingConnection
    from .moved import Moved

__all__ = [
    "application_at",
    "connected_to",
    "deploy",
    "drain",
    "is_application",
    "joined",
    "move",
    "rebalance",
    "take_down_application",
]


AddressOption = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Of the cluster's head; default: RAY_ADDRESS, or that of this machine.")
]
AppOption = Annotated[str | None, typer.Option("--app", metavar="NAME", help="If several run on the cluster.")]


def deploy(
    application: Annotated[
        str, typer.Argument(metavar="MODULE:NAME", help="Where an Application stands: bank.app:bank.")
    ],
    address: AddressOption = "auto",
) -> None:
    """Leave an application running on a cluster, or give the one that runs there its new code, one actor at a time."""
    from .deployment import await_deployed, begin_deployment

    found = application_at(application)

    async def deploying(cluster: Cluster) -> None:
        plan = await begin_deployment(found, cluster)
        columns = (TextColumn("deploying"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[what]}"))
        with Progress(*columns, console=complaints, transient=True, disable=not complaints.is_terminal) as progress:
            task = progress.add_task("deploying", total=None, what="")
            rolled = await await_deployed(
                plan,
                cluster,
                progress=lambda now: progress.update(task, completed=now.done, total=now.total, what=now.what),
            )
        name, where = found.name, f"{cluster.address}, generation {rolled.generation} of its code"
        how = f'connect("{name}") in a program, `rayfold status {name}`, `rayfold down {name}`'
        console.print(f"{name} runs on {where}; {how}", soft_wrap=True)

    with joined(address) as cluster:
        asyncio.run(deploying(cluster))


def move(
    partition: Annotated[int, typer.Argument(help="Its number.")],
    node: Annotated[str, typer.Argument(help="The node it is to be at home on: a name, or an id.")],
    app: AppOption = None,
    address: AddressOption = "auto",
) -> None:
    """Have a partition at home on another node, while commands arrive."""
    _show(_moving(app, address, lambda bank: [bank.move(partition, node)]))


def rebalance(app: AppOption = None, address: AddressOption = "auto") -> None:
    """Spread the partitions evenly over the nodes that are up, with as few moves as that takes."""
    _show(_moving(app, address, lambda bank: bank.rebalance()))


def drain(
    node: Annotated[str, typer.Argument(help="The node that is to be home to nothing: a name, or an id.")],
    undo: Annotated[bool, typer.Option("--undo", help="It may be used again, from the next rebalance on.")] = False,
    app: AppOption = None,
    address: AddressOption = "auto",
) -> None:
    """Move everything off a node, so that it may leave the cluster."""
    _show(_moving(app, address, lambda bank: bank.drain(node, drained=not undo)))


def take_down_application(name: str, address: str) -> None:
    """End an application that was deployed. Its data stays."""
    from .deployment import take_down

    with joined(address) as cluster:
        asyncio.run(take_down(name, cluster))
    console.print(f"{escape(name)} was taken down; its data stays in the data folders", soft_wrap=True)


@contextmanager
def joined(address: str) -> Iterator[Cluster]:
    """The cluster, joined for as long as a command takes."""
    from .cluster import Cluster

    cluster = Cluster.start_or_join(num_cpus=None, own_actors_max=0, cluster=address)
    try:
        yield cluster
    finally:
        cluster.stop()


def is_application(told: Path) -> bool:
    """Whether what stands where a directory may stand is not that of a store, and may be the name of an application:
    the folder of the application's package often has the same name."""
    return len(told.parts) == 1 and not (told / MANIFEST).exists()


@contextmanager
def connected_to(name: str, address: str) -> Iterator[BlockingConnection]:
    """A connection to an application. Raises `StoreMissing` where there is none, for it might be meant as a
    directory."""
    from .connecting import connect_blocking

    try:
        connection = connect_blocking(name, address=address).start()
    except (InvalidId, Unavailable) as error:
        what = f"there is no store here, nor an application of that name: {error}"
        raise StoreMissing(name, what) from None
    try:
        yield connection
    finally:
        connection.stop()


def _only_one(app: str | None, address: str) -> str:
    """The application that is meant, if it is the only one. Raises `CallerError`."""
    if app is not None:
        return app
    with joined(address) as cluster:
        running = cluster.systems()
    if not running:
        raise CallerError("no application runs on that cluster")
    if len(running) > 1:
        raise CallerError(f"several applications run there: {', '.join(running)}; say --app NAME")
    return running[0]


def _moving(app: str | None, address: str, do: Callable[[BlockingConnection], list[Moved]]) -> list[Moved]:
    """Moves, with a sign that they go on."""
    from .connecting import connect_blocking

    name = _only_one(app, address)
    waiting = complaints.status("moving") if complaints.is_terminal else nullcontext()
    with connect_blocking(name, address=address) as bank, waiting:
        return do(bank)


def application_at(told: str) -> Application:
    """The `Application` at MODULE:NAME, looked for from the present directory. Raises `CallerError`, `UnknownName`."""
    from .application import Application

    module_name, colon, name = told.partition(":")
    if not (colon and module_name and name):
        raise CallerError(f"{told!r} is no MODULE:NAME; write it as in `rayfold deploy bank.app:bank`")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise CallerError(f"{module_name} cannot be imported: {error}") from error
        raise CallerError(f"there is no module {module_name!r} here, nor where Python looks for modules") from error
    except Exception as error:
        raise CallerError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, Application):
        known = [key for key, value in vars(module).items() if isinstance(value, Application)]
        if found is None:
            raise UnknownName(f"Application in {module_name}", name, known)
        raise CallerError(f"{told} is a {type(found).__name__}, not an Application")
    return found


def _show(moved: list[Moved]) -> None:
    moved = [one for one in moved if one.source != one.to]
    if not moved:
        console.print("nothing has to move")
        return
    table = Table()
    for column in ("partition", "from", "to", "events", "seconds", "commands waited, ms"):
        table.add_column(column, justify="left" if column in ("from", "to") else "right")
    for one in moved:
        figures = f"{one.events:,}", f"{one.seconds:,.1f}", f"{one.waited_ms:,.0f}"
        table.add_row(str(one.partition), escape(one.source), escape(one.to), *figures)
    console.print(table)
