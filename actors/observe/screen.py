"""The screen of `rayfold status`: a status as tables, and as plain values for `--json`.

Rule kept here: what is unknown is shown as a question mark and never as a 0, and what does not answer stands out.
"""

from __future__ import annotations

from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from ...runtime.processes.courier import CourierFacts
from ...runtime.store.store_lock import Holder
from ..nodes.store import AnyStore
from .status import PartitionStatus, ProjectorStatus, Status

__all__ = ["as_values", "courier_values", "couriers", "couriers_troubles", "drawn"]

PARKED_SHOWN: Final = 20
OWN_ACTORS_SHOWN: Final = 20
QUARANTINED_SHOWN: Final = 10
ALARMS_SHOWN: Final = 10
"""On the screen, of each kind; `--json` has all."""

_STYLES: Final = {"live": "green", "behind": "yellow", "replaying": "cyan", "stopped": "bold red", "silent": "bold red"}


def drawn(status: Status, store: AnyStore, who: object) -> RenderableType:
    """The status as tables, with what is wrong in words below. `Balances v1 0-1` is part 0, replica 1. `who`: holds the
    store, or where it runs."""
    head = f"{escape(str(store.path))}\n{escape(str(who))}\n"
    parts: list[RenderableType] = [head]
    if status.nodes:
        parts.append(_nodes(status))
    parts.append(_partitions(status))
    if any(one.courier for one in status.partitions):
        parts.append(couriers(status))
    if status.own_actors:
        parts.append(_own_actors(status))
    if status.projectors:
        parts.append(_projectors(status))
    if status.sinks:
        parts.append(_sinks(status))
    return Group(*parts, *_troubles(status))


def as_values(status: Status, store: AnyStore, holder: Holder | None) -> dict[str, Any]:
    """The status as plain values, every figure of it."""
    return {
        "directory": str(store.path),
        "store_id": store.store_id,
        "running": holder is not None or bool(status.nodes),
        "holder": {} if holder is None else {**holder._asdict(), "connection": None},
        "nodes": [one._asdict() for one in status.nodes],
        "partitions": [_partition_values(one) for one in status.partitions],
        "own_actors": [{**one._asdict(), "stream": str(one.stream)} for one in status.own_actors],
        "projectors": [_projector_values(one) for one in status.projectors],
        "sinks": [one._asdict() for one in status.sinks],
    }


def _projector_values(projector: ProjectorStatus) -> dict[str, Any]:
    quarantined = [one._asdict() for one in projector.quarantined]
    alarms = [one._asdict() for one in projector.alarms]
    return {**projector._asdict(), "state": projector.state, "quarantined": quarantined, "alarms": alarms}


def _partition_values(partition: PartitionStatus) -> dict[str, Any]:
    return {
        **partition._asdict(),
        "alarms": [one._asdict() for one in partition.alarms],
        "courier": None if partition.courier is None else courier_values(partition.courier),
    }


def courier_values(courier: CourierFacts) -> dict[str, Any]:
    """How far a courier is, as plain values."""
    waiting = [one._asdict() for one in courier.waiting]
    parked = [{"stream": stream, "why": why} for stream, why in courier.parked]
    calls = [one._asdict() for one in courier.calls]
    return {**courier._asdict(), "waiting": waiting, "parked": parked, "calls": calls}


def _nodes(status: Status) -> Table:
    table = _table("node", "partitions", "address", "state", left=3)
    for one in status.nodes:
        since = f" since {one.gone_since}" if one.gone_since else ""
        state = "[green]up[/]" if one.up else f"[bold red]gone[/]{since}"
        if one.drained:
            state += ", drained"
        table.add_row(escape(one.name), ", ".join(map(str, one.partitions)) or "none", one.address, state)
    return table


def _partitions(status: Status) -> Table:
    spread = ("node",) if status.nodes else ()
    table = _table(*spread, "partition", "pid", "epoch", "head", "commands", "commands/s", "state", left=len(spread))
    for one in status.partitions:
        state = "[green]live[/]" if one.alive else f"[bold red]silent[/]{_since(one)}"
        figures = one.partition, one.pid or "?", one.epoch or "?", f"{one.head:,}", f"{one.commands:,}"
        home = (escape(one.node),) if spread else ()
        table.add_row(*home, *map(str, figures), _rate(one.commands_per_s), state)
    return table


def couriers(status: Status) -> Table:
    """How far what processes have decided is carried out, by partition."""
    table = _table("courier", "undelivered", "sent, no outcome", "timers", "not answering", "parked", left=1)
    for one in status.partitions:
        facts = one.courier
        if facts is None:
            table.add_row(f"partition {one.partition}", *("?" * 5))
            continue
        figures = facts.undelivered, facts.open_sends, facts.timers, facts.waiting_count, facts.parked_count
        table.add_row(f"partition {one.partition}", *(f"{figure:,}" for figure in figures))
    return table


