"""Story: what happens in one simulation: who sends what and when, and what goes wrong. All of it drawn from a seed.

A story is plain data, so that parts of it can be left out: that is how a failing one is made short.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

__all__ = ["Act", "Fault", "SocketTrouble", "Story", "draw", "shortest", "told"]

PARTITIONS: Final = 2
CLIENTS: Final = 3
PURSES: Final = 4
LASTS_MS: Final = 4_000
ACTS: Final = (20, 60)
FAULTS_MAX: Final = 6

Kind = Literal["put", "take", "ask"]
Trouble = Literal[
    "kill partition",
    "kill before commit",
    "kill after commit",
    "two copies",
    "full disk",
    "kill projector",
    "broadcast lost",
    "broadcast repeated",
    "calls lost",
    "answers lost",
    "calls late",
]
SocketTrouble = Literal[
    "connections cut",
    "bytes late",
    "server full",
    "moved",
    "kept away",
    "own actor",
    "own actor killed",
    "loading",
    "client detached",
]
"""Of the stories of `socket_world.py` alone."""

TROUBLES: Final[tuple[Trouble, ...]] = Trouble.__args__  # type: ignore[attr-defined]


class Act(NamedTuple):
    """One command or query of one client."""

    number: int
    """Names it, and is its command id."""
    at_ms: int
    client: int
    kind: Kind
    purse: int
    amount: int
    careful: bool
    """A command that expects the version of the client's last receipt; a query after that receipt."""


class Fault(NamedTuple):
    """One trouble, for a while."""

    at_ms: int
    trouble: Trouble | SocketTrouble
    partition: int
    for_ms: int


@dataclass(frozen=True, slots=True)
class Story:
    """What happens."""

    seed: int
    """Decides how long each message takes, and which are hit while there is trouble."""
    acts: tuple[Act, ...]
    faults: tuple[Fault, ...]


def draw(seed: int) -> Story:
    """The story of a seed. Each has only some of the troubles, purses and kinds of acts, which finds more than an
    even mixture does (Groce et al., "Swarm Testing", 2012)."""
    rng = random.Random(seed)
    troubles = rng.sample(TROUBLES, rng.choice((1, 2, 3, len(TROUBLES))))
    purses = rng.randint(1, PURSES)
    kinds: dict[Kind, int] = {"put": 5, "take": rng.choice((1, 4, 12)), "ask": 3}
    acts = draw_acts(rng, lambda: rng.randrange(LASTS_MS), CLIENTS, kinds, purses, careful=0.3)
    faults = [
        Fault(rng.randrange(LASTS_MS), rng.choice(troubles), rng.randrange(PARTITIONS), rng.randrange(50, 1_500))
        for _ in range(rng.randint(0, FAULTS_MAX))
    ]
    return Story(seed, acts, tuple(sorted(faults)))


def draw_acts(
    rng: random.Random, at_ms: Callable[[], int], clients: int, kinds: dict[Kind, int], purses: int, *, careful: float
) -> tuple[Act, ...]:
    """What the clients of a story do, in the order of time. `kinds`: how often each is, beside the others."""
    acts = [
        Act(
            number + 1,
            at_ms(),
            rng.randrange(clients),
            rng.choices(list(kinds), list(kinds.values()))[0],
            rng.randrange(purses),
            rng.randrange(1, 60),
            rng.random() < careful,
        )
        for number in range(rng.randint(*ACTS))
    ]
    return tuple(sorted(acts, key=lambda act: act.at_ms))


def probes(first: int, at_s: float, kind: Kind, *, careful: bool) -> tuple[Act, ...]:
    """One act of each client with each purse, when nothing is wrong any more."""
    pairs = enumerate(itertools.product(range(CLIENTS), range(PURSES)), first)
    return tuple(Act(number, int(at_s * 1000), client, kind, purse, 1, careful) for number, (client, purse) in pairs)


def shortest(story: Story, fails: Callable[[Story], bool], tries_max: int = 400) -> Story:
    """A story that still fails when no act and no fault of it can be left out (Zeller, "delta debugging"), or the
    best that so many tries have found."""
    tries = 0

    def still(shorter: Story) -> bool:
        nonlocal tries
        tries += 1
        return tries <= tries_max and fails(shorter)

    size = max(1, len(story.acts) // 2)
    while size:
        story, smaller = _without(story, size, still)
        size = size // 2 if not smaller or size > 1 else size
    return story


def _without(story: Story, size: int, still: Callable[[Story], bool]) -> tuple[Story, bool]:
    """Leave out stretches of so many acts, and of so many faults, wherever that still fails."""
    before = story
    for what in ("acts", "faults"):
        at = 0
        while at < len(getattr(story, what)):
            kept = getattr(story, what)
            shorter = replace(story, **{what: kept[:at] + kept[at + size :]})
            if still(shorter):
                story = shorter
            else:
                at += size
    return story, story != before


def told(story: Story) -> list[str]:
    """The story as lines, in the order in which things happen."""
    lines = [
        (act.at_ms, f"{act.at_ms:5} ms  client {act.client}: {act.kind} {act.amount} purse-{act.purse}"
         f"{' carefully' if act.careful else ''} (number {act.number})")
        for act in story.acts
    ]  # fmt: skip
    lines += [
        (fault.at_ms, f"{fault.at_ms:5} ms  {fault.trouble}, partition {fault.partition}, for {fault.for_ms} ms")
        for fault in story.faults
    ]
    return [f"seed {story.seed}", *(line for _, line in sorted(lines))]
