"""Aggregates: how a class of aggregates is explored: the steps that Hypothesis makes, and one trial of them.

Beside step [4] of the write path. Before it: `explore`. After it: `trial.py`, which runs the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from ..domain.aggregate import Aggregate, Woken
from ..domain.messages import Command
from ..encoding.catalogue import Catalogue
from .specification import printed
from .strategies import Maker, Strategy
from .trial import Broken, Invariant, Step, Tally, Trial

__all__ = ["AggregateExploration"]

_CHUNK: Final = 10
"""Steps that are drawn together. Hypothesis makes short lists by itself; of several, long histories come often."""

_SENDS: Final = 9
"""Commands to each repeat, saving and crash."""


class Steps(NamedTuple):
    """The steps of one trial."""

    steps: list[Step]
    often: bool
    """Whether states are folded after each of them."""


class AggregateExploration:
    """The `Exploration` of a class of aggregates."""

    def __init__(
        self, subject: type[Aggregate], invariants: Sequence[Invariant], ids: Sequence[str], maker: Maker
    ) -> None:
        """Raises `DefinitionError` if a command cannot be made."""
        commands = [command for command in subject.deciders if command is not Woken]
        self.tally = Tally([command.message_name for command in commands])
        self._subject, self._invariants, self._ids = subject, invariants, ids
        self._catalogue = Catalogue([subject])
        self._commands = {command: maker.commands(command) for command in commands}

    def steps(self, most: int) -> Strategy:
        """At most so many steps. Half of the examples have commands of some classes alone (Groce et al., *Swarm
        testing*, 2012): a history in which nothing is closed comes to what one with all commands hardly ever does."""
        everything = list(self._commands)
        some = st.sets(st.sampled_from(everything), min_size=1).map(
            lambda chosen: [*filter(chosen.__contains__, everything)]
        )
        made: dict[tuple[type[Command], ...], Strategy] = {}  # a strategy is slow to make

        def steps_of(chosen: list[type[Command]]) -> Strategy:
            key = tuple(chosen)
            if key not in made:
                made[key] = self._steps_of(chosen, most)
            return made[key]

        return st.builds(Steps, st.one_of(st.just(everything), some).flatmap(steps_of), st.booleans())

    def _steps_of(self, commands: Sequence[type[Command]], most: int) -> Strategy:
        """Steps with these commands. Where some commands create, such ones often come first."""
        deciders = self._subject.deciders
        sends = self._sends([self._commands[command] for command in commands])
        kinds = [sends] * _SENDS + [_AGAIN, _SAVE, _CRASH]
        usual = st.sampled_from(kinds).flatmap(lambda kind: kind)
        chunks = [st.lists(usual, max_size=min(_CHUNK, most - begun)) for begun in range(0, most, _CHUNK)]
        if self._subject.creation_restricted:
            creating = [made for command, made in self._commands.items() if deciders[command].creates]
            first = st.lists(self._sends(creating), max_size=min(len(self._ids), most))
            chunks.insert(0, first)
        return st.tuples(*chunks).map(lambda drawn: [step for chunk in drawn for step in chunk][:most])

    def run(self, steps: Steps) -> Broken | None:
        """One trial: the first thing that was not true, or None."""
        self.tally.examples += 1
        trial = Trial(self._subject, self._catalogue, self._invariants, self.tally, steps.often)
        try:
            for step in steps.steps:
                if step.kind != "send" or step.command is not None:
                    trial.take(step)
            trial.end()
        except Broken as broken:
            return broken
        return None

    def simpler(self, steps: Steps) -> Iterator[Steps]:
        """The same with one aggregate, and with one step less."""
        first = self._ids[0]
        if any(step.id not in ("", first) for step in steps.steps):
            yield steps._replace(steps=[step._replace(id=step.id and first) for step in steps.steps])
        for number in reversed(range(len(steps.steps))):
            yield steps._replace(steps=steps.steps[:number] + steps.steps[number + 1 :])

    def printed(self, broken: Broken) -> str:
        """What was found, as a specification."""
        return printed(self._subject, broken, self._invariants)

    def _sends(self, commands: Sequence[Strategy]) -> Strategy:
        lost = st.sampled_from([False] * 9 + [True])
        return st.builds(_send, st.sampled_from(self._ids), st.one_of(*commands), lost)


def _send(id: str, command: Any, lost: bool) -> Step:
    return Step("send", id, command, lost)


_AGAIN: Final = st.builds(lambda pick: Step("send again", pick=pick), st.integers(0, 1_000))
_SAVE: Final = st.just(Step("save"))
_CRASH: Final = st.builds(lambda lost: Step("crash", lost=lost), st.booleans())
