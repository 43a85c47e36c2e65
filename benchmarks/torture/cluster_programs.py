"""The programs of a cluster under torture, as the scenario holds them: told what to do, waited for, killed.

What they do is in `cluster_program.py`. Rule kept here: whoever has started one ends it; no answer is waited for
without a deadline, for a program whose node is gone may hang.
"""

from __future__ import annotations

import json
import select
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .child import Child

__all__ = ["Program", "ProgramEnded", "Told"]

_ANSWER_TIMEOUT_S: Final = 120.0
"""For what takes seconds at most, on a machine where everything else starts at the same time."""


class Told(Exception):
    """A program was told an error of ours; its type and its sentence."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind, self.text = kind, text

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


class ProgramEnded(Exception):
    """A program has ended before it had answered, or does not answer."""


class Program(Child):
    """One program, which obeys."""

    def __init__(
        self,
        address: str,
        node: str,
        number: int,
        seed: int,
        folder: Path,
        *,
        within: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`number`: of no other program of this scenario. `folder`: for its journal, and what it complains of."""
        super().__init__(
            "cluster_program:serve",
            environment,
            within=within,
            told=True,
            complaints=folder / f"program-{number}.log",
            address=address,
            node=node,
            number=number,
            seed=seed,
            folder=str(folder),
        )
        self.node = node
        self.number = number
        self.journal = folder / f"journal-{number}"
        self.seen = folder / f"seen-{number}"
        """What its watcher has read; not there if the program was killed."""

    def tell(self, what: str, *arguments: Any) -> None:
        """Have it begin with something, whose `answer` is waited for later."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([what, *arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ProgramEnded(self._obituary()) from None

    def answer(self, timeout_s: float = _ANSWER_TIMEOUT_S) -> Any:
        """What came of it. Raises `Told`, and `ProgramEnded` if it has ended or says nothing for so long."""
        try:
            line = self._line(time.monotonic() + timeout_s)
        except TimeoutError:
            raise ProgramEnded(f"program {self.number} on {self.node} has not answered for {timeout_s:g} s") from None
        if line is None:
            raise ProgramEnded(self._obituary())
        told = json.loads(line)
        if "error" in told:
            raise Told(told["error"], told["text"])
        return told["answer"]

    def ask(self, what: str, *arguments: Any, timeout_s: float = _ANSWER_TIMEOUT_S) -> Any:
        """Have it do something, and what came of it."""
        self.tell(what, *arguments)
        return self.answer(timeout_s)

    @property
    def answered(self) -> bool:
        """Whether there is an answer to read, or will be none."""
        assert self._process.stdout is not None
        return b"\n" in self._said or bool(select.select([self._process.stdout.fileno()], [], [], 0)[0])

    def _obituary(self) -> str:
        self.wait()
        last = self.errors().strip().splitlines()[-5:]
        return f"program {self.number} on {self.node} has ended by itself: {' / '.join(last)}"
