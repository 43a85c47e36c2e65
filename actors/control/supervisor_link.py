"""SupervisorLink: a process's way to the supervisor of a system on a cluster, through Ray.

Beside all steps. For a program that is a driver of Ray (`../system/remote.py`), and for the agent of a node, which
passes questions on for programs without Ray (`node_relay.py`).

Rules kept here: nothing is looked up by name while the head is away, since Ray would wait for a minute; what is known
by then goes on. Nothing here makes the event loop wait for Ray.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

from ...runtime.errors import RayfoldError, Unavailable
from ..cluster.attachment import Attachment
from ..cluster.names import supervisor_name
from ..cluster.ray_cluster import Cluster
from ..cluster.retry import Patience, retried
from ..cluster.rpc import Method, Reply, call, in_thread, one_line
from .handle import SupervisorHandle
from .topology import Topology

__all__ = ["ASK_TIMEOUT_S", "PATIENCE_S", "SLOW_S", "SupervisorLink", "asked_again"]

_READ_TIMEOUT_S: Final = 20.0
"""Timeout of one wait at the topology feed, which is answered at the latest then: an answer that was lost is asked for
again."""

SLOW_S: Final = 5.0
"""What an answer may take beyond what was waited for at the other end."""

ASK_TIMEOUT_S: Final = 60.0
"""For what the supervisor is asked to do; it may just be starting."""

PATIENCE_S: Final = 15.0
"""How long a question is asked again: a supervisor that was killed is there again in some 2 s."""

_RETRY_S: Final = 0.25

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class SupervisorLink:
    """Used on one event loop only."""

    def __init__(self, name: str, cluster: Cluster, attachment: Attachment) -> None:
        """`attachment`: shows whether the head is away."""
        self._name, self._cluster, self._attachment = name, cluster, attachment
        self._supervisor: SupervisorHandle | None = None
        """Its handle, as last looked up."""

    async def call(
        self,
        method: Callable[[SupervisorHandle], Method[Reply[T], *Arguments]],
        *arguments: *Arguments,
        timeout_s: float,
    ) -> T:
        """Raises `Unavailable` if there is none, and what `rpc.call` does."""
        supervisor = self._supervisor or await self._find()
        try:
            return await call(method(supervisor), *arguments, timeout_s=timeout_s)
        except RayfoldError:
            raise
        except Exception:
            if self._attachment.head_away_since_s is None:  # else it would not be found
                self._supervisor = None
            raise

    async def read(self, revision: str) -> Topology | None:
        """The published topology, once it differs from that one; None if it does not for a while."""
        timeout_s = _READ_TIMEOUT_S + SLOW_S
        return await self.call(lambda supervisor: supervisor.read, revision, _READ_TIMEOUT_S, timeout_s=timeout_s)

    async def handles_of(self, topology: Topology) -> dict[str, Any]:
        """The actors that a topology names, without those that have ended since: a later topology has the change."""
        parts = (part for served in topology.projections.values() for part in served.parts)
        names = [*topology.partitions, *(replica for part in parts for replica in part)]
        self.check_head()
        return await in_thread(partial(_looked_up, self._cluster, names))

    def actor_named(self, name: str) -> Any:
        """Raises `ValueError` if it has ended, and what `check_head` does."""
        self.check_head()
        return self._cluster.actor_named(name)

    def check_head(self) -> None:
        """Raises `TimeoutError` while the head is away, since nothing is found by name then."""
        if (since_s := self._attachment.head_away_since_s) is not None:
            since = datetime.fromtimestamp(since_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            what = f"the head at {self._attachment.head} has been away since {since}"
            raise TimeoutError(f"{what}; running actors continue; no others can be looked up until it is back")

    async def _find(self) -> SupervisorHandle:
        self.check_head()
        try:
            found: SupervisorHandle = await in_thread(partial(self._cluster.actor_named, supervisor_name(self._name)))
        except ValueError:
            what = "nothing of that name runs on this cluster; `rayfold deploy` starts it"
            raise Unavailable(self._name, what) from None
        self._supervisor = found
        return found


async def asked_again(name: str, attempt: Callable[[float], Awaitable[T]], patience_s: float) -> T:
    """What an attempt comes to, which is made again for so many seconds. Raises what the supervisor of this name
    replies, and `Unavailable` if it does not answer."""
    try:
        return await retried(attempt, Patience(patience_s, pause_s=_RETRY_S))
    except RayfoldError:
        raise
    except Exception as failure:
        raise Unavailable(name, f"its supervisor does not answer: {one_line(failure)}") from failure


def _looked_up(cluster: Cluster, names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        with contextlib.suppress(ValueError):  # it has ended
            found[name] = cluster.actor_named(name)
    return found
