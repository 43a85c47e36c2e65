"""Control running: every pair of faults at every pair of steps, for each story of the control plane.

`python -m rayfold.benchmarks.torture.simulation.control_running [STORY ...]` tries all of them and prints what was
covered; `rayfold torture --scenario control-plane` does as many as there is time for. The short form tries each fault
at each step, and a pair in some thousand, spread evenly over all.

A pair is: one fault at one step, and another at that step or at one that comes after it in the run with the first
alone. So the steps of every way of putting things right are among them. Nothing is drawn: the same pairs are tried each
time.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from ..contract import Context, Findings, scenario
from .clock import simulate
from .control_world import STORIES, ControlBuild, ControlLoop, ControlWorld, Fault, Story

__all__ = ["Covered", "Run", "find_wrong", "kinds_at", "pairs_of", "run_control", "singles_of"]

ANYWHERE: Final = ("kill a", "kill b", "cut a", "cut b", "kill supervisor", "second supervisor")
AT_MESSAGES: Final = ("message lost", "answer lost", "message repeated", "message late", "disk full")
AT_WRITES: Final = ("disk full", "written, and reported as failed")

STEPS_MAX: Final = 80
"""Steps of a run at which second faults are tried; what goes on for longer repeats itself."""

SHORT_STRIDE: Final = 1499
"""Of the pairs, in the short form: a prime, so that it meets all kinds and steps."""


class Run(NamedTuple):
    """One run, and what was wrong."""

    story: Story
    plan: tuple[Fault, ...]
    steps: tuple[str, ...]
    wrong: tuple[str, ...]

    def told(self) -> str:
        """For people."""
        faults = ", ".join(f"{fault.kind} at step {fault.step} ({self._step(fault.step)})" for fault in self.plan)
        return f"{self.story}: {faults or 'nothing goes wrong'}: {'; '.join(self.wrong)}"

    def _step(self, number: int) -> str:
        return self.steps[number - 1] if number <= len(self.steps) else "never reached"


class Covered:
    """What was tried."""

    def __init__(self) -> None:
        self.singles = self.pairs = self.steps = 0
        self.kinds: set[tuple[str, ...]] = set()

    def add(self, run: Run) -> None:
        """Count a run."""
        self.singles += len(run.plan) == 1
        self.pairs += len(run.plan) == 2
        self.steps += len(run.steps)
        self.kinds.add(tuple(fault.kind for fault in run.plan))

    def __str__(self) -> str:
        return f"{self.singles:,} faults and {self.pairs:,} pairs of faults, {self.steps:,} steps"


def run_control(story: Story, plan: Sequence[Fault] = (), build: ControlBuild | None = None) -> Run:
    """One story with these faults."""
    world = ControlWorld(story, plan, build)
    try:
        simulate(world.run(), ControlLoop)
    except Exception as error:  # an error that nothing caught is wrong, too
        world.wrong.append(f"{type(error).__name__}: {error}")
    return Run(story, tuple(plan), tuple(world.steps), tuple(world.wrong))


def kinds_at(step: str) -> tuple[str, ...]:
    """What can go wrong at a step."""
    return ANYWHERE + (AT_WRITES if " writes " in step else AT_MESSAGES)


def singles_of(story: Story, build: ControlBuild | None = None) -> Iterator[Run]:
    """The story by itself, and with each fault at each of its steps."""
    quiet = run_control(story, (), build)
    yield quiet
    for number, step in enumerate(quiet.steps[:STEPS_MAX], 1):
        for kind in kinds_at(step):
            yield run_control(story, [Fault(number, kind)], build)


def pairs_of(story: Story, build: ControlBuild | None = None, *, first: int = 0, stride: int = 1) -> Iterator[Run]:
    """Every pair of faults at every pair of steps, or each so many-th of them from the first on."""
    return (run_control(story, plan, build) for plan in islice(_plans_of(story, build), first, None, stride))


def _plans_of(story: Story, build: ControlBuild | None) -> Iterator[tuple[Fault, Fault]]:
    for run in singles_of(story, build):
        for one in run.plan:
            for number, step in enumerate(run.steps[:STEPS_MAX], 1):
                if number >= one.step:
                    yield from ((one, Fault(number, kind)) for kind in kinds_at(step))


def find_wrong(runs: Iterator[Run], covered: Covered | None = None, deadline_s: float = float("inf")) -> Run | None:
    """The first run that shows something wrong; None if none does, or none until the deadline."""
    for run in runs:
        if covered is not None:
            covered.add(run)
        if run.wrong:
            return run
        if time.monotonic() > deadline_s:
            break
    return None


@scenario(
    "control-plane",
    "supervisors, node agents, moves and maps: pairs of faults at pairs of steps, in simulated time",
    "I1 I6 I12",
    times=(60.0, 900.0, 1),
)
def pairs_of_faults(context: Context, findings: Findings) -> None:
    """Each story with each fault at each step, then with pairs of them."""
    covered = Covered()
    logging.disable(logging.CRITICAL)  # some thousand clusters log what goes wrong with them
    try:
        for story in STORIES:
            wrong = find_wrong(singles_of(story), covered)
            if wrong is None:
                first, stride = context.seed % SHORT_STRIDE, SHORT_STRIDE if context.short else 1
                share_s = context.left_s / (len(STORIES) - STORIES.index(story))
                wrong = find_wrong(pairs_of(story, first=first, stride=stride), covered, time.monotonic() + share_s)
            for invariant in ("I1", "I6", "I12"):
                findings.check(invariant, wrong is None, "" if wrong is None else wrong.told())
    finally:
        logging.disable(logging.NOTSET)
    findings.figures |= {
        "faults": covered.singles,
        "pairs_of_faults": covered.pairs,
        "kinds_of_pairs": sum(len(one) == 2 for one in covered.kinds),
        "steps": covered.steps,
    }


def _main() -> None:
    logging.disable(logging.CRITICAL)
    failed = False
    for story in STORIES:
        if len(sys.argv) > 1 and story not in sys.argv[1:]:
            continue
        covered, begun_s = Covered(), time.monotonic()
        wrong = find_wrong(singles_of(story), covered) or find_wrong(pairs_of(story), covered)
        print(f"{story}: {covered}, {time.monotonic() - begun_s:.0f} s", flush=True)
        if wrong is not None:
            failed = True
            print(wrong.told(), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    _main()
