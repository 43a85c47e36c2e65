"""Running: stories one after the other, and the shortest of one that fails, of each kind of simulation.

`python -m rayfold.benchmarks.torture.simulation.running KIND SEED [COUNT]` runs the stories of some seeds by
themselves; KIND is `commands`, `connections` or `queries`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from ..contract import Context, Findings, scenario
from .checking import check
from .clock import simulate
from .connection_checking import check_connections, check_queries
from .query_world import QueryBuild, QueryWorld, draw_query_story
from .socket_network import SocketLoop
from .socket_world import SocketBuild, SocketWorld, draw_socket_story
from .story import Story, draw, shortest, told
from .world import Build, World

__all__ = ["COMMANDS", "CONNECTIONS", "KINDS", "QUERIES", "Failure", "Simulation"]

SHORT_STORIES: Final = 150
SHORT_CONNECTION_STORIES: Final = 100


class Failure(NamedTuple):
    """A story that shows something wrong, made as short as it gets."""

    story: Story
    findings: Findings

    def lines(self) -> list[str]:
        """The story and what is wrong with it, for people."""
        wrong = [f"{one.invariant}: {one.what}" for one in self.findings.violations]
        return [*told(self.story), *wrong]


@dataclass(frozen=True, slots=True)
class Simulation:
    """One kind of simulation: which stories, in which world, and what is checked afterwards."""

    draw: Callable[[int], Story]
    world: Callable[[Story, Any], World]
    real: Build
    check: Callable[[Any], Findings]

    def run(self, story: Story, build: Build | None = None) -> Findings:
        """One story, from an empty log to rest, and what is wrong afterwards."""
        world = self.world(story, build or self.real)
        simulate(world.run(), SocketLoop)
        return self.check(world)

    def find_failure(
        self, seeds: Iterable[int], build: Build | None = None, total: Findings | None = None
    ) -> Failure | None:
        """The first story among these seeds that fails, made short; None if none does. `total` gets the findings of
        all."""
        for story in map(self.draw, seeds):
            findings = self.run(story, build)
            if total is not None:
                total.include(findings)
                total.count("stories")
            if findings.violations:
                short = shortest(story, partial(self._fails_likewise, build, findings))
                return Failure(short, self.run(short, build))
        return None

    def _fails_likewise(self, build: Build | None, first: Findings, story: Story) -> bool:
        """Whether a shorter story breaks one of the invariants that the whole story broke."""
        wrong = {one.invariant for one in first.violations}
        return any(one.invariant in wrong for one in self.run(story, build).violations)


COMMANDS: Final = Simulation(draw, World, Build(), check)
CONNECTIONS: Final = Simulation(draw_socket_story, SocketWorld, SocketBuild(), check_connections)
QUERIES: Final = Simulation(draw_query_story, QueryWorld, QueryBuild(), check_queries)
KINDS: Final = {"commands": COMMANDS, "connections": CONNECTIONS, "queries": QUERIES}


@scenario(
    "simulation",
    "kills, takeovers, losses, delays and full disks in simulated time, thousands of seeds a minute",
    "I1 I2 I3 I4 I5 I6 I7 I8 I9",
    times=(6.0, 30.0, 1),
)
def simulated_stories(context: Context, findings: Findings) -> None:
    """Stories of this seed and of those after it, until one fails."""
    _run_rounds(context, findings, [COMMANDS], SHORT_STORIES)


@scenario(
    "connections",
    "sockets cut within a frame, late and in pieces, partitions and projectors that end and move, in simulated time",
    "I1 I2 I3 I4 I5 I6 I7 I8 I9 I11 I12",
    times=(6.0, 30.0, 1),
)
def simulated_connections(context: Context, findings: Findings) -> None:
    """Stories of this seed and of those after it, of commands and of queries, until one fails."""
    _run_rounds(context, findings, [CONNECTIONS, QUERIES], SHORT_CONNECTION_STORIES)


def _run_rounds(context: Context, findings: Findings, kinds: Sequence[Simulation], stories: int) -> None:
    """So many stories of each kind a round, until one fails."""
    begun_s, first = time.monotonic(), context.seed * 1_000_000
    for number in context.rounds():
        seeds = range(first + number * stories, first + (number + 1) * stories)
        failure = next(filter(None, (kind.find_failure(seeds, total=findings) for kind in kinds)), None)
        if failure is not None:
            for line in failure.lines():
                findings.violate(failure.findings.violations[0].invariant, line)
            break
    ran = int(findings.figures.get("stories", 0))
    findings.figures["stories_per_minute"] = round(ran / (time.monotonic() - begun_s) * 60)


def _main(kind: str, seed: int, count: int = 1000) -> None:
    """Print what came of these stories. Exit code 1 if one fails."""
    begun_s, total = time.monotonic(), Findings()
    failure = KINDS[kind].find_failure(range(seed, seed + count), total=total)
    print(f"{total.figures.get('stories')} stories, {total.checks}, {time.monotonic() - begun_s:.1f} s")
    if failure is not None:
        print("\n".join(failure.lines()))
        sys.exit(1)


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
