"""What a torture scenario is: the fourteen invariants, what a scenario is given, and what it finds.

A scenario injects one kind of fault into the real thing, lets a seeded workload run over it, and looks afterwards
whether the invariants hold. It is a function of a `Context`, which notes `Findings`. The short form takes seconds and
runs with the tests, the long form takes as long as it is given and is what `rayfold torture` runs. `@scenario` above a
function names it, and makes it known.

Rules kept here:
- an invariant that was checked and held is a number too: `Findings.check` counts both, so that a scenario that
  checked nothing cannot pass for one that found nothing
- what a scenario needs of the machine is declared, and where it is missing the scenario is skipped with the reason
- the same seed gives the same faults; only what the machine's timing decides differs. A moment is chosen once, before
  it is waited for, and every wait has a deadline
- an invariant that a scenario is about and has not checked is a fault of the scenario's design, whatever the seed
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, wraps
from importlib import import_module
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Any, Final, Literal, NamedTuple

Invariant = Literal["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11", "I12", "I13", "I14"]
Scale = Literal["short", "long"]
Need = Literal["strace", "mount", "faketime", "netns"]
Figure = int | float | str

INVARIANTS: Final[dict[Invariant, str]] = {
    "I1": "what was acknowledged is present, byte for byte, with a good checksum",
    "I2": "one command id has at most one effect",
    "I3": "the versions of a stream are 1..n",
    "I4": "positions have no gaps, and every reader sees a prefix",
    "I5": "a read model is the fold of the log up to its position",
    "I6": "an older epoch appends nothing after a newer one",
    "I7": "what was rejected never appears in the log, and unknown is an outcome of its own",
    "I8": "what was acknowledged before another command began has the lower version",
    "I9": "the reads of a session never go back, and see its own writes when asked to",
    "I10": "damage is an error, never data",
    "I11": "processes, memory, queues and files stay bounded",
    "I12": "recovery takes a bounded time, which is reported",
    "I13": "an input of a process is taken in once; what it sends is executed or refused once, and it gets the outcome",
    "I14": "no timer fires before it is due, and what processes move is conserved",
}
"""What is checked after a scenario, each as a number."""

VIOLATIONS_MAX: Final = 100
"""Listed by one scenario; the rest is counted. The first few show what is wrong."""

OWN_MOUNTS: Final = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-rm")
"""Runs a command with mounts of its own, which end with it; without root in a user namespace of its own."""

_YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
"""Who may trace whom: from 2 on only root may. Under 1 only ancestors, or whom a process names: our children do."""

_FAKETIME: Final = "faketime/libfaketime.so.1"

MODULES: Final[dict[str, str]] = {
    "simulation": "simulation.running",
    "connections": "simulation.running",
    "control-plane": "simulation.control_running",
    "kill-in-commit": "storage.system_calls",
    "power-cut": "storage.power_cut",
    "disk-errors": "storage.system_calls",
    "disk-full": "storage.full",
    "map-full": "storage.full",
    "no-permission": "storage.full",
    "long-readers": "storage.readers",
    "bit-flips": "storage.damage",
    "swapped-files": "storage.replaced",
    "hostile-input": "storage.hostile",
    "pickles": "storage.pickles",
    "clock-set-back": "storage.clock",
    "another-format": "storage.replaced",
    "interrupted-creation": "storage.system_calls",
    "kill-parts": "local.kills",
    "kill-program": "local.kills",
    "kill-couriers": "local.process_kills",
    "kill-effects": "local.process_kills",
    "kill-owner": "local.clients",
    "stop-and-resume": "local.kills",
    "rogue-aggregates": "local.rogues",
    "poisoned-projection": "local.rogues",
    "hostile-road": "local.socket_faults",
    "lost-calls": "local.lost_calls",
    "hostile-broadcast": "local.broadcast_faults",
    "doors": "local.access",
    "overload": "local.overload",
    "hot-and-slow": "local.overload",
    "kill-nodes": "cluster.kills",
    "kill-head": "cluster.kills",
    "kill-all-nodes": "cluster.kills",
    "kill-cluster-parts": "cluster.kills",
    "kill-deployer": "cluster.kills",
    "lose-raylets": "cluster.raylets",
    "two-of-one": "cluster.raylets",
    "interrupted-moves": "cluster.interrupted_moves",
    "lost-shares": "cluster.lost_shares",
    "cut-off": "cluster.cut_off",
}
"""Scenario -> the module of this folder that has it, in the order in which all are run."""


class NotReached(Exception):
    """A scenario has ended without having tried, or checked, what it is about: its own fault, whatever it found."""

    def __init__(self, what: str, findings: Findings) -> None:
        super().__init__(what)
        self.findings = findings


class Violation(NamedTuple):
    """An invariant that did not hold."""

    invariant: Invariant
    what: str
    """One line of facts: where, what was expected, what was found."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a scenario is given."""

    seed: int
    rng: random.Random
    """Seeded with `seed`; where a scenario starts processes, it hands on numbers drawn from it."""
    folder: Path
    """An empty folder of the scenario's own, removed by the code that made it."""
    scale: Scale
    deadline: float
    """By `time.monotonic()`. A long form repeats itself until then; a short form ends by itself much earlier."""

    @property
    def short(self) -> bool:
        """Whether this is the form of seconds."""
        return self.scale == "short"

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def rounds(self, most: int = 1_000_000, *, short: int = 1) -> Iterator[int]:
        """`short` of them in the short form; in the long form again and again, `most` at the most, as long as there is
        time for another one that takes as long as the longest so far."""
        longest_s = 0.0
        for number in range(short if self.short else most):
            began_s = time.monotonic()
            yield number
            longest_s = max(longest_s, time.monotonic() - began_s)
            if not self.short and self.left_s < longest_s:
                return


