"""Which aggregate a command is for: uniform, zipfian, or all to one hot stream.

Rule kept here: a distribution is a pure function of its seed, drawn in full before anything is measured.

The zipfian one is that of YCSB (Cooper et al., 2010): the key of rank r is drawn with weight 1 / r^0.99, and ranks are
scattered over the keys, so that the hot ones are not neighbours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final

ACCOUNTS: Final = 1_000
"""Different keys: all of them stay resident, so that loading is not what is measured (the replay suite does that)."""

DRAWN: Final = 65_536
"""Keys drawn; they are gone through over and over."""

ZIPF_EXPONENT: Final = 0.99


def names(count: int = ACCOUNTS) -> list[str]:
    """The keys there are: `account-000000`, …"""
    return [f"account-{number:06d}" for number in range(count)]


def draw(distribution: str, seed: int, count: int = ACCOUNTS, drawn: int = DRAWN) -> list[str]:
    """`drawn` keys out of `count`. Raises `KeyError` for a distribution that is not in `DISTRIBUTIONS`."""
    return DISTRIBUTIONS[distribution](random.Random(f"{distribution}/{seed}"), names(count), drawn)


def _uniform(chosen: random.Random, keys: list[str], drawn: int) -> list[str]:
    return chosen.choices(keys, k=drawn)


def _zipfian(chosen: random.Random, keys: list[str], drawn: int) -> list[str]:
    scattered = chosen.sample(keys, len(keys))
    weights = [1 / rank**ZIPF_EXPONENT for rank in range(1, len(keys) + 1)]
    return chosen.choices(scattered, weights, k=drawn)


def _hot(chosen: random.Random, keys: list[str], drawn: int) -> list[str]:
    return keys[:1] * drawn


DISTRIBUTIONS: Final[Mapping[str, Callable[[random.Random, list[str], int], list[str]]]] = {
    "uniform": _uniform,
    "zipfian": _zipfian,
    "hot": _hot,
}
