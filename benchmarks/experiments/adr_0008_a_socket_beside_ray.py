"""The experiment behind decision 8: a socket beside Ray, against Ray alone."""

from __future__ import annotations

from typing import Final

from .saturated import THROUGH_RAY, Variant, compare

OTHERS: Final = {"through Ray alone": Variant(THROUGH_RAY)}


if __name__ == "__main__":
    compare(OTHERS)
