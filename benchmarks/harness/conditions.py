"""Conditions: how busy the machine was around one sample, asked of the watcher's process.

Rule kept here: a run does not fail because it cannot be watched; its figures are then marked `unwatched`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from .processes import running_program

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
        self._process: subprocess.Popen[bytes] | None = None
        self._to_the_end = contextlib.ExitStack()

    def __enter__(self) -> Self:
        program = Path(__file__).with_name("watcher.py")
        command = [sys.executable, "-S", "-E", str(program), str(os.getpid()), *self._arguments]
        with contextlib.suppress(OSError):
            watching = running_program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._process = self._to_the_end.enter_context(watching)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process = None
        self._to_the_end.close()

    def begin(self) -> None:
        """A sample begins."""
        self._say(b"begin\n")

    def end(self) -> Conditions | None:
        """The sample has ended; None if the watcher does not answer."""
        if not self._say(b"end\n"):
            return None
        try:
            return Conditions(**json.loads(self._answer()))
        except (ValueError, TypeError):
            return None

    def _say(self, word: bytes) -> bool:
        if self._process is None or self._process.stdin is None:
            return False
        try:
            self._process.stdin.write(word)
            self._process.stdin.flush()
        except OSError:
            return False
        return True

    def _answer(self) -> bytes:
        stream: Any = self._process.stdout if self._process else None
        if stream is None or not select.select([stream], [], [], ANSWER_S)[0]:
            return b""
        line: bytes = stream.readline()
        return line
