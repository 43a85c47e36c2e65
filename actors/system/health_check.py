"""Health check: what of a system answers this program now, for the `/healthz` of a web service.

Beside all steps. Asked are the actors themselves, over the handles that commands and queries take: each partition for
the head of its log, each projector for its state. All at once, and no actor for longer than the limit; what is known to
be away is not asked.

Rule kept here: it never raises and never takes longer than its limit, since a health check that fails or hangs is
useless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ..client.client import Client
from ..cluster.rpc import call, one_line

__all__ = ["HEALTH_TIMEOUT_S", "Health", "health_of", "nothing_runs"]

HEALTH_TIMEOUT_S: Final = 2.0
"""An answer takes some milliseconds; on a busy machine some tenths of a second."""


class Health(NamedTuple):
    """What serves this program, what does not, and why. Returned by `health()`, which never raises.

    Example:
        health = await shop.health()
        return JSONResponse(health._asdict(), status_code=200 if health.ok else 503)
    """

    ok: bool
    """Whether all of it does."""
    connected: bool
    """Whether this program is connected to the system. If it is not, nothing is served."""
    partitions: dict[int, str]
    """Partition -> why commands to it are not executed; empty if they are."""
    projections: dict[str, str]
    """Projection -> why queries to it are not answered; empty if they are, by one replica of each part at least."""
    why: str
    """The first of these reasons, by name; empty if there is none."""


_NOT_CONNECTED: Final = "this program is not connected"


async def health_of(client: Client, limit_s: float, cut_off: str = "") -> Health:
    """Ask all actors. `cut_off`: why this program is not connected, if it is not."""
    partitions, projections = client.partitions_reached(), client.projections_reached()
    asked = [
        *(_partition(actor, why, limit_s) for _, actor, why in partitions),
        *(_projection(parts, why, limit_s) for _, parts, why in projections),
    ]
    troubles = await asyncio.gather(*asked)
    of_partitions = {number: why for (number, *_), why in zip(partitions, troubles, strict=False)}
    of_projections = {name: why for (name, *_), why in zip(projections, troubles[len(partitions) :], strict=True)}
    if cut_off:  # it stands in `why` alone
        of_partitions = {number: why and _NOT_CONNECTED for number, why in of_partitions.items()}
        of_projections = {name: why and _NOT_CONNECTED for name, why in of_projections.items()}
    named = [f"partition {number}: {why}" for number, why in of_partitions.items() if why]
    named += [_with_name(name, why) for name, why in of_projections.items() if why]
    why = cut_off or next(iter(named), "")
    return Health(not why, not cut_off, of_partitions, of_projections, why)


def _with_name(projection: str, why: str) -> str:
    """A reason that begins with the name of a handler has the projection's name already."""
    return why if why.startswith(f"{projection}.") else f"{projection}: {why}"


def nothing_runs(why: str) -> Health:
    """Of what was not started, or has been stopped."""
    return Health(ok=False, connected=False, partitions={}, projections={}, why=why)


async def _partition(actor: Any, why: str, limit_s: float) -> str:
    if why:
        return why
    try:
        await call(actor.head, timeout_s=limit_s)
    except Exception as error:  # of Ray's there are many
        return _trouble(error, limit_s)
    return ""


async def _projection(parts: Sequence[Sequence[Any]], why: str, limit_s: float) -> str:
    """The trouble of the first part of which no replica answers queries."""
    if why:
        return why
    for part in await asyncio.gather(*(_part(actors, limit_s) for actors in parts)):
        if part:
            return part
    return ""


async def _part(actors: Sequence[Any], limit_s: float) -> str:
    troubles = await asyncio.gather(*(_projector(actor, limit_s) for actor in actors))
    return "" if not all(troubles) else next(iter(troubles), "it has no projector")


async def _projector(actor: Any, limit_s: float) -> str:
    try:
        answer = await call(actor.status, timeout_s=limit_s)
    except Exception as error:
        return _trouble(error, limit_s)
    return str(answer.failed)


def _trouble(error: Exception, limit_s: float) -> str:
    return f"no answer within {limit_s:g} s" if type(error) is TimeoutError else one_line(error)
