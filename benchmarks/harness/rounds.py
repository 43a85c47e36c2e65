"""Rounds: every case once per round, in another order each time, so that whatever the machine does hits all alike.

A case measured five times in a row has five times the same neighbour, the same temperature and the same noisy hour, and
its values agree with one another more than with the truth. The order of a round comes from the seed alone.

Rules kept here: what was measured is never lost, whatever ends the run: it is in the `Record` from the moment the case
returned. A case that broke an invariant is measured again (it may break another), one that raised is not.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .conditions import Conditions
from .contract import Case, Options, Sample


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    first: Sequence[Case]
    """The load generator against a null system: before all others in every round, in this order."""
    cases: Sequence[Case]
    rounds: int
    budget_s: float | None
    """A round that would end later than this is not begun; None: as long as it takes."""
    case_timeout_s: float
    """A case that takes longer is given up: it hangs."""

    @property
    def all(self) -> list[Case]:
        """Every case."""
        return [*self.first, *self.cases]


@dataclass(frozen=True, slots=True)
class Measured:
    """One call of a case."""

    round: int
    seconds: float
    sample: Sample
    conditions: Conditions | None


@dataclass(slots=True)
class Record:
    """Everything measured so far, by key of the case."""

    measured: dict[str, list[Measured]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    rounds_begun: int = 0
    out_of_time: bool = False
    """The budget ended it before the last round."""


class Spectator(Protocol):
    """What shows the progress."""

    def begun(self, case: Case, round_: int, left_s: float) -> None:
        """A case begins; so long will all the rest take, this one included."""

    def ended(self, case: Case, done: int, total: int) -> None:
        """It has ended, well or not."""

    def ceilings(self, record: Record) -> None:
        """The load generator has been measured against the null system."""


class MachineWatcher(Protocol):
    """Who sees how busy the machine is: a `Watcher`."""

    def begin(self) -> None:
        """A sample begins."""

    def end(self) -> Conditions | None:
        """It has ended."""


def order_of(plan: Plan, round_: int, seed: int) -> list[Case]:
    """The order of one round: the same for the same seed."""
    shuffled = list(plan.cases)
    random.Random(f"{seed}/{round_}").shuffle(shuffled)
    return [case for case in (*plan.first, *shuffled) if not case.skip]


def remaining_s(record: Record, ahead: Iterable[Case], guess_s: float) -> float:
    """How long the cases ahead will take: each as long as it did, the unknown ones as long as the others on average."""
    took = {key: sum(one.seconds for one in calls) / len(calls) for key, calls in record.measured.items() if calls}
    average = sum(took.values()) / len(took) if took else guess_s
    return sum(took.get(case.key, average) for case in ahead)


async def measure_all(
    plan: Plan,
    options: Options,
    record: Record,
    eyes: MachineWatcher,
    spectator: Spectator,
    before_each: Callable[[], None],
) -> None:
    """Measure every case in every round, into the record. Returns early on Ctrl-C and at the end of the budget."""
    begun_s = time.monotonic()
    for round_ in range(plan.rounds):
        order = [case for case in order_of(plan, round_, options.seed) if case.key not in record.errors]
        round_s = remaining_s(record, order, options.seconds) if round_ else 0.0
        if plan.budget_s is not None and time.monotonic() - begun_s + round_s > plan.budget_s:
            record.out_of_time = True
            return
        record.rounds_begun = round_ + 1
        for place, case in enumerate(order):
            left_s = remaining_s(record, [*order[place:], *order * (plan.rounds - round_ - 1)], options.seconds + 1.5)
            spectator.begun(case, round_, left_s)
            before_each()
            try:
                await _measure(case, round_, plan.case_timeout_s, options, record, eyes)
            except asyncio.CancelledError:
                record.interrupted = True
                if task := asyncio.current_task():
                    task.uncancel()
                return
            spectator.ended(case, round_ * len(order) + place + 1, plan.rounds * len(order))
            if place + 1 == len(plan.first) and not round_:
                spectator.ceilings(record)


async def _measure(
    case: Case, round_: int, timeout_s: float, options: Options, record: Record, eyes: MachineWatcher
) -> None:
    eyes.begin()
    begun_s = time.monotonic()
    try:
        sample = await asyncio.wait_for(case.measure(options), timeout_s)
    except TimeoutError:
        record.errors[case.key] = f"gave no figure within {timeout_s:,.0f} s"
        return
    except Exception as error:  # whatever a peer or a case raises is a result, shown as one
        record.errors[case.key] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return
    measured = Measured(round_, time.monotonic() - begun_s, sample, eyes.end())
    if wrong := [name for name, figure in sample.figures.items() if not math.isfinite(figure.value)]:
        record.errors[case.key] = f"{wrong[0]} is {sample.figures[wrong[0]].value}"
        return
    record.measured.setdefault(case.key, []).append(measured)
