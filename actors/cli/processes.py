"""`rayfold processes`: what is parked and what waits in a system's processes, and what an operator does about it.

Rules kept here: those of `cli/main.py`. What an operator does is a command with a name and a reason, stored in the
stream of the instance like everything that happens to it. No classes of the application are needed for that.
"""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Group
from rich.markup import escape

from ...runtime.errors import InvalidId
from ...runtime.printable import printable_log
from .application import is_application
from .console import console, write_report
from .options import AddressOption, ByOption, JsonOption, ReasonOption, SystemArgument, check_signed

if TYPE_CHECKING:
    from ...runtime.domain.aggregate import Aggregate
    from ...runtime.domain.messages import Command
    from ..api.connection import BlockingConnection
    from ..observe.status import Status

__all__ = ["connected", "processes", "stand_in"]

ATTENTION: Final = 1
"""The exit code if an instance is parked, or a courier fails."""


class Action(Enum):
    """What an operator can do with an instance."""

    RETRY = "retry"
    SKIP = "skip"
    END = "end"


def processes(
    directory: SystemArgument,
    action: Annotated[
        Action | None,
        typer.Argument(help="retry: try again. skip: leave out what it stopped at. end: end the instance."),
    ] = None,
    instance: Annotated[
        str | None, typer.Argument(metavar="TYPE/ID", help="The instance, such as Fulfilment/order-1.")
    ] = None,
    by: ByOption = None,
    reason: ReasonOption = None,
    json_file: JsonOption = None,
    address: AddressOption = "auto",
) -> None:
    """Show how far processes of a running system are, what is parked and why; or retry, skip or end one. Exit code 1 if
    any is parked, or a courier fails."""
    if action is None:
        with connected(directory, address) as bank:
            status = bank.status()
        _show(status)
        write_report(json_file, {"partitions": _values(status)})
        parked = any(one.courier and (one.courier.parked_count or one.courier.trouble) for one in status.partitions)
        raise typer.Exit(ATTENTION if parked else 0)
    name, slash, ident = (instance or "").partition("/")
    if not slash:
        raise InvalidId("instance", instance or "", "has no slash; write its type and its id: Fulfilment/order-1")
    by, reason = check_signed(action.value, by, reason)
    command = _command(action, by, reason)
    target = stand_in(name, type(command))
    with connected(directory, address, target) as bank:
        receipt = bank.execute(target, ident, command)
    console.print(escape(f"{name}/{ident}: {action.value}, stored as version {receipt.version}"), soft_wrap=True)
    write_report(json_file, {"stream": f"{name}/{ident}", "version": receipt.version})


def connected(directory: Path, address: str, target: type[Aggregate] | None = None) -> BlockingConnection:
    """Connected to a system, with this class alone."""
    from ..api.connection import connect_blocking
    from ..packaging.application import Application
    from ..system import connected as connecting

    printable_log(connecting.__name__).setLevel(logging.ERROR)  # a stand-in is other code than what it stands for
    classes = Application("operator", aggregates=[] if target is None else [target])
    where = str(directory) if is_application(directory) else directory
    return connect_blocking(where, classes, address=address)


def stand_in(name: str, *commands: type[Command]) -> type[Aggregate]:
    """A class that has the name of a process, or of effects, and takes these commands of an operator."""
    from ...runtime.domain.aggregate import Aggregate, Decider, Shared

    options: dict[str, Any] = {"name": name, "placement": Shared()}
    target: Any = type("Instance", (Aggregate,), {}, **options)
    target.deciders = {one: Decider("decide", lambda *_: None, False, ()) for one in commands}
    found: type[Aggregate] = target
    return found


def _command(action: Action, by: str, reason: str) -> Command:
    from ...runtime.processes.process import End, Retry, Skip

    return {Action.RETRY: Retry, Action.SKIP: Skip, Action.END: End}[action](by=by, reason=reason)


def _show(status: Status) -> None:
    from ..observe.screen import couriers, couriers_troubles

    if all(one.courier is None for one in status.partitions):
        console.print("no processes run here")
        return
    lines = [line for one in status.partitions if one.courier for line in couriers_troubles(one.courier)]
    console.print(Group(couriers(status), *map(escape, lines)))


def _values(status: Status) -> list[dict[str, Any]]:
    from ..observe.screen import courier_values

    return [
        {"partition": one.partition, **courier_values(one.courier)}
        for one in status.partitions
        if one.courier is not None
    ]
