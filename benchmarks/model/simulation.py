"""Simulation: events in the order of their times, machines whose cores are shared, and processes of one thread each.

Any queueing network can be put together of these. Nothing here knows of commands or queries: that is `system.py`.

Rule kept here: nothing is drawn at random and nothing depends on a clock or a hash, so equal input has equal output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

Done = Callable[[], None]

NEVER: Final = float("inf")


class Simulation:
    """The events that are still to come, and the time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0
        """So many have happened."""
        self._coming: list[tuple[float, int, Done]] = []
        self._numbered = 0

    def after(self, delay_s: float, event: Done) -> None:
        """Have the event happen after so long; those of one time happen in the order of these calls."""
        self._numbered += 1
        heappush(self._coming, (self.now_s + delay_s, self._numbered, event))

    def run(self, *, until_s: float = NEVER, events_max: int, enough: Callable[[], bool] = lambda: False) -> None:
        """Let events happen until it is `enough`, the time is over, nothing is left, or so many have happened."""
        last = self.events + events_max
        while self._coming and self.events < last and not enough():
            if self._coming[0][0] > until_s:
                self.now_s = until_s
                return
            self.now_s, _, event = heappop(self._coming)
            self.events += 1
            event()


class Cores:
    """The cores of one machine: `n` jobs have a core each if there are as many, else all share them evenly, as under an
    ordinary scheduler (processor sharing).

    All jobs advance at one rate, so a job is over when the work done for each job since the start has grown by the
    job's own: one number, and a heap of those at which jobs end.
    """

    def __init__(self, simulation: Simulation, count: int) -> None:
        self.count = count
        self.busy_s = 0.0
        """CPU seconds used."""
        self._simulation = simulation
        self._jobs: list[tuple[float, int, Done]] = []
        self._numbered = 0
        self._each_s = self._counted_at_s = 0.0
        self._planned = 0

    def use(self, cpu_s: float, done: Done) -> None:
        """Begin a job of so much CPU time."""
        self._advance()
        self._numbered += 1
        job = (self._each_s + cpu_s, self._numbered, done)
        heappush(self._jobs, job)
        if self._jobs[0] is job or len(self._jobs) > self.count:  # else what was planned happens as it was planned
            self._plan()

    def _advance(self) -> None:
        """Count the work since the last change."""
        now_s = self._simulation.now_s
        passed_s, self._counted_at_s = now_s - self._counted_at_s, now_s
        if jobs := len(self._jobs):
            self._each_s += passed_s * min(1.0, self.count / jobs)
            self.busy_s += passed_s * min(jobs, self.count)

    def _plan(self) -> None:
        """Have the end of the next job happen, unless something changes before."""
        self._planned += 1
        if self._jobs:
            left_s, planned = max(0.0, self._jobs[0][0] - self._each_s), self._planned
            slower = max(1.0, len(self._jobs) / self.count)
            self._simulation.after(left_s * slower, lambda: self._ended(planned))

    def _ended(self, planned: int) -> None:
        if planned != self._planned:
            return
        self._advance()
        _, _, done = heappop(self._jobs)
        self._plan()
        done()


class Process:
    """A process of one thread: one job after the other, each on a core and then, if it has a wait, without one.

    Jobs stand in two lines, which take turns; a process with one kind of work uses the first.
    """

    def __init__(self, simulation: Simulation, cores: Cores) -> None:
        self.busy_s = 0.0
        """CPU seconds used."""
        self.held_s = 0.0
        """What it waited for in the midst of jobs: an fsync."""
        self._simulation, self._cores = simulation, cores
        self._lines: tuple[deque[tuple[float, float, Done]], ...] = (deque(), deque())
        self._turn = 0
        self._at_work = False

    def do(self, cpu_s: float, done: Done, *, wait_s: float = 0.0, line: int = 0) -> None:
        """Do a job after those before it in its line; `done` is called when it is over, its wait included."""
        self._lines[line].append((cpu_s, wait_s, done))
        if not self._at_work:
            self._next()

    def waiting(self, line: int = 0) -> int:
        """Jobs in a line that have not begun."""
        return len(self._lines[line])

    def _next(self) -> None:
        self._turn = 1 - self._turn
        line = self._lines[self._turn] or self._lines[1 - self._turn]
        self._at_work = bool(line)
        if not line:
            return
        cpu_s, wait_s, done = line.popleft()

        def over() -> None:
            self.busy_s += cpu_s
            self.held_s += wait_s
            if wait_s:
                self._simulation.after(wait_s, left)
            else:
                left()

        def left() -> None:
            done()  # what it adds may be next
            self._next()

        self._cores.use(cpu_s, over)
