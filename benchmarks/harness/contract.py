"""What a benchmark suite is: the values that pass between the suites, the runner and the report.

A suite is a function `cases(options) -> list[Case]` in `benchmarks/suites/`. The runner takes every case once per round
and goes round again, so that whatever the machine does meanwhile is spread over all cases. A case measures itself once
per call and returns a `Sample`; it starts what it needs, warms up, measures for about `options.seconds`, checks the
invariants, and leaves nothing running.

Rule kept here: a sample with violations has no figures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

__all__ = ["GOALS", "Case", "Figure", "Goal", "Options", "Sample", "Suite"]

Better = Literal["higher", "lower", "neither"]
Parameter = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose. The same for all cases of a run."""

    directory: Path
    """Where stores are made, each in a folder of its own that the case removes."""
    seconds: float
    """How long a timed part takes, warm-up not counted."""
    quick: bool
    """Smaller sizes and grids, so that `all` ends within 10 minutes on 2 cores."""
    seed: int
    partitions: tuple[int, ...]
    replicas: tuple[int, ...]
    pin: bool = False
    address: str | None = None
    """Of a cluster, over whose nodes the stores are spread; None: everything is on this machine."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    value: float
    unit: str
    """`commands/s`, `ms`, `CPU-s per 1,000 commands`, `events/s`, …"""
    better: Better


@dataclass(slots=True)
class Sample:
    """What one call of a case measured."""

    figures: dict[str, Figure] = field(default_factory=dict)
    """By name, units last: `commands_per_s`, `latency_ms_p99`."""
    histograms: dict[str, str] = field(default_factory=dict)
    """HDR histograms in microseconds, in hdrhistogram's own base64 encoding, by name (`execute_us`)."""
    violations: list[str] = field(default_factory=list)
    """Broken invariants, one line each; if there are any, the figures do not count."""
    notes: dict[str, Parameter] = field(default_factory=dict)
    """Whatever else a reader may want to know: batch size reached, events in the log, process ids."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure, at one setting."""

    suite: str
    name: str
    """Of what is measured; the same for all settings of it: `saturated writes`."""
    parameters: Mapping[str, Parameter]
    """The setting: `{"partitions": 2, "depth": 1024}`."""
    measure: Callable[[Options], Awaitable[Sample]]
    """Measures once. Raises only for what makes the whole case impossible here; `skip` is for what is known before."""
    skip: str = ""
    """Why it cannot run here (`not installed: umadb`); it is then reported as skipped."""
    throughput: bool = False
    """Whether its figures depend on the load generator, whose ceiling is then set against them."""

    @property
    def key(self) -> str:
        """Names the case in results: `write/saturated writes?depth=1024&partitions=2`."""
        setting = "&".join(f"{name}={value}" for name, value in sorted(self.parameters.items()))
        return f"{self.suite}/{self.name}" + (f"?{setting}" if setting else "")


Suite = Callable[[Options], list[Case]]


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the goal table: a figure, or the ratio of two, against a bound."""

    name: str
    numerator: tuple[str, str]
    """Case key and figure name."""
    denominator: tuple[str, str] | None
    """None: the figure itself is compared with the bound."""
    bound: float
    at_least: bool
    """True: the value must be at least the bound; False: at most."""


WRITE_1: Final = "write/saturated writes?depth=1024&keys=uniform&partitions=1&placement=shared"
WRITE_2: Final = "write/saturated writes?depth=4096&keys=uniform&partitions=2&placement=shared"
PLAIN: Final = "ceiling/plain program?batch=1024"

GOALS: Final = (
    Goal("1 partition against the plain program", (WRITE_1, "commands_per_s"), (PLAIN, "commands_per_s"), 0.6, True),
    Goal("2 partitions against the plain program", (WRITE_2, "commands_per_s"), (PLAIN, "commands_per_s"), 0.9, True),
    Goal(
        "commands against eventsourcing on SQLite",
        (WRITE_2, "commands_per_s"),
        ("peers/eventsourcing save?store=sqlite", "commands_per_s"),
        12.0,
        True,
    ),
    Goal(
        "commands against UmaDB at 64 in flight",
        ("peers/rayfold?depth=64", "commands_per_s"),
        ("peers/umadb?depth=64", "commands_per_s"),
        2.0,
        True,
    ),
    Goal(
        "read your writes against eventsourcing",
        ("freshness/execute then ask after", "latency_ms_p50"),
        ("peers/eventsourcing save then wait?store=memory", "latency_ms_p50"),
        0.05,
        False,
    ),
    Goal(
        "one command at a time against a null call and a commit",
        ("latency/one at a time", "latency_ms_p50"),
        ("ceiling/null call and synced commit", "latency_ms_p50"),
        1.6,
        False,
    ),
    Goal(
        "queries pipelined, one replica",
        ("read/saturated reads?depth=4096&replicas=1", "queries_per_s"),
        None,
        150_000,
        True,
    ),
    Goal(
        "projection catch-up, one core",
        ("replay/projection rebuild?events=100000", "events_per_s"),
        None,
        200_000,
        True,
    ),
    Goal(
        "projection catch-up against eventsourcing in memory",
        ("replay/projection rebuild?events=100000", "events_per_s"),
        ("peers/eventsourcing catch-up?store=memory", "events_per_s"),
        2.0,
        True,
    ),
    Goal("ack to visible at half of saturation", ("freshness/visible?load=0.5", "visible_ms_p99"), None, 20.0, False),
    Goal(
        "commands at the largest log against 100 thousand events",
        ("replay/commands after?size=largest", "commands_per_s"),
        ("replay/commands after?size=100000", "commands_per_s"),
        0.8,
        True,
    ),
)
"""The table of what has to come out on two cores, all with an fsync before every acknowledgement."""
