"""`rayfold deploy`, `move`, `rebalance` and `drain`: an application on a cluster, left running, renewed, spread.

Rules kept here: those of `cli/main.py`. What takes long shows how far it is; Ctrl-C leaves the cluster in the state
after the last completed step, and prints that.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ...runtime.errors import CallerError, InvalidId, RayfoldError, StoreMissing, Unavailable, UnknownName
from ...runtime.store.store_lock import MANIFEST
from .console import complaints, console

if TYPE_CHECKING:
    from ..api.connection import BlockingConnection
    from ..cluster.ray_cluster import Cluster
    from ..nodes.move_result import MoveResult
    from ..packaging.application import Application

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


FAILED: Final = 1
"""The exit code of a deployment that did not come to its end."""

AddressOption = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT", help="Address of the cluster's head; default: RAY_ADDRESS, or that of this machine."
    ),
]
AppOption = Annotated[
    str | None, typer.Option("--app", metavar="NAME", help="Name of the application, if several run on the cluster.")
]


def deploy(
    application: Annotated[
        str, typer.Argument(metavar="MODULE:NAME", help="Module and name of the Application: bank.app:bank.")
    ],
    address: AddressOption = "auto",
    create: Annotated[bool, typer.Option("--create", help="Make a new, empty store if there is none.")] = False,
    without: Annotated[
        str,
        typer.Option(
            metavar="NODE,NODE", help="Make it without these nodes, which are down and given up: names or ids."
        ),
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would happen; change nothing.")] = False,
    within: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, help="Take the deployment back if a read model takes longer to build."),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="Return when the projections have caught up, also where nothing ran before.",
        ),
    ] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the deployment that is under way.")] = False,
) -> None:
    """Deploy an application on a cluster, or give the running one its new code: its read models first, then its
    partitions. Exit code 1 if the deployment was not completed, or, with --wait, if a projection has stopped."""
    found = application_at(application)
    left_out = [name for part in without.split(",") if (name := part.strip())]
    with joined(address) as cluster:
        if cancel:
            _call_off(found.name, cluster)
        elif dry_run:
            _look_ahead(found, cluster, left_out)
        else:
            create = create or _asked_to_create(found, cluster, left_out)
            _deploy(found, cluster, create=create, without=left_out, within_s=within, wait=wait)


def _asked_to_create(application: Application, cluster: Cluster, without: Sequence[str]) -> bool:
    """On a terminal: whether a new store may be made, if one would be."""
    from ..control.deployment import look_ahead

    if not sys.stdin.isatty():
        return False
    prospect = asyncio.run(look_ahead(application, cluster, without=without))
    if not prospect.makes_store:
        return False
    question = f"There is no store {application.name} on {cluster.address}. Make a new, empty one there?"
    if not typer.confirm(question):
        console.print("nothing was deployed", soft_wrap=True)
        raise typer.Exit(FAILED)
    return True


def _look_ahead(application: Application, cluster: Cluster, without: Sequence[str]) -> None:
    from ..control.deployment import look_ahead

    try:
        prospect = asyncio.run(look_ahead(application, cluster, without=without))
    except RayfoldError as error:
        console.print(f"it would be refused: {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(FAILED) from None
    console.print(f"{escape(prospect.name)} on {cluster.address}; nothing was changed", soft_wrap=True)
    for line in prospect.lines:
        console.print(f"- {escape(line)}", soft_wrap=True)
    if prospect.makes_store:
        console.print("- which needs --create")


def _call_off(name: str, cluster: Cluster) -> None:
    from ..control.deployment import cancel_deployment

    if asyncio.run(cancel_deployment(name, cluster)):
        console.print(f"the deployment of {escape(name)} was called off; what ran before runs on", soft_wrap=True)
    else:
        console.print(
            f"no deployment of {escape(name)} can be called off: none is under way, or its code is in charge already"
        )
        raise typer.Exit(FAILED)


def _deploy(
    found: Application,
    cluster: Cluster,
    *,
    create: bool,
    without: Sequence[str],
    within_s: float | None,
    wait: bool,
) -> None:
    from ..control.deployment import await_deployed, begin_deployment, catching_up, stopped

    async def deploying() -> bool:
        """Whether a projection has stopped."""
        plan = await begin_deployment(found, cluster, create=create, without=without, within_s=within_s, wait=wait)
        columns = (TextColumn("deploying"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[what]}"))
        with Progress(*columns, console=complaints, transient=True, disable=not complaints.is_terminal) as progress:
            task = progress.add_task("deploying", total=None, what="")
            rolled = await await_deployed(
                plan,
                cluster,
                progress=lambda now: progress.update(task, completed=now.done, total=now.total, what=now.what),
            )
        name, where = escape(found.name), f"{cluster.address}, generation {rolled.generation} of its code"
        how = f'connect("{name}") in a program, `rayfold status {name}`, `rayfold down {name}`'
        console.print(f"{name} runs on {where}; {how}", soft_wrap=True)
        ended = await stopped(found.name, cluster)
        for one in await catching_up(found.name, cluster):
            if one.projection in ended:
                continue
            far = f"{one.events:,} of {one.of:,} events" if one.of else "it opens what it has saved"
            text = f"projection {one.projection} is still catching up: {far}; it answers from where it is"
            console.print(escape(text), soft_wrap=True)
        for projection, why in ended.items():
            complaints.print(escape(f"projection {projection} has stopped: {why}"), soft_wrap=True)
        return bool(ended)

    try:
        incomplete = asyncio.run(deploying())
    except RayfoldError as error:
        complaints.print(f"error: {escape(str(error))}; {escape(_what_runs_on(found.name))}", soft_wrap=True)
        raise typer.Exit(FAILED) from None
    if wait and incomplete:
        raise typer.Exit(FAILED)


def _what_runs_on(name: str) -> str:
    """After a deployment that did not come to its end."""
    from ..control.deployment import generation_of

    generation = generation_of(name)
    return f"generation {generation} of {name} runs on" if generation else f"nothing of the name {name} runs"


def move(
    partition: Annotated[int, typer.Argument(help="Number of the partition.")],
    node: Annotated[str, typer.Argument(help="The node that becomes its home: a name, or an id.")],
    app: AppOption = None,
    address: AddressOption = "auto",
) -> None:
    """Move a partition to another node, while commands arrive."""
    _show(_moving(app, address, lambda bank: [bank.move(partition, node)]))


def rebalance(app: AppOption = None, address: AddressOption = "auto") -> None:
    """Spread the partitions evenly over the nodes that are up, with as few moves as that takes."""
    _show(_moving(app, address, lambda bank: bank.rebalance()))


def drain(
    node: Annotated[str, typer.Argument(help="The node to move all partitions from: a name, or an id.")],
    undo: Annotated[
        bool, typer.Option("--undo", help="Allow partitions on it again, from the next rebalance on.")
    ] = False,
    app: AppOption = None,
    address: AddressOption = "auto",
) -> None:
    """Move everything off a node, so that it may leave the cluster."""
    _show(_moving(app, address, lambda bank: bank.drain(node, drained=not undo)))


def take_down_application(name: str, address: str) -> None:
    """End an application that was deployed. Its data stays."""
    from ..control.deployment import take_down

    with joined(address) as cluster:
        asyncio.run(take_down(name, cluster))
    console.print(f"{escape(name)} was taken down; its data stays in the data folders", soft_wrap=True)


@contextmanager
def joined(address: str) -> Iterator[Cluster]:
    """The cluster, joined for as long as a command takes."""
    from ..cluster.ray_cluster import Cluster

    cluster = Cluster.start_or_join(num_cpus=None, own_actors_max=0, cluster=address)
    try:
        yield cluster
    finally:
        cluster.stop()


def is_application(named: Path) -> bool:
    """Whether what stands where a directory may stand is not that of a store, and may be the name of an application:
    the folder of the application's package often has the same name."""
    return len(named.parts) == 1 and not (named / MANIFEST).exists()


