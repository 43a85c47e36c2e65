"""Frames: how an attempt and its answer follow one another on the socket between a client and a partition.

Each is a header of fixed size, which holds the length of the rest, and that rest: a batch or its outcomes in msgpack.
"""

from __future__ import annotations

import struct
from typing import Final

from ..batch_queue import BATCH_BYTES_MAX, BATCH_ITEMS_MAX
from .codec import MESSAGE_BYTES_MAX
from .outcome import ERROR_BYTES_MAX

__all__ = ["ANSWER", "ANSWER_BYTES_MAX", "REQUEST", "REQUEST_BYTES_MAX"]

REQUEST: Final = struct.Struct(">I16sQQ")
"""The header of an attempt: length of the batch, client, attempt, predecessor (see `partition/request_order.py`)."""

ANSWER: Final = struct.Struct(">IQ")
"""The header of an answer: length of the outcomes, attempt."""

REQUEST_BYTES_MAX: Final = max(BATCH_BYTES_MAX, MESSAGE_BYTES_MAX + 4096)
"""Largest size of a batch: one that exceeds the batcher's limit is a single message of the largest size, with its
address."""

ANSWER_BYTES_MAX: Final = BATCH_ITEMS_MAX * (ERROR_BYTES_MAX + 1024)
"""The size of the outcomes of a batch, if every one of them is the largest of errors."""
