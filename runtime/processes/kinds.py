"""Kinds: of the inputs of a process, of what became of what it has sent, and of how a step came about, as numbers.

Beside step [4]. They are stored (`docs/log-format.md`), so a number keeps its meaning permanently.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ACCEPTED",
    "AHEAD",
    "BEGIN",
    "CALLED",
    "DIRECT",
    "END",
    "EVENT",
    "FAILED",
    "OUTCOME",
    "REFUSED",
    "RESUMED",
    "RESUME_INPUT",
    "RETRIED",
    "SETTLED",
    "SKIPPED",
    "WOKEN",
]

EVENT: Final = 0
OUTCOME: Final = 1
WOKEN: Final = 2
RESUME_INPUT: Final = 3
BEGIN: Final = 4
CALLED: Final = 5
"""Kinds of inputs. `BEGIN`: of a schedule, as its code is deployed; `CALLED`: what a call to the outside came to."""

ACCEPTED: Final = 0
REFUSED: Final = 1
FAILED: Final = 2
"""What became of a command that was sent."""

DIRECT: Final = 0
RESUMED: Final = 1
RETRIED: Final = 2
SKIPPED: Final = 3
END: Final = 4
AHEAD: Final = 5
SETTLED: Final = 6
"""How a step came about: by its input, after others that it waited for, ahead of others that wait (it is about the call
that they wait for), or by an operator."""
