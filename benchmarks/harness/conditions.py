"""Conditions: how busy the machine was around one sample, asked of the watcher's process.

Rule kept here: a run does not fail because it cannot be watched; its figures are then marked `unwatched`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from .processes import ChildEnded, RunningProgram

ANSWER_S: Final = 5.0
"""How long the watcher may take to answer; it takes some 10 ms."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of the machine while a sample was taken. Shares are of the CPU time of all cores."""

    load_before: float
    """The one-minute load average when it began; our own processes are in it."""
    load_after: float
    ours: float
    others: float
    """What processes that are not of this run used."""
    steal: float
    """What other virtual machines took."""

    def as_dict(self) -> dict[str, float]:
        """For the results."""
        return asdict(self)


class Watcher:
    """The process, from here. A context manager; one sample at a time."""

    def __init__(self, *, ray_is_ours: bool = False) -> None:
        self._arguments = ["ray"] if ray_is_ours else []
        self._program: RunningProgram | None = None
        self._to_the_end = contextlib.ExitStack()

    def __enter__(self) -> Self:
        script = Path(__file__).with_name("watcher.py")
        command = [sys.executable, "-S", "-E", str(script), str(os.getpid()), *self._arguments]
        with contextlib.suppress(OSError):
            self._program = self._to_the_end.enter_context(RunningProgram(command, listens=True))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._program = None
        self._to_the_end.close()

    def begin(self) -> None:
        """A sample begins."""
        if self._program is not None:
            with contextlib.suppress(ChildEnded):
                self._program.write_line("begin")

    def end(self) -> Conditions | None:
        """The sample has ended; None if the watcher does not answer."""
        if self._program is None:
            return None
        try:
            self._program.write_line("end")
            return Conditions(**json.loads(self._program.next_line(ANSWER_S)))
        except (ChildEnded, TimeoutError, ValueError, TypeError):
            return None
