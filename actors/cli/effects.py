"""`rayfold effects`: calls to the outside: what waits, what is parked and why; and what an operator decides about them.

Rules kept here: those of `cli/main.py`. What an operator does is a command with a name and a reason, stored like
everything that happens. No classes of the application are needed for that.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from ...runtime.errors import CallerError, InvalidId
from .console import console, write_report
from .options import AddressOption, ByOption, JsonOption, ReasonOption, SystemArgument, check_signed
from .processes import connected, stand_in

if TYPE_CHECKING:
    from ...runtime.domain.messages import Command
    from ..observe.status import Status

__all__ = ["command_for", "effects"]

ATTENTION: Final = 1
"""The exit code if a call is parked, or calls wait that are switched off."""


class Action(Enum):
    """What an operator can do."""

    ON = "on"
    OFF = "off"
    SETTLE = "settle"
    RETRY = "retry"
    SKIP = "skip"


class Outcome(Enum):
    """What a call is settled as."""

    DONE = "done"
    DECLINED = "declined"
    NOT_DONE = "not_done"
    NOT_DONE_AS_OPTION = "not-done"
    """The same, as words of a command line are written."""


def effects(
    directory: SystemArgument,
    action: Annotated[
        Action | None,
        typer.Argument(
            help="on, off: calls of a class are made, or wait. settle: its end is known now. retry: try, or look it "
            "up, again. skip: give the call up."
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Argument(metavar="TYPE[/ID]", help="The class, such as Charging, or a call, such as Charging/order-1:3."),
    ] = None,
    outcome: Annotated[
        Outcome | None, typer.Argument(help="Of settle. done, declined: it is over. not_done: it is called again.")
    ] = None,
    by: ByOption = None,
    reason: ReasonOption = None,
    json_file: JsonOption = None,
    address: AddressOption = "auto",
) -> None:
    """Show the calls to the outside, or decide about one. Exit code 1 if any is parked, or waits switched off."""
    if action is None:
        with connected(directory, address) as bank:
            status = bank.status()
        _show(status)
        write_report(json_file, _values(status))
        raise typer.Exit(ATTENTION if _needs_attention(status) else 0)
    by, reason = check_signed(action.value, by, reason)
    name, _, ident = (subject or "").partition("/")
    if not name or bool(ident) == (action in (Action.ON, Action.OFF)):
        wanted = "the class alone: Charging" if action in (Action.ON, Action.OFF) else "a call: Charging/order-1:3"
        raise InvalidId("effects", subject or "", f"is not what {action.value} takes; write {wanted}")
    if action in (Action.ON, Action.OFF):
        _switch(directory, address, name, action is Action.ON, by, reason)
        write_report(json_file, {"effects": name, "on": action is Action.ON})
        return
    command = command_for(action, outcome, by, reason)
    target = stand_in(name, type(command))
    with connected(directory, address, target) as bank:
        receipt = bank.execute(target, ident, command)
    console.print(escape(f"{subject}: {action.value}, stored as version {receipt.version}"), soft_wrap=True)
    write_report(json_file, {"stream": subject, "version": receipt.version})


def _switch(directory: Path, address: str, name: str, on: bool, by: str, reason: str) -> None:
    from ...runtime.processes.effects import Switch

    target = stand_in(name, Switch)
    with connected(directory, address, target) as bank:
        couriers = [part.courier for part in bank.status().partitions if part.courier is not None]
        if not any(one.effects == name for courier in couriers for one in courier.calls):
            raise CallerError(f"no effects named {name} run here; `rayfold effects {directory}` shows those that do")
        bank.switch_effects(target, on, by=by, reason=reason)
    console.print(escape(f"calls of {name} are {'made' if on else 'not made'} from now on"), soft_wrap=True)


def command_for(action: Action, outcome: Outcome | None, by: str, reason: str) -> Command:
    """The command that an operator's words are. Raises `CallerError`."""
    from ...runtime.processes.effects import Settle
    from ...runtime.processes.inputs import Retry, Skip

    if action is Action.RETRY:
        return Retry(by=by, reason=reason)
    if action is Action.SKIP:
        return Skip(by=by, reason=reason)
    assert action is Action.SETTLE  # the others are no commands to a call
    if outcome is None:
        raise CallerError("settle needs what the call came to; write done, declined or not_done behind it")
    settled: Any = (Outcome.NOT_DONE if outcome is Outcome.NOT_DONE_AS_OPTION else outcome).value
    return Settle(outcome=settled, by=by, reason=reason)


def _needs_attention(status: Status) -> bool:
    from ..observe.effect_calls import effect_calls

    queues = [one for part in status.partitions if part.courier is not None for one in part.courier.calls]
    return bool(effect_calls(status)) or any(one.state == "off" and one.waiting for one in queues)


def _show(status: Status) -> None:
    from ..observe.effect_calls import effect_calls

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("effect", "partition", "waiting", "running", "state"):
        table.add_column(column, justify="right" if column in ("partition", "waiting", "running") else "left")
    for part in status.partitions:
        for one in () if part.courier is None else part.courier.calls:
            figures = str(part.partition), f"{one.waiting:,}", f"{one.running:,}", one.state
            table.add_row(escape(f"{one.effects}.{one.method}"), *figures)
    if not table.rows:
        console.print("no effects run here")
        return
    calls = [escape(f"{one.effects}/{one.id} is parked: {one.why}") for one in effect_calls(status)]
    console.print(Group(table, *calls))


def _values(status: Status) -> dict[str, Any]:
    from ..observe.effect_calls import effect_calls

    queues = [
        {"partition": part.partition, **one._asdict()}
        for part in status.partitions
        if part.courier is not None
        for one in part.courier.calls
    ]
    return {"queues": queues, "parked": [one._asdict() for one in effect_calls(status)]}
