"""`rayfold subscriptions`: how far the subscriptions of a name are, who has them open, and how one is forgotten.

Rules kept here: those of `cli/main.py`. A store on this machine is asked whether a program runs it or not; no classes
of the application are needed.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .application import connected_to, is_application
from .console import console, write_report
from .options import AddressOption, JsonOption, SystemArgument

if TYPE_CHECKING:
    from ...runtime.feed.named_subscriptions import SubscriptionStatus

__all__ = ["subscriptions"]


def subscriptions(
    directory: SystemArgument,
    forget: Annotated[
        str | None,
        typer.Option("--forget", metavar="NAME", help="Forget this one: the next of its name is a new one."),
    ] = None,
    json_file: JsonOption = None,
    address: AddressOption = "auto",
) -> None:
    """Show the subscriptions of a name: members, how many events each is behind, who has them open."""
    forgotten, found = _asked(directory, forget, address)
    if forget is not None:
        console.print(escape(f"{forget}: {'forgotten' if forgotten else 'there was none'}"), soft_wrap=True)
    _show(found)
    write_report(json_file, {"subscriptions": [one._asdict() for one in found]})


def _asked(directory: Path, forget: str | None, address: str) -> tuple[bool, list[SubscriptionStatus]]:
    from ...runtime.feed.member_locks import FolderLocks
    from ...runtime.feed.named_subscriptions import forget_subscription, subscriptions_of
    from ...runtime.store.store import SUBSCRIPTIONS
    from ..api.store_subscription import whole_store
    from ..system.relayed_calls import HolderCalls

    if is_application(directory):
        with connected_to(str(directory), address) as application:
            forgotten = forget is not None and application.forget_subscription(forget)
            return forgotten, application.subscriptions()
    store = whole_store(directory)
    locks = FolderLocks(store.path / SUBSCRIPTIONS)
    with closing(HolderCalls(store)) as calls:
        forgotten = forget is not None and forget_subscription(calls, locks, forget, store.partitions)
        return forgotten, subscriptions_of(calls, locks, store.partitions)


def _show(found: list[SubscriptionStatus]) -> None:
    if not found:
        console.print("no subscription has a name here")
        return
    table = Table()
    for column in ("subscription", "members", "behind", "open in"):
        table.add_column(column, justify="right" if column in ("members", "behind") else "left", overflow="fold")
    for one in found:
        holders = "; ".join(
            f"{member}: {holder}" if one.members > 1 else holder for member, holder in one.holders.items()
        )
        behind = "?" if one.problem else f"{one.behind:,}"
        table.add_row(one.name, f"{one.members:,}", behind, escape(holders))
    console.print(table)
    for one in found:
        if one.problem:
            console.print(escape(f"{one.name} cannot be opened: {one.problem}"), soft_wrap=True)
