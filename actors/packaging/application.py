"""Application: what is deployed on a cluster, and what its supervisor is started with.

Beside all steps. `bank = Application("bank", aggregates=[...], projections=[...])` in a module of the user's is what
`rayfold deploy bank_app:bank` deploys. The classes travel as bytes (`shipping.py`), so a plan can be kept where nothing
of the user's can be imported: in Ray's own directory, from which a supervisor that is started again takes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ...runtime.arguments import unregistered
from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.messages import Event
from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue, check_listed
from ...runtime.encoding.facts import shown_as_text
from ...runtime.errors import InvalidId, InvalidMessage
from ...runtime.printable import shown
from ...runtime.processes.effects import Effects
from ...runtime.processes.process import Process
from ...runtime.processes.since import Since, since_of_all
from ...runtime.processes.targets import check_targets
from ...runtime.sinks.sink import Sink, check_sinks
from ...runtime.store.store import PARTITIONS_MAX
from ..settings import Settings
from .builds import ProjectionFacts

__all__ = [
    "Application",
    "ApplicationPlan",
    "Processes",
    "application_here",
    "check_name",
    "check_partitions",
    "check_replicas",
    "checked_replicas",
    "checked_settings",
]

REPLICAS_MAX: Final = 64
"""The replicas of one projection: each is a process with the whole read model in memory."""

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", re.ASCII)
"""It becomes the name of a folder in every data folder, and the beginning of names in Ray."""


Processes = Sequence[type[Process]] | Mapping[type[Process], Since]
EffectClasses = Sequence[type[Effects]] | Mapping[type[Effects], Since]
"""Process classes, or a mapping from each to from where on it takes part."""


class Application:
    """An event-sourced application by name: for a cluster, or for `Runtime("bank-data", bank)` on one machine.

    Args:
        name: Of the application and its store, 1 to 63 letters, digits, '-', '_' or '.'.
        aggregates: The aggregate classes.
        projections: The projection classes.
        partitions: Of a new store; by default as many as there are nodes, and at least 2.
        replicas: Of each projection, or a mapping from projection to number.
        settings: Bounds and deadlines.
        events: Classes of events that the store holds and no aggregate here evolves.
        retired: Stored names of events and aggregate types that were given up; their events are passed over (see
            docs/evolution.md).
        processes: The process classes, or a mapping from each to its `since`.
        since: From where on a process takes part, or effects do, that are new to a store with events: "now",
            "beginning", or behind a receipt. Later starts pass over it.
        effects: The `Effects` classes, or a mapping from each to its `since`.
        sinks: What publishes events to other systems.

    Raises:
        InvalidId: A name that cannot be one.
        InvalidMessage: A number of partitions or replicas that cannot be.
        DefinitionError: Two classes have the same name.

    Example:
        shop = Application("shop", aggregates=[Till], projections=[Slips], partitions=6, replicas=2)
    """

    def __init__(
        self,
        name: str,
        *,
        aggregates: Sequence[type[Aggregate]],
        projections: Sequence[type[Projection]] = (),
        partitions: int | None = None,
        replicas: int | Mapping[type[Projection], int] = 1,
        settings: Settings | None = None,
        events: Sequence[type[Event]] = (),
        retired: Sequence[str] = (),
        processes: Processes = (),
        since: Since | None = None,
        effects: EffectClasses = (),
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.name = check_name(name)
        self.projections = tuple(check_listed("projections", projections))
        listed, since_of = since_of_all(processes, effects, since)
        self.catalogue = Catalogue(
            aggregates, self.projections, events=events, retired=retired, processes=listed, since=since_of
        )
        check_targets(self.catalogue)
        self.catalogue.sinks = check_sinks(sinks, self.catalogue)
        self.partitions = check_partitions(partitions)
        self.replicas = checked_replicas(replicas, self.projections)
        self.settings = checked_settings(settings, None, None)

    def __repr__(self) -> str:
        return f"Application({self.name!r})"


def application_here(
    of: str,
    application: Application | None,
    *,
    aggregates: Sequence[type[Aggregate]],
    projections: Sequence[type[Projection]],
    replicas: int | Mapping[type[Projection], int],
    settings: Settings | None,
    events: Sequence[type[Event]],
    retired: Sequence[str],
    processes: Processes = (),
    since: Since | None = None,
    effects: EffectClasses = (),
    sinks: Sequence[Sink] = (),
) -> Application:
    """The `Application` that was given to `of`, or one of the classes that were given instead. Raises `InvalidMessage`
    for both and for neither, and what `Application` raises."""
    said = any(given != () for given in (aggregates, projections, events, retired, processes, effects, sinks))
    said = said or replicas != 1 or since is not None
    if application is None:
        if not said:
            raise InvalidMessage(of, "there is nothing to run", "give aggregates=[...], or give an Application")
        return Application(
            "here",
            aggregates=aggregates,
            projections=projections,
            replicas=replicas,
            settings=settings,
            events=events,
            retired=retired,
            processes=processes,
            since=since,
            effects=effects,
            sinks=sinks,
        )
    if not isinstance(application, Application):
        raise InvalidMessage(of, f"{application!r} is not an Application", "give aggregates=[...] for classes")
    if said:
        listed = "aggregates, processes, effects, sinks, projections, replicas, events and retired"
        what = f"{listed} are those of the Application"
        raise InvalidMessage(of, what, "give the Application alone, or leave it out")
    return application


@dataclass(frozen=True, slots=True)
class ApplicationPlan:
    """What a supervisor is started with."""

    name: str
    catalogue: bytes
    """The application's classes; see `shipping.py`."""
    partitions: int | None
    replicas: Mapping[str, int]
    """By the name of the projection."""
    settings: Settings
    generation: int = 1
    """The generation of the code: one more with each deployment."""
    counts_slots: bool = True
    """Whether the nodes have slots for own actors."""
    digest: str = ""
    """The digest of the deployed code (`code.py`); empty if all of it is installed on the nodes."""
    projections: Mapping[str, ProjectionFacts] = field(default_factory=dict)
    """By name: what a supervisor has to know of the classes before it can load them."""
    builds: Mapping[str, int] = field(default_factory=dict)
    """By the name of the projection: which build of the class's version was made for this plan. What a rebuild has made
    later takes its place."""
    within_s: float | None = None
    """How long the read models may take to be built; None for as long as it takes."""
    create: bool = False
    """Whether a new store may be made, if this system never had one (`packaging/registry.py` keeps which one it
    had)."""
    without: tuple[str, ...] = ()
    """Ids of nodes that are down and that it may be made without: the deployer has given them up."""


