"""LocalHandle: what an actor's handle is for an object of this process.

Beside all steps. What calls actors (`cluster/rpc.py`, the fleet, the status, the health check) calls these in the same
way; the call is made at once, on the caller's thread, and its answer is there when it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

__all__ = ["LocalHandle"]

T = TypeVar("T")


class _Answer:
    """A call that was made."""

    def __init__(self) -> None:
        self._future: Future[Any] = Future()

    def future(self) -> Future[Any]:
        """See `Sent` in `cluster/rpc.py`."""
        return self._future


class _LocalMethod:
    """A method of the object. Keeps the contract `Method` of `cluster/rpc.py`."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *arguments: Any) -> _Answer:
        """Call it. What it raises is in the answer, as with an actor."""
        answer = _Answer()
        try:
            answer.future().set_result(self._method(*arguments))
        except Exception as error:
            answer.future().set_exception(error)
        return answer


class LocalHandle(Generic[T]):
    """The handle of an object of this process."""

    def __init__(self, held: T) -> None:
        self.held = held
        """The object itself."""

    def __getattr__(self, name: str) -> _LocalMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        return _LocalMethod(getattr(self.held, name))
