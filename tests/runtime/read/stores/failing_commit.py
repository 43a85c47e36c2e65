"""A program whose disk refuses one write of a read model in LMDB: what becomes of the commits after it.

Run under strace, which injects the error. Prints a line for each commit: "stored", or the error.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rayfold.runtime.errors import StorageFailed
from rayfold.runtime.read.stores.lmdb import LmdbStore


class Model:
    """What the store gives its rows to."""


def main() -> None:
    """Ten commits, one after the other."""
    store, model = LmdbStore(), Model()
    store.open(model, Path(sys.argv[1]))
    for number in range(10):
        try:
            store.begin()
            model.__dict__["rows"][str(number)] = number
            store.commit(str(number).encode())
        except StorageFailed as error:
            print(f"failed: {error}", flush=True)
            store.roll_back()
        else:
            print("stored", flush=True)
    store.close()


if __name__ == "__main__":
    main()
