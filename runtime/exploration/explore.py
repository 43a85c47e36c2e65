"""Explore: commands that Hypothesis makes, over the real write loop, until something breaks.

Beside all steps, for tests of applications; `docs/testing.md` is the guide.

Rules kept here: an exploration is blocking, bounded in examples and steps, starts nothing, touches no disk, and is the
same again under the same seed. What it finds is an `AssertionError` with a specification that fails in the same way.
How a class is explored is in a file of its own (`aggregates.py`): here is what all have in common.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from ..domain.aggregate import Aggregate, Woken
from ..errors import CallerError, InvalidMessage
from ..log.format import stream_id
from ..own_random import OWN
from ..processes.process import Process
from ..stream import is_reserved

__all__ = ["Explored", "explore"]

A = TypeVar("A", bound=Aggregate)

EXAMPLES: Final = 100
STEPS: Final = 40
"""A hundred times ten steps on average: some seconds."""

EXAMPLES_MAX: Final = 1_000_000
STEPS_MAX: Final = 1_000
IDS_MAX: Final = 100

SHRINKING_MAX: Final = 500
"""Attempts to make what was found smaller: by Hypothesis, and once more by leaving out steps. Some seconds too."""

IDS: Final = ("example", "another")
"""The first is the one that `given` has without `id=`, so that it need not be printed."""


class Explored(NamedTuple):
    """What was tried, when nothing broke.

    Example:
        explored = explore(Account, invariant=lambda account: account.balance >= 0)
        assert all(explored.accepted.values())  # each command was accepted at some time
    """

    examples: int
    """Sequences of commands, each from an empty log."""
    accepted: dict[str, int]
    """How many commands were accepted, by name: 0 for those that never were."""
    refused: dict[str, int]
    """How many were refused, by name."""
    repeated: int
    """How many came again and were recognised."""
    crashes: int
    """How often the states in memory were dropped."""
    seed: int
    """What it was made from: the same seed gives the same examples."""


class Exploration(Protocol):
    """How a kind of class is explored: of aggregates by commands."""

    @property
    def tally(self) -> Any:
        """What was done so far: a `Tally`."""

    def steps(self, most: int) -> Any:
        """A strategy for lists of steps."""

    def run(self, steps: Any) -> Any:
        """One trial: a `Broken`, or None."""

    def simpler(self, steps: Any) -> Iterator[Any]:
        """The same with one thing less."""

    def printed(self, broken: Any) -> str:
        """What was found, as a specification with its imports."""


def explore(
    subject: type[A],
    /,
    *,
    invariant: Callable[[A], object] | Sequence[Callable[[A], object]] = (),
    ids: Sequence[str] = IDS,
    strategies: Mapping[Any, Any] | None = None,
    examples: int = EXAMPLES,
    steps: int = STEPS,
    seed: int | None = None,
) -> Explored:
    """Let Hypothesis make commands from the annotated types of their classes, and run them over the real write loop and
    a log in memory: in any order, some twice, with crashes in between. After each step: `@decide` and `@evolve` raise
    nothing but `Rejected`, a state is a fold of its events (also from a snapshot), no command changes another
    aggregate, what comes again is a repeat, what is refused stores nothing, and each invariant holds.

    Of a process it makes the events that it reacts to, outcomes of what it sends, and time: no method raises then, and
    no instance is parked.

    It blocks, for some seconds as a rule, and needs neither Ray nor a disk: `pip install rayfold[testing]`.

    Args:
        subject: The aggregate or process class.
        invariant: A function of an aggregate that exists, or several: it is violated if it returns something false
            (None is true), or raises.
        ids: Of the aggregates that commands are for.
        strategies: Strategies of Hypothesis for commands, or for types of their fields.
        examples: How many sequences are tried.
        steps: How many steps a sequence has at most.
        seed: Of what is made. Without it another one each time, and 0 where `CI` is set in the environment.

    Raises:
        AssertionError: If something is not as it has to be, with the smallest `given(...).when(...).then(...)` that was
            found: pasted into a test it fails in the same way. Also if no command was ever accepted.
        DefinitionError: If Hypothesis cannot make a command, with the remedy.
        CallerError: If Hypothesis is not installed.

    Example:
        def never_overdrawn(account: Account) -> bool:
            return account.balance >= 0

        explore(Account, invariant=never_overdrawn)
    """
    __tracebackhide__ = True
    invariants = _checked(subject, invariant, ids)
    seed = _checked_numbers(examples, steps, seed)
    try:
        import hypothesis  # noqa: F401 - whether it is installed
    except ImportError as error:
        raise CallerError("explore() needs the package hypothesis: pip install rayfold[testing]") from error
    from .trial import without_logs

    with without_logs():
        exploration = _exploration(subject, invariants, ids, strategies or {})
        found = _search(exploration, examples, steps, seed)
        if found is not None:
            text = exploration.printed(found)
            again = f"found with explore({subject.__name__}, ..., seed={seed})"
            raise AssertionError(f"{found.what}\n\n{text}\n\n{again}") from found.error
    tally = exploration.tally
    if not any(tally.accepted.values()):
        refused = sum(tally.refused.values())
        what = f"of {refused:,} commands {subject.__name__} has accepted none, so nothing was tried"
        raise AssertionError(f"{what}; give explore() strategies= for commands that it accepts")
    return Explored(tally.examples, dict(tally.accepted), dict(tally.refused), tally.repeated, tally.crashes, seed)


def _exploration(
    subject: type[Aggregate], invariants: Any, ids: Sequence[str], strategies: Mapping[Any, Any]
) -> Exploration:
    from .aggregates import AggregateExploration
    from .processes import ProcessExploration
    from .strategies import Maker

    maker = Maker(strategies, ids)
    if issubclass(subject, Process):
        return ProcessExploration(subject, invariants, maker)
    return AggregateExploration(subject, invariants, ids, maker)


def _checked_numbers(examples: int, steps: int, seed: int | None) -> int:
    """The seed. Raises `InvalidMessage`."""
    for name, value, most in (("examples", examples, EXAMPLES_MAX), ("steps", steps, STEPS_MAX)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise InvalidMessage(f"{name}= of explore()", f"{value!r} is no number of them", f"give 1 to {most:,}")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise InvalidMessage("seed= of explore()", f"{seed!r} is no whole number")
    if seed is None:
        seed = 0 if os.environ.get("CI") else OWN.getrandbits(32)
    return seed


class _Found(Exception):  # noqa: N818 - a signal inside this file, not an error
    """Something broke, for Hypothesis to make it smaller."""


def _search(exploration: Exploration, examples: int, steps: int, seed: int) -> Any:
    """The smallest `Broken` that was found, or None."""
    import hypothesis

    from .strategies import QUIET

    best: list[_Best] = []
    last: list[_Best] = []
    attempts = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(**QUIET, max_examples=examples, phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink])
    @hypothesis.given(exploration.steps(steps))
    def trial(drawn: Any) -> None:
        nonlocal attempts
        attempts += bool(best)
        if attempts > SHRINKING_MAX:
            return
        broken = exploration.run(drawn)
        if broken is None or (best and best[0].broken.about != broken.about):
            return
        last[:] = [_Best(drawn, broken)]
        if not best or broken.size <= best[0].broken.size:
            best[:] = last
        raise _Found

    try:
        trial()
    except _Found:
        return _with_fewer_steps(exploration, last[0])
    except hypothesis.errors.Flaky:  # what breaks depends on more than the steps
        return _with_fewer_steps(exploration, best[0])
    return None


def _with_fewer_steps(exploration: Exploration, best: _Best) -> Any:
    """The `Broken` with no step that can be left out."""
    attempts, smaller = 0, True
    while smaller:
        smaller = False
        for steps in exploration.simpler(best.steps):
            attempts += 1
            if attempts > SHRINKING_MAX:
                break
            broken = exploration.run(steps)
            if broken is not None and broken.about == best.broken.about:
                best, smaller = _Best(steps, broken), True
                break
    return best.broken


class _Best(NamedTuple):
    """The smallest thing that was found."""

    steps: Any
    broken: Any


def _checked(subject: Any, invariant: Any, ids: Any) -> tuple[Callable[[Any], object], ...]:
    """The invariants. Raises `InvalidMessage` for what cannot be explored, and `InvalidId`."""
    if not isinstance(subject, type) or not issubclass(subject, Aggregate):
        raise InvalidMessage("explore", f"{subject!r} is not an Aggregate class", "give the class itself")
    if issubclass(subject, Process):
        return _checked_invariants(subject, invariant)
    if not subject.deciders:
        raise InvalidMessage("explore", f"{subject.__name__} decides no commands", "give it a @decide method")
    if own := next(
        (
            one
            for one in subject.deciders
            if one is not Woken and (is_reserved(one.message_name) or one.__module__.startswith(_OWN))
        ),
        None,
    ):
        what = f"{subject.__name__} takes inputs of Rayfold's own ({own.__name__})"
        raise InvalidMessage("explore", what, "explore aggregates that decide commands of yours")
    invariants = _checked_invariants(subject, invariant)
    if isinstance(ids, str) or not 1 <= len(ids) <= IDS_MAX:
        raise InvalidMessage("ids= of explore()", f"{ids!r} is no list of ids", f"give 1 to {IDS_MAX} of them")
    for id in ids:
        stream_id(subject.aggregate_type, id)
    return invariants


def _checked_invariants(subject: type[Aggregate], invariant: Any) -> tuple[Callable[[Any], object], ...]:
    invariants = tuple(invariant) if isinstance(invariant, Sequence) else (invariant,)
    for one in invariants:
        if not callable(one):
            raise InvalidMessage(
                "invariant= of explore()", f"{one!r} is no function", f"give a function of the {subject.__name__}"
            )
    return invariants


_OWN: Final = f"{__name__.partition('.exploration')[0]}.domain."
"""Where messages of Rayfold's own are defined."""
