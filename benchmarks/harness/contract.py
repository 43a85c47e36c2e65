"""What a benchmark suite is: the values that pass between the suites, the runner and the report.

A suite is a function `cases(options) -> list[Case]` in `benchmarks/suites/`. The runner takes every case once per round
and goes round again, so that whatever the machine does meanwhile is spread over all cases. A case measures itself once
per call and returns a `Sample`; it starts what it needs, warms up, measures for about `options.seconds`, checks the
invariants, and leaves nothing running.

Rule kept here: a sample with violations has no figures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

LEVELS: Final = ("idle", "half", "saturated")
"""Of load, in order: what one side has while the other is measured."""

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
    events: tuple[int, ...] | None = None
    """In the logs of the replay suite, the smallest first; None: its own sizes."""
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
    function: Callable[..., Awaitable[Sample]]
    """Measures once, given the options and, by name, the parameters. Raises `InvariantsBroken`; and whatever makes the
    whole case impossible here, unless that is known before: then there is `skip`."""
    skip: str = ""
    """Why it cannot run here (`not installed: umadb`); it is then reported as skipped."""
    throughput: bool = False
    """Whether its figures depend on the load generator, whose ceiling is then set against them."""

    @property
    def key(self) -> str:
        """Names the case in results: `write/saturated writes?depth=1024&partitions=2`."""
        setting = "&".join(f"{name}={value}" for name, value in sorted(self.parameters.items()))
        return f"{self.suite}/{self.name}" + (f"?{setting}" if setting else "")

    async def measure(self, options: Options) -> Sample:
        """Measure once."""
        try:
            return await self.function(options, **self.parameters)
        except InvariantsBroken as broken:
            return Sample(violations=broken.violations)


class InvariantsBroken(Exception):
    """What was measured does not count."""

    def __init__(self, violations: list[str]) -> None:
        super().__init__(violations)
        self.violations = violations


def hold(*violations: list[str]) -> None:
    """Raise `InvariantsBroken` if there is a violation among these."""
    if found := [line for lines in violations for line in lines]:
        raise InvariantsBroken(found)


def of_each(
    suite: str,
    name: str,
    function: Callable[..., Awaitable[Sample]],
    settings: Iterable[Mapping[str, Parameter]],
    *,
    skip: str = "",
    throughput: bool = False,
) -> list[Case]:
    """A case for each of these settings; those that are there twice count once."""
    found = [Case(suite, name, setting, function, skip, throughput) for setting in settings]
    return list({case.key: case for case in found}.values())
