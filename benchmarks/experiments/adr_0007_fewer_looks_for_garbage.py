"""The experiment behind decision 7: fewer looks for garbage, against Python's own number of them."""

from __future__ import annotations

from typing import Final

from rayfold.actors.settings import Settings

from .saturated import Variant, compare

OTHERS: Final = {"garbage collector left alone": Variant(Settings(tune_garbage_collector=False))}


if __name__ == "__main__":
    compare(OTHERS)
