"""Backoff: how long a call rests before it is called again, and how often that happens.

Beside step [4]. Pure: the pause is a function of how often it was called. It is a timer of the log, so it goes on where
it was after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import InvalidMessage
from ..printable import shown

__all__ = ["Backoff"]

_FACTOR_MAX: Final = 1_000.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pauses between the attempts of one call. Raises `InvalidMessage`.

    Args:
        first_s: The first pause, in seconds.
        max_s: The longest pause. Each is `factor` times the one before.
        factor: From 1.
        attempts: After so many the call waits for people, who have it tried again or settle it; None: without end.

    Example:
        retry = Backoff(first_s=1, max_s=3600, attempts=20)
    """

    first_s: float = 1.0
    max_s: float = 300.0
    factor: float = 2.0
    attempts: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no pause."""
        for name in ("first_s", "max_s", "factor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise InvalidMessage("Backoff", f"{name}={shown(value)} is not a number from 0", "give seconds")
        if not 1 <= self.factor <= _FACTOR_MAX:
            raise InvalidMessage("Backoff", f"factor={self.factor!r} is not between 1 and {_FACTOR_MAX:g}", "give 2")
        if self.attempts is not None and (type(self.attempts) is not int or self.attempts < 1):
            what = f"attempts={shown(self.attempts)} is not a number from 1"
            raise InvalidMessage("Backoff", what, "give None for no end")

    def pause_us(self, made: int) -> int:
        """The pause after so many attempts, in microseconds."""
        pause_s = float(self.first_s)
        for _ in range(made - 1):
            if pause_s >= self.max_s:
                break
            pause_s *= self.factor
        return int(min(pause_s, self.max_s) * 1e6)

    def ends(self, made: int) -> bool:
        """Whether no further attempt is made after so many."""
        return self.attempts is not None and made >= self.attempts