@dataclass(slots=True)
class Findings:
    """What came of a scenario. No violations and a check of each invariant that it is about: it has passed."""

    figures: dict[str, Figure] = field(default_factory=dict)
    """By name, units last: `states_tried`, `losses`, `recovery_ms_p50`."""
    violations: list[Violation] = field(default_factory=list)
    unlisted: int = 0
    """Violations beyond the listed ones."""
    checks: dict[Invariant, int] = field(default_factory=dict)
    """How many times each invariant was checked."""
    skipped: str = ""
    """Why the scenario cannot run here; empty if it ran. What is left out of it stands in the figure `without`."""
    unreached: list[str] = field(default_factory=list)
    """What the scenario was to try and has not: a fault of its design, not of what it tries."""

    def check(self, invariant: Invariant, holds: bool, what: str | Callable[[], str]) -> bool:
        """Check an invariant once: count it, note a violation if it does not hold, and return whether it held."""
        self.checks[invariant] = self.checks.get(invariant, 0) + 1
        if not holds:
            self.violate(invariant, what if isinstance(what, str) else what())
        return holds

    def reach(self, reached: bool, what: str) -> None:
        """Note that the scenario has come to what it was to try, or not: `what` describes the latter."""
        if not reached:
            self.unreached.append(what)

    def violate(self, invariant: Invariant, what: str) -> None:
        """Note that an invariant does not hold."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(invariant, what))
        else:
            self.unlisted += 1

    def count(self, figure: str, more: int = 1) -> None:
        """Add to a figure that is a count."""
        present = self.figures.get(figure, 0)
        assert isinstance(present, int)
        self.figures[figure] = present + more

    def note(self, figure: str, values: Iterable[float], shares: str = "p50 max", of: str = "") -> None:
        """Figures of these values: the shares that are named, as in `recovery_ms_p50`, each with `of` behind it."""
        ordered = sorted(values)
        for share in shares.split():
            self.figures[f"{figure}_{share} {of}".rstrip()] = quantile(ordered, _SHARES[share])

    def include(self, part: Findings) -> None:
        """Take over what a part of the scenario found: counts of the same name add up, other figures are replaced."""
        for name, value in part.figures.items():
            present = self.figures.get(name, 0)
            both = isinstance(value, int) and isinstance(present, int)
            self.figures[name] = present + value if both else value  # type: ignore[operator]
        for violation in part.violations:
            self.violate(*violation)
        self.unlisted += part.unlisted
        for invariant, times in part.checks.items():
            self.checks[invariant] = self.checks.get(invariant, 0) + times
        self.skipped = self.skipped or part.skipped
        self.unreached += part.unreached

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> Findings:
        """From `asdict`, on its way from another process."""
        return cls(**{**parts, "violations": [Violation(*one) for one in parts["violations"]]})

    @property
    def broken(self) -> dict[Invariant, int]:
        """Listed violations by invariant, 0 for one that was checked and held."""
        numbers = dict.fromkeys(self.checks, 0)
        for violation in self.violations:
            numbers[violation.invariant] = numbers.get(violation.invariant, 0) + 1
        return numbers

    @property
    def passed(self) -> bool:
        """Whether it checked something and found nothing wrong. A skipped scenario has not passed."""
        return bool(self.checks) and not self.violations and not self.unreached


_SHARES: Final = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values; 0 for none."""
    return round(values[min(len(values) - 1, int(len(values) * share))], 1) if values else 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of fault."""

    name: str
    """For `--scenario`: lower case, with hyphens, `power-cut`."""
    title: str
    """One line: which fault, into what."""
    run: Callable[[Context], Findings]
    """Does all of it, leaves no process behind, and raises only for its own bugs."""
    needs: tuple[Need, ...] = ()
    invariants: tuple[Invariant, ...] = ()
    """Those it checks: after a run that was not skipped each has been checked at least once."""
    short_s: float = 5.0
    """About how long the short form, and one step of the long form, takes on two busy cores: for progress and for
    sharing out the time. A run that has less time than this left does not begin with it."""
    long_s: float = 60.0
    """How long the long form needs at least to be worth its while."""
    weight: float = 1.0
    """Its share of the time that a long run has."""


Body = Callable[[Context, Findings], Coroutine[Any, Any, None] | None]
"""What a scenario does: a function, or a coroutine that is run in an event loop of its own."""

_known: Final[dict[str, Scenario]] = {}


def scenario(
    name: str,
    title: str,
    invariants: str,
    *,
    counts: str = "",
    needs: tuple[Need, ...] = (),
    times: tuple[float, float, float],
) -> Callable[[Body], Body]:
    """Makes a function a scenario. `invariants`: their names, with spaces between. `counts`: the figures that begin at
    0. `times`: `short_s`, `long_s` and `weight`. All else: see `Scenario`."""
    checked: Any = tuple(invariants.split())
    assert set(checked) <= INVARIANTS.keys(), f"{name} checks what is not an invariant"

    def register(body: Body) -> Body:
        @wraps(body)
        def run(context: Context) -> Findings:
            findings = Findings(dict.fromkeys(counts.split(), 0))
            doing = body(context, findings)
            if doing is not None:
                asyncio.run(doing)
            return findings

        assert name not in _known, f"two scenarios have the name {name}"
        _known[name] = Scenario(name, title, run, needs, checked, *times)
        return body

    return register


def scenario_named(name: str) -> Scenario | None:
    """The scenario of that name, if there is one. Imports its module."""
    if name in MODULES:
        import_module(f"{__package__}.{MODULES[name]}")
    return _known.get(name)


def scenarios() -> tuple[Scenario, ...]:
    """All scenarios, in the order in which they are run. Imports their modules."""
    return tuple(filter(None, map(scenario_named, MODULES)))


@cache
def missing(need: Need) -> str:
    """Why this machine does not have what a scenario needs; empty if it does."""
    if need == "faketime":
        return "" if faketime_library() else "needs libfaketime, which is not installed"
    if need == "mount":
        mounted = _works([*OWN_MOUNTS, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"])
        return "" if mounted else "needs to mount a small file system, which is not allowed here"
    if need == "netns":
        if shutil.which("ip") is None:
            return "needs ip (iproute2), which is not installed"
        return "" if _networks() else "needs network namespaces, which may not be made here"
    if shutil.which("strace") is None:
        return "needs strace, which is not installed"
    allowed = os.geteuid() == 0 or not _YAMA.exists() or int(_YAMA.read_text()) < 2
    traces = allowed and _works(["strace", "-qq", "-e", "trace=none", "true"])
    return "" if traces else "needs strace, which may not trace processes here (ptrace is not allowed)"


def _networks() -> bool:
    """Whether a namespace, cables and a switch can be made: all are made once and removed."""
    name = f"rayfold-{os.getpid()}-try"
    links = (["switch", "type", "bridge"], ["port0", "type", "veth", "peer", "name", "port1"])
    commands = [["ip", "netns", "add", name], *(["ip", "-n", name, "link", "add", "name", *link] for link in links)]
    try:
        return all(map(_works, commands))
    finally:
        _works(["ip", "netns", "del", name])


def _works(command: list[str]) -> bool:
    """Whether a command that changes nothing is there and may be run."""
    return shutil.which(command[0]) is not None and run(command, stdout=DEVNULL, stderr=DEVNULL).returncode == 0


def faketime_library() -> Path | None:
    """libfaketime, where Linux distributions put it."""
    places = (found for folder in ("lib", "lib64", "local/lib") for found in Path("/usr", folder).glob(_FAKETIME))
    return next(places, None) or next(Path("/usr/lib").glob(f"*/{_FAKETIME}"), None)


def perform(scenario: Scenario, context: Context) -> Findings:
    """Run a scenario, or return why it cannot be run here. Raises what its own bugs raise, and `NotReached`."""
    reason = next(filter(None, map(missing, scenario.needs)), "")
    if reason:
        return Findings(skipped=reason)
    findings = scenario.run(context)
    faults = list(findings.unreached)
    if blind := [one for one in scenario.invariants if not findings.checks.get(one)]:
        faults.append(f"{scenario.name} has not checked {', '.join(blind)}")
    if faults and not findings.skipped:
        raise NotReached("; ".join(faults), findings)
    return findings
