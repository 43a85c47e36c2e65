"""Calls: asking an actor on an event loop, with a deadline, and ending one.

Beside all steps. Commands and queries have transports of their own (`command_router.py`, `replica_pool.py`); this is
for everything else: opening, closing, notifying. Rule kept here: no call without a deadline, for a request that the
network lost is waited for by Ray for 30 s, and by an actor that is pending without limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from ...runtime.encoding.error_codec import from_wire
from ...runtime.errors import RayfoldError, Unavailable

__all__ = ["ANSWER_TIMEOUT_S", "aside", "call", "is_starting", "kill", "one_line", "open_actor", "process_of"]

T = TypeVar("T")

ANSWER_TIMEOUT_S: Final = 5.0
"""For what takes milliseconds."""

_OPEN_ATTEMPTS_MAX: Final = 20
"""A network that loses one call in three lets one start in a hundred million fail then; more means that something is
broken."""

_RETRY_S: Final = 0.1

_STARTING: Final = frozenset({"DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING"})
"""The state of an actor in Ray's directory until its `__init__` is over."""


async def call(method: Any, *arguments: Any, timeout_s: float | None = ANSWER_TIMEOUT_S) -> Any:
    """Call a method of an actor. Raises what it raises, `TimeoutError`, and Ray's errors if the actor has ended."""
    return await asyncio.wait_for(asyncio.wrap_future(method.remote(*arguments).future()), timeout_s)


async def aside(do: Callable[[], T], timeout_s: float = ANSWER_TIMEOUT_S) -> T:
    """What a function of Ray's returns that may block: a look-up by name waits for a minute for a head that does not
    answer. It runs on a thread of its own, for which neither the event loop nor the end of the program waits. Raises
    what the function raises, and `TimeoutError`."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(do())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="rayfold look-up", daemon=True).start()
    return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(result)), timeout_s)


async def open_actor(actor: Any, who: str, timeout_s: float) -> None:
    """Have an actor `open`. That is safe to repeat, so an answer that was lost, or a process that ended, is no failure.
    Raises the error that it returns, and `Unavailable` if it does not answer.
    """
    from ray.exceptions import ActorUnavailableError

    failure: Exception | None = None
    for _ in range(_OPEN_ATTEMPTS_MAX):
        try:
            answer = await call(actor.open, timeout_s=timeout_s)
        except ActorUnavailableError as error:
            failure = error
            await asyncio.sleep(_RETRY_S)
        except RayfoldError:
            raise
        except Exception as error:
            raise Unavailable(who, f"it did not open: {one_line(error)}") from error
        else:
            if answer:
                raise from_wire(answer)
            return
    raise Unavailable(who, f"it did not open: {one_line(failure)}") from failure


def is_starting(actor: Any) -> bool:
    """Whether Ray is still starting the process of an actor, for the first time or again. Waits for Ray's directory."""
    from ray._private.state import actors

    return actors(actor._actor_id.hex()).get("State") in _STARTING


def process_of(actor: Any) -> int:
    """The id of an actor's process, of any node, from Ray's directory; 0 while there is none. Waits for that."""
    from ray._private.state import actors

    known = actors(actor._actor_id.hex())
    return int(known["Pid"]) if known.get("State") == "ALIVE" else 0


def kill(actor: Any) -> None:
    """End an actor's process at once, for good. One that has ended is no error."""
    import ray

    with contextlib.suppress(Exception):
        ray.kill(actor)


def one_line(error: object) -> str:
    """The text of an exception of Ray's, in one bounded line."""
    told = " ".join(str(error).split())
    return told if len(told) <= 300 else f"{told[:297]}..."
