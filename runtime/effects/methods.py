"""Methods: the functions of an `Effects` class, with the rules for calling them.

Beside step [4]. `processes/effects.py` fills the tables while a class is defined; steps, couriers and runners read
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..domain.messages import Event
from .backoff import Backoff

__all__ = ["EffectMethod", "EffectRules", "LookMethod"]


class EffectRules(NamedTuple):
    """The options of `@effect`."""

    retry: Backoff = Backoff()
    timeout_s: float = 30.0
    """Seconds that one attempt, or one look, may take."""
    at_once: int = 16
    """Attempts that run at the same time, in each partition."""
    order_by: Callable[[Any], str] | None = None
    """Calls of one key are made one after the other, in the order of their events."""
    repeatable: bool = False
    """The other side takes a second call under the same key for the first."""
    target: str = ""
    """What is called: after failures one after the other, calls to it pause. Empty for the class."""


class EffectMethod(NamedTuple):
    """One `@effect` function."""

    name: str
    function: Callable[..., Any]
    event: type[Event]
    takes_call: bool
    rules: EffectRules
    look: str
    """The name of its `@settle` function; empty if there is none."""


class LookMethod(NamedTuple):
    """One `@settle` function."""

    name: str
    function: Callable[..., Any]
    effect: str
    takes_call: bool
