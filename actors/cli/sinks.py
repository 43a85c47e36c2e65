"""`rayfold sinks`: how far the sinks of a store are, what keeps one from publishing, and their switches.

Rules kept here: those of `cli/main.py`. A store on this machine is asked whether a program runs it or not; no classes
of the application are needed.
"""

from __future__ import annotations

from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from ...runtime.errors import CallerError, RayfoldError
from .application import connected_to, is_application
from .console import console, write_report
from .options import AddressOption, ByOption, JsonOption, ReasonOption, SystemArgument, check_signed

if TYPE_CHECKING:
    from ...runtime.sinks.kept_sinks import KeptSink
    from ..api.blocking import BlockingOperations
    from ..observe.status import SinkStatus

__all__ = ["sinks"]

ATTENTION: Final = 1
"""The exit code if a sink does not publish although it is on."""


class Switch(Enum):
    """What an operator can do with a sink."""

    ON = "on"
    OFF = "off"
    SKIP = "skip"


class Order(NamedTuple):
    """One of these, with all that it takes."""

    what: Switch
    sink: str
    event: str
    by: str
    reason: str

    def give(self, bank: BlockingOperations) -> None:
        """To a system that runs."""
        if self.what is Switch.SKIP:
            bank.skip_event(self.sink, self.event, by=self.by, reason=self.reason)
        else:
            bank.switch_sink(self.sink, self.what is Switch.ON, by=self.by, reason=self.reason)


def sinks(
    directory: SystemArgument,
    switch: Annotated[
        Switch | None,
        typer.Argument(help="on: publish. off: do not; its place stays where it is. skip: leave an event out."),
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The sink.")] = None,
    event: Annotated[
        str | None, typer.Argument(metavar="EVENT", help="To skip: its id, which its target does not take.")
    ] = None,
    by: ByOption = None,
    reason: ReasonOption = None,
    json_file: JsonOption = None,
    address: AddressOption = "auto",
) -> None:
    """Show how far sinks are, and why one does not publish; switch one on or off, or have one leave an event out. Exit
    code 1 if one is failing."""
    order = None
    if switch is not None:
        if not name:
            raise CallerError(f"which sink is to be switched {switch.value}? Give its name")
        if (switch is Switch.SKIP) != bool(event):
            raise CallerError(f"an id of an event belongs to skip, and to nothing else: {switch.value} {event or ''}")
        order = Order(switch, name, event or "", *check_signed(switch.value, by, reason))
    kept, running = _asked(directory, order, address)
    by_name = {one.name: one for one in running}
    _show(kept, by_name)
    values = [one._asdict() | {"now": _values(by_name.get(one.name))} for one in kept]
    write_report(json_file, {"sinks": values})
    if any(one.on and one.name in by_name and by_name[one.name].failure for one in kept):
        raise typer.Exit(ATTENTION)


def _asked(directory: Path, order: Order | None, address: str) -> tuple[list[KeptSink], list[SinkStatus]]:
    """What the store keeps, and what is published now, where a program can be asked for it."""
    from ...runtime.sinks.kept_sinks import kept_sinks, switch_sink
    from ..api.connection import connect_blocking
    from ..api.store_subscription import whole_store
    from ..packaging.application import Application
    from ..system.relayed_calls import HolderCalls

    if is_application(directory):
        with connected_to(str(directory), address) as application:
            if order is not None:
                order.give(application)
            return application.sinks(), application.status().sinks
    store, running = whole_store(directory), list["SinkStatus"]()
    if order is not None and order.what is Switch.SKIP:  # only what is tried now can be left out
        with connect_blocking(store.path, Application("operator", aggregates=[])) as bank:
            order.give(bank)
    with closing(HolderCalls(store)) as calls:
        if order is not None and order.what is not Switch.SKIP:
            on = order.what is Switch.ON
            switch_sink(calls, store.partitions, order.sink, on, order.by, order.reason)
        kept = kept_sinks(calls, store.partitions)
    try:
        with connect_blocking(store.path, Application("operator", aggregates=[])) as bank:
            running = bank.status().sinks
    except RayfoldError:  # no program runs it now
        pass
    return kept, running


def _values(status: SinkStatus | None) -> dict[str, Any] | None:
    return None if status is None else status._asdict()


def _show(kept: list[KeptSink], running: dict[str, SinkStatus]) -> None:
    if not kept:
        console.print("no sink has begun here")
        return
    table = Table()
    for column in ("sink", "", "behind", "now"):
        table.add_column(column, justify="right" if column == "behind" else "left", overflow="fold")
    for one in kept:
        table.add_row(one.name, "on" if one.on else "off", f"{one.behind:,}", escape(_now(one, running.get(one.name))))
    console.print(table)


def _now(kept: KeptSink, status: SinkStatus | None) -> str:
    if not kept.on:
        return f"{kept.by}: {kept.reason}" if kept.by else "as in every restored store"
    if status is None:
        return "not published by a running program"
    if not status.alive:
        return "its process does not answer"
    if status.on is None and not status.failure:
        return "it has not begun yet"
    return f"for {status.failing_s:,.0f} s: {status.failure}" if status.failure else f"{status.published:,} published"
