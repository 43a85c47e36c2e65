"""Running: stories one after the other, and the shortest of one that fails.

`python -m rayfold.benchmarks.torture.simulation.running SEED [COUNT]` runs the stories of some seeds by themselves.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Final, NamedTuple

from ..contract import Context, Findings, scenario
from .checking import check
from .clock import simulate
from .story import Story, draw, shortest, told
from .world import Build, World

__all__ = ["Failure", "find_failure", "run_story"]

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


def run_story(story: Story, build: Build = REAL) -> Findings:
    """One story, from an empty log to rest, and what is wrong afterwards."""
    world = World(story, build)
    simulate(world.run())
    return check(world)


def find_failure(seeds: Iterable[int], build: Build = REAL, total: Findings | None = None) -> Failure | None:
    """The first story among these seeds that fails, made short; None if none does."""
    for seed in seeds:
        findings = run_story(draw(seed), build)
        if total is not None:
            total.include(findings)
            total.count("stories")
        if findings.violations:
            short = shortest(draw(seed), partial(_fails_likewise, build, findings))
            return Failure(short, run_story(short, build))
    return None


def _fails_likewise(build: Build, first: Findings, story: Story) -> bool:
    """Whether a shorter story breaks one of the invariants that the whole story broke."""
    wrong = {one.invariant for one in first.violations}
    return any(one.invariant in wrong for one in run_story(story, build).violations)


@scenario(
    "simulation",
    "kills, takeovers, losses, delays and full disks in simulated time, thousands of seeds a minute",
    "I1 I2 I3 I4 I5 I6 I7 I8 I9",
    times=(6.0, 30.0, 1),
)
def simulated_stories(context: Context, findings: Findings) -> None:
    """Stories of this seed and of those after it, until one fails."""
    begun_s, first = time.monotonic(), context.seed * 1_000_000
    for number in context.rounds():
        seeds = range(first + number * SHORT_STORIES, first + (number + 1) * SHORT_STORIES)
        failure = find_failure(seeds, REAL, findings)
        if failure is not None:
            for line in failure.lines():
                findings.violate(failure.findings.violations[0].invariant, line)
            break
    stories = int(findings.figures.get("stories", 0))
    findings.figures["stories_per_minute"] = round(stories / (time.monotonic() - begun_s) * 60)


def _main() -> None:
    seed, count = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    begun_s, total = time.monotonic(), Findings()
    failure = find_failure(range(seed, seed + count), REAL, total)
    print(f"{total.figures.get('stories')} stories, {total.checks}, {time.monotonic() - begun_s:.1f} s")
    if failure is not None:
        print("\n".join(failure.lines()))
        sys.exit(1)


if __name__ == "__main__":
    _main()
