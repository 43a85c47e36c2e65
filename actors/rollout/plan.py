"""Rollout: the order in which a system gets new code, and what becomes of it when a step fails. No Ray in here.

Beside all steps. `control/rollout.py` does what the steps are; this file decides which comes next, and is tested with
every step failing and every process ending in between (`tests/actors/rollout/test_rollout.py`).

Readers first:

1. the new code is compared with what the logs hold
2. of every projection a new build is made beside the one that serves, from the whole log, by projectors with the new
   code; it must be ready (`readiness.py`)
3. one last look: all of them still are
4. the new plan is written down: **the step that counts**. Before it, a failure leaves everything as it was: the new
   projectors are ended, what they have saved is removed, and the deployment's entry has the reason. After it, there is
   no way back but another deployment
5. a supervisor with the new code starts, queries go to the new projectors, the old ones end
6. the partitions are replaced, one after the other. If one fails, it goes on with the code that it had, those that
   follow are not tried (the cause is most likely the same), and the entry has the reason. What reads has the new code
   by then, which has read all that the old code has written; so partitions with either may go on

The deploying program only requests it and watches. A supervisor that ends before step 4 begins with step 1 again when
it is back; one that ends later goes on with step 5. A failure that was written down is not tried again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from ...runtime.errors import CallerError, RayfoldError, Unavailable

__all__ = ["Building", "Replacing", "RolloutProgress", "as_error", "has_ended", "prepare", "replace_partitions"]


class RolloutProgress(NamedTuple):
    """How far a deployment has come."""

    generation: int
    """The generation of the code that is in charge."""
    done: int
    """Partitions and projections that run it."""
    total: int
    what: str
    """What is being done now; empty while nothing is."""
    preparing: int = 0
    """The generation that read models are being built for, beside those that serve; 0 if there is none."""


class Building(Protocol):
    """Steps 1 to 4, as the supervisor that has the old code can do them."""

    async def compare(self) -> None:
        """Raises what speaks against this code for these logs."""

    def projections(self) -> Sequence[str]:
        """Those that the new code has."""

    async def build(self, projection: str) -> None:
        """Returns once a new build is ready. Raises why it is not."""

    async def check(self) -> None:
        """Raises if one of the new builds is not ready any more."""

    async def take_charge(self) -> None:
        """Write the new plan down. An error leaves it open whether that was done."""

    async def is_in_charge(self) -> bool:
        """Whether the new plan is the one that is written down. Asks for as long as that cannot be read."""

    async def take_back(self, error: RayfoldError) -> None:
        """End what was started, remove what it has saved, write down why."""


class Replacing(Protocol):
    """Step 6, as the supervisor that has the new code can do it."""

    def outdated(self) -> Sequence[int]:
        """Partitions whose actors run older code."""

    async def replace(self, partition: int) -> None:
        """Have an actor with the new code take over. Raises if it does not."""

    async def put_back(self, partition: int) -> None:
        """Have the partition go on with the code that it had, if its actor was ended already."""

    async def note(self, error: RayfoldError) -> None:
        """Write down that the deployment has ended before its end, and why."""


async def prepare(system: Building, report: Callable[[str], None]) -> None:
    """Steps 1 to 4. Raises what was in the way: then nothing has changed."""
    try:
        report("the comparison with the logs")
        await system.compare()
        for projection in system.projections():
            report(f"projection {projection}")
            await system.build(projection)
        report("the new projections")
        await system.check()
    except BaseException as error:
        await _to_its_end(system.take_back(as_error(error)))
        raise
    await _to_its_end(_take_charge(system))


async def _to_its_end(doing: Coroutine[Any, Any, None]) -> None:
    """The cancellation of the deployment is too late: half of this would be neither the one nor the other."""
    task = asyncio.get_running_loop().create_task(doing)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    task.result()


async def _take_charge(system: Building) -> None:
    """An error while the plan is written leaves it open whether it is; only what is written counts."""
    try:
        await system.take_charge()
    except Exception as error:
        if await system.is_in_charge():
            return
        await system.take_back(as_error(error))
        raise


async def replace_partitions(system: Replacing, report: Callable[[str], None]) -> None:
    """Step 6. Raises what the first partition that could not be replaced has failed with."""
    waiting = sorted(system.outdated())
    for place, partition in enumerate(waiting):
        report(f"partition {partition}")
        try:
            await system.replace(partition)
        except Exception as error:
            await system.put_back(partition)
            rest = ", ".join(str(number) for number in waiting[place:])
            what = f"{as_error(error)}; partitions {rest} go on with the code before, and every projection has the new"
            stopped = Unavailable(f"partition {partition}", what)
            await system.note(stopped)
            raise stopped from error


def has_ended(number: int, rolled: RolloutProgress, failed: RayfoldError | None) -> bool:
    """Whether the deployment of this number has come to its end, from the supervisor and the deployment's entry. Raises
    what has ended it early."""
    if rolled.generation > number:
        raise CallerError(f"it was deployed again meanwhile: generation {rolled.generation} runs")
    if failed is not None:
        raise failed
    return rolled.generation == number and not rolled.what and rolled.done == rolled.total


def as_error(error: BaseException) -> RayfoldError:
    """The text that is stored, and shown to the deployer."""
    if isinstance(error, RayfoldError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return Unavailable("the deployment", "it was called off")
    text = " ".join(str(error).split())[:300]
    return Unavailable("the deployment", f"it has ended: {type(error).__name__}: {text}".rstrip(": "))
