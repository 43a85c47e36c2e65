"""One Ray for all tests of this folder, as for all cases of a run; each case makes its stores in its test's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayfold.benchmarks.harness.contract import Options
from rayfold.benchmarks.suites.running import shared_ray, stop_shared_ray


@pytest.fixture(scope="session")
def ray_of_the_run() -> Iterator[None]:
    shared_ray()
    yield
    stop_shared_ray()


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., Options]:
    """Tiny ones: a fifth of a second, the smallest grid."""

    def make(**changes: Any) -> Options:
        chosen: dict[str, Any] = {
            "directory": tmp_path / "run",
            "seconds": 0.2,
            "quick": True,
            "seed": 7,
            "partitions": (1,),
            "replicas": (0, 1),
        }
        return Options(**chosen | changes)

    return make