def check_name(name: object) -> str:
    """Raises `InvalidId` for what cannot be the name of an application."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        what = "must be 1 to 63 letters, digits, '-', '_' or '.', none of these at an end"
        raise InvalidId("application name", shown_as_text(name), what)
    return name


def checked_settings(settings: Settings | None, own_actors_max: int | None, timeout_s: float | None) -> Settings:
    """The settings, with those that were given directly. Raises `InvalidMessage`."""
    if settings is not None and not isinstance(settings, Settings):
        raise InvalidMessage("settings", f"{shown(settings)} is none", "give a Settings(...)")
    chosen = settings or Settings()
    if own_actors_max is not None:
        chosen = replace(chosen, own_actors_max=own_actors_max)
    return chosen if timeout_s is None else replace(chosen, timeout_s=timeout_s)


def checked_replicas(
    replicas: int | Mapping[type[Projection], int], projections: Sequence[type[Projection]]
) -> dict[type[Projection], int]:
    """How many replicas each projection has. Raises `InvalidMessage`, `UnknownName`."""
    counts = dict.fromkeys(projections, 1)
    if isinstance(replicas, Mapping):
        for projection, count in replicas.items():
            if projection not in counts:
                known = {known.projection_name: known for known in projections}
                raise unregistered("projection", projection, known)
            counts[projection] = count
    else:
        if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
            raise InvalidMessage(
                "replicas", f"is {shown(replicas)}", "give a number from 1, or one for each projection"
            )
        counts = dict.fromkeys(projections, replicas)
    for projection, count in counts.items():
        check_replicas(projection, count)
    return counts


def check_replicas(projection: type[Projection], replicas: object) -> None:
    """Raises `InvalidMessage` for a number of replicas that cannot be."""
    if isinstance(replicas, bool) or not isinstance(replicas, int) or not 1 <= replicas <= REPLICAS_MAX:
        what = f"{shown(replicas)} replicas of {projection.projection_name}"
        raise InvalidMessage("replicas", what, f"choose 1 to {REPLICAS_MAX}")


def check_partitions(partitions: int | None, of: str = "Application") -> int | None:
    """Raises `InvalidMessage` for a number of partitions that cannot be."""
    wrong = isinstance(partitions, bool) or not isinstance(partitions, int) or not 1 <= partitions <= PARTITIONS_MAX
    if partitions is not None and wrong:
        raise InvalidMessage(of, f"partitions is {shown(partitions)}", f"give 1 to {PARTITIONS_MAX:,}")
    return partitions