def _own_actors(status: Status) -> Table:
    table = _table("own actor", "pid", "partition", left=1)
    for one in status.own_actors[:OWN_ACTORS_SHOWN]:
        table.add_row(escape(str(one.stream)), str(one.pid), str(one.partition))
    if (more := len(status.own_actors) - OWN_ACTORS_SHOWN) > 0:
        table.add_row(f"and {more:,} more", "", "")
    return table


def _projectors(status: Status) -> Table:
    columns = "pid", "position", "behind", "s behind", "events/s", "aside", "state"
    spread = ("node",) if status.nodes else ()
    table = _table(*spread, "projector", *columns, left=1 + len(spread))
    for one in status.projectors:
        table.add_row(
            *((escape(one.node),) if spread else ()),
            escape(f"{one.projection} {one.build} {one.part}-{one.replica}"),
            str(one.pid or "?"),
            f"{sum(one.positions.values()):,}" if one.positions else "?",
            "?" if one.behind_events is None else f"{one.behind_events:,}",
            "?" if one.behind_s is None else f"{one.behind_s:,.1f}",
            _rate(one.events_per_s),
            f"{len(one.quarantined):,}" if one.alive else "?",
            f"[{_STYLES[one.state]}]{one.state}[/]{'' if one.alive else _since(one)}",
        )
    return table


def _sinks(status: Status) -> Table:
    table = _table("sink", "pid", "behind", "published", "state", left=1)
    for one in status.sinks:
        state = "[bold red]silent[/]"
        if one.alive:
            state = "[yellow]off[/]" if one.on is False else "[bold red]failing[/]" if one.failure else "[green]live[/]"
        behind = "?" if one.behind_events is None else f"{one.behind_events:,}"
        table.add_row(escape(one.name), str(one.pid or "?"), behind, f"{one.published:,}" if one.alive else "?", state)
    return table


def _troubles(status: Status) -> list[str]:
    """What is wrong, one line each."""
    lines = [f"node {one.name}: {one.trouble}" for one in status.nodes if one.trouble]
    lines += [f"partition {one.partition}: {one.log_error}" for one in status.partitions if one.log_error]
    processes: list[PartitionStatus | ProjectorStatus] = [*status.partitions, *status.projectors]
    for process in processes:
        lines += [f"ALARM {one.at} {one}" for one in process.alarms[:ALARMS_SHOWN]]
        if (more := process.alarms_raised - ALARMS_SHOWN) > 0:
            lines.append(f"ALARM {more:,} more of the same process")
    for partition in status.partitions:
        if partition.courier is not None:
            lines += couriers_troubles(partition.courier)
    for projector in status.projectors:
        who = f"{projector.projection} part {projector.part} replica {projector.replica}"
        if projector.failed:
            lines.append(f"{who} has stopped: {projector.failed}")
        for one in projector.quarantined[:QUARANTINED_SHOWN]:
            where = f"event {one.position} of partition {one.partition} ({one.event}, {one.stream} {one.version})"
            lines.append(f"{who} has set aside {where}: {one.error}")
        if (more := len(projector.quarantined) - QUARANTINED_SHOWN) > 0:
            lines.append(f"{who} has set aside {more:,} more")
    lines += [f"sink {one.name} does not publish: {one.failure}" for one in status.sinks if one.failure]
    return [escape(line) for line in lines]


def couriers_troubles(courier: CourierFacts) -> list[str]:
    """What stands still, and what does not answer, one line each."""
    lines = [f"a courier fails and begins anew: {courier.trouble}"] if courier.trouble else []
    shown = courier.parked[:PARKED_SHOWN]
    lines += [f"{stream} is parked: {why}" for stream, why in shown]
    if (more := courier.parked_count - len(shown)) > 0:
        lines.append(f"{more:,} more are parked")
    lines += [f"{one.commands:,} commands wait for {one.stream}: {one.why}" for one in courier.waiting]
    if (more := courier.waiting_count - len(courier.waiting)) > 0:
        lines.append(f"commands wait for {more:,} more")
    return lines


def _table(*columns: str, left: int = 0) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left or column == "state" else "right", no_wrap=True)
    return table


def _since(one: PartitionStatus | ProjectorStatus) -> str:
    return "" if one.answered_s is None else f" for {one.answered_s:,.0f} s"


def _rate(per_s: float | None) -> str:
    return "?" if per_s is None else f"{per_s:,.0f}"
