"""What tests of an application use: a system in memory, and specifications.

`docs/testing.md` is the guide. Importing this imports neither ray nor lmdb, and pytest only where a fixture is made.
"""

from __future__ import annotations

from .actors.api.memory_runtime import (
    BlockingMemoryRuntime,
    MemoryRuntime,
    SystemOptions,
    fixture,
    fixture_blocking,
    system,
    system_blocking,
)
from .actors.memory.clock import Clock
from .runtime.testing import given, on

__all__ = [
    "BlockingMemoryRuntime",
    "Clock",
    "MemoryRuntime",
    "SystemOptions",
    "fixture",
    "fixture_blocking",
    "given",
    "on",
    "system",
    "system_blocking",
]
