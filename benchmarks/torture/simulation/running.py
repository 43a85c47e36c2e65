"""Running: stories one after the other, and the shortest of one that fails.

`python -m rayfold.benchmarks.torture.simulation.running SEED [COUNT]` runs the stories of some seeds by themselves.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeAlias

from ..contract import Context, Findings, scenario
from .checking import check
from .clock import simulate
from .story import Story, draw, shortest, told
from .world import Build, World

__all__ = ["Failure", "find_failure", "first_failure", "run_from_command_line", "run_rounds", "run_story"]

SHORT_STORIES: Final = 150
REAL: Final = Build()


class Failure(NamedTuple):
    """A story that shows something wrong, made as short as it gets."""

    story: Story
    findings: Findings

    def lines(self) -> list[str]:
        """The story and what is wrong with it, for people."""
        wrong = [f"{one.invariant}: {one.what}" for one in self.findings.violations]
        return [*told(self.story), *wrong]


RunStory: TypeAlias = Callable[[Story], Findings]
"""Runs one story, on one build."""


class FindFailure(Protocol):
    """Finds the first story among some seeds that fails, and adds what was found in all to `total`."""

    def __call__(self, seeds: Iterable[int], *, total: Findings | None) -> Failure | None:
        """See the class."""
        ...


def run_story(story: Story, build: Build = REAL) -> Findings:
    """One story, from an empty log to rest, and what is wrong afterwards."""
    world = World(story, build)
    simulate(world.run())
    return check(world)


def find_failure(seeds: Iterable[int], build: Build = REAL, total: Findings | None = None) -> Failure | None:
    """The first story among these seeds that fails, made short; None if none does."""
    return first_failure(map(draw, seeds), partial(run_story, build=build), total)


def first_failure(stories: Iterable[Story], run: RunStory, total: Findings | None) -> Failure | None:
    """The first of these stories that fails, made short; None if none does. `total` gets the findings of all."""
    for story in stories:
        findings = run(story)
        if total is not None:
            total.include(findings)
            total.count("stories")
        if findings.violations:
            short = shortest(story, partial(_fails_likewise, run, findings))
            return Failure(short, run(short))
    return None


def _fails_likewise(run: RunStory, first: Findings, story: Story) -> bool:
    """Whether a shorter story breaks one of the invariants that the whole story broke."""
    wrong = {one.invariant for one in first.violations}
    return any(one.invariant in wrong for one in run(story).violations)


def run_rounds(context: Context, findings: Findings, find: FindFailure, stories: int) -> None:
    """The body of a scenario: stories of its seed and of those after it, so many a round, until one fails."""
    begun_s, first = time.monotonic(), context.seed * 1_000_000
    for number in context.rounds():
        failure = find(range(first + number * stories, first + (number + 1) * stories), total=findings)
        if failure is not None:
            for line in failure.lines():
                findings.violate(failure.findings.violations[0].invariant, line)
            break
    told = int(findings.figures.get("stories", 0))
    findings.figures["stories_per_minute"] = round(told / (time.monotonic() - begun_s) * 60)


def run_from_command_line(find: FindFailure) -> None:
    """`SEED [COUNT]`: run the stories of these seeds, and print what came of them. Exit code 1 if one fails."""
    seed, count = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    begun_s, total = time.monotonic(), Findings()
    failure = find(range(seed, seed + count), total=total)
    print(f"{total.figures.get('stories')} stories, {total.checks}, {time.monotonic() - begun_s:.1f} s")
    if failure is not None:
        print("\n".join(failure.lines()))
        sys.exit(1)


@scenario(
    "simulation",
    "kills, takeovers, losses, delays and full disks in simulated time, thousands of seeds a minute",
    "I1 I2 I3 I4 I5 I6 I7 I8 I9",
    times=(6.0, 30.0, 1),
)
def simulated_stories(context: Context, findings: Findings) -> None:
    """Stories of this seed and of those after it, until one fails."""
    run_rounds(context, findings, find_failure, SHORT_STORIES)


if __name__ == "__main__":
    run_from_command_line(find_failure)