@contextmanager
def connected_to(name: str, address: str) -> Iterator[BlockingConnection]:
    """A connection to an application. Raises `StoreMissing` where there is none, for it might be meant as a
    directory."""
    from ..api.connection import connect_blocking

    try:
        connection = connect_blocking(name, address=address).start()
    except (InvalidId, Unavailable) as error:
        what = f"there is no store here, nor an application of that name: {error}"
        raise StoreMissing(name, what) from None
    except CallerError as error:  # which of several clusters is meant, for instance
        what = f"there is no store here, and an application of that name cannot be looked for: {error}"
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
        raise CallerError(f"several applications run there: {', '.join(running)}; choose one with --app NAME")
    return running[0]


def _moving(app: str | None, address: str, do: Callable[[BlockingConnection], list[MoveResult]]) -> list[MoveResult]:
    """Moves, with a sign that they go on."""
    from ..api.connection import connect_blocking

    name = _only_one(app, address)
    waiting = complaints.status("moving") if complaints.is_terminal else nullcontext()
    with connect_blocking(name, address=address) as bank, waiting:
        return do(bank)


def application_at(named: str) -> Application:
    """The `Application` at MODULE:NAME, imported from the present directory. Raises `CallerError`, `UnknownName`."""
    from ..packaging.application import Application

    module_name, colon, name = named.partition(":")
    if not (colon and module_name and name):
        raise CallerError(f"{named!r} is not a MODULE:NAME; write it as in `rayfold deploy bank.app:bank`")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise CallerError(f"{module_name} cannot be imported: {error}") from error
        raise CallerError(f"there is no module {module_name!r} here, nor where Python looks for modules") from error
    except (Exception, SystemExit) as error:
        raise CallerError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, Application):
        known = [key for key, value in vars(module).items() if isinstance(value, Application)]
        if found is None:
            raise UnknownName(f"Application in {module_name}", name, known)
        raise CallerError(f"{named} is a {type(found).__name__}, not an Application")
    return found


def _show(moved: list[MoveResult]) -> None:
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
