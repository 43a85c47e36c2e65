"""The experiment behind decision 13: batches in halves, against batches as they come."""

from __future__ import annotations

from typing import Final

from rayfold.runtime.batch_queue import BatchQueue, Item

from .saturated import THROUGH_RAY, Variant, compare


class WholeBatches(BatchQueue[Item]):
    """Whatever waits leaves as one batch, however little it is, as soon as there is room in flight."""

    def _leaving(self) -> int:
        return 1 if self._waiting and self._in_flight < self._in_flight_max else 0


OTHERS: Final = {
    "batches as they come": Variant(queue=WholeBatches),
    "through Ray alone": Variant(THROUGH_RAY),
    "through Ray, batches as they come": Variant(THROUGH_RAY, queue=WholeBatches),
}


if __name__ == "__main__":
    compare(OTHERS)
