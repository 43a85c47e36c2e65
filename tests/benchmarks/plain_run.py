"""The flights through partitions and read models as plain Python, without Ray and without a disk."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import batched
from typing import Any

