"""The experiment behind decision 5: two batches in flight, against one and three."""

from __future__ import annotations

from typing import Final

from .saturated import Variant, compare

OTHERS: Final = {
    "one batch in flight": Variant(batches_in_flight_max=1),
    "three batches in flight": Variant(batches_in_flight_max=3),
}


if __name__ == "__main__":
    compare(OTHERS)
