"""Readiness: whether the projectors of a new build may take over. Pure: facts in, what is missing out.

Beside steps [7] and [8]. For a deployment (`control/rollout.py`), a rebuild (`rebuild.py`) and a further replica
(`projection/fleet.py`). "Ready" means caught up and healthy:

- its process answers, has come to where the logs ended when it was asked to catch up, and at least as far as what
  serves: a partition that cannot be read now may have been before
- its handlers have stopped at no event, unless what serves has stopped too, and have set none aside that is not set
  aside there
- it answers what was last asked of what serves, as far as that answers it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...runtime.errors import HandlerFailed, RayfoldError, Unavailable
from ...runtime.read.stores.checkpoint import Quarantined

__all__ = ["Looked", "Probed", "check_answers", "check_projector", "furthest", "have_stopped"]


class Looked(NamedTuple):
    """One projector, as it was found."""

    answered: bool
    up_to_date: bool
    """It has caught up once since its process began."""
    positions: Mapping[int, int]
    """Where it is, by partition."""
    heads: Mapping[int, int]
    """Where the logs ended when it was last asked to catch up."""
    failed: RayfoldError | None
    """Why it has stopped, or did not answer."""
    quarantined: Sequence[Quarantined]


class Probed(NamedTuple):
    """What became of one query."""

    query: str
    """Its name."""
    error: str
    """What its handler has failed with; empty if it was answered."""


def furthest(serving: Sequence[Looked]) -> dict[int, int]:
    """How far those that serve have come, by partition."""
    positions: dict[int, int] = {}
    for one in serving:
        for partition, position in one.positions.items():
            positions[partition] = max(position, positions.get(partition, 0))
    return positions


def have_stopped(serving: Sequence[Looked]) -> bool:
    """Whether the present code has stopped: a new build that stops as well makes nothing worse, and must not keep what
    else was changed from being deployed."""
    return bool(serving) and all(one.answered and one.failed is not None for one in serving)


def check_projector(name: str, looked: Looked, serving: Sequence[Looked]) -> None:
    """Raises why this projector may not take over from those that serve."""
    if looked.failed is not None:
        if looked.answered and have_stopped(serving):
            return
        raise looked.failed
    aside = {(entry.partition, entry.position) for one in serving for entry in one.quarantined}
    for entry in looked.quarantined:
        if (entry.partition, entry.position) not in aside:
            subject = f"{entry.event} at {entry.position:,} of partition {entry.partition}"
            raise HandlerFailed(f"projector {name}", subject, f"it was set aside: {entry.error}")
    if not looked.up_to_date:
        raise Unavailable(f"projector {name}", "it has not caught up since its process began")
    heads = furthest([looked._replace(positions=looked.heads), *serving])
    for partition, head in heads.items():
        if (reached := looked.positions.get(partition, 0)) < head:
            what = f"it is at event {reached:,} of {head:,} of partition {partition}"
            raise Unavailable(f"projector {name}", what)


def check_answers(name: str, before: Sequence[Probed], after: Sequence[Probed]) -> None:
    """Raises `HandlerFailed` for a query that what serves answers and this projector does not."""
    answered = {one.query for one in before if not one.error}
    for one in after:
        if one.error and one.query in answered:
            raise HandlerFailed(f"projector {name}", one.query, one.error)
