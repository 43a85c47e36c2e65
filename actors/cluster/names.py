"""Names: what actors are called in Ray. Every name is made here, and read here.

Beside all steps. What a name begins with is the system: of a store on one machine its folder and the first digits of
its id, of an application its name. What follows names the actor:

    bank/supervisor                         the supervisor of a system on a cluster
    `bank/keeper-<node>`                    the agent of a node
    bank/sinks#<generation>                 the actor of the sinks
    bank/partition-0                        a partition on one machine
    bank/partition-0@<node>#<mark>          a partition on a cluster
    bank/Balances-v2.1/0-1#<mark>           a projector: build, part, replica
    bank:Account/alice@0.7.3                an own actor: stream, partition, epoch, count

Rule kept here: a name with a *mark* is never given twice, so that no two incarnations are ever mistaken
(`scheduling.py` makes the marks). Where a system outlives the programs that deployed it, the mark begins with the
generation of the code that its actor runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = [
    "PartitionName",
    "ProjectorName",
    "generation_in",
    "names_of",
    "node_agent_name",
    "own_actor_name",
    "partition_name",
    "partition_named",
    "projector_name",
    "projector_named",
    "rest_of_name",
    "is_sinks",
    "seat_in",
    "sinks_name",
    "store_system",
    "supervisor_name",
    "systems_in",
]

_SUPERVISOR: Final = "/supervisor"

_SINKS: Final = "/sinks#"

_PARTITION: Final = re.compile(r"[^/:]+/partition-(?P<number>\d+)@(?P<node_id>[^#/]+)#(?P<mark>\S+)", re.ASCII)
_PROJECTOR: Final = re.compile(
    r"[^/]+/(?P<projection>[^/]+)-(?P<build>v\d+(?:\.\d+)?)/(?P<part>\d+)-(?P<replica>\d+)#(?P<mark>\S+)", re.ASCII
)


class PartitionName(NamedTuple):
    """The parts of the name of a partition's actor on a cluster."""

    number: int
    node_id: str
    generation: int


class ProjectorName(NamedTuple):
    """The parts of the name of a projector."""

    projection: str
    part: int
    replica: int
    build: str
    """Which building of the read model it holds: `v2`, or `v2.1` if that version was built anew."""
    mark: str


def store_system(folder: str, store_id: str) -> str:
    """What the names of the actors of a store on one machine begin with, and what its metrics call it."""
    return f"{folder}-{store_id[:8]}"


def supervisor_name(system: str) -> str:
    """The name of the supervisor of the system of this name."""
    return f"{system}{_SUPERVISOR}"


def systems_in(names: Iterable[str]) -> list[str]:
    """The systems of which these names have a supervisor."""
    return sorted(name.removesuffix(_SUPERVISOR) for name in names if name.endswith(_SUPERVISOR))


def node_agent_name(system: str, node_id: str) -> str:
    """The name of the agent of a node."""
    return f"{system}/keeper-{node_id}"


def partition_name(system: str, number: int, node_id: str = "", mark: str = "") -> str:
    """The name of a partition's actor; on a cluster, with the node that it is bound to and a mark."""
    return f"{system}/partition-{number}" + (f"@{node_id}#{mark}" if node_id else "")


def partition_named(name: str) -> PartitionName | None:
    """The parts of this name; None if it is that of no partition on a cluster."""
    found = _PARTITION.fullmatch(name)
    if found is None:
        return None
    return PartitionName(int(found["number"]), found["node_id"], generation_in(found["mark"]))


def projector_name(system: str, build: str, part: int, replica: int, mark: str) -> str:
    """The name of a projector. `build`: the name of the folder of its build."""
    return f"{system}/{build}/{part}-{replica}#{mark}"


def projector_named(name: str) -> ProjectorName | None:
    """The parts of this name; None if it is not a projector's."""
    found = _PROJECTOR.fullmatch(name)
    if found is None:
        return None
    return ProjectorName(found["projection"], int(found["part"]), int(found["replica"]), found["build"], found["mark"])


def own_actor_name(system: str, stream: object, partition: int, epoch: int, count: int) -> str:
    """The name of an own actor, the `count`th that this activation of its partition has started."""
    return f"{system}:{stream}@{partition}.{epoch}.{count}"


def seat_in(name: str) -> str:
    """A name without what makes it one that was never given."""
    return name.partition("#")[0]


def generation_in(mark: str) -> int:
    """The generation of the code, of a mark of a system on a cluster."""
    return int(mark.partition(".")[0])


def sinks_name(system: str, generation: int) -> str:
    """The name of the actor of the sinks, with the code of a generation."""
    return f"{system}{_SINKS}{generation}"


def is_sinks(system: str, name: str) -> bool:
    """Whether this is the name of an actor of the sinks, of whatever generation."""
    return name.startswith(f"{system}{_SINKS}")


def names_of(system: str, names: Iterable[str]) -> list[str]:
    """Those of these names that actors of this system have, but for its own actors."""
    return [name for name in names if name.startswith(f"{system}/")]


def rest_of_name(systems: str) -> re.Pattern[str]:
    """Matches a whole name of an actor of a system that this pattern matches; its group is what follows the system."""
    return re.compile(f"(?:{systems})[/:](.+)", re.DOTALL)
