"""RPC: what an actor replies, and how it is asked: the one way to call an actor for all that is not a batch.

Beside all steps. Commands, queries and broadcasts have ways of their own (`client/transport.py`, `replica_pool.py`,
`partition/broadcast.py`); this is for everything else. An actor's method that is declared with `@replies` returns a
`Reply`: its value, or the error of ours that it raised, which keeps its type (an exception takes Ray twice as long, and
arrives wrapped). `call` asks it and opens the reply. A protocol beside each actor (`partition/handle.py` and others)
defines what its handle has, so that a type checker knows names, arguments and values; where the actor is started, it
checks that the actor has them.

Rules kept here:
- no call without a deadline, for a request that the network lost is waited for by Ray for 30 s, and by an actor that is
  pending permanently
- an answer and an error are distinguished by the reply, never by the form of the answer
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import re
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, TypeVarTuple, cast, overload

from ...runtime.encoding.error_codec import from_wire, to_wire
from ...runtime.errors import RayfoldError, Unavailable
from .retry import Patience, retried

__all__ = [
    "ANSWER_TIMEOUT_S",
    "Method",
    "Reply",
    "call",
    "call_now",
    "in_thread",
    "is_starting",
    "kill",
    "one_line",
    "open_actor",
    "process_of",
    "replies",
]

T = TypeVar("T")
P = ParamSpec("P")
Arguments = TypeVarTuple("Arguments")

ANSWER_TIMEOUT_S: Final = 5.0
"""For what takes milliseconds."""

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")

_OPEN_ATTEMPTS_MAX: Final = 20
"""A network that loses one call in three lets one start in a hundred million fail then; more means that something is
broken."""

_STARTING: Final = frozenset({"DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING"})
"""The state of an actor in Ray's directory until its `__init__` is over."""


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """What an actor replies: a value, or an error of ours."""

    value: T | None = None
    """None if there is an error."""
    wire: tuple[Any, ...] = ()
    """The error as `to_wire` packs it; empty if there is none."""

    @classmethod
    def failed(cls, error: RayfoldError | None) -> Reply[T]:
        """A reply with this error; with None, one without a value."""
        return cls(None, () if error is None else tuple(to_wire(error)))

    @property
    def error(self) -> RayfoldError | None:
        """The error, of its own type; None if there is a value."""
        return from_wire(self.wire) if self.wire else None

    def unwrap(self) -> T:
        """The value. Raises the error."""
        if self.wire:
            raise from_wire(self.wire)
        return cast(T, self.value)


class Sent(Protocol[T]):
    """A call that was sent."""

    def future(self) -> Future[T]:
        """Gets what the method returns."""
        ...


class Method(Protocol[T, *Arguments]):
    """A method of an actor, as the holder of its handle sees it."""

    def remote(self, *arguments: *Arguments) -> Sent[T]:
        """Send a call. Returns at once."""
        ...


@overload
def replies(  # type: ignore[overload-overlap]  # a plain method of an actor returns no coroutine
    method: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, Reply[T]]]: ...
@overload
def replies(method: Callable[P, T]) -> Callable[P, Reply[T]]: ...
def replies(method: Callable[P, Any]) -> Callable[P, Any]:
    """Have a method of an actor reply with its value, or with the error of ours that it raises. `ray.method` is put
    around it."""
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def reply_later(*arguments: P.args, **options: P.kwargs) -> Reply[Any]:
            try:
                return Reply(await method(*arguments, **options))
            except RayfoldError as error:
                return Reply.failed(error)

        return _whole(reply_later, method)

    @functools.wraps(method)
    def reply(*arguments: P.args, **options: P.kwargs) -> Reply[Any]:
        try:
            return Reply(method(*arguments, **options))
        except RayfoldError as error:
            return Reply.failed(error)

    return _whole(reply, method)


def _whole(reply: Callable[P, Any], method: Callable[P, Any]) -> Callable[P, Any]:
    """Have Ray take `reply` for the method itself. It looks for what `ray.method` has noted, such as the concurrency
    group, at the innermost function that `functools.wraps` has written down."""
    del reply.__wrapped__  # type: ignore[attr-defined]
    reply.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return reply


async def call(
    method: Method[Reply[T], *Arguments], *arguments: *Arguments, timeout_s: float | None = ANSWER_TIMEOUT_S
) -> T:
    """Call a method of an actor. Raises what it replies, `TimeoutError`, and Ray's errors if the actor has ended."""
    sent = method.remote(*arguments).future()
    return (await asyncio.wait_for(asyncio.wrap_future(sent), timeout_s)).unwrap()


def call_now(
    method: Method[Reply[T], *Arguments], *arguments: *Arguments, timeout_s: float | None = ANSWER_TIMEOUT_S
) -> T:
    """`call` from a thread that may wait."""
    return method.remote(*arguments).future().result(timeout_s).unwrap()


class Opening(Protocol):
    """The handle of an actor that has to be opened."""

    @property
    def open(self) -> Method[Reply[None]]:
        """Open it. Safe to repeat."""
        ...


async def in_thread(do: Callable[[], T], timeout_s: float = ANSWER_TIMEOUT_S) -> T:
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


async def open_actor(actor: Opening, who: str, timeout_s: float) -> None:
    """Have an actor `open`. That is safe to repeat, so a lost answer, or a process that ended, is not a failure.

    Raises what it replies, and `Unavailable` if it replies nothing.
    """
    from ray.exceptions import ActorUnavailableError

    patience = Patience(attempts_max=_OPEN_ATTEMPTS_MAX, again=(ActorUnavailableError,))
    try:
        await retried(lambda _: call(actor.open, timeout_s=timeout_s), patience)
    except RayfoldError:
        raise
    except Exception as error:
        raise Unavailable(who, f"it did not open: {one_line(error)}") from error


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
    """End an actor's process at once, for good. One that has ended is not an error, nor is one that never had one: an
    object in the memory of this process (`actors/memory/`), which may have no Ray."""
    ray = sys.modules.get("ray")  # a process that has an actor of Ray's has imported it
    with contextlib.suppress(Exception):
        if ray is not None and ray.is_initialized():  # else Ray would start one, or join any that it finds
            ray.kill(actor)


def one_line(error: object) -> str:
    """The text of an exception of Ray's, in one bounded line, without the colours that Ray gives to names."""
    text = " ".join(_COLOURS.sub("", str(error)).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
