"""What tests of an application use: a system in memory, specifications, and their exploration.

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
from .runtime.exploration.explore import Explored, explore
from .runtime.testing import given, on

__all__ = [
    "BlockingMemoryRuntime",
    "Clock",
    "Explored",
    "MemoryRuntime",
    "SystemOptions",
    "explore",
    "fixture",
    "fixture_blocking",
    "given",
    "on",
    "system",
    "system_blocking",
]
