"""Marks: why a figure is not to be trusted as it stands.

Rule kept here: a figure is never dropped or repaired for what the machine did meanwhile; it is marked, in the results,
on the screen, in every plot and in every comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from .conditions import Conditions

COMPUTED: Final = "model"

MEANING: Final[Mapping[str, str]] = {
    "tmpfs": "the data lay in memory: an fsync cost nothing there and saved nothing",
    "busy": "other processes used more than 10 % of the machine's CPU, or other machines more than 2 %, in some round",
    "unwatched": "how busy the machine was could not be seen",
    "generator": "within 80 % of what the load generator reaches against a system that does nothing",
    "short": "fewer rounds than asked for",
    "single": "one round: how much it varies is unknown",
    COMPUTED: "computed by the model and not measured; what was measured stands beside it under `check`",
}
"""What each mark means."""

IN_MEMORY: Final = {"tmpfs", "ramfs"}
OTHERS_MAX: Final = 0.10
STEAL_MAX: Final = 0.02
GENERATOR_MAX: Final = 0.80


def case_marks(
    filesystem: str, conditions: Iterable[Conditions | None], rounds_measured: int, rounds_asked: int
) -> list[str]:
    """The marks of all figures of a case."""
    seen = list(conditions)
    found = {
        "tmpfs": filesystem in IN_MEMORY,
        "busy": any(one is not None and (one.others > OTHERS_MAX or one.steal > STEAL_MAX) for one in seen),
        "unwatched": any(one is None for one in seen),
        "short": rounds_measured < rounds_asked,
        "single": rounds_measured == 1,
    }
    return [mark for mark, is_so in found.items() if is_so]


def generator_marks(figure: str, value: float, ceilings: Mapping[str, float]) -> list[str]:
    """The mark of a throughput that the load generator may have limited; `ceilings` are by figure."""
    ceiling = ceilings.get(figure)
    return ["generator"] if ceiling and value > GENERATOR_MAX * ceiling else []
