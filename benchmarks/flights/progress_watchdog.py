"""The watchdog: while a run is under way, it checks whether that moves on, and if not, which node it waits for.

A partition is at home on one node, where its log is. While that node is gone, what needs the partition waits, and
everything else goes on. That is not an error, unless it lasts: the screen names the node, and shows when it is back.

Rules kept here: which nodes are up is read from Ray's own directory, since the supervisor, which knows more, may have
been on the node that is gone. And every wait ends: after `PATIENCE_S` without a step forward the demo ends with one
error that names what it has waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

from rayfold import Unavailable
from rayfold.actors.cluster.ray_cluster import NodeFacts

Result = TypeVar("Result")

PATIENCE_S: Final = 600.0
"""Without a single step forward. Enough to find out which machine it is and to start it again by hand."""

AGAIN_S: Final = 0.25
"""Between two tries of what was refused because a node is gone."""

_LOOK_S: Final = 0.5
"""Between two checks whether the run has moved."""

_STILL_S: Final = 1.0
"""After so long without a step forward the nodes are checked, which takes some milliseconds."""

_GOES_ON: Final = "which goes on where it stopped"


@dataclass(slots=True)
class Loss:
    """A node that was gone while something needed it."""

    node: str
    """Its name: `node-1`."""
    address: str
    partitions: tuple[int, ...]
    """That are at home there."""
    noticed_s: float
    """When it was missed, by the monotonic clock."""
    back_after_s: float | None = None
    """None while it is gone."""

    @property
    def home_of(self) -> str:
        """What has its home there, in words."""
        plural = "" if len(self.partitions) == 1 else "s"
        return f"partition{plural} {', '.join(map(str, self.partitions))}"


class ProgressWatchdog:
    """Watches one run. Used on its event loop only."""

    def __init__(
        self,
        nodes: Callable[[], Sequence[NodeFacts]],
        attached: Callable[[], bool],
        progress: Callable[[], object],
        lost: Callable[[Loss], None],
        back: Callable[[Loss], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`nodes`: of the cluster, up or not. `attached`: whether the one that this program is attached to is up. Both
        are called in a thread. `progress`: something that is different after each step forward. `lost`, `back`: are
        called for each node that is gone, and that is back."""
        self.losses: list[Loss] = []
        """All that there were."""
        self.homes: dict[str, tuple[int, ...]] = {}
        """By the name of a node, the partitions that are at home there; a node without any is not waited for."""
        self._nodes, self._attached = nodes, attached
        self._progress = progress
        self._lost, self._back = lost, back
        self._patience_s = patience_s
        self._why = ""
        """The latest reason why something cannot be done."""

    @property
    def gone(self) -> list[Loss]:
        """The nodes that are waited for now."""
        return [loss for loss in self.losses if loss.back_after_s is None]

    async def over(self, doing: Coroutine[Any, Any, Result]) -> Result:
        """What it comes to. Raises `Unavailable` instead if it does not move for too long."""
        working, looking = asyncio.ensure_future(doing), asyncio.ensure_future(self._look())
        try:
            await asyncio.wait({working, looking}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else looking.result()
        finally:
            for task in (working, looking):
                task.cancel()
            await asyncio.gather(working, looking, return_exceptions=True)

    async def patiently(self, doing: Callable[[], Awaitable[Result]]) -> Result:
        """What it comes to, tried again for as long as it is `Unavailable`. Inside `over`, which bounds that."""
        while True:
            try:
                return await doing()
            except Unavailable as error:
                self._why = str(error)
                await asyncio.sleep(AGAIN_S)

    async def _look(self) -> NoReturn:
        moved, since_s = self._progress(), time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._progress() != moved:
                moved, since_s = self._progress(), time.monotonic()
            still_s = time.monotonic() - since_s
            if still_s > self._patience_s:
                what = f"nothing has moved for {self._patience_s / 60:g} minutes{self._reason()}"
                raise Unavailable("the demo", what)
            if still_s >= _STILL_S or self.gone:
                for node in await asyncio.to_thread(self._nodes):
                    self._see(node)
                if not await asyncio.to_thread(self._attached):
                    what = "the node that this program was attached to has ended; once it is up again, start this again"
                    raise Unavailable("the demo", f"{what}, {_GOES_ON}")

    def _see(self, node: NodeFacts) -> None:
        missed = next((loss for loss in self.gone if loss.node == node.name), None)
        if missed is None and not node.alive and self.homes.get(node.name):
            loss = Loss(node.name, node.address, self.homes[node.name], time.monotonic())
            self.losses.append(loss)
            self._lost(loss)
        elif missed is not None and node.alive:
            missed.back_after_s = time.monotonic() - missed.noticed_s
            self._back(missed)

    def _reason(self) -> str:
        """Why, as far as is known."""
        gone = [f"node {one.node} at {one.address}, home of {one.home_of}, is gone" for one in self.gone]
        if gone:
            return f": {' and '.join(gone)}; start it again, and then this, {_GOES_ON}"
        return f": {self._why}" if self._why else ""
